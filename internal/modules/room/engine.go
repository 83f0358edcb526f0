package room

import (
	"cmp"
	"container/list"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/guard"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/router"
	"github.com/Diarkis/diarkis/internal/telemetry"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Config configures the rooms of a node. The zero value is ready to use.
type Config struct {
	MembersMax int // the largest room that may be made; zero means 1000
	RoomsMax   int // rooms on this node; zero means 100,000
	// EmptyMax is how many rooms that nobody is in one user id may have made here. Zero means 4.
	EmptyMax int
	// TTLMax is the longest that a room of a client outlives its last member. Zero means
	// 10 minutes.
	TTLMax time.Duration
	Rand   io.Reader // makes room ids; nil means crypto/rand
}

type (
	// Request is a command of a client.
	Request = router.Request[*users.User]
	input   = Input[*users.User]
	output  = Output[*users.User]
)

// Engine holds the rooms of one node. Its methods are safe for concurrent use.
//
// Lock order: a room, then Engine.mu, then users and connections. No lock is held
// while anything is sent, another node is asked or a hook runs.
type Engine struct {
	// Set by New, then constant.
	cfg   Config
	users *users.Registry
	mesh  users.Mesh
	log   zerolog.Logger
	self  id.Node
	addr  netip.AddrPort
	hooks Hooks
	guard *guard.Guard
	// unreachable keeps the log short when clients ask for rooms of a node that is gone.
	unreachable telemetry.Throttle
	metrics     metrics
	// tooManyEmpty refuses a room to who made Config.EmptyMax that nobody is in.
	tooManyEmpty error
	ctx          context.Context // ends with Run
	cancel       context.CancelFunc
	scratch      sync.Pool      // of *scratch
	ticks        sync.WaitGroup // timers that are firing, and evictions; Add under mu while not stopped

	// random serializes finding a random room and making one, so that users who look
	// at the same time meet. It is taken before mu.
	random sync.Mutex

	mu      sync.RWMutex // guards the fields below
	stopped bool
	made    uint64 // rooms so far
	index   index

	presence presence
}

// room is a machine with what the engine needs around it.
type room struct {
	id       id.Room
	created  time.Time
	settings Settings
	maker    id.UID // whose client had it made; empty for the server's own code
	number   uint64 // of all rooms, in the order in which they were made

	mu    sync.Mutex // guards the fields below
	m     *Machine[*users.User]
	timer *time.Timer // steps the machine at its WakeAt
	wake  time.Time   // when timer fires; zero when it does not run

	// Written under both locks, read under either one.
	facts facts

	// The index's own, guarded by Engine.mu.
	present int           // members who are
	rank    int           // its appeal, as it is listed
	at      int           // where it is listed; -1 when it is not
	emptied *list.Element // in index.empty, nil when it does not count there
}

// scratch is the memory of one step. It is pooled, because rooms are many and most
// are at rest.
type scratch struct {
	out   output
	batch *transport.Batch
}

// scratchMax is how much memory a pooled scratch holds on to, in bytes.
const scratchMax = 256 << 10

type metrics struct {
	messages, pushes, unsent prometheus.Counter
	hookPanics               prometheus.Counter
	joins, creates, evicted  *prometheus.CounterVec
}

// New makes an engine and registers its commands at the router and the mesh.
func New(cfg Config, u *users.Registry, commands *router.Router[*users.User], mesh users.Mesh, log zerolog.Logger, reg prometheus.Registerer) (*Engine, error) {
	cfg.MembersMax = cmp.Or(cfg.MembersMax, MembersMax)
	cfg.RoomsMax = cmp.Or(cfg.RoomsMax, 100_000)
	cfg.EmptyMax = cmp.Or(cfg.EmptyMax, 4)
	cfg.TTLMax = cmp.Or(cfg.TTLMax, 10*time.Minute)
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	addr, err := u.Self().Node.AddrPort()
	if err != nil {
		return nil, fmt.Errorf("rooms: %w", err)
	}
	e := &Engine{
		cfg: cfg, users: u, mesh: mesh, log: log, self: u.Self().Node, addr: addr,
		index: newIndex(), presence: presence{wake: make(chan struct{}, 1)},
	}
	e.tooManyEmpty = errTooManyEmpty(cfg.EmptyMax)
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.scratch.New = func() any { return &scratch{batch: u.NewBatch()} }
	e.register(reg)
	e.guard = guard.New(log, e.metrics.hookPanics)
	e.addCommands(commands)
	e.addMeshCommands()
	u.OnEnded(func(u *users.User, _ wire.CloseCode) { e.vanish(u) })
	u.OnMovedOut(e.vanish)
	u.OnPresence(e.presence.changed)
	return e, nil
}

func (e *Engine) register(reg prometheus.Registerer) {
	auto := promauto.With(reg)
	counter := func(name, help string) prometheus.Counter {
		return auto.NewCounter(prometheus.CounterOpts{Namespace: "diarkis", Subsystem: "room", Name: name, Help: help})
	}
	auto.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "diarkis", Name: "rooms", Help: "Rooms on this node."},
		func() float64 { return float64(e.Count()) })
	e.metrics = metrics{
		hookPanics: counter("hook_panics_total", "Hooks of the application that panicked."),

		messages: counter("messages_total", "Broadcasts and messages that members sent."),
		pushes:   counter("pushes_total", "Pushes to members, each receiver counted."),
		unsent:   counter("pushes_unsent_total", "Pushes that could not be queued for their receiver."),
		joins: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "room", Name: "joins_total", Help: "Joins of this node's users, by where the room is and how it went.",
		}, []string{"where", "result"}),
		creates: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "room", Name: "creates_total", Help: "Rooms made, or refused: the node is full, its maker has too many empty ones, or makes them too fast.",
		}, []string{"result"}),
		evicted: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "room", Name: "evicted_total", Help: "Rooms that nobody was in and that ended early: their maker had too many, or the node was full.",
		}, []string{"reason"}),
	}
}

