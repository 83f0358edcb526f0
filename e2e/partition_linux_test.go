package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// islands is a cluster in which every node has a host of its own.
type islands struct {
	*cluster
	lan    *lan
	home   map[*node]*host
	binary string // that the nodes are, "" is the usual one
}

// newIslands starts mars, http and the game nodes, and waits until all vote.
func newIslands(t *testing.T, games ...string) (*islands, []*node) {
	t.Helper()
	is := &islands{cluster: &cluster{t: t}, lan: newLAN(), home: make(map[*node]*host)}
	is.place = &is.lan.host(t).place // the players are cut off from nobody
	marsHost := is.lan.host(t)
	is.env = []string{"DIARKIS_MESH_MARS_ADDRESS=" + marsHost.addr.String()}
	is.mars = is.settle("mars", marsHost)
	is.http = is.settle("http", is.lan.host(t))
	var nodes []*node
	for _, r := range games {
		nodes = append(nodes, is.settle(r, is.lan.host(t)))
	}
	for _, n := range is.alive() {
		n.waitReady()
	}
	is.waitVoters(len(games) + 2)
	is.waitAgreement()
	return is, nodes
}

// settle starts a node on a host.
func (is *islands) settle(role string, h *host, env ...string) *node {
	is.t.Helper()
	a := h.addr.String()
	n := start(is.t, role, nodeOptions{
		args: []string{"--role=" + role},
		env: append([]string{
			"DIARKIS_MARS_ADDRESS=" + a, "DIARKIS_MESH_ADDRESS=" + a,
			"DIARKIS_HTTP_ADDRESS=" + a, "DIARKIS_UDP_ADDRESS=" + a, "DIARKIS_TCP_ADDRESS=" + a,
			"DIARKIS_MESH_PORT=8000", // as deployed: who starts anew is known by it
		}, append(slices.Clip(is.env), env...)...),
		place: &h.place, binary: is.binary,
	}).waitStarted()
	is.home[n] = h
	return is.add(n)
}

// hosts returns where nodes are.
func (is *islands) hosts(nodes ...*node) []*host {
	var hs []*host
	for _, n := range nodes {
		hs = append(hs, is.home[n])
	}
	return hs
}

// but returns all nodes that run except some.
func (is *islands) but(some ...*node) []*node {
	return slices.DeleteFunc(is.alive(), func(n *node) bool { return slices.Contains(some, n) })
}

// TestPartition cuts two of five nodes off, the authority among them, and heals the
// network: while the two have no authority, or when they have founded a cluster of
// their own.
func TestPartition(t *testing.T) {
	t.Parallel()
	if !privileged(t) {
		return
	}
	for _, heal := range []string{"soon", "late"} {
		t.Run("healed "+heal, func(t *testing.T) {
			t.Parallel()
			is, games := newIslands(t, "udp", "udp", "tcp")
			is.watchLeases()
			few := []*node{is.mars, games[0]}
			many := is.but(few...)
			mine, theirs := is.pairOn(games[0]), is.pairOn(games[1])

			is.lan.part(is.hosts(few...), is.hosts(many...))
			next, took := is.waitRuler(many)
			wantSoon(t, "parted, the majority has an authority after", took, 5*time.Second)
			waitView(is.mars, "has no lease", func(v view) bool { return !v.rules() })
			mine.talk()
			theirs.talk()
			if !is.mars.ready() || !games[0].ready() {
				t.Error("readiness flapped in the minority")
			}
			is.connect("newcomer", "UDP").createRoom() // whoever can't be reached is passed over
			if heal == "late" {
				waitView(next, "hides the minority", func(v view) bool { return v.hides(few...) })
				is.connect("another", "UDP").createRoom()
				took = waitView(is.mars, "founded a cluster of its own", view.rules)
				t.Logf("the minority has an authority of its own after another %.1f s", took.Seconds())
				if !next.rules() {
					t.Error("the majority has no authority any more")
				}
				mine.talk()
				theirs.talk()
			}

			is.lan.heal()
			t.Logf("healed, one directory everywhere after %.1f s", is.waitAgreement().Seconds())
			mine.talk()
			theirs.talk()
			mine.wantStayed()
			theirs.wantStayed()
			is.wantPlay("UDP")
		})
	}
}

// TestOneWayCut drops what the authority sends to the others, or what they send to it.
func TestOneWayCut(t *testing.T) {
	t.Parallel()
	if !privileged(t) {
		return
	}
	for _, direction := range []string{"from the authority", "to the authority"} {
		t.Run(direction, func(t *testing.T) {
			t.Parallel()
			is, games := newIslands(t, "udp", "udp", "tcp")
			is.watchLeases()
			others := is.but(is.mars)
			mine, theirs := is.pairOn(games[0]), is.pairOn(games[1])
			from, to := is.hosts(is.mars), is.hosts(others...)
			if strings.HasPrefix(direction, "to") {
				from, to = to, from
			}
			is.lan.cut(from, to)
			_, took := is.waitRuler(others)
			wantSoon(t, "cut, new authority after", took, 5*time.Second)
			waitView(is.mars, "gave the office up", func(v view) bool { return !v.Reigns })
			mine.talk()
			theirs.talk()
			is.lan.heal()
			t.Logf("healed, one directory everywhere after %.1f s", is.waitAgreement().Seconds())
			mine.wantStayed()
			theirs.wantStayed()
			is.wantPlay("UDP")
		})
	}
	t.Run("from one voter to the authority", func(t *testing.T) {
		t.Parallel()
		is, games := newIslands(t, "udp", "udp", "tcp")
		is.watchLeases()
		before, _ := is.mars.view()
		unheard := games[2]
		is.lan.cut(is.hosts(unheard), is.hosts(is.mars))
		// Alone it can't depose anybody: the others still hear the authority.
		unheard.waitLog(`"authority lost, directory kept"`)
		waitView(is.mars, "hides the voter", func(v view) bool { return v.hides(unheard) })
		is.lan.heal()
		t.Logf("healed, one directory everywhere after %.1f s", is.waitAgreement().Seconds())
		if n := is.mars.changes(before); n != 0 {
			t.Errorf("the authority changed %d times", n)
		}
	})
}
