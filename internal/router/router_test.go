package router_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/router"
	"github.com/Diarkis/diarkis/internal/status"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// player runs what is posted at once, in the caller's goroutine, unless hold is set.
type player struct {
	router *router.Router[*player]
	full   error
	behind bool

	budget, refusals int

	mu      sync.Mutex
	answers []string
	owed    int
}

func (p *player) Send(_ *transport.Batch, msg []byte, _ reliable.Reliability) error {
	m, err := wire.ParseMessage(msg)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers = append(p.answers, fmt.Sprintf("%d/%d #%d status %d %s", m.Ver, m.Cmd, m.ID, m.Status, m.Payload))
	return nil
}

func (p *player) Post(m wire.Message, rel reliable.Reliability) error {
	if p.full != nil {
		return p.full
	}
	m.Payload = bytes.Clone(m.Payload)
	p.router.Run(p, m, rel)
	return nil
}

func (p *player) PostOrdered(m wire.Message, rel reliable.Reliability) error { return p.Post(m, rel) }

func (p *player) PostBehind(m wire.Message, rel reliable.Reliability) (bool, error) {
	if p.behind {
		return true, p.Post(m, rel)
	}
	return false, nil
}

func (p *player) Do(f func()) error { f(); return p.full }

func (p *player) Charge(_ *transport.Batch, exempt bool) bool {
	if p.budget--; p.budget >= 0 {
		return true
	}
	return exempt
}

func (p *player) MayRefuse(*transport.Batch) bool { p.refusals--; return p.refusals >= 0 }

func (p *player) Owe(delta int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.owed += delta
}

func (p *player) got() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.answers, "; ")
}

type request = router.Request[*player]

func newRouter(cfg router.Config) (*router.Router[*player], *player, *bytes.Buffer) {
	log := new(bytes.Buffer)
	r := router.New[*player](cfg, zerolog.New(zerolog.SyncWriter(log)), prometheus.NewRegistry())
	return r, &player{router: r, budget: 10_000, refusals: 100}, log
}

// build registers the commands the table of TestAnswers uses.
func build(r *router.Router[*player]) {
	echo := func(q *request) error {
		q.Respond(status.OK, q.Payload(), reliable.Reliable)
		return nil
	}
	bad := &status.Error{Code: status.RoomJoin, Text: "room is full"}
	r.Builtin(1, 1, "echo", echo)
	r.Builtin(1, 2, "silent", func(*request) error { return nil })
	r.Builtin(1, 3, "refusing", func(*request) error { return fmt.Errorf("join: %w", bad) })
	r.Builtin(1, 4, "broken", func(*request) error { return errors.New("disk on fire") })
	r.Builtin(1, 5, "panicking", func(*request) error { panic("oops") })
	r.Builtin(1, 6, "answers and fails", func(q *request) error { _ = echo(q); return bad })
	r.Builtin(1, 7, "keeps", func(q *request) error { q.Keep(); return nil })
	r.Builtin(1, 8, "answers twice", func(q *request) error { _ = echo(q); return echo(q) })
	r.Ordered(1, 9, "ordered", echo)

	r.Handle(2, 1, "chain", func(q *request, next func(error)) { next(nil) },
		func(q *request, next func(error)) { _ = echo(q); next(nil) })
	r.Handle(2, 2, "nobody answers", func(q *request, next func(error)) { next(nil) })
	r.Handle(2, 3, "stops", func(q *request, next func(error)) { next(bad); next(nil) },
		func(q *request, next func(error)) { _ = echo(q); next(nil) })
	r.Handle(2, 4, "forgets", func(q *request, next func(error)) {})
	r.Handle(2, 5, "panics late", func(q *request, next func(error)) { next(nil); panic("oops") },
		func(q *request, next func(error)) { _ = echo(q) })
	r.Handle(2, 6, "answers later", func(q *request, next func(error)) {
		go func() { <-time.After(time.Second); _ = echo(q); next(nil) }()
	})
	r.Handle(2, 7, "goes on later", func(q *request, next func(error)) {
		go func() { <-time.After(time.Second); next(nil); next(nil) }()
	})
	r.Handle(2, 7, "more", func(q *request, next func(error)) { _ = echo(q); next(nil) })
	r.Handle(2, 8, "fails later", func(q *request, next func(error)) {
		go func() { <-time.After(time.Second); next(bad) }()
	})
	r.Handle(2, 9, "answers too late", func(q *request, next func(error)) {
		go func() { <-time.After(time.Minute); _ = echo(q); next(nil) }()
	})
}

