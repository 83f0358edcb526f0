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
// processes that stand still, die and come back, directories that lag or omit somebody, and
// wall clocks that differ by hours. What a node does with what it hears is the registry's
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
		n.skew = time.Duration(s.rng.Int64N(int64(20*time.Hour))) - 10*time.Hour
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

func (n *simNode) wall() time.Time { return simStart.Add(n.skew + n.s.now) }

func (n *simNode) start() {
	n.run++
	n.dead, n.paused, n.held, n.wakeAt = false, 0, nil, 0
	n.life = id.Incarnation{byte(n.run)}
	n.users = map[id.UID]map[Digest]Order{}
	clear(n.seen)
	n.clock = NewClock(n.wall())
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
	out := n.machine.Step(n.wall(), in)
	for _, m := range out.Send {
		n.send(m)
	}
	if d := out.WakeAt.Sub(n.wall()); !out.WakeAt.IsZero() && d < 250*time.Millisecond {
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
	clock := n.clock.Now(n.wall())
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
			nobody, theirs := len(to.users) == 0, to.clock.Now(to.wall())
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
	n.clock.Raise(n.wall(), clock)
	for _, f := range facts {
		n.clock.Raise(n.wall(), f.Order.Issued)
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
	o := Order{n.clock.Issue(n.wall()), Digest{n.s.sids}}
	n.on(late, func() { n.open(uid, o) })
	return o.Digest
}

// chaos breaks things at random for a while.
func (s *sim) chaos(d time.Duration) {
	s.loss, s.late, s.double = s.rng.Float64()*0.3, s.rng.Float64()*0.2, s.rng.Float64()*0.2
	for end := s.now + d; s.now < end; {
		s.run(s.between(0, 700*time.Millisecond))
		n, m := s.nodes[s.rng.IntN(len(s.nodes))], s.nodes[s.rng.IntN(len(s.nodes))]
		uid := id.UID(fmt.Sprint("u", s.rng.IntN(simUsers)))
		switch x := s.rng.IntN(20); {
		case n.dead:
		case x < 8:
			late := s.between(0, 100*time.Millisecond)
			if s.rng.IntN(8) == 0 {
				late = s.between(0, 20*time.Second)
			}
			n.on(0, func() { n.login(uid, late) })
		case x < 10:
			n.on(0, func() {
				for d := range n.users[uid] {
					n.end(uid, d, "logout")
				}
			})
		case x < 12:
			n.on(0, func() { n.move(uid, m) })
		case x < 14:
			s.pause(n, s.between(0, 20*time.Second))
		case x < 15:
			s.kill(n, s.between(200*time.Millisecond, 15*time.Second))
		case x < 17:
			s.split(s.between(0, 20*time.Second))
		case x < 18:
			s.cutFor(n.name, m.name, s.between(0, 20*time.Second))
		default:
			s.omit(n, m, s.between(0, 20*time.Second))
		}
	}
}

// move hands who is open at n to m, which has them some time later, if it lives.
func (n *simNode) move(uid id.UID, m *simNode) {
	for d, o := range n.users[uid] {
		if m != n && !m.dead {
			n.end(uid, d, "moved")
			m.on(n.s.between(0, 3*time.Second), func() { m.open(uid, o) })
		}
	}
}

func (s *sim) pause(n *simNode, d time.Duration) {
	s.note("%s stands still for %v", n.name, d)
	run, until := n.run, s.now+d
	n.paused = max(n.paused, until)
	s.evicted(n, d)
	s.after(d, func() {
		if n.run != run || s.now < n.paused {
			return
		}
		held := n.held
		n.held = nil
		s.rng.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
		for _, do := range held {
			do()
		}
	})
}

// evicted has the others drop who was away for longer than they wait; then it comes back
// under another incarnation.
func (s *sim) evicted(n *simNode, away time.Duration) {
	if away < 6*time.Second {
		return
	}
	run := n.run
	for _, m := range s.nodes {
		s.after(6*time.Second+s.between(0, min(away-6*time.Second, time.Second)), func() { m.omit[n.name] = true })
		s.after(away+s.between(0, 2*time.Second), func() { delete(m.omit, n.name) })
	}
	s.after(away, func() {
		if n.run == run {
			n.life[len(n.life)-1]++
		}
	})
}

func (s *sim) kill(n *simNode, d time.Duration) {
	s.note("%s is killed for %v", n.name, d)
	n.dead, n.users = true, map[id.UID]map[Digest]Order{}
	n.run++
	s.after(d, func() {
		if n.dead {
			n.skew = s.between(0, 20*time.Hour) - 10*time.Hour
			n.start()
		}
	})
}

func (s *sim) split(d time.Duration) {
	side := s.rng.Uint64()
	s.note("split %b for %v", side&(1<<len(s.nodes)-1), d)
	for i, a := range s.nodes {
		for j, b := range s.nodes {
			if side>>i&1 != side>>j&1 {
				s.cutFor(a.name, b.name, d)
			}
		}
	}
}

func (s *sim) cutFor(a, b id.Node, d time.Duration) {
	s.cut[[2]id.Node{a, b}] = true
	s.after(d, func() { delete(s.cut, [2]id.Node{a, b}) })
}

func (s *sim) omit(n, m *simNode, d time.Duration) {
	n.omit[m.name] = true
	s.after(d, func() { delete(n.omit, m.name) })
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
// whatever the clocks.
func (s *sim) requireLatest() error {
	latest := map[id.UID]Digest{}
	for range 3 {
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
		return 500
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
