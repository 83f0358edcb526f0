package exchange

import (
	"container/heap"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// The simulated cluster: nodes with users, links that lose, delay, repeat and are cut,
// processes that stand still, die and come back, directories that lag or omit somebody, wall
// clocks that are off by hours or decades and are set while the node runs, and times that no
// clock shows. What a node does with what it hears is the registry's
// code for it, Judge and Clock.

const (
	simNodes   = 5
	simUsers   = 8
	simTimeout = 2 * time.Second
)

var simStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

type simEvent struct {
	at  time.Duration
	seq int
	do  func()
}

type simQueue []simEvent

func (q simQueue) Len() int { return len(q) }
func (q simQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q simQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *simQueue) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *simQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

type simNode struct {
	s       *sim
	name    id.Node
	life    id.Incarnation
	run     int // counts restarts; events of another run are not for this one
	dead    bool
	skew    time.Duration
	machine *Machine
	clock   Clock
	paused  time.Duration // until then
	held    []func()      // what happened meanwhile
	wakeAt  time.Duration
	omit    map[id.Node]bool // members that its directory does not show now
	seen    map[id.Node]id.Incarnation
	users   map[id.UID]map[Digest]Order
}

type sim struct {
	rng    *rand.Rand
	now    time.Duration
	queue  simQueue
	seq    int
	nodes  []*simNode
	cut    map[[2]id.Node]bool
	loss   float64
	late   float64
	double float64
	sids   byte
	opened map[id.UID][]Order // ever
	log    []string
	sent   int
	facts  int
	wrong  []string
}

func newSim(seed uint64, nodes int) *sim {
	s := &sim{rng: rand.New(rand.NewPCG(seed, 9)), cut: map[[2]id.Node]bool{}, opened: map[id.UID][]Order{}}
	for i := range nodes {
		n := &simNode{s: s, name: id.Node(fmt.Sprintf("10.0.0.%d:1", i+1)), omit: map[id.Node]bool{}, seen: map[id.Node]id.Incarnation{}}
		n.skew = s.anySkew()
		s.nodes = append(s.nodes, n)
	}
	for _, n := range s.nodes {
		n.start()
	}
	return s
}

func (s *sim) note(format string, args ...any) {
	s.log = append(s.log, fmt.Sprintf("%8.3fs ", s.now.Seconds())+fmt.Sprintf(format, args...))
}

func (s *sim) after(d time.Duration, do func()) {
	s.seq++
	heap.Push(&s.queue, simEvent{s.now + d, s.seq, do})
}

func (s *sim) run(d time.Duration) {
	end := s.now + d
	for len(s.queue) > 0 && s.queue[0].at <= end {
		e := heap.Pop(&s.queue).(simEvent)
		s.now = e.at
		e.do()
	}
	s.now = end
}

func (s *sim) between(low, high time.Duration) time.Duration {
	return low + time.Duration(s.rng.Int64N(int64(high-low)+1))
}

// on has do happen at n, when it runs.
func (n *simNode) on(d time.Duration, do func()) {
	run := n.run
	n.s.after(d, func() {
		switch {
		case n.run != run || n.dead:
		case n.s.now < n.paused:
			n.held = append(n.held, do)
		default:
			do()
		}
	})
}

// mono is the monotonic clock, wall what the wall clock shows.
func (n *simNode) mono() time.Time { return simStart.Add(n.s.now) }
func (n *simNode) wall() time.Time { return n.mono().Add(n.skew) }

func (n *simNode) start() {
	n.run++
	n.dead, n.paused, n.held, n.wakeAt = false, 0, nil, 0
	n.life = id.Incarnation{byte(n.run)}
	n.users = map[id.UID]map[Digest]Order{}
	clear(n.seen)
	n.clock = NewClock(n.mono())
	n.machine = New(Config{Parts: 3, Open: func(part int) (all []Fact) {
		for _, uid := range slices.Sorted(maps.Keys(n.users)) {
			if int(uid[1])%3 != part {
				continue
			}
			for _, o := range n.users[uid] {
				all = append(all, Fact{uid, o})
			}
		}
		return all
	}})
	n.tick()
}

func (n *simNode) tick() {
	n.look()
	n.step(Tick{})
	n.on(250*time.Millisecond, n.tick)
}

// look reads the directory.
func (n *simNode) look() {
	now := map[id.Node]id.Incarnation{}
	for _, m := range n.s.nodes {
		if m != n && !m.dead && !n.omit[m.name] {
			now[m.name] = m.life
		}
	}
	if maps.Equal(now, n.seen) {
		return
	}
	n.seen = now
	var peers []Peer
	for node, life := range now {
		peers = append(peers, Peer{node, life})
	}
	n.step(Members{peers})
}

func (n *simNode) step(in Input) {
	out := n.machine.Step(n.mono(), in)
	for _, m := range out.Send {
		n.send(m)
	}
	if d := out.WakeAt.Sub(n.mono()); !out.WakeAt.IsZero() && d < 250*time.Millisecond {
		n.on(max(d, 0), func() { n.step(Tick{}) })
	}
}

func (s *sim) node(name id.Node) *simNode {
	for _, n := range s.nodes {
		if n.name == name {
			return n
		}
	}
	panic("no such node")
}

// reach is how long a message takes, false when it never comes.
func (s *sim) reach(from, to id.Node) (time.Duration, bool) {
	if s.cut[[2]id.Node{from, to}] || s.rng.Float64() < s.loss {
		return 0, false
	}
	if s.rng.Float64() < s.late {
		return s.between(0, 8*time.Second), true
	}
	return s.between(200*time.Microsecond, 5*time.Millisecond), true
}

func (n *simNode) send(m Message) {
	s, to := n.s, n.s.node(m.To)
	s.sent++
	s.facts += len(m.Facts)
	done := false
	answer := func(a Answered) {
		if !done {
			done = true
			a.To, a.Attempt = m.To, m.Attempt
			n.step(a)
		}
	}
	n.on(simTimeout, func() { answer(Answered{}) })
	clock := n.clock.Now(n.mono(), n.wall())
	times := 1
	if s.rng.Float64() < s.double {
		times = 2
	}
	for range times {
		d, ok := s.reach(n.name, to.name)
		if !ok {
			continue
		}
		to.on(d, func() {
			newer := to.hear(clock, m.Facts)
			nobody, theirs := len(to.users) == 0, to.clock.Now(to.mono(), to.wall())
			if d, ok := s.reach(to.name, n.name); ok {
				n.on(d, func() {
					n.hear(theirs, newer)
					answer(Answered{OK: true, Nobody: nobody})
				})
			}
		})
	}
}

// hear is Registry.hear.
func (n *simNode) hear(clock int64, facts []Fact) (newer []Fact) {
	if !n.clock.Raise(n.mono(), n.wall(), clock) {
		n.s.wrong = append(n.s.wrong, fmt.Sprintf("%s does not believe a clock that shows %d", n.name, clock))
	}
	for _, f := range facts {
		n.clock.Raise(n.mono(), n.wall(), f.Order.Issued)
		for d, o := range n.users[f.UID] {
			switch Judge(o, true, f.Order) {
			case Lose:
				n.end(f.UID, d, "replaced")
			case Newer:
				newer = append(newer, Fact{f.UID, o})
			}
		}
	}
	return newer
}

func (n *simNode) end(uid id.UID, d Digest, why string) {
	o := n.users[uid][d]
	n.s.note("%s ends %s #%d: %s", n.name, uid, d[0], why)
	if why == "replaced" && !slices.ContainsFunc(n.s.opened[uid], func(p Order) bool { return o.Compare(p) < 0 }) {
		n.s.wrong = append(n.s.wrong, fmt.Sprintf("%s #%d was ended and nothing newer ever opened", uid, d[0]))
	}
	if delete(n.users[uid], d); len(n.users[uid]) == 0 {
		delete(n.users, uid)
	}
}

// open is what Registry.UserOpened does.
func (n *simNode) open(uid id.UID, o Order) {
	s := n.s
	s.note("%s opens %s #%d", n.name, uid, o.Digest[0])
	s.opened[uid] = append(s.opened[uid], o)
	lost := false
	for d, other := range n.users[uid] {
		if other.Compare(o) < 0 {
			n.end(uid, d, "replaced")
		} else {
			lost = true
		}
	}
	if lost {
		return
	}
	if n.users[uid] == nil {
		n.users[uid] = map[Digest]Order{}
	}
	n.users[uid][o.Digest] = o
	n.step(Opened{Facts: []Fact{{uid, o}}})
}

func (n *simNode) login(uid id.UID, late time.Duration) Digest {
	n.s.sids++
	o := Order{n.clock.Issue(n.mono(), n.wall()), Digest{n.s.sids}}
	n.on(late, func() { n.open(uid, o) })
	return o.Digest
}

// calm waits until everything is whole, and until what was repeated has come through.
func (s *sim) calm() {
	s.loss, s.late, s.double = 0, 0, 0
	s.run(45 * time.Second) // whatever still was to happen has
	clear(s.cut)
	s.run(30 * time.Second)
}

// requireOne wants one sid at most of each user id open, which is the newest of those that
// are, nothing kept, and nobody talking.
func (s *sim) requireOne() error {
	for i := range simUsers {
		uid := id.UID(fmt.Sprint("u", i))
		var open []string
		for _, n := range s.nodes {
			for d := range n.users[uid] {
				open = append(open, fmt.Sprintf("#%d on %s", d[0], n.name))
			}
		}
		if len(open) > 1 {
			return fmt.Errorf("%s is open as %v", uid, open)
		}
	}
	for _, n := range s.nodes {
		if n.machine.Waiting() != 0 || n.machine.passing != 0 {
			return fmt.Errorf("%s keeps %d facts, %d passes", n.name, n.machine.Waiting(), n.machine.passing)
		}
	}
	sent := s.sent
	if s.run(10 * time.Second); s.sent != sent {
		return fmt.Errorf("%d messages are sent although nothing happens", s.sent-sent)
	}
	if len(s.wrong) > 0 {
		return fmt.Errorf("%s", s.wrong[0])
	}
	return nil
}

// requireLatest logs every user in once more, somewhere, and wants that one to stay:
// whatever the clocks, which may be set shortly before.
func (s *sim) requireLatest() error {
	latest := map[id.UID]Digest{}
	for range 3 {
		if s.rng.IntN(2) == 0 {
			s.nodes[s.rng.IntN(len(s.nodes))].setClock()
			s.run(time.Second)
		}
		for i := range simUsers {
			uid := id.UID(fmt.Sprint("u", i))
			latest[uid] = s.nodes[s.rng.IntN(len(s.nodes))].login(uid, 0)
		}
		s.run(2 * time.Second)
	}
	for uid, d := range latest {
		var open []Digest
		for _, n := range s.nodes {
			for d := range n.users[uid] {
				open = append(open, d)
			}
		}
		if !slices.Equal(open, []Digest{d}) {
			return fmt.Errorf("%s is open as %v, the latest is #%d", uid, open, d[0])
		}
	}
	return nil
}

func (s *sim) history() string { return strings.Join(s.log[max(0, len(s.log)-80):], "\n") }

// seeds is how many histories a test plays: few, or DIARKIS_SIM_SEEDS.
func seeds(t *testing.T) uint64 {
	v := os.Getenv("DIARKIS_SIM_SEEDS")
	if v == "" {
		if testing.Short() {
			return 50
		}
		return 300
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("DIARKIS_SIM_SEEDS: %v", err)
	}
	return n
}

// Whatever happened: when it is over each user id has one connection at most, and the
// latest login stays.
func TestSimulation(t *testing.T) {
	for seed := range seeds(t) {
		s := newSim(seed, simNodes)
		s.chaos(40 * time.Second)
		s.calm()
		err := s.requireOne()
		if err == nil {
			err = s.requireLatest()
		}
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, s.history())
		}
	}
}