func TestAnswers(t *testing.T) {
	const id, noID = true, false
	for _, c := range []struct {
		ver  uint8
		cmd  uint16
		id   bool
		want string
	}{
		{1, 1, id, "1/1 #7 status 1 hi"},
		{1, 1, noID, "1/1 #0 status 1 hi"},
		{1, 2, id, "1/2 #7 status 1 "},
		{1, 2, noID, ""},
		{1, 3, id, "1/3 #7 status 4 room is full"},
		{1, 3, noID, "1/3 #0 status 4 room is full"},
		{1, 4, id, "1/4 #7 status 5 internal error"},
		{1, 5, id, "1/5 #7 status 5 internal error"},
		{1, 6, id, "1/6 #7 status 1 hi"},
		{1, 7, id, "1/7 #7 status 5 no answer in time"},
		{1, 7, noID, ""},
		{1, 8, id, "1/8 #7 status 1 hi"},
		{1, 9, id, "1/9 #7 status 1 hi"},
		{1, 99, id, "1/99 #7 status 4 unknown command"},
		{1, 99, noID, "1/99 #0 status 4 unknown command"},
		{9, 99, id, "9/99 #7 status 4 unknown command"},
		{2, 1, id, "2/1 #7 status 1 hi"},
		{2, 1, noID, "2/1 #0 status 1 hi"},
		{2, 2, id, "2/2 #7 status 1 "},
		{2, 2, noID, ""},
		{2, 3, id, "2/3 #7 status 4 room is full"},
		{2, 4, id, "2/4 #7 status 5 no answer in time"},
		{2, 4, noID, ""},
		{2, 5, id, "2/5 #7 status 5 internal error"},
		{2, 6, id, "2/6 #7 status 1 hi"},
		{2, 7, id, "2/7 #7 status 1 hi"},
		{2, 8, id, "2/8 #7 status 4 room is full"},
		{2, 9, id, "2/9 #7 status 5 no answer in time"},
	} {
		for _, behind := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d/%d id %v behind %v", c.ver, c.cmd, c.id, behind), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r, p, _ := newRouter(router.Config{})
					build(r)
					p.behind = behind
					m := wire.Message{Ver: c.ver, Cmd: c.cmd, HasID: c.id, Payload: []byte("hi")}
					if c.id {
						m.ID = 7
					}
					payload := m.Payload
					r.Serve(nil, p, m, reliable.Reliable)
					clear(payload) // it was lent
					<-time.After(2 * time.Minute)
					synctest.Wait()
					if got := p.got(); got != c.want {
						t.Errorf("answers %q, want %q", got, c.want)
					}
					if p.owed != 0 {
						t.Errorf("%d answers stay owed", p.owed)
					}
				})
			})
		}
	}
}

func TestStructuredErrors(t *testing.T) {
	r, p, _ := newRouter(router.Config{StructErrors: true})
	r.Builtin(1, 1, "refusing", func(*request) error { return &status.Error{Code: status.RoomJoin, Text: "full"} })
	r.Serve(nil, p, wire.Message{Ver: 1, Cmd: 1}, reliable.Reliable)
	if got := p.got(); got != "1/1 #0 status 4 \x00\x00\x07\xd2full" {
		t.Errorf("answer %q", got)
	}
}

