package mars

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// member is a hand-driven member of a registry under test.
type handMember struct {
	Instance
	seq uint64
}

func newMember(host int, role, app string) *handMember {
	return &handMember{Instance: Instance{
		Node: id.Node(fmt.Sprintf("10.0.0.%d:8000", host)), Incarnation: id.Incarnation{1, byte(host)},
		Started: int64(host), Role: role, Type: role, AppName: app,
	}}
}

func (m *handMember) header(r *Registry) Header {
	return Header{Epoch: r.Epoch(), From: m.Node, Incarnation: m.Incarnation}
}

func (m *handMember) beat(r *Registry, have uint64) Heartbeat {
	m.seq++
	return Heartbeat{Header: m.header(r), Seq: m.seq, Have: have, Status: Dynamic{State: Online}}
}

func (m *handMember) register(r *Registry) Heartbeat {
	b := m.beat(r, 0)
	i := m.Instance
	b.Register, b.Status.HasValues = &i, true
	return b
}

func newTestRegistry() *Registry {
	return NewRegistry(simStart, RegistryConfig{Node: homeNode, Incarnation: id.Incarnation{7}})
}

func ask(t *testing.T, r *Registry, at time.Duration, m Message, want Status) Ack {
	t.Helper()
	out := r.Step(simStart.Add(at), Request{Message: m})
	if out.Reply == nil || out.Reply.Status != want {
		t.Fatalf("%T got %+v, want status %d", m, out.Reply, want)
	}
	return *out.Reply
}

func names(d Delta) (up, down []string) {
	for _, e := range d.Upserts {
		up = append(up, e.Node.String())
	}
	for _, g := range d.Removed {
		down = append(down, g.Node.String()+" "+g.Reason.String())
	}
	return up, down
}

func TestRegistryAnswers(t *testing.T) {
	a, b := newMember(2, "udp", "game"), newMember(3, "http", "game")
	older, newer := *a, *a
	older.Incarnation[2], older.Started = 1, a.Started-1
	newer.Incarnation[2], newer.Started = 2, a.Started+1
	nameless := newMember(9, "", "game")
	astray := newMember(9, "udp", "game")
	astray.Node = "mars.test:8000"

	r := newTestRegistry()
	first := a.register(r)
	stale := first
	stale.Epoch = Epoch{}
	for _, step := range []struct {
		name string
		m    Message
		want Status
	}{
		{"heartbeat of a stranger", a.beat(r, 0), StatusRegister},
		{"registration written before the epoch was known", stale, StatusRegister},
		{"registration", first, StatusOK},
		{"copy of it", first, StatusOK},
		{"heartbeat", a.beat(r, 0), StatusOK},
		{"registration of a process started earlier at the same address", older.register(r), StatusRefused},
		{"without a role", nameless.register(r), StatusRefused},
		{"with a name for an address", astray.register(r), StatusRefused},
		{"second member", b.register(r), StatusOK},
		{"newer process at the first address", newer.register(r), StatusOK},
		{"the process it replaced", a.beat(r, 0), StatusGone},
		{"and its registration", first, StatusGone},
		{"leave of the replaced", Leave{Header: a.header(r), Namespace: a.Namespace()}, StatusOK},
		{"heartbeat of the newer", newer.beat(r, 0), StatusOK},
		{"leave", Leave{Header: b.header(r), Namespace: b.Namespace()}, StatusOK},
		{"leave again", Leave{Header: b.header(r), Namespace: b.Namespace()}, StatusOK},
		{"registration after the leave", b.register(r), StatusGone},
	} {
		t.Log(step.name)
		ask(t, r, 0, step.m, step.want)
	}
	if r.Len() != 1 {
		t.Errorf("%d members", r.Len())
	}
}

