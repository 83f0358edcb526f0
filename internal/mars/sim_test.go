package mars

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// sim is a cluster in one goroutine: machines, a queue of what happens when, and
// seeded faults on every message between them.
type sim struct {
	t     testing.TB
	rnd   *rand.Rand
	now   time.Time
	queue events
	count int // of events ever queued: ties happen in that order

	home  *simHome
	nodes []*simNode // by address
	epoch map[id.Incarnation]time.Time

	loss      float64
	duplicate float64
	delayMax  time.Duration

	history []string
	hash    uint64
	bytes   int // carried, both ways
	trace   bool
}

type simHome struct {
	registry *Registry
	up       bool
	run      int
	started  time.Time
	wake     time.Time
	gone     map[id.Incarnation]bool
}

type simNode struct {
	index    int
	node     id.Node
	observer *Observer
	up       bool
	paused   bool
	run      int
	wake     time.Time
	dir      *Directory
	role     string
	held     []func() // what arrives during a pause
	strict   bool     // losing a live member is an error
}

type event struct {
	at time.Time
	n  int
	do func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].n < e[j].n
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

var simStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const homeNode = id.Node("10.0.0.1:6779")

// newSim returns a cluster of a home and n nodes, none of them running yet.
func newSim(t testing.TB, seed uint64, n int) *sim {
	s := &sim{
		t: t, rnd: rand.New(rand.NewPCG(seed, 17)), now: simStart,
		home: &simHome{}, epoch: make(map[id.Incarnation]time.Time), delayMax: 2 * time.Millisecond,
	}
	for i := range n {
		role := []string{"mars", "http", "udp", "tcp"}[min(i, 1)+i%3*min(i, 1)]
		node := id.Node(fmt.Sprintf("10.0.%d.%d:8000", i/200, 2+i%200))
		if i == 0 {
			node = homeNode
		}
		s.nodes = append(s.nodes, &simNode{index: i, node: node, role: role})
	}
	return s
}

func (s *sim) after(d time.Duration, do func()) {
	s.count++
	heap.Push(&s.queue, event{s.now.Add(d), s.count, do})
}

func (s *sim) run(d time.Duration) {
	end := s.now.Add(d)
	for len(s.queue) > 0 && !s.queue[0].at.After(end) {
		e := heap.Pop(&s.queue).(event)
		s.now = e.at
		e.do()
	}
	s.now = end
}

func (s *sim) say(who string, format string, args ...any) {
	line := fmt.Sprintf("%6.1fs %s: %s", s.now.Sub(simStart).Seconds(), who, fmt.Sprintf(format, args...))
	h := fnv.New64a()
	_ = binary.Write(h, binary.BigEndian, s.hash)
	h.Write([]byte(line))
	s.hash = h.Sum64()
	if s.trace {
		s.history = append(s.history, line)
	}
}

func (s *sim) fatalf(format string, args ...any) {
	s.t.Helper()
	tail := s.history[max(0, len(s.history)-60):]
	s.t.Fatalf(format+"\n%s", append(args, strings.Join(tail, "\n"))...)
}

func (s *sim) incarnation() (i id.Incarnation) {
	binary.BigEndian.PutUint64(i[:], s.rnd.Uint64())
	binary.BigEndian.PutUint64(i[8:], s.rnd.Uint64())
	return i
}

// startHome starts the authority without memory, and the member in its process.
func (s *sim) startHome() {
	h := s.home
	inc := s.incarnation()
	h.registry = NewRegistry(s.now, RegistryConfig{Node: homeNode, Incarnation: inc})
	h.up, h.started, h.gone = true, s.now, make(map[id.Incarnation]bool)
	h.run++
	s.say("mars", "started")
	s.tickHome(h.run)
	s.start(0)
}

func (s *sim) killHome() {
	s.home.up = false
	s.home.run++
	s.kill(0)
}

func (s *sim) tickHome(run int) {
	if s.home.run == run {
		s.stepHome(RegistryTick{})
		s.after(s.home.wake.Sub(s.now), func() { s.tickHome(run) })
	}
}

func (s *sim) stepHome(in RegistryInput) *Ack {
	h := s.home
	out := h.registry.Step(s.now, in)
	h.wake = out.WakeAt
	for _, e := range out.Events {
		s.say("mars", "%s", describe(e))
		switch e.Kind {
		case MemberJoined:
			if h.gone[e.Incarnation] {
				s.fatalf("incarnation %v of %s came back", e.Incarnation, e.Node)
			}
			if died, ok := s.epoch[e.Incarnation]; ok && died.Before(h.started) {
				s.fatalf("incarnation %v of %s joined an authority that started after its death", e.Incarnation, e.Node)
			}
		case MemberLeft, MemberExpired, MemberReplaced:
			h.gone[e.Incarnation] = true
		}
	}
	return out.Reply
}

func describe(e Event) string {
	var b strings.Builder
	b.WriteString(e.Kind.String())
	if e.Node != "" {
		fmt.Fprintf(&b, " %s", e.Node)
	}
	if e.Silence > 0 {
		fmt.Fprintf(&b, " after %.1fs", e.Silence.Seconds())
	}
	if e.Count > 0 {
		fmt.Fprintf(&b, " %d", e.Count)
	}
	if e.Text != "" {
		fmt.Fprintf(&b, " (%s)", e.Text)
	}
	return b.String()
}

