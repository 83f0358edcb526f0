//go:build unix

package e2e

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newRealm starts a cluster of game nodes and waits until it has as many voters as
// fit. It returns the game nodes.
func newRealm(t *testing.T, voters int, roles ...string) (*cluster, []*node) {
	t.Helper()
	c := newCluster(t)
	var games []*node
	for _, r := range roles {
		games = append(games, c.start(r).waitReady())
	}
	c.waitVoters(voters)
	return c, games
}

// TestAuthorityDiesUnderPlayers kills the authority and lets it come back, while bots
// play all along.
func TestAuthorityDiesUnderPlayers(t *testing.T) {
	t.Parallel()
	c, games := newRealm(t, 5, "udp", "udp", "tcp")
	c.watchLeases()
	before, _ := c.mars.view()
	bots := c.startBots(16, "mixed")
	c.mars.kill()
	next, took := c.waitRuler(append(games, c.http))
	wantSoon(t, "killed, new authority after", took, 5*time.Second)
	c.wantPlay("UDP")
	c.waitAgreement()

	c.mars = c.startMARS().waitReady()
	if c.mars.count(`"cluster founded"`) != 0 {
		t.Error("mars founded another cluster when it came back")
	}
	took = within(t, 3*patience, "mars has the office back", c.mars.rules)
	t.Logf("mars back, reigns after %.1f s", took.Seconds())
	if took < 25*time.Second {
		t.Errorf("mars had the office back after %v: it has to be healthy for 30 s", took)
	}
	next.waitLog(`"office handed over"`)
	c.waitAgreement()
	c.wantPlay("UDP")
	bots.wantUnharmed()
	c.wantNoStorm(c.http.changes(before))
}

func TestAuthorityTerminatedUnderPlayers(t *testing.T) {
	t.Parallel()
	c, games := newRealm(t, 5, "udp", "udp", "tcp")
	c.watchLeases()
	before, _ := c.mars.view()
	bots := c.startBots(16, "mixed")
	began := time.Now()
	c.mars.signal(syscall.SIGTERM)
	// Whoever it is, the others know of it.
	eventually(t, "a tcp node follows another authority", func() bool {
		v, ok := games[2].view()
		return ok && v.Live && v.Authority != c.mars.Mesh && v.Authority != ""
	})
	wantSoon(t, "terminated, new authority after", time.Since(began), time.Second)
	if code := c.mars.waitExit(); code != 0 {
		t.Errorf("exit code %d after SIGTERM, want 0", code)
	}
	t.Logf("terminated, gone after %.2f s", time.Since(began).Seconds())
	c.waitAgreement()
	c.wantPlay("UDP")
	bots.wantUnharmed()
	c.wantNoStorm(c.http.changes(before))
}

// TestSuspendedAuthority stops the authority for so long that it is forgotten, as a
// hypervisor does to a machine.
func TestSuspendedAuthority(t *testing.T) {
	t.Parallel()
	c, games := newRealm(t, 5, "udp", "udp", "tcp")
	c.watchLeases()
	bots := c.startBots(16, "mixed")
	began := time.Now()
	c.mars.signal(syscall.SIGSTOP)
	next, took := c.waitRuler(append(games, c.http))
	wantSoon(t, "suspended, new authority after", took, 5*time.Second)
	waitView(next, "hides the suspended node for 10 s in all", func(v view) bool {
		return v.hides(c.mars) && time.Since(began) > 10*time.Second
	})
	c.mars.signal(syscall.SIGCONT)
	c.mars.waitLog(`"this node is no longer the authority"`)
	if c.mars.rules() {
		t.Error("mars still says that it may write")
	}
	t.Logf("resumed, one directory everywhere after %.2f s", c.waitAgreement().Seconds())
	if now := ruler(c.alive()); now != next {
		t.Errorf("%v reigns, want %s", now, next.name)
	}
	c.wantPlay("UDP")
	bots.wantUnharmed()
}

// TestTwentyKillsInARow kills whoever is the authority and starts a new process in
// its place, game nodes included. Only who played on a node that died notices.
func TestTwentyKillsInARow(t *testing.T) {
	t.Parallel()
	c, games := newRealm(t, 5, "http", "udp", "udp", "tcp", "tcp")
	c.watchLeases()
	before, _ := c.mars.view()
	players := make(map[*node]*pair)
	for _, n := range games[1:] {
		players[n] = c.pairOn(n)
	}
	var slowest, sum time.Duration
	const kills = 20
	for i := range kills {
		var victim *node
		within(t, 2*patience, "an authority that can be spared", func() bool {
			victim = c.spare()
			return victim != nil
		})
		delete(players, victim) // they start over elsewhere
		victim.kill()
		_, took := c.waitRuler(c.alive())
		t.Logf("kill %d: %s %s, new authority after %.2f s", i+1, victim.name, victim.Mesh, took.Seconds())
		slowest, sum = max(slowest, took), sum+took
		for _, p := range players {
			p.talk()
		}
		switch role := victim.name; role {
		case "mars":
			c.mars = c.startMARS()
		case "http":
			n := c.start("http", "DIARKIS_MESH_SEEDS="+c.alive()[0].Mesh).waitReady()
			if victim == c.http {
				c.http = n
			}
		default:
			n := c.start(role, "DIARKIS_MESH_SEEDS="+c.alive()[0].Mesh).waitReady()
			players[n] = c.pairOn(n)
		}
	}
	wantSoon(t, "slowest", slowest, 5*time.Second)
	t.Logf("mean %.2f s", (sum / kills).Seconds())
	c.waitAgreement()
	for _, p := range players {
		p.talk()
		p.wantStayed()
	}
	c.wantPlay("UDP")
	c.wantPlay("TCP")
	if now, _ := c.http.view(); now.Epoch <= before.Epoch {
		t.Errorf("the epoch went from %s to %s", before.Epoch, now.Epoch)
	}
}