func TestDeltas(t *testing.T) {
	r := newTestRegistry()
	udp, http, other := newMember(2, "udp", "game"), newMember(3, "HTTP", "game"), newMember(4, "udp", "other")
	ask(t, r, 0, udp.register(r), StatusOK)
	ask(t, r, 0, other.register(r), StatusOK)
	d := ask(t, r, 0, http.register(r), StatusOK).Delta
	if up, _ := names(d); !slices.Equal(up, []string{"10.0.0.2:8000", "10.0.0.3:8000"}) || d.From != 0 {
		t.Fatalf("first directory %+v", d)
	}
	brief := ask(t, r, 0, udp.beat(r, 0), StatusOK).Delta
	if brief.Digest == d.Digest {
		t.Error("both views have one digest")
	}

	// Load concerns full-sync roles only.
	busy := udp.beat(r, brief.To)
	busy.Status.Users, busy.Status.Load = 5, 0.5
	if got := ask(t, r, 0, busy, StatusOK).Delta; len(got.Upserts) != 0 || got.Digest != brief.Digest {
		t.Errorf("the member itself got %+v", got)
	}
	got := ask(t, r, 0, http.beat(r, d.To), StatusOK).Delta
	if len(got.Upserts) != 1 || got.Upserts[0].Users != 5 || got.Upserts[0].Seq != busy.Seq || got.From != d.To {
		t.Errorf("http got %+v", got)
	}
	// A heartbeat that says nothing new changes no version.
	same := udp.beat(r, 0)
	same.Status = busy.Status
	ask(t, r, 0, same, StatusOK)
	if again := ask(t, r, 0, http.beat(r, got.To), StatusOK).Delta; again.To != got.To || len(again.Upserts) != 0 {
		t.Errorf("nothing new is %+v", again)
	}
	// A version from the future or of another epoch gets everything.
	if far := ask(t, r, 0, http.beat(r, got.To+100), StatusOK).Delta; far.From != 0 || len(far.Upserts) != 2 {
		t.Errorf("unknown version got %+v", far)
	}
	foreign := http.beat(r, got.To)
	foreign.Epoch.Term--
	if far := ask(t, r, 0, foreign, StatusOK).Delta; far.From != 0 {
		t.Errorf("other epoch got %+v", far)
	}
	ask(t, r, 0, Leave{Header: udp.header(r), Namespace: udp.Namespace()}, StatusOK)
	if _, down := names(ask(t, r, 0, http.beat(r, got.To), StatusOK).Delta); !slices.Equal(down, []string{"10.0.0.2:8000 left"}) {
		t.Errorf("removed %v", down)
	}
}

func TestExpiry(t *testing.T) {
	r := newTestRegistry()
	a, b := newMember(2, "udp", "game"), newMember(3, "udp", "game")
	ask(t, r, 0, a.register(r), StatusOK)
	ask(t, r, 0, b.register(r), StatusOK)
	for at := time.Second; at < 20*time.Second; at += time.Second {
		ask(t, r, at, b.beat(r, 0), StatusOK)
		out := r.Step(simStart.Add(at), RegistryTick{})
		if gone := len(out.Events) > 0; gone != (at == 6*time.Second) {
			t.Errorf("at %v: %+v", at, out.Events)
		}
	}
	ask(t, r, 20*time.Second, a.beat(r, 0), StatusGone)
}

