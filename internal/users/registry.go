package users

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/guard"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/telemetry"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users/exchange"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Mesh is what this package uses of *[mesh.Mesh].
type Mesh interface {
	Handle(cmd uint16, h mesh.Handler)
	Request(ctx context.Context, to id.Node, cmd uint16, payload []byte) ([]byte, error)
	Send(ctx context.Context, to id.Node, cmd uint16, payload []byte) error
}

// Places is what this package uses of *[transport.Places].
type Places interface {
	Reserve(r transport.Reservation) (*transport.Place, error)
	Cancel(sid id.SID) bool
	Replaced(sid id.SID) bool
	End(sid id.SID, code wire.CloseCode, reason string) bool
	Freeze(ctx context.Context, sid id.SID) (*reliable.State, error)
	Thaw(sid id.SID) bool
	Move(sid id.SID, m wire.Move) error
	Released(sid id.SID) bool
	// Credentials returns those of a place; false when there is none.
	Credentials(sid id.SID) (secure.Credentials, bool)
}

// serverPlaces adds to transport's places what only they know how to reach.
type serverPlaces struct{ *transport.Places }

func (p serverPlaces) Credentials(sid id.SID) (secure.Credentials, bool) {
	place := p.Get(sid)
	if place == nil {
		return secure.Credentials{}, false
	}
	return place.Credentials(), true
}

// Commands runs what users ask for; a router does.
type Commands interface {
	// Serve is called from read loops, in order per connection, and must not
	// block. The payload is lent.
	Serve(b *transport.Batch, u *User, m wire.Message, rel reliable.Reliability)
	// Run is called on the user's executor for what Serve posted.
	Run(u *User, m wire.Message, rel reliable.Reliability)
}

// Config configures a registry. Self and Directory are required; the rest works
// at zero.
type Config struct {
	// Self is this node: its mesh address, role and type.
	Self mars.Instance
	// Directory returns who else is in the cluster.
	Directory func() *mars.Directory
	// Endpoint returns the public "host:port" that clients are sent to.
	Endpoint func() string

	UsersMax   int // users with a place, reserved ones included; zero means 100,000
	MailboxMax int // commands that wait for one user's executor; zero means 64
	ParkedMax  int // bytes that wait for one user without a connection; zero means 1 MiB

	// Of the places that were reserved and nobody opened yet. Past a limit the oldest
	// of them goes.
	ReservationsPerUser int           // of one user id; zero means 3
	ReservationsMax     int           // in all; zero means a tenth of UsersMax, at least 64
	ReservedBytesMax    int           // bytes of their properties together; zero means 32 MiB
	ReserveTTL          time.Duration // until one expires; zero means 60 s
	ReserveTTLMin       time.Duration // the same for the last that fits ReservationsMax; zero means 5 s

	// ArrivalsMax is how many users may be on their way here from other nodes at once;
	// one more is refused. Zero means a tenth of UsersMax, at least 64.
	ArrivalsMax int
	// MemoryShort reports that the process has little memory left: then nobody new is
	// taken. It is called for every reservation and must not block. Nil means never.
	MemoryShort func() bool

	MoveDeadline time.Duration // a client has this long to reach the node it is moved to; zero means 5 s
	Budget       Budget        // what a client may have the node do
	CloseMax     time.Duration // Run waits this long for handlers when it ends; zero means 5 s
	Rand         io.Reader     // makes sids and keys; nil means crypto/rand
	// Wall is what the wall clock shows, which may be set at any time; nil means time.Now.
	Wall func() time.Time
}

func (c Config) withDefaults() Config {
	c.UsersMax = orElse(c.UsersMax, 100_000)
	c.MailboxMax = orElse(c.MailboxMax, 64)
	c.ReservationsPerUser = orElse(c.ReservationsPerUser, 3)
	c.ReservationsMax = orElse(c.ReservationsMax, max(c.UsersMax/10, shareMin))
	c.ReservedBytesMax = orElse(c.ReservedBytesMax, 32<<20)
	c.ParkedMax = orElse(c.ParkedMax, 1<<20)
	c.ReserveTTL = orElse(c.ReserveTTL, time.Minute)
	c.ReserveTTLMin = orElse(c.ReserveTTLMin, 5*time.Second)
	c.ArrivalsMax = orElse(c.ArrivalsMax, max(c.UsersMax/10, shareMin))
	c.MoveDeadline = orElse(c.MoveDeadline, 5*time.Second)
	c.CloseMax = orElse(c.CloseMax, 5*time.Second)
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Wall == nil {
		c.Wall = time.Now
	}
	if c.MemoryShort == nil {
		c.MemoryShort = func() bool { return false }
	}
	return c
}

// shareMin keeps a small node's share of unopened places, or of arriving users, from
// being nothing.
const shareMin = 64