// Run keeps track of who is connected until ctx ends. Then it stops the rooms' timers
// and waits for those that are firing.
func (e *Engine) Run(ctx context.Context) error {
	e.watch(ctx)
	e.cancel()
	e.mu.Lock()
	e.stopped = true
	all := slices.Collect(maps.Values(e.index.rooms))
	e.mu.Unlock()
	for _, r := range all {
		r.mu.Lock()
		if r.timer != nil {
			r.timer.Stop()
		}
		r.mu.Unlock()
	}
	e.ticks.Wait()
	return nil
}

// Count returns how many rooms are here.
func (e *Engine) Count() int {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return len(e.index.rooms)
}

// Info is what an operator sees of a room.
type Info struct {
	ID         id.Room   `json:"id"`
	Owner      id.UID    `json:"owner"`
	Members    int       `json:"members"`
	MembersMax int       `json:"members_max"`
	Created    time.Time `json:"created"`
}

// Rooms returns the rooms of this node, ordered by id.
func (e *Engine) Rooms() []Info {
	e.mu.RLock()
	all := slices.Collect(maps.Values(e.index.rooms))
	e.mu.RUnlock()
	infos := make([]Info, len(all))
	for i, r := range all {
		r.mu.Lock()
		infos[i] = Info{r.id, r.m.Owner(), len(r.m.Members()), r.m.Settings().MembersMax, r.created}
		r.mu.Unlock()
	}
	slices.SortFunc(infos, func(a, b Info) int { return cmp.Compare(a.ID, b.ID) })
	return infos
}

// find returns a room that is here, or ErrNotFound.
func (e *Engine) find(r id.Room) (*room, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if found := e.index.rooms[r]; found != nil {
		return found, nil
	}
	return nil, ErrNotFound
}

// publish starts the life of an empty room: its timer, and being found at random.
func (e *Engine) publish(r *room) { _, _ = e.step(nil, r, input{Op: OpTick}, nil) }

// step steps a room and does what comes out. answer, when not nil, is called after
// a step without error and before the pushes are queued, with the room locked.
// Everything queued leaves with b, the batch of a read loop; with nil it leaves
// after the room is unlocked.
func (e *Engine) step(b *transport.Batch, r *room, in input, answer func(*transport.Batch)) (value int64, err error) {
	s := e.scratch.Get().(*scratch)
	own := b == nil
	if own {
		b = s.batch
	}
	e.stepLocked(b, r, &in, answer, s)
	if own {
		users.Flush(b)
	}
	value, err = s.out.Value, s.out.Err
	e.tell(r.id, &in, &s.out)
	if s.out.size() <= scratchMax {
		s.out.reset()
		e.scratch.Put(s)
	}
	return value, err
}