// Who was silent only while the authority itself stood still is not evicted.
// TestWhoSaidGoodbyeAndIsSilentHasLeft: a voter that is told to stay for its vote and ends
// all the same is no sign of a fault, however many there are of them.
func TestWhoSaidGoodbyeAndIsSilentHasLeft(t *testing.T) {
	r := newTestRegistry()
	ms := []*handMember{newMember(2, "udp", "game"), newMember(3, "udp", "game"), newMember(4, "udp", "game"), newMember(5, "udp", "game")}
	for _, m := range ms {
		ask(t, r, 0, m.register(r), StatusOK)
	}
	for _, m := range ms[:3] {
		r.drain(simStart.Add(time.Second), SeatOf(m.Node, m.Incarnation))
	}
	// One goes on after all: it had got the office, which was taken from it again.
	ask(t, r, 2*time.Second, ms[0].beat(r, 0), StatusOK)
	var left []id.Node
	for at := time.Second; at < 8*time.Second; at += time.Second {
		for _, m := range []*handMember{ms[0], ms[3]} {
			if at > 2*time.Second {
				ask(t, r, at, m.beat(r, 0), StatusOK)
			}
		}
		for _, e := range r.Step(simStart.Add(at), RegistryTick{}).Events {
			if e.Kind != MemberLeft || at > 4*time.Second {
				t.Errorf("%v of %s after %v", e.Kind, e.Node, at)
			}
			left = append(left, e.Node)
		}
	}
	if want := []id.Node{ms[1].Node, ms[2].Node}; !slices.Equal(left, want) {
		t.Errorf("%v left, want %v", left, want)
	}
}

func TestStalledAuthorityForgives(t *testing.T) {
	r := newTestRegistry()
	a := newMember(2, "udp", "game")
	ask(t, r, 0, a.register(r), StatusOK)
	if out := r.Step(simStart.Add(30*time.Second), RegistryTick{}); len(out.Events) != 0 {
		t.Errorf("after a stall: %+v", out.Events)
	}
	for at := 31 * time.Second; at < 35*time.Second; at += time.Second {
		r.Step(simStart.Add(at), RegistryTick{})
	}
	ask(t, r, 35*time.Second, a.beat(r, 0), StatusOK)
}

// A long directory comes in pages, and what changes meanwhile is not lost.
func TestPages(t *testing.T) {
	r := newTestRegistry()
	values, err := EncodeValues(map[string]any{"blob": make([]byte, 15<<10)})
	if err != nil {
		t.Fatal(err)
	}
	members := make(map[id.Node]*handMember)
	for i := 2; i < 202; i++ {
		m := newMember(i, "udp", "game")
		members[m.Node] = m
		b := m.register(r)
		b.Status.Values = values
		ask(t, r, 0, b, StatusOK)
	}
	o := NewObserver(simStart, ObserverConfig{
		Self: Instance{Node: "10.0.1.1:8000", Incarnation: id.Incarnation{9}, Started: 1, Role: "http", Type: "HTTP", AppName: "game"},
		Rand: func() float64 { return 0.5 },
	})
	out := o.Step(simStart, Targets{Nodes: []id.Node{homeNode}})
	requests := 0
	for out.Send != nil && requests < 20 {
		requests++
		if requests == 3 { // a page or two in
			gone, busy := members["10.0.0.3:8000"], members["10.0.0.4:8000"]
			ask(t, r, 0, Leave{Header: gone.header(r), Namespace: gone.Namespace()}, StatusOK)
			b := busy.beat(r, 0)
			b.Status.Users = 9
			ask(t, r, 0, b, StatusOK)
		}
		reply := r.Step(simStart, Request{Message: out.Send.Message}).Reply
		if size := len(reply.AppendTo(nil)); size > 2*pageBytes {
			t.Errorf("a page of %d bytes", size)
		}
		out = o.Step(simStart, Answered{Try: out.Send.Try, Message: *reply})
		if out.Directory != nil && out.Send != nil {
			t.Error("published before the last page")
		}
	}
	if out.Directory == nil || requests < 4 {
		t.Fatalf("after %d requests: %+v", requests, out)
	}
	if n := len(out.Directory.Members); n != 200 { // 200 members − 1 + itself
		t.Errorf("%d members", n)
	}
	if m, _ := out.Directory.Lookup("10.0.0.4:8000"); m.Users != 9 {
		t.Errorf("the change between pages is lost: %d users", m.Users)
	}
}

