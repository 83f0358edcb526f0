package mars

import (
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// pair is one observer and the registry it talks to, by hand.
type pair struct {
	t   *testing.T
	r   *Registry
	o   *Observer
	now time.Time
	out ObserverOutput
}

func newPair(t *testing.T) *pair {
	p := &pair{t: t, r: newTestRegistry(), now: simStart}
	p.o = NewObserver(p.now, ObserverConfig{
		Self: Instance{Node: "10.0.0.2:8000", Incarnation: id.Incarnation{9}, Started: 1, Role: "http", Type: "HTTP", AppName: "game"},
		Rand: func() float64 { return 0.5 },
	})
	p.step(Targets{Nodes: []id.Node{homeNode}})
	p.answer(p.ask()) // the epoch
	p.answer(p.ask()) // the registration
	if ok, _ := p.o.Joined(); !ok {
		t.Fatal("not joined")
	}
	return p
}

func (p *pair) step(in Input) {
	p.t.Helper()
	p.out = p.o.Step(p.now, in)
}

// sent returns the request under way.
func (p *pair) sent() *Send {
	p.t.Helper()
	if p.out.Send == nil {
		p.t.Fatal("nothing was sent")
	}
	return p.out.Send
}

// ask lets the registry answer the request just sent.
func (p *pair) ask() Ack {
	p.t.Helper()
	reply := p.r.Step(p.now, Request{Message: p.sent().Message}).Reply
	return *reply
}

func (p *pair) answer(a Ack) {
	p.t.Helper()
	p.step(Answered{Try: p.sent().Try, Message: a})
}

// later lets the next heartbeat go out.
func (p *pair) later() {
	p.t.Helper()
	p.now = p.now.Add(2 * time.Second)
	p.step(Tick{})
}

// What an authority says that was fenced out is not applied.
func TestOlderEpochIsIgnored(t *testing.T) {
	p := newPair(t)
	p.later()
	a := p.ask()
	a.Epoch.Term--
	a.Status = StatusGone
	before := p.o.self
	p.answer(a)
	if p.o.self != before || p.o.Epoch() != p.r.Epoch() || p.o.failures != 1 {
		t.Errorf("applied an ack of epoch %v after %v", a.Epoch, p.r.Epoch())
	}
}

// An answer to a request that was given up is not applied either.
func TestLateAnswerIsIgnored(t *testing.T) {
	p := newPair(t)
	p.later()
	a, try := p.ask(), p.sent().Try
	p.step(Failed{Try: try, Text: "timeout"})
	a.Status = StatusGone
	before := p.o.self
	p.step(Answered{Try: try, Message: a})
	if p.o.self != before {
		t.Error("applied")
	}
	p.step(Failed{Try: try, Text: "timeout"})
	if p.o.failures != 1 {
		t.Errorf("one failure counted %d times", p.o.failures)
	}
}

// The authority that registered us and knows us no more has evicted us too long
// ago to remember; another one just has to be told who we are.
func TestUnknown(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Epoch)
		fresh  bool
	}{
		{"to the authority that registered it", func(*Epoch) {}, true},
		{"to its successor", func(e *Epoch) { e.Term++ }, false},
		{"to a new one", func(e *Epoch) { e.Generation++ }, false},
	} {
		p := newPair(t)
		p.later()
		a := p.ask()
		a.Status, a.Delta = StatusRegister, Delta{}
		tt.change(&a.Epoch)
		before := p.o.self.Incarnation
		p.answer(a)
		if fresh := p.o.self.Incarnation != before; fresh != tt.fresh {
			t.Errorf("%s: new incarnation %v, want %v", tt.name, fresh, tt.fresh)
		}
		p.later()
		if m, ok := p.sent().Message.(Heartbeat); !ok || m.Register == nil {
			t.Errorf("%s: it does not register", tt.name)
		}
	}
}

