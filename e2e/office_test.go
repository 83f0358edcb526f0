//go:build unix

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// view is who leads the cluster, as one node sees it.
type view struct {
	Node, Authority string
	AuthorityRole   string `json:"authority_role"`
	Live, Reigns    bool
	Epoch           string
	LeaseMS         int64 `json:"lease_ms"`
	Voters          []string
	Members         []struct {
		Node, Role, Type, State string
		Hidden                  bool
	}
	Waiting string
}

// view asks the node. It reports false when the node doesn't answer.
func (n *node) view() (v view, ok bool) {
	code, body := n.admin("/mars")
	return v, code == http.StatusOK && json.Unmarshal([]byte(body), &v) == nil
}

// rules tells whether the node says that it may write.
func (v view) rules() bool { return v.Reigns && v.LeaseMS > 0 }

// term splits the epoch into the generation and the term within.
func (v view) term() (generation string, term int) {
	var number uint64
	if _, err := fmt.Sscanf(v.Epoch, "%d.%d/%s", &number, &term, &generation); err != nil {
		return "", 0
	}
	return fmt.Sprint(number, "/", generation), term
}

// directory is what has to be the same everywhere.
func (v view) directory() string {
	var lines []string
	for _, m := range v.Members {
		lines = append(lines, fmt.Sprint(m.Node, " ", m.Role, " ", m.State, " hidden ", m.Hidden))
	}
	slices.Sort(lines)
	return fmt.Sprintf("authority %s, epoch %s, live %v\n%s", v.Authority, v.Epoch, v.Live, strings.Join(lines, "\n"))
}

// hides tells whether none of the nodes is handed out.
func (v view) hides(nodes ...*node) bool {
	for _, m := range v.Members {
		if !m.Hidden && slices.ContainsFunc(nodes, func(n *node) bool { return n.Mesh == m.Node }) {
			return false
		}
	}
	return true
}

// rules tells whether the node says that it may write.
func (n *node) rules() bool {
	v, ok := n.view()
	return ok && v.rules()
}

// ruler returns which of the nodes says that it may write, nil for none.
func ruler(nodes []*node) *node {
	for _, n := range nodes {
		if n.rules() {
			return n
		}
	}
	return nil
}

// waitRuler waits until one of the nodes is the authority, and returns it and the time
// that took.
func (c *cluster) waitRuler(nodes []*node) (next *node, took time.Duration) {
	c.t.Helper()
	took = eventually(c.t, "an authority", func() bool {
		next = ruler(nodes)
		return next != nil
	})
	return next, took
}

// waitVoters waits until there are so many voters, which takes members that have been
// healthy for a while.
func (c *cluster) waitVoters(n int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprint(n, " voters"), func() bool {
		v, ok := c.mars.view()
		return ok && v.rules() && len(v.Voters) == n && v.Waiting == ""
	})
}

// waitAgreement waits until all nodes follow one authority and show the same
// directory, with nobody but them and all of them fit to be handed out.
func (c *cluster) waitAgreement() time.Duration {
	c.t.Helper()
	var last []string
	c.t.Cleanup(func() {
		if c.t.Failed() && last != nil {
			c.t.Logf("directories:\n%s", strings.Join(last, "\n\n"))
		}
	})
	return within(c.t, 2*patience, "one directory everywhere", func() bool {
		nodes := c.alive()
		last = nil
		for _, n := range nodes {
			v, ok := n.view()
			if !ok {
				return false
			}
			last = append(last, v.directory())
			if !v.Live || len(v.Members) != len(nodes) || strings.Contains(last[0], "hidden true") {
				return false
			}
		}
		return len(slices.Compact(last)) == 1 && ruler(nodes) != nil
	})
}

// leases remembers who said that it may write.
type leases struct {
	mu sync.Mutex
	by map[string]map[int]reign // generation, term
}

// reign is the first that was seen of an authority.
type reign struct {
	node string
	seen time.Time
}

// note takes in that somebody had a lease at some time between began and ended. It
// returns what is wrong with that: two had one in the same term, or one had a lease
// after a successor of the same generation did. Nothing is wrong in one that was asked
// before the successor answered: the answers may have overtaken each other.
func (l *leases) note(v view, began, ended time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	generation, term := v.term()
	terms := l.by[generation]
	if terms == nil {
		terms = make(map[int]reign)
		l.by[generation] = terms
	}
	for later, r := range terms {
		if later > term && r.seen.Before(began) {
			return fmt.Errorf("%s had a lease in %s after %s had one in term %d", v.Node, v.Epoch, r.node, later)
		}
	}
	r, ok := terms[term]
	if !ok {
		terms[term] = reign{v.Node, ended}
	} else if r.node != v.Node {
		return fmt.Errorf("%s and %s both had a lease in %s", r.node, v.Node, v.Epoch)
	}
	return nil
}