func orElse[T int | time.Duration](v, zero T) T {
	if v == 0 {
		return zero
	}
	return v
}

func (c Config) validate() error {
	var errs []error
	if c.Self.Node == "" || c.Self.Role == "" {
		errs = append(errs, errors.New("users: Self needs a node and a role"))
	}
	if c.Directory == nil || c.Endpoint == nil {
		errs = append(errs, errors.New("users: Directory and Endpoint are required"))
	}
	return errors.Join(errs...)
}

// Registry holds the users of one node. Its methods are safe for concurrent use.
type Registry struct {
	// Set before Run, then constant.
	cfg      Config
	mesh     Mesh
	log      zerolog.Logger
	metrics  *metrics
	commands Commands
	places   Places
	newBatch func() *transport.Batch
	hooks    hooks
	guard    *guard.Guard

	unopened unopened
	enders   crew // close places
	hookers  crew // run hooks of who is gone
	budgets  budgets
	spent    spentMemory

	users   table
	state   atomic.Uint32 // a mars.State
	count   atomic.Int64  // users with a place
	opened  atomic.Int64  // of them, those who were connected
	living  atomic.Int64  // of those, who is present, or gone with hooks that still run
	notices noticeInbox

	randMu sync.Mutex // guards cfg.Rand and clock
	clock  exchange.Clock

	noClock telemetry.Throttle // log lines on nodes that send such times

	moves moves

	spawnMu sync.RWMutex // guards closed against spawn
	closed  bool
	wg      sync.WaitGroup

	emptyMu sync.Mutex
	empty   chan struct{} // closed and replaced whenever opened or living becomes zero
}

type hooks struct {
	opened   []func(*User)
	ended    []func(*User, wire.CloseCode)
	movedIn  []func(*User)
	movedOut []func(*User)
	presence []func(*User)
}

// New makes a registry and registers its commands at the mesh. It takes no user
// before [Registry.SetState] says Online.
func New(cfg Config, m Mesh, log zerolog.Logger, reg prometheus.Registerer) (*Registry, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	r := &Registry{
		cfg: cfg, mesh: m, log: log, empty: make(chan struct{}),
		newBatch: func() *transport.Batch { return nil },
	}
	r.metrics = newMetrics(reg, r)
	r.guard = guard.New(log, r.metrics.panics)
	r.unopened.init()
	r.notices.wake = make(chan struct{}, 1)
	r.clock = exchange.NewClock(time.Now())
	r.enders.max, r.enders.spawn = endersMax, r.spawn
	r.hookers.max, r.hookers.spawn = hookersMax, r.spawn
	r.budgets = newBudgets(cfg.Budget, reg)
	r.spent.init(cfg.UsersMax)
	r.users.init()
	r.moves.init()
	r.state.Store(uint32(mars.Offline))
	m.Handle(mesh.CmdReserve, r.handleReserve)
	m.Handle(mesh.CmdCancelReserve, r.handleCancelReserve)
	m.Handle(mesh.CmdUserOpened, r.handleNotices)
	m.Handle(mesh.CmdMoveOffer, r.handleOffer)
	m.Handle(mesh.CmdMoveRelease, r.handleRelease)
	m.Handle(mesh.CmdMoveAbort, r.handleAbort)
	m.Handle(mesh.CmdMoveDone, r.handleDone)
	return r, nil
}

// SetCommands says what runs commands. Call it before Bind.
func (r *Registry) SetCommands(c Commands) { r.commands = c }

// Bind connects the registry with the server whose handler it is. Call it before
// the server's Run.
func (r *Registry) Bind(srv transport.Server) {
	r.BindPlaces(serverPlaces{srv.Places()}, srv.NewBatch)
}

// BindPlaces is Bind for anything that has places. newBatch may return nil.
func (r *Registry) BindPlaces(p Places, newBatch func() *transport.Batch) {
	r.places, r.newBatch = p, newBatch
}

// OnOpened adds a function that is called when a user's first connection is up, by
// the read loop, without any lock. Like all hooks it is added before Run and must not
// block; when it panics, that is logged and counted, and the next hook runs.
func (r *Registry) OnOpened(f func(*User)) { r.hooks.opened = append(r.hooks.opened, f) }

// OnEnded adds a function that is called when a user who was connected is gone:
// from a goroutine of the registry, without any lock.
func (r *Registry) OnEnded(f func(*User, wire.CloseCode)) { r.hooks.ended = append(r.hooks.ended, f) }

// OnMovedIn adds a function that is called when a user of another node is here,
// before their pending commands run: by the read loop, without any lock.
func (r *Registry) OnMovedIn(f func(*User)) { r.hooks.movedIn = append(r.hooks.movedIn, f) }