func TestTimers(t *testing.T) {
	for _, tt := range []struct {
		n        int
		interval time.Duration
		ttl      time.Duration
	}{
		{1, time.Second, 6 * time.Second},
		{2000, time.Second, 6 * time.Second},
		{4000, 2 * time.Second, 9 * time.Second},
		{100_000, 5 * time.Second, 18 * time.Second},
	} {
		if i := HeartbeatInterval(tt.n); i != tt.interval || TTL(i) != tt.ttl {
			t.Errorf("%d members: interval %v, TTL %v", tt.n, i, TTL(i))
		}
	}
}

func TestEpochOrder(t *testing.T) {
	ordered := []Epoch{
		{}, {Generation: 1, Term: 9}, {Generation: 2, Term: 1}, {Generation: 2, Term: 2},
		{Generation: 2, Founder: id.Incarnation{1}, Term: 1}, {Generation: 3},
	}
	for i, a := range ordered {
		for j, b := range ordered {
			if got := a.Compare(b); got != min(max(i-j, -1), 1) {
				t.Errorf("%v against %v: %d", a, b, got)
			}
		}
	}
}

func TestDirectoryLookups(t *testing.T) {
	var none *Directory
	if _, ok := none.Lookup("x"); ok || none.ByType("UDP") != nil || none.ByRole("udp") != nil || none.Available("UDP") != nil {
		t.Error("a nil directory is not empty")
	}
	at := func(node id.Node, typ string, s State, hidden bool) Member {
		return Member{Instance: Instance{Node: node, Role: "udp", Type: typ}, State: s, Hidden: hidden}
	}
	d := NewDirectory(1, at("d", "B", Online, false), at("b", "A", Online, true), at("c", "A", Offline, false), at("a", "A", Online, false))
	if m, ok := d.Lookup("c"); !ok || m.State != Offline {
		t.Errorf("Lookup = %+v, %v", m, ok)
	}
	if got := d.ByType("A"); len(got) != 3 || got[0].Node != "a" || got[2].Node != "c" {
		t.Errorf("ByType = %+v", got)
	}
	if got := d.Available("A"); len(got) != 1 || got[0].Node != "a" {
		t.Errorf("Available = %+v", got)
	}
	if got := d.ByRole("UDP"); len(got) != 4 {
		t.Errorf("ByRole = %+v", got)
	}
}

func BenchmarkHeartbeat(b *testing.B) {
	r := newTestRegistry()
	var last *handMember
	for i := range 1000 {
		last = newMember(i%250, "udp", "game")
		last.Node = id.Node(fmt.Sprintf("10.0.%d.%d:8000", i/250, i%250))
		last.Incarnation[3] = byte(i / 250)
		r.Step(simStart, Request{Message: last.register(r)})
	}
	have := r.Step(simStart, Request{Message: last.beat(r, 0)}).Reply.Delta.To
	b.ReportAllocs()
	for b.Loop() {
		r.Step(simStart, Request{Message: last.beat(r, have)})
	}
}

// A leave reaches an authority that has not met the member yet: observers that
// keep it from before hear of it, and no late copy of a registration counts.
func TestLeaveOfOneUnknown(t *testing.T) {
	r := newTestRegistry()
	unknown, other := newMember(2, "udp", "game"), newMember(3, "udp", "game")
	registration := unknown.register(r)
	newer := *unknown
	newer.Incarnation[2], newer.Started = 1, newer.Started+1
	ask(t, r, 0, other.register(r), StatusOK)
	ask(t, r, 0, newer.register(r), StatusOK)
	ask(t, r, 0, Leave{Header: unknown.header(r), Namespace: unknown.Namespace()}, StatusOK)
	ask(t, r, 0, registration, StatusGone)
	ask(t, r, 0, newer.beat(r, 0), StatusOK) // the one at its address stays
	d := ask(t, r, 0, other.beat(r, 0), StatusOK).Delta
	if _, down := names(d); !slices.Equal(down, []string{"10.0.0.2:8000 left"}) || d.Removed[0].Incarnation != unknown.Incarnation {
		t.Errorf("observers hear of %+v", d.Removed)
	}
}
