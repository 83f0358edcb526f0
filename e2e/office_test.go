package e2e

import (
	"cmp"
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

// leases notes who says that it may write, and fails the test when one does so after
// a successor in the same generation did, or when two do in one term.
type leases struct {
	t  *testing.T
	mu sync.Mutex
	by map[string]map[int]reign // generation, term
}

// reign is the first that was seen of an authority.
type reign struct {
	node string
	seen time.Time
}

// watchLeases asks all nodes of the cluster, again and again, until the test ends.
func (c *cluster) watchLeases() *leases {
	l := &leases{t: c.t, by: make(map[string]map[int]reign)}
	ctx, cancel := context.WithCancel(context.Background())
	var asking sync.WaitGroup
	ask := func(n *node) {
		for tick := time.NewTicker(100 * time.Millisecond); ctx.Err() == nil && n.running(); {
			began := time.Now()
			if v, ok := n.view(); ok && v.rules() {
				l.note(v, began, time.Now())
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}
	asking.Go(func() {
		asked := make(map[*node]bool)
		for tick := time.NewTicker(100 * time.Millisecond); ctx.Err() == nil; {
			for _, n := range c.alive() {
				if !asked[n] {
					asked[n] = true
					asking.Go(func() { ask(n) })
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	c.t.Cleanup(func() {
		cancel()
		asking.Wait()
	})
	return l
}

// note takes in that somebody had a lease at some time between began and ended.
func (l *leases) note(v view, began, ended time.Time) {
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
			l.t.Errorf("%s had a lease in %s after %s had one in term %d", v.Node, v.Epoch, r.node, later)
		}
	}
	if r, ok := terms[term]; !ok {
		terms[term] = reign{v.Node, ended}
	} else if r.node != v.Node {
		l.t.Errorf("%s and %s both had a lease in %s", r.node, v.Node, v.Epoch)
	}
}

// count returns how many reigns there were.
func (l *leases) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, terms := range l.by {
		n += len(terms)
	}
	return n
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
		m[cmp.Or(n.Mesh, n.name)] = n
	}
	return m
}