func TestFullMailboxIsBad(t *testing.T) {
	r, p, _ := newRouter(router.Config{})
	build(r)
	p.full, p.behind = errors.New("too many commands are waiting"), true
	for _, m := range []wire.Message{{Ver: 2, Cmd: 1}, {Ver: 1, Cmd: 1}, {Ver: 1, Cmd: 9}} {
		p.answers = nil
		r.Serve(nil, p, m, reliable.Reliable)
		want := fmt.Sprintf("%d/%d #0 status 4 too many commands are waiting", m.Ver, m.Cmd)
		if got := p.got(); got != want {
			t.Errorf("answer %q, want %q", got, want)
		}
	}
}

func TestSlowAndPanickingHandlersAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p, log := newRouter(router.Config{})
		r.Handle(2, 1, "slowpoke", func(q *request, next func(error)) { <-time.After(6 * time.Second); next(nil) })
		r.Handle(2, 2, "careless", func(q *request, next func(error)) { panic("oops") })
		r.Serve(nil, p, wire.Message{Ver: 2, Cmd: 1}, reliable.Reliable)
		r.Serve(nil, p, wire.Message{Ver: 2, Cmd: 2}, reliable.Reliable)
		synctest.Wait()
		for _, want := range []string{`"handler":"slowpoke"`, `handler ran for too long`, `"handler":"careless"`, `handler panicked`} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("log lacks %s", want)
			}
		}
	})
}

// A built-in that waits for its client is not slow.
func TestWaitingForTheClientIsNotSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p, log := newRouter(router.Config{})
		r.Ordered(1, 1, "patient", func(q *request) error { q.Waits(); <-time.After(time.Minute); return nil })
		r.Builtin(1, 2, "inline", func(q *request) error { q.Waits(); return nil })
		r.Serve(nil, p, wire.Message{Ver: 1, Cmd: 1}, reliable.Reliable)
		r.Serve(nil, p, wire.Message{Ver: 1, Cmd: 2}, reliable.Reliable)
		if log.Len() > 0 {
			t.Errorf("log: %s", log)
		}
	})
}

// Whatever a client makes fail, it makes fail as often as it likes: one line a handler.
func TestFaultsThatClientsRepeatAreOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p, log := newRouter(router.Config{})
		build(r)
		r.Handle(2, 10, "slowpoke", func(q *request, next func(error)) { <-time.After(6 * time.Second); next(nil) })
		for range 100 {
			for _, m := range []wire.Message{{Ver: 1, Cmd: 4}, {Ver: 1, Cmd: 5}, {Ver: 1, Cmd: 7}, {Ver: 2, Cmd: 5}} {
				r.Serve(nil, p, m, reliable.Reliable)
			}
		}
		<-time.After(15 * time.Second)
		for range 3 {
			r.Serve(nil, p, wire.Message{Ver: 2, Cmd: 10}, reliable.Reliable)
		}
		synctest.Wait()
		if n := strings.Count(log.String(), "\n"); n != 5 {
			t.Errorf("%d lines, want one for each of 5 faults:\n%s", n, log)
		}
	})
}

func TestCommandsOverTheBudget(t *testing.T) {
	const id, noID = true, false
	for _, c := range []struct {
		name     string
		cmd      uint16
		ver      uint8
		id       bool
		rel      reliable.Reliability
		refusals int
		want     string
	}{
		{"a request", 1, 1, id, reliable.Unreliable, 1, "1/1 #7 status 4 \x00\x00\x03\xectoo many in a short time"},
		{"a reliable message", 1, 1, noID, reliable.Reliable, 1, "1/1 #0 status 4 \x00\x00\x03\xectoo many in a short time"},
		{"an unreliable message", 1, 1, noID, reliable.Unreliable, 1, ""},
		{"an unknown command", 999, 9, id, reliable.Reliable, 1, "9/999 #7 status 4 \x00\x00\x03\xectoo many in a short time"},
		{"a command of the application", 1, 2, id, reliable.Reliable, 1, "2/1 #7 status 4 \x00\x00\x03\xectoo many in a short time"},
		{"a request too many to be told", 1, 1, id, reliable.Reliable, 0, ""},
		{"an exempt one", 9, 1, id, reliable.Reliable, 0, "1/9 #7 status 1 hi"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, p, log := newRouter(router.Config{StructErrors: true})
			build(r)
			r.Exempt(1, 9)
			p.budget, p.refusals = 0, c.refusals
			m := wire.Message{Ver: c.ver, Cmd: c.cmd, HasID: c.id, Payload: []byte("hi")}
			if c.id {
				m.ID = 7
			}
			r.Serve(nil, p, m, c.rel)
			if got := p.got(); got != c.want {
				t.Errorf("answers %q, want %q", got, c.want)
			}
			if log.Len() > 0 {
				t.Errorf("a client wrote into the log: %s", log)
			}
		})
	}
}

