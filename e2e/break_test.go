//go:build unix

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/Diarkis/diarkis/client"
)

func TestKilledNodeIsForgottenAndItsPlayersComeBack(t *testing.T) {
	c := newCluster(t)
	first, second := c.start("udp"), c.start("udp")
	first.waitReady()
	second.waitReady()
	eventually(t, "both nodes known", func() bool { return c.members() == 4 })
	ann := c.connect("ann", "UDP")
	victim, other := first, second
	if ann.Addr() == second.Public {
		victim, other = second, first
	}
	victim.kill()
	// From the moment of its death no place on it may be handed out: a reservation
	// that isn't answered goes to the next node.
	for range 20 {
		p := c.connect("newcomer", "UDP")
		if p.Addr() != other.Public {
			t.Fatalf("a place on the dead node %s was handed out", p.Addr())
		}
	}
	eventually(t, "the dead node left the directory", func() bool { return c.members() == 3 })
	select {
	case gap := <-ann.again:
		if !gap {
			t.Error("reconnected without a gap, but the state died with the node")
		}
	case <-ann.ctx().Done():
		t.Fatal("ann never came back")
	}
	if ann.Addr() != other.Public {
		t.Errorf("ann came back to %s, want %s", ann.Addr(), other.Public)
	}
	ann.createRoom()
}

func TestTerminatedNodes(t *testing.T) {
	for _, role := range []string{"udp", "tcp"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			n := c.start(role).waitReady()
			typ := strings.ToUpper(role)
			c.waitHandsOut(typ)
			p := c.connect("ann", typ)
			n.signal(syscall.SIGTERM)
			n.waitLog(`"draining started"`)
			eventually(t, "no place handed out on a draining node", func() bool { return !c.handsOut(typ) })
			if n.ready() {
				t.Error("a draining node says that it is ready")
			}
			p.createRoom() // those who are here play on
			next := c.start(role).waitReady()
			if code := n.waitExit(); code != 0 {
				t.Errorf("exit code %d after SIGTERM, want 0", code)
			}
			<-p.again
			if p.Addr() != next.Public {
				t.Errorf("the player went to %s, want %s", p.Addr(), next.Public)
			}
			eventually(t, "the node left", func() bool { return c.members() == 3 })
		})
	}
	t.Run("http", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		c.http.signal(syscall.SIGTERM)
		if code := c.http.waitExit(); code != 0 {
			t.Errorf("exit code %d after SIGTERM, want 0", code)
		}
	})
	t.Run("mars", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		c.mars.signal(syscall.SIGTERM)
		if code := c.mars.waitExit(); code != 0 {
			t.Errorf("exit code %d after SIGTERM, want 0", code)
		}
		c.mars.waitLog(`"stop requested"`, `"role":"mars"`)
	})
	t.Run("second signal", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		n := c.start("udp", "DIARKIS_SHUTDOWN_TIMEOUT=3600").waitReady()
		c.waitHandsOut("UDP")
		c.connect("ann", "UDP")
		n.signal(syscall.SIGTERM)
		n.waitLog(`"draining started"`)
		n.signal(syscall.SIGTERM)
		if code := n.waitExit(); code != 0 {
			t.Errorf("exit code %d after a second SIGTERM, want 0", code)
		}
	})
}

func TestKilledHTTPNode(t *testing.T) {
	c := newCluster(t)
	c.start("udp").waitReady()
	c.waitHandsOut("UDP")
	ann, bob := c.connect("ann", "UDP"), c.connect("bob", "UDP")
	c.http.kill()
	r := ann.createRoom() // players don't need the HTTP role to play
	bob.join(r, "hi")
	ann.wantPush(client.CmdRoomJoin, "hi")
	c.http = c.start("http").waitReady()
	c.waitHandsOut("UDP")
}

// A registry that comes back before anybody else had a vote.
func TestMARSRestartIsNotNoticed(t *testing.T) {
	c := newCluster(t)
	udp := c.start("udp").waitReady()
	c.start("tcp").waitReady()
	c.waitHandsOut("UDP")
	ann, bob := c.connect("ann", "UDP"), c.connect("bob", "UDP")
	r := ann.createRoom()
	bob.join(r, "hi")
	ann.wantPush(client.CmdRoomJoin, "hi")
	c.mars.kill()
	udp.waitLog(`"authority lost, directory kept"`)
	bob.broadcast(r, "no one at the registry")
	ann.wantPush(client.CmdRoomBroadcast, "no one at the registry")
	if !c.handsOut("UDP") {
		t.Error("without MARS no place was handed out from the last directory")
	}
	if !udp.ready() {
		t.Error("readiness flapped because MARS is away")
	}
	c.mars = c.startMARS()
	udp.waitLog(`"authority back"`)
	eventually(t, "all nodes known again", func() bool { return c.members() == 4 })
	c.waitHandsOut("TCP")
	bob.broadcast(r, "it is back")
	ann.wantPush(client.CmdRoomBroadcast, "it is back")
	for _, p := range []*player{ann, bob} {
		select {
		case <-p.again:
			t.Error("a player was reconnected")
		default:
		}
	}
}