// spare returns the authority when its voters can elect another without it, else nil.
func (c *cluster) spare() *node {
	nodes := c.alive()
	n := ruler(nodes)
	if n == nil {
		return nil
	}
	v, ok := n.view()
	if !ok || v.Waiting != "" {
		return nil
	}
	here, others := byAddress(nodes), 0
	for _, a := range v.Voters {
		// A mars that came back is another voter at the same address: it may not count.
		if m := here[a]; m != nil && m != n && m.name != "mars" {
			others++
		}
	}
	if others < len(v.Voters)/2+1 {
		return nil
	}
	return n
}

// TestNobodyReigns kills most voters, and founds the cluster anew: by itself, or when
// an operator says so.
func TestNobodyReigns(t *testing.T) {
	t.Parallel()
	for _, recovery := range []string{"manual", "auto"} {
		t.Run(recovery, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, "DIARKIS_MARS_RECOVERY="+recovery)
			var voters []*node
			for range 3 {
				voters = append(voters, c.start("tcp").waitReady())
			}
			c.waitVoters(5)
			first, second := c.start("udp").waitReady(), c.start("udp").waitReady()
			c.waitHandsOut("UDP")
			c.waitAgreement()
			c.watchLeases()
			a, b := c.pairOn(first), c.pairOn(second)
			began := time.Now()
			for _, n := range []*node{c.mars, voters[0], voters[1]} {
				n.kill()
			}
			for _, n := range c.alive() {
				n.waitLog(`"authority lost, directory kept"`)
			}
			c.wantPlay("UDP") // from the last directory, across nodes
			a.talk()
			b.talk()
			if n := ruler(c.alive()); n != nil {
				t.Fatalf("%s reigns with 2 of 5 voters", n.name)
			}
			if recovery == "manual" {
				c.recover(voters[2])
			}
			next, _ := c.waitRuler(c.alive())
			t.Logf("most voters killed, cluster founded after %.1f s", time.Since(began).Seconds())
			t.Logf("one directory everywhere after another %.1f s", c.waitAgreement().Seconds())
			late := c.start("udp", "DIARKIS_MESH_SEEDS="+second.Mesh).waitReady()
			c.waitAgreement()
			if recovery == "manual" {
				c.transfer(next, late)
			}
			for _, p := range []*pair{a, b, c.pairOn(late)} {
				p.talk()
				p.wantStayed()
			}
		})
	}
}

// recover founds the cluster anew from a node, as an operator does.
func (c *cluster) recover(n *node) {
	c.t.Helper()
	eventually(c.t, "status says that an operator is waited for", func() bool {
		code, out, problem := n.run("mars", "status", "--json")
		var v view
		if err := json.Unmarshal([]byte(out), &v); err != nil || code != 1 {
			c.t.Fatalf("mars status without an authority = %d %s %s", code, out, problem)
		}
		return !v.Live && strings.Contains(v.Waiting, "an operator to recover")
	})
	began := time.Now()
	if code, _, problem := n.run("mars", "recover"); code != 0 {
		c.t.Fatalf("mars recover = %d %s", code, problem)
	}
	n.waitLog(`"task done"`, `"MarsRecover"`)
	_, _ = c.waitRuler(c.alive())
	c.t.Logf("recover asked for, authority after %.2f s", time.Since(began).Seconds())
}

// transfer hands the office over to a node that is no voter yet, from the command
// line of another that is not the authority.
func (c *cluster) transfer(from, to *node) {
	c.t.Helper()
	asked := to
	for _, n := range c.alive() {
		if n != from && n != to {
			asked = n
		}
	}
	began := time.Now()
	if code, _, problem := asked.run("mars", "transfer", to.Mesh); code != 0 {
		c.t.Fatalf("mars transfer = %d %s", code, problem)
	}
	eventually(c.t, "the office is transferred", to.rules)
	c.t.Logf("transfer asked for, done after %.2f s", time.Since(began).Seconds())
	from.waitLog(`"office handed over"`)
	c.waitAgreement()
}