// stepLocked is the part of step that holds the room. A panic frees it: one command is
// lost then, not everybody's.
func (e *Engine) stepLocked(b *transport.Batch, r *room, in *input, answer func(*transport.Batch), s *scratch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if in.Op == OpTick {
		r.wake = time.Time{} // most likely its timer fired
	}
	now := time.Now()
	r.m.Step(now, *in, &s.out)
	if in.By != nil {
		in.By.Delivered(now, s.out.Deliveries)
	}
	if answer != nil && s.out.Err == nil {
		answer(b)
	}
	e.perform(b, r, in, s)
}

// perform queues the pushes of a step and keeps the index and the timer. The room
// is locked.
func (e *Engine) perform(b *transport.Batch, r *room, in *input, s *scratch) {
	out := &s.out
	for _, p := range out.Pushes {
		msg := reliable.NewShared()
		msg.Set(wire.Message{Kind: wire.Push, Ver: Ver, Cmd: p.Cmd, Payload: p.Payload}.AppendTo(msg.Buffer()))
		for _, u := range p.To {
			if err := u.SendShared(b, msg, p.Rel); err != nil {
				e.metrics.unsent.Inc() // they are leaving, and OnEnded takes them out
			}
		}
		msg.Done()
		e.metrics.pushes.Add(float64(len(p.To)))
	}
	e.tellIndex(r, in, out)
	e.schedule(r, out.WakeAt)
}

// tellIndex keeps the index in step with the room, which is locked. When its maker has
// too many rooms that nobody is in, the one goes that has been empty for longest.
func (e *Engine) tellIndex(r *room, in *input, out *output) {
	f := factsOf(r.m)
	joined := in.Op == OpJoin && out.Err == nil
	if f == r.facts && !joined && len(out.Left) == 0 && len(out.Unheld) == 0 && !out.Closed {
		return // the usual case, a message, changes nothing
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	x := &e.index
	r.facts = f
	for _, u := range out.Left {
		x.leave(u, r)
	}
	for _, user := range out.Unheld {
		if x.held[user].room == r && !r.m.Holds(user) {
			delete(x.held, user)
		}
	}
	if joined {
		x.enter(in.Link, r)
	}
	if out.Closed {
		x.remove(r)
		return
	}
	x.put(r)
	if oldest := x.over(r.maker, e.cfg.EmptyMax); oldest != nil {
		e.laterLocked(func() { e.evict(oldest, evictedMaker) })
	}
}

// schedule has the room stepped at wake; the zero time means never. The room is locked.
func (e *Engine) schedule(r *room, wake time.Time) {
	if wake.Equal(r.wake) {
		return
	}
	r.wake = wake
	switch {
	case wake.IsZero():
		r.timer.Stop()
	case r.timer == nil:
		r.timer = time.AfterFunc(time.Until(wake), func() { e.tick(r) })
	default:
		r.timer.Reset(time.Until(wake))
	}
}

// tick steps a room because time has passed.
func (e *Engine) tick(r *room) {
	e.mu.RLock()
	stopped := e.stopped
	if !stopped {
		e.ticks.Add(1)
	}
	e.mu.RUnlock()
	if stopped {
		return
	}
	defer e.ticks.Done()
	_, _ = e.step(nil, r, input{Op: OpTick}, nil) // a closed room needs no tick
}

// Kick takes a user out of the room they are in; they and the others get message.
// ErrNotIn when they are in none.
func (e *Engine) Kick(u *users.User, message []byte) error {
	r := e.roomOf(u)
	if r == nil {
		return ErrNotIn
	}
	_, err := e.step(nil, r, input{Op: OpKick, User: u.ID, Link: u, Message: message}, nil)
	return err
}

// Delete ends a room; its members get message as a leave push.
func (e *Engine) Delete(r id.Room, message []byte) error {
	found, err := e.find(r)
	if err != nil {
		return err
	}
	_, err = e.step(nil, found, input{Op: OpDelete, Message: message}, nil)
	return err
}

// SetDiscard says what the others get as a leave push when u's connection is lost;
// an empty message means nothing. ErrNotIn when u is in no room.
func (e *Engine) SetDiscard(u *users.User, message []byte) error {
	r := e.roomOf(u)
	if r == nil {
		return ErrNotIn
	}
	_, err := e.step(nil, r, input{Op: OpDiscard, User: u.ID, Message: message}, nil)
	return err
}