// metric returns a figure of a node without labels, 0 when there is none.
func (n *node) metric(name string) float64 {
	_, body := get(n.t, "http://"+n.Admin+"/metrics")
	for l := range strings.SplitSeq(body, "\n") {
		if text, ok := strings.CutPrefix(l, name+" "); ok {
			v, err := strconv.ParseFloat(text, 64)
			if err != nil {
				n.t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

func (n *node) reigns() bool {
	return n.metric("diarkis_mars_is_authority") == 1 && n.metric("diarkis_mars_lease_seconds") > 0
}

// TestAnotherNodeTakesOver kills the authority under players, lets a node join
// while mars is away, and gives the office back.
func TestAnotherNodeTakesOver(t *testing.T) {
	c := newCluster(t)
	udp, tcp := c.start("udp").waitReady(), c.start("tcp").waitReady()
	c.waitHandsOut("UDP")
	ann, bob := c.connect("ann", "UDP"), c.connect("bob", "UDP")
	r := ann.createRoom()
	bob.join(r, "hi")
	ann.wantPush(client.CmdRoomJoin, "hi")
	eventually(t, "three voters", func() bool { return c.mars.metric("diarkis_mars_voters") >= 3 })
	c.mars.kill()
	var next *node
	eventually(t, "another authority", func() bool {
		if !c.http.ready() || !udp.ready() {
			t.Fatal("readiness flapped")
		}
		if !c.handsOut("UDP") {
			t.Fatal("no place was handed out")
		}
		for _, n := range []*node{c.http, udp, tcp} {
			if n.reigns() {
				next = n
			}
		}
		return next != nil
	})
	next.waitLog(`"this node became the authority"`)
	bob.broadcast(r, "a new registry")
	ann.wantPush(client.CmdRoomBroadcast, "a new registry")

	late := c.start("udp", "DIARKIS_MESH_SEEDS="+tcp.Mesh).waitReady() // found through a seed
	eventually(t, "the new node handed out", func() bool { return c.connect("late", "UDP").Addr() == late.Public })

	c.mars = c.startMARS().waitReady()
	status := func(n *node) (st struct {
		Authority     string
		AuthorityRole string `json:"authority_role"`
		Epoch         string
		LeaseMS       *int64 `json:"lease_ms"`
		Voters        []string
		Members       []struct{ Node, Role, State string }
	}) {
		code, out, problem := run(t, []string{"DIARKIS_RUN_DIR=" + n.runDir}, "mars", "status", "--json")
		if code != 0 {
			t.Fatalf("mars status = %d %s", code, problem)
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			t.Fatalf("mars status: %v in %s", err, out)
		}
		return st
	}
	if st := status(next); st.Authority != next.Mesh || st.Epoch == "" || st.LeaseMS == nil || *st.LeaseMS <= 0 || len(st.Voters) < 1 {
		t.Errorf("mars status of the authority = %+v", st)
	}
	if code, out, _ := run(t, []string{"DIARKIS_RUN_DIR=" + next.runDir}, "mars", "status"); code != 0 || !strings.Contains(out, "this node") {
		t.Errorf("mars status for people = %d %s", code, out)
	}
	eventually(t, "mars is a member", func() bool { return len(status(late).Members) == 5 })
	if code, _, problem := run(t, []string{"DIARKIS_RUN_DIR=" + udp.runDir}, "mars", "transfer", c.mars.Mesh); code != 0 {
		t.Errorf("mars transfer = %s", problem)
	}
	eventually(t, "mars has the office back", c.mars.reigns)
	if st := status(late); st.AuthorityRole != "mars" && st.Authority != c.mars.Mesh {
		eventually(t, "the other nodes follow mars", func() bool { return status(late).Authority == c.mars.Mesh })
	}
	for _, p := range []*player{ann, bob} {
		select {
		case <-p.again:
			t.Error("a player was reconnected")
		default:
		}
	}
}

func TestTasksOfMARS(t *testing.T) {
	c := newCluster(t)
	env := []string{"DIARKIS_RUN_DIR=" + c.http.runDir}
	for _, tt := range []struct {
		args []string
		line string // in the log of the node
	}{
		{[]string{"mars", "recover"}, "there is nothing to recover"},
		{[]string{"mars", "transfer", "10.9.9.9:8000"}, "10.9.9.9:8000 is no member"},
		{[]string{"task", "MarsTransfer", c.mars.Mesh}, "is the authority already"},
	} {
		if code, _, problem := run(t, env, tt.args...); code != 1 || !strings.Contains(problem, tt.line) {
			t.Errorf("%v = %d %s", tt.args, code, problem)
		}
		c.http.waitLog(`"task failed"`, tt.line)
	}
	for _, args := range [][]string{{"mars"}, {"mars", "transfer"}, {"mars", "transfer", "mars"}, {"mars", "status", "--role", "web"}} {
		if code, _, _ := run(t, env, args...); code != 64 {
			t.Errorf("%v = %d, want 64", args, code)
		}
	}
	if code, _, problem := run(t, nil, "mars", "status"); code != 3 || !strings.Contains(problem, "no running node") {
		t.Errorf("mars status without a node = %d %s", code, problem)
	}
}

func TestNodeWaitsForMARS(t *testing.T) {
	c := &cluster{t: t, marsPort: freePort(t)}
	n := c.start("http")
	c.http = n
	if n.ready() {
		t.Error("ready before it joined")
	}
	if code, body := get(t, c.url()+"/healthcheck"); code != 503 || !strings.Contains(body, "error") {
		t.Errorf("/healthcheck = %d %s, want 503 with a reason", code, body)
	}
	if code, out, _ := healthCheck(t, n, "mars"); code != 1 {
		t.Errorf("health-check mars = %d %s, want 1", code, out)
	}
	n.waitLog(`"mars did not answer, still trying"`)
	c.mars = c.startMARS()
	n.waitReady()
	if code, out, _ := healthCheck(t, n, "mars"); code != 0 {
		t.Errorf("health-check mars = %d %s, want 0", code, out)
	}
}

func TestWrongClusterSecretIsRefused(t *testing.T) {
	c := newCluster(t)
	stranger := c.startUnready("udp", "DIARKIS_CLUSTER_SECRET=a074e25ec4e70a1b2c3d4e5f60718293a4b5c6d7e8f90a0b1c2d3e4f50617283")
	stranger.waitStarted().waitLog("secret")
	if stranger.ready() {
		t.Error("a node with another cluster secret joined")
	}
	if m := c.members(); m != 2 {
		t.Errorf("%d members, want 2", m)
	}
	c.start("udp").waitReady() // and the cluster is none the worse
}

func TestTwoDaemonsShareADirectory(t *testing.T) {
	c := newCluster(t)
	shared := t.TempDir()
	a := c.start("udp", "DIARKIS_RUN_DIR="+shared).waitReady()
	b := c.start("tcp", "DIARKIS_RUN_DIR="+shared).waitReady()
	plain := filepath.Join(shared, "DIARKIS_PUBLIC_ADDR")
	read := func() string { s, _ := os.ReadFile(plain); return string(s) }
	if got := read(); got != a.Public {
		t.Errorf("%s = %q, want the first node's %q", plain, got, a.Public)
	}
	a.signal(syscall.SIGTERM)
	a.waitExit()
	eventually(t, "the plain name belongs to the node that is left", func() bool { return read() == b.Public })
	b.signal(syscall.SIGTERM)
	b.waitExit()
	left, err := filepath.Glob(filepath.Join(shared, "DIARKIS_*ADDR*"))
	if err != nil || len(left) != 0 {
		t.Errorf("address files left behind: %v %v", left, err)
	}
}

func TestJunkIsSilence(t *testing.T) {
	c := newCluster(t)
	udp := c.start("udp").waitReady()
	tcp := c.start("tcp").waitReady()
	c.waitHandsOut("UDP")
	ann := c.connect("ann", "UDP")
	sendJunk(t, "udp", udp.Public)
	sendJunk(t, "tcp", tcp.Public)
	ann.createRoom()
	for _, n := range []*node{udp, tcp} {
		if !n.running() || !n.ready() {
			t.Errorf("%s suffered from junk", n.name)
		}
	}
	_, metrics := get(t, "http://"+udp.Admin+"/metrics")
	if !strings.Contains(metrics, "diarkis_transport_packets_dropped_total{") {
		t.Error("junk was not counted")
	}
}