// Values go out once, and again when they may not have arrived.
func TestValuesTravelUntilAcknowledged(t *testing.T) {
	p := newPair(t)
	carries := func() bool {
		t.Helper()
		m, ok := p.sent().Message.(Heartbeat)
		return ok && m.Status.HasValues && string(m.Status.Values) == "\x81\xa1k\x01"
	}
	p.now = p.now.Add(pushGap)
	p.step(SetValues{Values: []byte("\x81\xa1k\x01")})
	if !carries() {
		t.Fatal("not pushed")
	}
	p.step(Failed{Try: p.sent().Try, Text: "timeout"})
	p.later()
	if !carries() {
		t.Error("not sent again")
	}
	p.answer(p.ask())
	p.later()
	if m, _ := p.sent().Message.(Heartbeat); m.Status.HasValues {
		t.Error("sent after they were acknowledged")
	}
	p.answer(p.ask())
	if m, _ := p.o.dir.lookup("10.0.0.2:8000"); m.Values["k"] != int64(1) {
		t.Errorf("directory has %v", m.Values)
	}
}

// A change during a request is pushed right after it.
func TestChangeDuringRequest(t *testing.T) {
	p := newPair(t)
	p.later()
	a, try := p.ask(), p.sent().Try
	p.step(SetState{State: Offline})
	if p.out.Send != nil {
		t.Fatal("two requests under way")
	}
	p.step(Answered{Try: try, Message: a})
	if m, _ := p.sent().Message.(Heartbeat); m.Status.State != Offline {
		t.Errorf("sent %+v", m.Status)
	}
}

// Addresses are tried in turn; one that fails to resolve changes nothing.
func TestTargetsRotate(t *testing.T) {
	o := NewObserver(simStart, ObserverConfig{Self: Instance{Node: "10.0.0.2:8000"}, Rand: func() float64 { return 0 }})
	now := simStart
	out := o.Step(now, Targets{Nodes: []id.Node{"a", "b"}})
	var asked []string
	for range 4 {
		asked = append(asked, out.Send.To.String())
		out = o.Step(now, Failed{Try: out.Send.Try, Text: "unreachable"})
		if !out.Resolve {
			t.Error("addresses are not looked up again")
		}
		o.Step(now, Targets{Text: "no such host"})
		now = now.Add(3 * time.Second)
		if out = o.Step(now, Tick{}); out.Send == nil {
			t.Fatal("no retry")
		}
	}
	if got := strings.Join(asked, ""); got != "abab" {
		t.Errorf("asked %s", got)
	}
}

// Without an answer the pace drops to one try in two to three seconds, and a
// push does not quicken it.
func TestRetriesKeepTheirPace(t *testing.T) {
	p := newPair(t)
	end := p.now.Add(time.Minute)
	tries := 0
	for p.now.Before(end) {
		p.step(SetLoad{Users: tries + 1, Load: float64(p.now.UnixMilli()%10) / 10})
		if p.out.Send != nil {
			tries++
			try := p.out.Send.Try
			p.now = p.now.Add(time.Second)
			p.step(Failed{Try: try, Text: "timeout"})
		}
		p.now = p.now.Add(50 * time.Millisecond)
	}
	if tries < 15 || tries > 22 {
		t.Errorf("%d tries in a minute", tries)
	}
}

// A late copy of a heartbeat neither changes what is known nor keeps alive.
func TestLateCopyOfHeartbeat(t *testing.T) {
	r := newTestRegistry()
	a := newMember(2, "http", "game")
	ask(t, r, 0, a.register(r), StatusOK)
	old := a.beat(r, 0)
	next := a.beat(r, 0)
	next.Status.State = Offline
	ask(t, r, 0, old, StatusOK)
	ask(t, r, 0, next, StatusOK)
	for at := time.Second; at < 6*time.Second; at += time.Second {
		d := ask(t, r, at, old, StatusOK).Delta
		if d.Upserts[0].State != Offline {
			t.Errorf("state %v", d.Upserts[0].State)
		}
	}
	if out := r.Step(simStart.Add(6*time.Second), RegistryTick{}); len(out.Events) != 1 || out.Events[0].Kind != MemberExpired {
		t.Errorf("copies kept it alive: %+v", out.Events)
	}
}

