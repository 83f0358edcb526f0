// Package marsnode makes this process a member of the cluster.
//
// One goroutine, [Node.Run], owns the [mars.Machine], carries its messages over
// the mesh and publishes the directory. The rest of the process reads immutable
// snapshots and leaves notes about itself; no method but [Node.WaitJoined],
// [Node.Leave] and [Node.Status] waits for anything.
//
// Every node runs the whole machine, so any of them may come to keep the registry.
package marsnode

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

// Peer is who sent a mesh message, as the mesh authenticated it.
type Peer struct {
	Node        id.Node
	Incarnation id.Incarnation
	Role        string
}

// HandlerFunc answers a mesh request.
type HandlerFunc = func(ctx context.Context, from Peer, payload []byte) ([]byte, error)

// Mesh is what a Node needs of the mesh.
type Mesh interface {
	// Handle makes h answer the requests with that command.
	Handle(cmd uint16, h HandlerFunc)
	// Request asks a node, itself included, and waits for the answer or the end of ctx.
	Request(ctx context.Context, to id.Node, cmd uint16, payload []byte) ([]byte, error)
	// Send hands over a message without an answer. It may wait for a connection
	// until ctx ends.
	Send(ctx context.Context, to id.Node, cmd uint16, payload []byte) error
	// Keep keeps the connections to these nodes, and no others, open while idle.
	Keep(nodes ...id.Node)
}

// Config says who this node is and where to ask for the others.
type Config struct {
	// Self is this run of the node. Zero Started means now.
	Self mars.Instance
	// Endpoint is the public "host:port", empty for none or not yet.
	Endpoint string
	// State is the state to begin with. Zero means online.
	State mars.State
	// Home marks the node that is the authority whenever it can be. It alone founds
	// the cluster.
	Home bool
	// ColdBoot is how long a home that never joined looks for a cluster before it
	// founds one. Zero means 3 s, negative not at all.
	ColdBoot time.Duration
	// Recovery says who may found anew a cluster that has lost its council. Zero
	// means the nodes themselves.
	Recovery mars.Recovery
	// Addresses looks up where home is and who else may know the authority. It is
	// called from a goroutine of its own, every AddressTTL and after failures, and
	// may block until its context ends. Home may do without.
	Addresses func(context.Context) ([]id.Node, error)
	// AddressTTL is how long looked-up addresses are good. Zero means 60 s.
	AddressTTL time.Duration
	// Name is what logs and reasons call home's address.
	Name string
	// Command is the mesh command of the membership messages that are answered,
	// MessageCommand that of the others.
	Command, MessageCommand uint16
	// FullSyncRoles get load and values of all members. Nil means http.
	FullSyncRoles []string
	// Rand returns numbers in [0, 1) that spread what nodes do over time. Nil means math/rand.
	Rand func() float64
	Log  zerolog.Logger
	Reg  prometheus.Registerer

	now func() time.Time // tests only
}

func (c Config) validate() error {
	var errs []error
	if _, err := c.Self.Node.AddrPort(); err != nil {
		errs = append(errs, err)
	}
	if c.Self.Incarnation == (id.Incarnation{}) {
		errs = append(errs, errors.New("incarnation is zero"))
	}
	if c.Self.Role == "" || c.Self.Type == "" {
		errs = append(errs, errors.New("role or type is empty"))
	}
	for _, s := range []string{c.Self.Role, c.Self.Type, c.Self.AppName, c.Self.AppVersion, c.Self.Version} {
		if len(s) > mars.LabelBytesMax {
			errs = append(errs, fmt.Errorf("%.20q… is longer than %d bytes", s, mars.LabelBytesMax))
		}
	}
	if !c.Home && c.Addresses == nil {
		errs = append(errs, errors.New("no address to ask for the authority"))
	}
	if c.Command == c.MessageCommand {
		errs = append(errs, fmt.Errorf("both mesh commands are %d", c.Command))
	}
	return errors.Join(errs...)
}

// Node is this process as a member. Its exported methods are safe for concurrent use.
type Node struct {
	// Set by New, then constant.
	cfg     Config
	seat    mars.Seat // what this node votes as
	mesh    Mesh
	log     zerolog.Logger
	metrics metrics
	inbox   chan call
	arrived chan mars.Message       // one-way messages
	asked   chan chan<- mars.Report // of length 1 each
	noted   chan struct{}           // something is in notes
	joined  chan struct{}           // closed when first registered
	left    chan struct{}           // closed when the leave is acknowledged or moot
	still   telemetry.Standstill
	refused telemetry.Throttle // members that are refused, and nodes of other versions
	done    chan struct{}      // closed when Run returned

	// Owned by the goroutine in Run.
	machine *mars.Machine

	directory atomic.Pointer[mars.Directory]
	standing  atomic.Pointer[standing]
	heard     atomic.Int64 // when the authority was heard last, unix nanoseconds, 0 before that
	shared    atomic.Pointer[[]mars.Shared]
	leaseEnd  atomic.Int64 // Unix nanoseconds by cfg.now; 0 without a lease
	current   atomic.Int64 // until when the directory is, like leaseEnd; 0 when it is not

	mu       sync.Mutex // guards the fields below
	notes    notes
	ended    bool // Run has taken its last notes
	values   map[string]any
	self     mars.Member
	onUpdate []func(*mars.Directory)
}