// A handler that refuses for the rate is answered, or not, like the router itself.
func TestHandlerRefusesForTheRate(t *testing.T) {
	r, p, _ := newRouter(router.Config{})
	r.Builtin(1, 1, "greedy", func(*request) error { return status.ErrRate })
	p.refusals = 1
	for range 2 {
		r.Serve(nil, p, wire.Message{Ver: 1, Cmd: 1, HasID: true, ID: 7}, reliable.Unreliable)
		r.Serve(nil, p, wire.Message{Ver: 1, Cmd: 1}, reliable.Unreliable)
	}
	if got := p.got(); got != "1/1 #7 status 4 too many in a short time" {
		t.Errorf("answers %q", got)
	}
}

func TestAbandonedRequestIsAnsweredByNobody(t *testing.T) {
	r, p, _ := newRouter(router.Config{})
	r.Ordered(1, 1, "moved", func(q *request) error { q.Abandon(); return nil })
	r.Serve(nil, p, wire.Message{Ver: 1, Cmd: 1, HasID: true}, reliable.Reliable)
	if got := p.got(); got != "" {
		t.Errorf("answer %q", got)
	}
}

func TestCommandsAreTakenOnce(t *testing.T) {
	r, _, _ := newRouter(router.Config{})
	build(r)
	for name, f := range map[string]func(){
		"a built-in twice":             func() { r.Builtin(1, 1, "again", nil) },
		"the application as a module":  func() { r.Handle(1, 1, "mine", nil) },
		"a module over an application": func() { r.Ordered(2, 1, "mine", nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s was registered", name)
				}
			}()
			f()
		}()
	}
}

// nobody is a player who costs nothing, to count what the router itself allocates.
type nobody struct {
	sent int
	over bool // the budget
}

func (n *nobody) Send(*transport.Batch, []byte, reliable.Reliability) error { n.sent++; return nil }
func (*nobody) Post(wire.Message, reliable.Reliability) error               { return nil }
func (*nobody) PostOrdered(wire.Message, reliable.Reliability) error        { return nil }
func (*nobody) PostBehind(wire.Message, reliable.Reliability) (bool, error) { return false, nil }
func (*nobody) Do(func()) error                                             { return nil }
func (*nobody) Owe(int)                                                     {}
func (n *nobody) Charge(*transport.Batch, bool) bool                        { return !n.over }
func (*nobody) MayRefuse(*transport.Batch) bool                             { return true }

func echoRouter() *router.Router[*nobody] {
	r := router.New[*nobody](router.Config{}, zerolog.Nop(), prometheus.NewRegistry())
	r.Builtin(0, 1, "echo", func(q *router.Request[*nobody]) error {
		q.Respond(status.OK, q.Payload(), reliable.Unreliable)
		return nil
	})
	return r
}

func BenchmarkBuiltin(b *testing.B) {
	r, n := echoRouter(), &nobody{}
	m := wire.Message{Cmd: 1, HasID: true, ID: 1, Payload: make([]byte, 64)}
	b.ReportAllocs()
	for b.Loop() {
		r.Serve(nil, n, m, reliable.Unreliable)
	}
}