// watchLeases asks all nodes of the cluster again and again until the test ends, and
// fails it when two of them could write at once.
func (c *cluster) watchLeases() {
	l := &leases{by: make(map[string]map[int]reign)}
	ctx, cancel := context.WithCancel(context.Background())
	var asking sync.WaitGroup
	repeat := func(f func() bool) {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for f() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}
	ask := func(n *node) bool {
		began := time.Now()
		if v, ok := n.view(); ok && v.rules() {
			if err := l.note(v, began, time.Now()); err != nil {
				c.t.Error(err)
			}
		}
		return n.running()
	}
	asked := make(map[*node]bool)
	asking.Go(func() {
		repeat(func() bool {
			for _, n := range c.alive() {
				if !asked[n] {
					asked[n] = true
					asking.Go(func() { repeat(func() bool { return ask(n) }) })
				}
			}
			return true
		})
	})
	c.t.Cleanup(func() {
		cancel()
		asking.Wait()
	})
}

func TestLeasesOfTwoAreNoticed(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	say := func(node, epoch string) view { return view{Node: node, Epoch: epoch, Reigns: true, LeaseMS: 1} }
	l := &leases{by: make(map[string]map[int]reign)}
	for _, q := range []struct {
		what         string
		v            view
		began, ended int
		fine         bool
	}{
		{"the first", say("a", "7.1/f"), 0, 2, true},
		{"a successor", say("b", "7.2/f"), 3, 5, true},
		{"an answer that was overtaken", say("a", "7.1/f"), 4, 6, true},
		{"the first again", say("a", "7.1/f"), 6, 7, false},
		{"another in the same term", say("c", "7.2/f"), 6, 7, false},
		{"another founder", say("c", "7.1/g"), 6, 7, true},
		{"another generation", say("a", "8.1/f"), 6, 7, true},
	} {
		if err := l.note(q.v, at(q.began), at(q.ended)); (err == nil) != q.fine {
			t.Errorf("%s: %v, want fine %v", q.what, err, q.fine)
		}
	}
}

// count returns how many log lines hold every part.
func (n *node) count(parts ...string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	k := 0
	for _, l := range n.lines {
		if containsAll(l, parts) {
			k++
		}
	}
	return k
}

// changes returns how often the office changed hands since before, as n knows it.
func (n *node) changes(before view) int {
	n.t.Helper()
	now, _ := n.view()
	g1, t1 := before.term()
	g2, t2 := now.term()
	if g1 != g2 || t2 < t1 {
		n.t.Errorf("the epoch went from %s to %s, want another term of the same generation", before.Epoch, now.Epoch)
	}
	return t2 - t1
}

// waitView waits until a node says something of who leads.
func waitView(n *node, what string, ok func(view) bool) time.Duration {
	n.t.Helper()
	return within(n.t, 2*patience, n.name+" "+n.Mesh+": "+what, func() bool {
		v, there := n.view()
		return there && ok(v)
	})
}

// wantNoStorm fails the test when a node registered again more often than the office
// changed hands.
func (c *cluster) wantNoStorm(changes int) {
	c.t.Helper()
	for _, n := range c.alive() {
		if again := n.count(`"cluster joined again"`); again > changes {
			c.t.Errorf("%s %s registered again %d times in %d changes of authority", n.name, n.Mesh, again, changes)
		}
	}
}

// users returns how many players all nodes have.
func (c *cluster) users() int {
	total := 0.0
	for _, n := range c.alive() {
		total += n.metric("diarkis_users")
	}
	return int(total)
}

// bots is a process of players.
type bots struct {
	t           *testing.T
	count       int
	cmd         *exec.Cmd
	out, errOut strings.Builder
	ended       chan struct{}
}