// standing is the answer of Joined, Reigns and Votes.
type standing struct {
	joined, reigns, votes, kept bool
	reason                      string
}

// call is a request from another node that waits for the loop.
type call struct {
	message mars.Message
	reply   chan mars.Message // of length 1; nil for no answer
}

const (
	// inboxMax is how many requests wait for the loop. When it is full, callers wait
	// with their deadline; members retry.
	inboxMax = 1024
	// arrivedMax is how many one-way messages do. When it is full, further ones are
	// dropped; whoever needs an answer repeats itself.
	arrivedMax = 1024
)

// suspectsMax is how many suspects wait for the loop; further ones are dropped.
const suspectsMax = mars.SuspectsMax

// notes are changes on their way to the loop. Only the newest of each counts.
type notes struct {
	state    *mars.State
	endpoint *string
	load     *mars.SetLoad
	values   *mars.SetValues
	shared   []mars.SetShared
	suspects []id.Node
	leave    bool
	// What an operator waits for.
	transfers []transfer
	recover   []chan<- error
}

// New returns a Node that answers its mesh command from now on and joins once it runs.
func New(cfg Config, mesh Mesh) (*Node, error) {
	cfg.AddressTTL = cmp.Or(cfg.AddressTTL, time.Minute)
	cfg.State = cmp.Or(cfg.State, mars.Online)
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("membership of %s: %w", cfg.Self.Node, err)
	}
	if cfg.Home {
		cfg.Name = cmp.Or(cfg.Name, cfg.Self.Node.String())
	}
	if cfg.Rand == nil {
		cfg.Rand = defaultRand
	}
	if cfg.now == nil {
		cfg.now = newClock().now
	}
	now := cfg.now()
	cfg.Self.Started = cmp.Or(cfg.Self.Started, now.UnixMilli())
	n := &Node{
		cfg: cfg, seat: mars.SeatOf(cfg.Self.Node, cfg.Self.Incarnation), mesh: mesh, log: cfg.Log, metrics: newMetrics(cfg.Reg),
		inbox: make(chan call, inboxMax), arrived: make(chan mars.Message, arrivedMax), asked: make(chan chan<- mars.Report),
		noted: make(chan struct{}, 1), joined: make(chan struct{}), left: make(chan struct{}), done: make(chan struct{}),
		values: make(map[string]any),
	}
	n.machine = mars.New(now, mars.Config{
		Self: cfg.Self, Home: cfg.Home, Endpoint: cfg.Endpoint, State: cfg.State, FullSyncRoles: cfg.FullSyncRoles,
		Recovery: cfg.Recovery, ColdBoot: cfg.ColdBoot, Rand: cfg.Rand,
	})
	n.self = n.machine.Self()
	n.directory.Store(n.machine.Directory())
	n.stand(now)
	mesh.Handle(cfg.Command, n.answer)
	mesh.Handle(cfg.MessageCommand, n.receive)
	return n, nil
}

// Directory returns the newest picture of the namespace, never nil.
func (n *Node) Directory() *mars.Directory { return n.directory.Load() }

// Current tells whether the directory is the whole truth at this moment: see
// [mars.Observer.CurrentUntil]. Ask it before Directory, whose picture is then at least as
// new as the one that it speaks of. A process that stood still is not taken in by what it
// knew before.
func (n *Node) Current() bool { return n.cfg.now().UnixNano() < n.current.Load() }

// Joined tells whether this node ever registered, and in one line how it stands.
// A node stays joined while the authority is away.
func (n *Node) Joined() (bool, string) {
	s := n.standing.Load()
	return s.joined, s.reason
}

// Reigns tells whether this node is the authority, perhaps without a lease at the moment.
func (n *Node) Reigns() bool { return n.standing.Load().reigns }

// AuthorityAge returns how long ago this node heard the authority, 0 when it is that
// itself, and whether it ever did.
func (n *Node) AuthorityAge() (age time.Duration, known bool) {
	if n.Reigns() {
		return 0, true
	}
	at := n.heard.Load()
	if at == 0 {
		return 0, false
	}
	return n.cfg.now().Sub(time.Unix(0, at)), true
}

// Votes tells whether this node has a seat in the council. To leave it then takes
// longer, as it does for the authority: another is to take its place first.
func (n *Node) Votes() bool { return n.standing.Load().votes }

// Status returns what the machine knows of the authority, the voters and, on the
// authority itself, when it last heard of each member.
func (n *Node) Status(ctx context.Context) (mars.Report, error) {
	answer := make(chan mars.Report, 1)
	select {
	case n.asked <- answer:
		return <-answer, nil
	case <-n.done:
		return mars.Report{}, errEnded
	case <-ctx.Done():
		return mars.Report{}, context.Cause(ctx)
	}
}

// Self returns this node as it wants to be seen.
func (n *Node) Self() mars.Member {
	n.mu.Lock()
	defer n.mu.Unlock()
	m := n.self
	m.Values = maps.Clone(n.values)
	return m
}