// An epoch is raised above a foreign one at once, but only a few times a minute:
// a member with a broken memory can't make everybody fetch everything.
func TestEpochRaisedAFewTimes(t *testing.T) {
	m := New(simStart, Config{
		Self: Instance{Node: homeNode, Incarnation: id.Incarnation{1}, Role: "mars", Type: "MARS"},
		Home: true, ColdBoot: -1, Rand: func() float64 { return 0.5 },
	})
	m.Step(simStart, Tick{})
	a := newMember(2, "http", "game")
	raise := func(at time.Duration, by uint64) bool {
		before := m.Epoch()
		b := a.beat(m.Registry(), 0)
		b.Epoch.Generation += by
		reply := m.Step(simStart.Add(at), Request{Message: b}).Reply.(Ack)
		if reply.Epoch != m.Epoch() {
			t.Errorf("answered in epoch %v", reply.Epoch)
		}
		return m.Epoch().Compare(b.Epoch) > 0 && m.Epoch() != before
	}
	for _, tt := range []struct {
		at   time.Duration
		by   uint64
		want bool
	}{
		{0, 5, true}, {time.Second, 5, true}, {30 * time.Second, 5, true}, {31 * time.Second, 5, false},
		{61 * time.Second, 5, true}, {62 * time.Second, 5, true}, {63 * time.Second, 5, false}, {200 * time.Second, 1 << 63, false},
	} {
		if got := raise(tt.at, tt.by); got != tt.want {
			t.Errorf("at %v, %d ahead: raised %v", tt.at, tt.by, got)
		}
	}
}

// A peer that fails to reach many is the one with the problem.
func TestSuspicionOfMostIsIgnored(t *testing.T) {
	r := newTestRegistry()
	var ms []*handMember
	for i := range 10 {
		ms = append(ms, newMember(i+2, "udp", "game"))
		ask(t, r, 0, ms[i].register(r), StatusOK)
	}
	suspect := func(by int, of ...int) {
		b := ms[by].beat(r, 0)
		for _, i := range of {
			b.Suspects = append(b.Suspects, ms[i].Node)
		}
		ask(t, r, 0, b, StatusOK)
	}
	hidden := func(i int) bool { return r.byNode[ms[i].Node].Hidden }
	suspect(0, 5, 6, 7)
	suspect(1, 5, 6, 7)
	if hidden(5) {
		t.Error("hidden by peers that reach nobody")
	}
	suspect(0, 5, 6)
	if hidden(5) {
		t.Error("hidden by one peer")
	}
	suspect(5, 5)
	suspect(1, 5)
	if !hidden(5) || hidden(6) {
		t.Errorf("hidden: %v %v, want the one that two suspect", hidden(5), hidden(6))
	}
}

// An observer behind the remembered removals gets the whole directory.
func TestFarBehind(t *testing.T) {
	s := &space{}
	for i := range removalsMax + 10 {
		s.removed(Removal{Node: "10.0.0.2:8000", Incarnation: id.Incarnation{byte(i), byte(i >> 8)}, Reason: Left})
	}
	if d := s.delta(Heartbeat{Have: 5}, true, false, false); d.From != 0 {
		t.Errorf("from %d with what it misses forgotten", d.From)
	}
	if d := s.delta(Heartbeat{Have: 10}, true, false, false); d.From != 10 || len(d.Removed) != removalsMax {
		t.Errorf("from %d, %d removed", d.From, len(d.Removed))
	}
}

// The registry remembers a bounded number of ended incarnations, for a bounded time.
func TestGoneIsBounded(t *testing.T) {
	r := newTestRegistry()
	for i := range goneMax + 100 {
		r.bury(simStart.Add(time.Duration(i)), id.Incarnation{byte(i), byte(i >> 8), byte(i >> 16)})
	}
	if len(r.gone) != goneMax || len(r.goneOrder) != goneMax {
		t.Errorf("%d remembered", len(r.gone))
	}
	r.forget(simStart.Add(goneTTL + time.Second))
	if len(r.gone) != 0 {
		t.Errorf("%d remembered for longer than %v", len(r.gone), goneTTL)
	}
}
