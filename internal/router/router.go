// Package router decides which handler runs a command, where it runs, and that
// it is answered.
//
// A [Router] is a table from (version, command) to handlers. Built-in commands
// never wait and run in the goroutine that read them; ordered built-ins and the
// application's handlers may wait and run on their user's executor. Commands of
// one user run in the order in which they came, except that a built-in may pass
// the application's handlers (but no ordered built-in).
//
// Who is answered, and how often:
//
//   - A request with an id is answered exactly once. Whatever its handlers do
//     after the first answer is dropped and counted.
//   - When the handlers are done without having answered, the router does: status
//     1 and no payload. A handler's error answers status 4 or 5, a panic status 5.
//   - A handler of the application that returned without calling next still owes
//     its answer; after Config.AnswerMax the router answers status 5.
//   - A request without an id is answered when its handler answers, and on errors.
//   - An unknown command, and one too many for the user's mailbox, is status 4.
//   - A command over its user's budget is status 4 too, code 1004, but dropped when it
//     came unreliably without an id, or when the user is told of too many refusals.
package router

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/guard"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/status"
	"github.com/Diarkis/diarkis/internal/telemetry"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// VerApplication is the lowest command version of the application. Version 0 is
// for utilities, 1 for the built-in modules.
const VerApplication = 2

// User is what the router needs of the player who sent a command. Its methods
// are called from read loops and executors and must not block.
type User interface {
	// Send queues an encoded message. A nil batch sends at once.
	Send(b *transport.Batch, msg []byte, rel reliable.Reliability) error
	// Post has m run by [Router.Run] on the user's executor. The payload is copied.
	Post(m wire.Message, rel reliable.Reliability) error
	// PostOrdered is Post for a command that later ones must not pass.
	PostOrdered(m wire.Message, rel reliable.Reliability) error
	// PostBehind is Post when an ordered command waits or runs, else it does nothing.
	PostBehind(m wire.Message, rel reliable.Reliability) (posted bool, err error)
	// Do runs f on the user's executor, or returns an error when it takes no more.
	Do(f func()) error
	// Charge takes a command that came with b from the user's budget; false when there
	// is nothing left of it. Exempt ones have a small budget of their own besides.
	Charge(b *transport.Batch, exempt bool) bool
	// MayRefuse reports whether the user is told that something was refused for its rate.
	MayRefuse(b *transport.Batch) bool
	// Owe counts answers that handlers which have returned still owe (+1, -1).
	Owe(delta int)
}

// Config configures a router. The zero value is ready to use.
type Config struct {
	// StructErrors makes the payload of an error code u32 ‖ text instead of text.
	StructErrors bool
	// Slow is how long a handler may run before it is named in the log. Zero means 5 s.
	Slow time.Duration
	// AnswerMax is how long a handler may owe an answer after it returned. Zero means 10 s.
	AnswerMax time.Duration
}

func (c Config) withDefaults() Config {
	if c.Slow == 0 {
		c.Slow = 5 * time.Second
	}
	if c.AnswerMax == 0 {
		c.AnswerMax = 10 * time.Second
	}
	return c
}

// Builtin handles a built-in command. It returns the error that answers the
// request; nil after it answered itself, or to have the router answer with an
// empty payload. The request is only lent unless the handler calls [Request.Keep].
type Builtin[U User] func(q *Request[U]) error

// Handler handles a command of the application. It must call next, once: nil runs
// the next handler of the command, an error answers it and ends the chain. It may
// do so after it returned, from any goroutine.
type Handler[U User] func(q *Request[U], next func(error))

// Router is the command table. Its methods are safe for concurrent use.
type Router[U User] struct {
	cfg      Config
	log      zerolog.Logger
	metrics  metrics
	guard    *guard.Guard
	tooMany  []byte    // the payload of an answer to a command over the budget
	requests sync.Pool // of *Request[U], for built-ins that run in the read loop

	slow, silent, failing telemetry.Throttle // by handler

	mu    sync.Mutex // serializes writers of table
	table atomic.Pointer[map[key]*entry[U]]
}

type key struct {
	ver uint8
	cmd uint16
}

type entry[U User] struct {
	name    string
	builtin Builtin[U] // nil for commands of the application
	ordered bool
	exempt  bool // see Exempt
	chain   []Handler[U]
}

type metrics struct {
	builtin, application, unknown prometheus.Counter
	answers                       prometheus.Counter
	panics, failed, slow          prometheus.Counter
	surplus, forgotten, busy      prometheus.Counter
}

// New makes an empty router.
func New[U User](cfg Config, log zerolog.Logger, reg prometheus.Registerer) *Router[U] {
	auto := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Namespace: "diarkis", Subsystem: "router", Name: name, Help: help})
	}
	commands := auto.NewCounterVec(prometheus.CounterOpts{
		Namespace: "diarkis", Subsystem: "router", Name: "commands_total", Help: "Commands that clients sent.",
	}, []string{"kind"})
	r := &Router[U]{cfg: cfg.withDefaults(), log: log, metrics: metrics{
		builtin:     commands.WithLabelValues("builtin"),
		application: commands.WithLabelValues("application"),
		unknown:     commands.WithLabelValues("unknown"),
		answers:     counter("answers_total", "Responses sent to clients."),
		panics:      counter("handler_panics_total", "Handlers that panicked."),
		failed:      counter("handler_errors_total", "Requests whose handler returned an error that is not meant for clients."),
		slow:        counter("handlers_slow_total", "Handlers that ran past the limit that names them in the log."),
		surplus:     counter("answers_surplus_total", "Answers dropped because the request had been answered."),
		forgotten:   counter("answers_forgotten_total", "Requests the router answered because their handler never did."),
		busy:        counter("mailbox_full_total", "Commands refused because their user's mailbox was full."),
	}}
	r.tooMany = r.errorPayload(status.ErrRate)
	r.guard = guard.New(log, r.metrics.panics)
	r.requests.New = func() any { return new(Request[U]) }
	r.table.Store(&map[key]*entry[U]{})
	return r
}