// WaitJoined waits until the node has registered. It returns an error that says
// why it has not when ctx ends first.
func (n *Node) WaitJoined(ctx context.Context) error {
	select {
	case <-n.joined:
		return nil
	case <-ctx.Done():
		_, reason := n.Joined()
		return fmt.Errorf("join cluster through mars at %s: %s: %w", n.cfg.Name, reason, context.Cause(ctx))
	case <-n.done:
		return fmt.Errorf("join cluster through mars at %s: %w", n.cfg.Name, errEnded)
	}
}

// OnUpdate adds f to what is called with every new directory. Call it before
// Run; f runs on the goroutine in Run and must not block.
func (n *Node) OnUpdate(f func(*mars.Directory)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.onUpdate = append(n.onUpdate, f)
}

// SetState announces a new state at once.
func (n *Node) SetState(s mars.State) {
	n.note(func() { n.notes.state, n.self.State = &s, s })
}

// SetEndpoint announces a new public "host:port" at once.
func (n *Node) SetEndpoint(hostPort string) {
	n.note(func() { n.notes.endpoint, n.self.Endpoint = &hostPort, hostPort })
}

// SetLoad announces how many users are connected and a load from 0 to 1, at
// most ten times a second. Negative numbers count as 0.
func (n *Node) SetLoad(users int, load float64) {
	l := mars.SetLoad{Users: min(max(users, 0), 1<<31-1), Load: 0}
	if load > 0 { // not for NaN
		l.Load = min(load, 1)
	}
	n.note(func() { n.notes.load, n.self.Users, n.self.Load = &l, l.Users, l.Load })
}

// SetShared writes a value that all nodes of the cluster see; the last writer wins.
// It returns an error that wraps [mars.ErrShared] when the key is empty or longer
// than [mars.SharedKeyBytesMax]. A key beyond [mars.SharedMax] of them is dropped by
// the authority; [Node.Shared] tells what there is.
func (n *Node) SetShared(key string, v int16) error {
	if key == "" || len(key) > mars.SharedKeyBytesMax {
		return fmt.Errorf("set shared %q: %w", key, mars.ErrShared)
	}
	n.note(func() {
		n.notes.shared = slices.DeleteFunc(n.notes.shared, func(s mars.SetShared) bool { return s.Key == key })
		if len(n.notes.shared) < mars.SharedMax {
			n.notes.shared = append(n.notes.shared, mars.SetShared{Key: key, Value: v})
		}
	})
	return nil
}

// Shared returns what all nodes see, as far as this one has heard of it, sorted by
// key. It must not be changed.
func (n *Node) Shared() []mars.Shared {
	if s := n.shared.Load(); s != nil {
		return *s
	}
	return nil
}

// SetValue announces a node value; nil takes it back. It returns an error that
// wraps [mars.ErrValues] when v can't travel or all values together would get
// larger than [mars.ValuesBytesMax].
func (n *Node) SetValue(key string, v any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	after := maps.Clone(n.values)
	delete(after, key)
	if v != nil {
		after[key] = v
	}
	b, err := mars.EncodeValues(after)
	if err != nil {
		return fmt.Errorf("set node value %q: %w", key, err)
	}
	// What is kept is a copy: the caller may go on changing v.
	copied, err := mars.DecodeValues(b)
	if err != nil {
		return fmt.Errorf("set node value %q: %w", key, err)
	}
	if copied == nil {
		copied = make(map[string]any)
	}
	n.values = copied
	n.notes.values = &mars.SetValues{Values: b}
	n.wake()
	return nil
}

// Suspect reports that the mesh link to a member failed. Two reports from
// different hosts within 10 s keep the member from being handed out.
func (n *Node) Suspect(node id.Node) {
	n.note(func() {
		if len(n.notes.suspects) < suspectsMax && !slices.Contains(n.notes.suspects, node) {
			n.notes.suspects = append(n.notes.suspects, node)
		}
	})
}

// Leave tells the authority that this node is going for good, and returns when
// that is acknowledged or ctx ends. An authority hands its office over first, a
// voter waits for its replacement. Of a node that nobody ever let in nobody has to be
// told. Run must be running. Afterwards the directory stands still.
func (n *Node) Leave(ctx context.Context) error {
	n.note(func() { n.notes.leave = true })
	select {
	case <-n.left:
		return nil
	case <-n.done:
		select {
		case <-n.left:
			return nil
		default:
			return fmt.Errorf("leave cluster: %w", errEnded)
		}
	case <-ctx.Done():
		if joined, _ := n.Joined(); !joined { // a heartbeat may be under way, to nobody most likely
			return nil
		}
		if n.standing.Load().kept {
			return fmt.Errorf("leave cluster: the authority knows, but found nobody in time to take the place of this voter: %w", context.Cause(ctx))
		}
		return fmt.Errorf("leave cluster: no authority answered, so this node expires instead: %w", context.Cause(ctx))
	}
}

func (n *Node) note(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	n.wake()
}

// wake makes the loop look at the notes.
func (n *Node) wake() {
	select {
	case n.noted <- struct{}{}:
	default: // it is about to look
	}
}