// startBots lets bots play until stop, and waits until all do.
func (c *cluster) startBots(count int, typ string) *bots {
	c.t.Helper()
	b := &bots{t: c.t, count: count, ended: make(chan struct{})}
	b.cmd = exec.Command(binary, "bot", "--json", "--http", c.url(), "--count", fmt.Sprint(count), "--type", typ, "--duration", "0")
	b.cmd.Dir = c.t.TempDir()
	b.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + b.cmd.Dir, "DIARKIS_RUN_DIR=" + b.cmd.Dir}
	b.cmd.Stdout, b.cmd.Stderr = &b.out, &b.errOut
	before := c.users()
	if err := c.place.run(b.cmd.Start); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		_ = b.cmd.Wait()
		close(b.ended)
	}()
	c.t.Cleanup(func() {
		_ = b.cmd.Process.Kill()
		<-b.ended
	})
	eventually(c.t, "the bots play", func() bool { return c.users()-before >= count })
	return b
}

// stop ends the play and returns what came of it.
func (b *bots) stop() botSummary {
	b.t.Helper()
	if err := b.cmd.Process.Signal(syscall.SIGINT); err != nil {
		b.t.Fatalf("stop bots: %v: %s", err, b.errOut.String())
	}
	select {
	case <-b.ended:
	case <-time.After(patience):
		b.t.Fatal("the bots did not stop")
	}
	var s botSummary
	if err := json.Unmarshal([]byte(b.out.String()), &s); err != nil {
		b.t.Fatalf("bots printed %q and %q: %v", b.out.String(), b.errOut.String(), err)
	}
	return s
}

// wantUnharmed stops the bots and fails the test unless they played through.
func (b *bots) wantUnharmed() {
	b.t.Helper()
	s := b.stop()
	b.t.Logf("bots: %+v", s)
	if s.Connected != b.count || s.Delivered == 0 || s.Lost+s.Duplicated+s.Reordered+s.Errors+s.Reconnects != 0 {
		b.t.Errorf("the bots noticed: %+v %s", s, b.errOut.String())
	}
}

// pair is two players in a room of one node.
type pair struct {
	ann, bob *player
	room     client.RoomID
	said     int
}

// newcomers counts players, whose names have to differ.
var newcomers atomic.Int64

// pairOn puts two players on a node.
func (c *cluster) pairOn(n *node) *pair {
	c.t.Helper()
	k, typ := newcomers.Add(1), strings.ToUpper(n.name)
	p := &pair{ann: c.connectTo(fmt.Sprint("ann-", k), typ, n), bob: c.connectTo(fmt.Sprint("bob-", k), typ, n)}
	p.room = p.ann.createRoom()
	p.bob.join(p.room, "hi")
	p.ann.wantPush(client.CmdRoomJoin, "hi")
	return p
}

// talk lets both say something that the other has to hear next.
func (p *pair) talk() {
	p.ann.t.Helper()
	p.said++
	p.ann.broadcast(p.room, fmt.Sprint("ann says ", p.said))
	p.bob.broadcast(p.room, fmt.Sprint("bob says ", p.said))
	p.ann.wantPush(client.CmdRoomBroadcast, fmt.Sprint("bob says ", p.said))
	p.bob.wantPush(client.CmdRoomBroadcast, fmt.Sprint("ann says ", p.said))
}

// wantStayed fails the test when either had to connect again.
func (p *pair) wantStayed() {
	p.ann.t.Helper()
	for _, one := range []*player{p.ann, p.bob} {
		select {
		case gap := <-one.again:
			one.t.Errorf("a player was reconnected, gap %v", gap)
		default:
		}
	}
}

// wantPlay lets newcomers enter, and one join a room on another node.
func (c *cluster) wantPlay(typ string) {
	c.t.Helper()
	k := newcomers.Add(1)
	ann := c.connect(fmt.Sprint("new-ann-", k), typ)
	bob := c.connectElsewhere(fmt.Sprint("new-bob-", k), typ, ann.Addr())
	r := ann.createRoom()
	bob.join(r, "came over")
	ann.wantPush(client.CmdRoomJoin, "came over")
	if bob.Addr() != ann.Addr() {
		c.t.Errorf("bob plays on %s, ann on %s", bob.Addr(), ann.Addr())
	}
	(&pair{ann: ann, bob: bob, room: r}).talk()
}

// wantSoon logs a time that is promised to players and fails the test at twice that:
// the machine is shared.
func wantSoon(t *testing.T, what string, took, promised time.Duration) {
	t.Helper()
	t.Logf("%s: %.2f s", what, took.Seconds())
	if took > 2*promised {
		t.Errorf("%s took %v, want at most %v", what, took, promised)
	}
}

// byAddress sorts nodes by what the cluster calls them.
func byAddress(nodes []*node) map[string]*node {
	m := make(map[string]*node)
	for _, n := range nodes {
		m[n.Mesh] = n
	}
	return m
}