// OnMovedOut adds a function that is called when another node owns the user.
// OnEnded is not called for them. Like OnEnded's it runs on a goroutine of the
// registry, without any lock, perhaps when the user is on the other node already.
func (r *Registry) OnMovedOut(f func(*User)) { r.hooks.movedOut = append(r.hooks.movedOut, f) }

// OnPresence adds a function that is called when a user's connection was lost, fell
// silent, or came back: [User.Connected] and [User.Present] say which by now. It may be
// called while connections are locked, so that it takes note and returns.
func (r *Registry) OnPresence(f func(*User)) { r.hooks.presence = append(r.hooks.presence, f) }

func (r *Registry) tellPresence(u *User) {
	for _, f := range r.hooks.presence {
		_ = r.guard.Do("presence hook", func() { f(u) })
	}
}

// Self returns the node the registry is on.
func (r *Registry) Self() mars.Instance { return r.cfg.Self }

// Directory returns who is in the cluster.
func (r *Registry) Directory() *mars.Directory { return r.cfg.Directory() }

// MoveTTL is how long after [Registry.MoveOut] began the user may still appear on
// the other node.
func (r *Registry) MoveTTL() time.Duration { return r.cfg.MoveDeadline + offerTimeout + moveSlack }

// NewBatch returns a batch for the caller's goroutine; it may be nil.
func (r *Registry) NewBatch() *transport.Batch { return r.newBatch() }

// Flush sends what is in b, which may be nil.
func Flush(b *transport.Batch) {
	if b != nil {
		b.Flush()
	}
}

// SetState says whether the node takes users: only when Online.
func (r *Registry) SetState(s mars.State) { r.state.Store(uint32(s)) }

// CCU returns how many users are here who were connected at least once.
func (r *Registry) CCU() int { return int(r.opened.Load()) }

// Reserved returns how many places wait for their first connection, those of users on
// their way from other nodes included.
func (r *Registry) Reserved() int { return max(0, int(r.count.Load()-r.opened.Load())) }

// BySID returns the user of a sid, nil when they are not here.
func (r *Registry) BySID(sid id.SID) *User { return r.users.bySID(sid) }

// ByUID returns the connected user of a user id, nil when they are not here.
func (r *Registry) ByUID(uid id.UID) *User { return r.users.openByUID(uid) }

// Each calls f for every user with a place until f returns false.
func (r *Registry) Each(f func(*User) bool) { r.users.each(f) }

// deadGrace is how long nobody has to be present before [Registry.WaitEmpty] gives up on
// those who are lost or silent: a client that lost its network for a moment is back by then.
const deadGrace = 3 * time.Second

// WaitEmpty waits until no user is left who was ever connected, their hooks included, or
// all who are have been lost or silent for deadGrace: nobody can say when they come back.
// It returns the cause when ctx ends first.
func (r *Registry) WaitEmpty(ctx context.Context) error {
	for {
		r.emptyMu.Lock()
		empty := r.empty
		r.emptyMu.Unlock()
		if r.CCU() == 0 {
			return nil
		}
		var grace <-chan time.Time
		if r.living.Load() == 0 {
			grace = time.After(deadGrace)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-empty:
		case <-grace:
			if r.living.Load() == 0 {
				return nil
			}
		}
	}
}

// countLiving counts one user more, or less, who is present.
func (r *Registry) countLiving(more bool) {
	if more {
		r.living.Add(1)
	} else if r.living.Add(-1) == 0 {
		r.tellEmpty()
	}
}

// leftOpen counts one connected user less, who is gone for good.
func (r *Registry) leftOpen(u *User) {
	u.mu.Lock()
	living := u.living
	u.living = false
	u.mu.Unlock()
	if living {
		r.countLiving(false)
	}
	if r.opened.Add(-1) == 0 {
		r.tellEmpty()
	}
}

// tellEmpty has who waits for users to be gone look again.
func (r *Registry) tellEmpty() {
	r.emptyMu.Lock()
	defer r.emptyMu.Unlock()
	close(r.empty)
	r.empty = make(chan struct{})
}

// Run tells other nodes about new users until ctx ends. Then it takes no more work
// and waits for the handlers that still run, at most Config.CloseMax.
func (r *Registry) Run(ctx context.Context) error {
	r.announce(ctx)
	r.spawnMu.Lock()
	r.closed = true
	r.spawnMu.Unlock()
	r.moves.close()
	done := make(chan struct{})
	go func() { r.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-time.After(r.cfg.CloseMax):
		r.log.Warn().Str("waited", telemetry.Span(r.cfg.CloseMax)).Msg("handlers still ran at the end")
		return nil
	}
}

// spawn runs f in a goroutine that Run waits for. It refuses once Run is ending.
func (r *Registry) spawn(f func()) bool {
	r.spawnMu.RLock()
	defer r.spawnMu.RUnlock()
	if r.closed {
		return false
	}
	r.wg.Go(f)
	return true
}