// start starts a node as a new process.
func (s *sim) start(i int) {
	n := s.nodes[i]
	n.up, n.paused, n.held, n.dir = true, false, nil, nil
	n.run++
	n.observer = NewObserver(s.now, ObserverConfig{
		Self: Instance{
			Node: n.node, Incarnation: s.incarnation(), Started: s.now.UnixMilli(),
			Role: n.role, Type: strings.ToUpper(n.role), AppName: "game",
		},
		Rand: s.rnd.Float64,
	})
	s.say(string(n.node), "started")
	s.step(n, Targets{Nodes: []id.Node{homeNode}})
}

func (s *sim) kill(i int) {
	n := s.nodes[i]
	if n.up {
		s.epoch[n.observer.self.Incarnation] = s.now
		s.say(string(n.node), "killed")
	}
	n.up = false
	n.run++
}

func (s *sim) pause(i int, d time.Duration) {
	n := s.nodes[i]
	run := n.run
	n.paused = true
	s.say(string(n.node), "paused")
	s.after(d, func() {
		if n.run != run {
			return
		}
		n.paused = false
		held := n.held
		n.held = nil
		s.step(n, Tick{})
		for _, do := range held {
			do()
		}
	})
}

func (s *sim) step(n *simNode, in ObserverInput) {
	if !n.up {
		return
	}
	out := n.observer.Step(s.now, in)
	for _, e := range out.Events {
		if e.Kind == MemberVanished && n.strict {
			for _, m := range s.nodes {
				if m.up && !m.paused && m.observer.self.Incarnation == e.Incarnation {
					s.fatalf("%s lost %s, which is alive", n.node, e.Node)
				}
			}
		}
		s.say(string(n.node), "%s", describe(e))
	}
	if out.Directory != nil {
		n.dir = out.Directory
	}
	if out.Send != nil {
		s.request(n, *out.Send)
	}
	if out.WakeAt.IsZero() || out.WakeAt.Equal(n.wake) {
		return
	}
	n.wake = out.WakeAt
	run := n.run
	s.after(max(out.WakeAt.Sub(s.now), 0), func() {
		if n.run == run && !n.paused && !s.now.Before(n.wake) {
			n.wake = time.Time{}
			s.step(n, Tick{})
		}
	})
}

// deliver lets do happen at a running node, after its pause.
func (s *sim) deliver(n *simNode, run int, do func()) {
	switch {
	case n.run != run || !n.up:
	case n.paused:
		n.held = append(n.held, do)
	default:
		do()
	}
}

func (s *sim) delay() time.Duration {
	return time.Duration(s.rnd.Int64N(int64(s.delayMax))) + 100*time.Microsecond
}

// request carries a message to home and its answer back, or the timeout.
func (s *sim) request(n *simNode, send Send) {
	run := n.run
	b := send.Message.AppendTo(nil)
	s.after(send.Timeout, func() {
		s.deliver(n, run, func() { s.step(n, Failed{Try: send.Try, Text: "timeout"}) })
	})
	copies := 1
	if s.rnd.Float64() < s.duplicate {
		copies = 2
	}
	for k := range copies {
		if n.index != 0 && s.rnd.Float64() < s.loss {
			continue
		}
		d := s.delay()
		if k > 0 {
			d += time.Duration(s.rnd.Int64N(int64(5 * time.Second))) // a late copy
		}
		s.after(d, func() { s.arrive(n, run, send.Try, b) })
	}
}

func (s *sim) arrive(n *simNode, run int, try uint64, b []byte) {
	if !s.home.up {
		return
	}
	m, err := ParseMessage(b)
	if err != nil {
		s.fatalf("request of %s: %v", n.node, err)
	}
	reply := s.stepHome(Received{Message: m}).AppendTo(nil)
	if n.index != 0 && s.rnd.Float64() < s.loss {
		return
	}
	s.bytes += len(b) + len(reply)
	s.after(s.delay(), func() {
		s.deliver(n, run, func() {
			m, err := ParseMessage(reply)
			if err != nil {
				s.fatalf("answer to %s: %v", n.node, err)
			}
			s.step(n, Answered{Try: try, Message: m})
		})
	})
}

// calm ends all faults; what is paused or down stays so.
func (s *sim) calm() { s.loss, s.duplicate, s.delayMax = 0, 0, 2*time.Millisecond }

// problem says how a running node's directory differs from who runs, or "".
func (s *sim) problem() string {
	want := make(map[id.Node]id.Incarnation)
	for _, n := range s.nodes {
		if n.up {
			want[n.node] = n.observer.self.Incarnation
		}
	}
	for _, n := range s.nodes {
		if !n.up {
			continue
		}
		if n.dir == nil || !n.dir.Live {
			return fmt.Sprintf("%s has no live directory", n.node)
		}
		if len(n.dir.Members) != len(want) {
			return fmt.Sprintf("%s sees %d members, %d run", n.node, len(n.dir.Members), len(want))
		}
		for _, m := range n.dir.Members {
			if want[m.Node] != m.Incarnation || m.Hidden {
				return fmt.Sprintf("%s sees %s as %v hidden %v, it runs as %v", n.node, m.Node, m.Incarnation, m.Hidden, want[m.Node])
			}
		}
	}
	return ""
}

// holds tells whether node i is in the directory of any other running node.
func (s *sim) holds(inc id.Incarnation) bool {
	for _, n := range s.nodes {
		if !n.up || n.dir == nil {
			continue
		}
		for _, m := range n.dir.Members {
			if m.Incarnation == inc {
				return true
			}
		}
	}
	return false
}