// Builtin registers a built-in that never waits. It panics when the command is taken.
func (r *Router[U]) Builtin(ver uint8, cmd uint16, name string, f Builtin[U]) {
	r.add(key{ver, cmd}, &entry[U]{name: name, builtin: f})
}

// Ordered registers a built-in that may wait: it runs on the user's executor, and
// commands that come after it run after it. It panics when the command is taken.
func (r *Router[U]) Ordered(ver uint8, cmd uint16, name string, f Builtin[U]) {
	r.add(key{ver, cmd}, &entry[U]{name: name, builtin: f, ordered: true})
}

// Handle adds handlers to a command of the application, behind those it has.
// The name of the first call stays. It panics when a module owns the command.
func (r *Router[U]) Handle(ver uint8, cmd uint16, name string, chain ...Handler[U]) {
	if ver < VerApplication {
		panic(fmt.Sprintf("router: version %d of command %d is not the application's", ver, cmd))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e := &entry[U]{name: name}
	if old := (*r.table.Load())[key{ver, cmd}]; old != nil {
		*e = *old
	}
	e.chain = append(e.chain[:len(e.chain):len(e.chain)], chain...)
	r.storeLocked(key{ver, cmd}, e)
}

// Exempt says that a command which is registered has to run even when its user has
// sent too many: leaving, for one. It panics when there is no such command.
func (r *Router[U]) Exempt(ver uint8, cmd uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := *(*r.table.Load())[key{ver, cmd}]
	e.exempt = true
	r.storeLocked(key{ver, cmd}, &e)
}

func (r *Router[U]) add(k key, e *entry[U]) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := (*r.table.Load())[k]; old != nil {
		panic(fmt.Sprintf("router: command %d of version %d is taken by %s", k.cmd, k.ver, old.name))
	}
	r.storeLocked(k, e)
}

func (r *Router[U]) storeLocked(k key, e *entry[U]) {
	table := maps.Clone(*r.table.Load())
	table[k] = e
	r.table.Store(&table)
}

// Serve runs the command in m, or has it run in turn. The payload is lent. It is
// called from the read loop of the user's connection and does not block; answers
// of what runs at once go into b.
func (r *Router[U]) Serve(b *transport.Batch, u U, m wire.Message, rel reliable.Reliability) {
	e := (*r.table.Load())[key{m.Ver, m.Cmd}]
	r.count(e)
	if !u.Charge(b, e != nil && e.exempt) {
		r.refuse(b, u, m, rel)
		return
	}
	var err error
	switch {
	case e == nil || e.builtin != nil && !e.ordered:
		posted := false
		if posted, err = u.PostBehind(m, rel); err == nil && !posted {
			r.inline(b, u, e, m, rel)
		}
	case e.ordered:
		err = u.PostOrdered(m, rel)
	default:
		err = u.Post(m, rel)
	}
	if err != nil {
		r.metrics.busy.Inc()
		q := Request[U]{router: r, user: u, batch: b, msg: m}
		q.Fail(&status.Error{Code: status.Internal, Retry: true, Text: err.Error()})
	}
}

// refuse answers a command that its user's budget does not cover. It allocates nothing,
// because who floods must not make it costly.
func (r *Router[U]) refuse(b *transport.Batch, u U, m wire.Message, rel reliable.Reliability) {
	q := r.requests.Get().(*Request[U])
	q.router, q.user, q.batch, q.msg, q.rel = r, u, b, m, rel
	q.overRate()
	q.reset()
	r.requests.Put(q)
}

// Run runs a posted command to its end, on the user's executor, which serializes
// the calls for one user. m belongs to the callee.
func (r *Router[U]) Run(u U, m wire.Message, rel reliable.Reliability) {
	e := (*r.table.Load())[key{m.Ver, m.Cmd}]
	q := &Request[U]{router: r, user: u, msg: m, rel: rel, owned: true}
	switch {
	case e == nil:
		q.Fail(errUnknown)
	case e.builtin != nil:
		q.name = e.name
		r.builtin(q, e)
	default:
		q.name = e.name
		r.chain(q, e.chain)
	}
}

var errUnknown = &status.Error{Code: status.InvalidParameter, Text: "unknown command"}

func (r *Router[U]) count(e *entry[U]) {
	switch {
	case e == nil:
		r.metrics.unknown.Inc()
	case e.builtin != nil:
		r.metrics.builtin.Inc()
	default:
		r.metrics.application.Inc()
	}
}

// inline runs a built-in in the read loop, with a request from the pool: the path
// of every packet, so it allocates nothing.
func (r *Router[U]) inline(b *transport.Batch, u U, e *entry[U], m wire.Message, rel reliable.Reliability) {
	q := r.requests.Get().(*Request[U])
	q.router, q.user, q.batch, q.msg, q.rel = r, u, b, m, rel
	if e == nil {
		q.Fail(errUnknown)
	} else {
		q.name = e.name
		r.builtin(q, e)
	}
	if !q.kept {
		q.reset()
		r.requests.Put(q)
	}
}
