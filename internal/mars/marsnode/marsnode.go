// Package marsnode makes this process a member of the cluster.
//
// One goroutine, [Node.Run], owns the machines of package mars, carries their
// messages over the mesh and publishes the directory. The rest of the process
// reads immutable snapshots and leaves notes about itself; no method but
// [Node.WaitJoined] and [Node.Leave] waits for anything.
package marsnode

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
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
	// Authority makes this node keep the registry.
	Authority bool
	// Addresses looks up where the authority may be. It is called from a
	// goroutine of its own, every AddressTTL and after failures, and may block
	// until its context ends. The authority itself needs none.
	Addresses func(context.Context) ([]id.Node, error)
	// AddressTTL is how long looked-up addresses are good. Zero means 60 s.
	AddressTTL time.Duration
	// Name is what logs and reasons call the authority's address.
	Name string
	// Command is the mesh command of all membership messages.
	Command uint16
	// FullSyncRoles get load and values of all members. Nil means http.
	FullSyncRoles []string
	// Rand returns numbers in [0, 1) that spread heartbeats. Nil means math/rand.
	Rand func() float64
	Log  zerolog.Logger
	Reg  prometheus.Registerer
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
	if !c.Authority && c.Addresses == nil {
		errs = append(errs, errors.New("no address to ask for the authority"))
	}
	return errors.Join(errs...)
}

// Node is this process as a member. Its exported methods are safe for concurrent use.
type Node struct {
	// Set by New, then constant.
	cfg     Config
	mesh    Mesh
	log     zerolog.Logger
	metrics metrics
	inbox   chan call
	noted   chan struct{} // something is in notes
	joined  chan struct{} // closed when first registered
	left    chan struct{} // closed when the leave is acknowledged or moot
	done    chan struct{} // closed when Run returned

	// Owned by the goroutine in Run.
	registry *mars.Registry // nil unless this node is the authority
	observer *mars.Observer

	directory atomic.Pointer[mars.Directory]
	standing  atomic.Pointer[standing]

	mu       sync.Mutex // guards the fields below
	notes    notes
	values   map[string]any
	self     mars.Member
	onUpdate []func(*mars.Directory)
}

// standing is the answer of Joined.
type standing struct {
	joined bool
	reason string
}

// call is a message from another node that waits for the loop.
type call struct {
	message mars.Message
	reply   chan *mars.Ack // of length 1
}

// inboxMax is how many calls wait for the loop. When it is full, callers wait
// with their deadline; members retry.
const inboxMax = 1024

// suspectsMax is how many suspects wait for the loop; further ones are dropped.
const suspectsMax = mars.SuspectsMax

// notes are changes on their way to the loop. Only the newest of each counts.
type notes struct {
	state    *mars.State
	endpoint *string
	load     *mars.SetLoad
	values   *mars.SetValues
	suspects []id.Node
	leave    bool
}

// New returns a Node that answers its mesh command from now on and joins once it runs.
func New(cfg Config, mesh Mesh) (*Node, error) {
	cfg.AddressTTL = cmp.Or(cfg.AddressTTL, time.Minute)
	cfg.State = cmp.Or(cfg.State, mars.Online)
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("membership of %s: %w", cfg.Self.Node, err)
	}
	if cfg.Authority {
		cfg.Name = cmp.Or(cfg.Name, cfg.Self.Node.String())
	}
	now := time.Now()
	cfg.Self.Started = cmp.Or(cfg.Self.Started, now.UnixMilli())
	if cfg.Rand == nil {
		cfg.Rand = defaultRand
	}
	n := &Node{
		cfg: cfg, mesh: mesh, log: cfg.Log, metrics: newMetrics(cfg.Reg),
		inbox: make(chan call, inboxMax), noted: make(chan struct{}, 1),
		joined: make(chan struct{}), left: make(chan struct{}), done: make(chan struct{}),
		values: make(map[string]any),
	}
	n.observer = mars.NewObserver(now, mars.ObserverConfig{
		Self: cfg.Self, Endpoint: cfg.Endpoint, State: cfg.State, Rand: cfg.Rand,
	})
	if cfg.Authority {
		n.registry = mars.NewRegistry(now, mars.RegistryConfig{
			Node: cfg.Self.Node, Incarnation: cfg.Self.Incarnation, FullSyncRoles: cfg.FullSyncRoles,
		})
	}
	n.self = n.observer.Self()
	n.directory.Store(&mars.Directory{})
	n.stand()
	mesh.Handle(cfg.Command, n.handle)
	return n, nil
}

// Directory returns the newest picture of the namespace, never nil.
func (n *Node) Directory() *mars.Directory { return n.directory.Load() }

// Joined tells whether this node ever registered, and in one line how it stands.
// A node stays joined while the authority is away.
func (n *Node) Joined() (bool, string) {
	s := n.standing.Load()
	return s.joined, s.reason
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
		return fmt.Errorf("join cluster through mars at %s: membership ended", n.cfg.Name)
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
		if len(n.notes.suspects) < suspectsMax {
			n.notes.suspects = append(n.notes.suspects, node)
		}
	})
}

// Leave tells the authority that this node is going for good, and returns when
// that is acknowledged or ctx ends. Run must be running. Afterwards the
// directory stands still; an authority keeps serving the others until Run ends.
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
			return errors.New("leave cluster: membership ended before")
		}
	case <-ctx.Done():
		return fmt.Errorf("leave cluster: %w", context.Cause(ctx))
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

// handle answers membership messages of other nodes.
func (n *Node) handle(ctx context.Context, from Peer, payload []byte) ([]byte, error) {
	m, err := mars.ParseMessage(payload)
	if pe, ok := errors.AsType[*mars.ProtocolError](err); ok {
		n.log.Warn().Stringer("node", from.Node).Uint8("protocol", pe.Theirs).Msg("node of an incompatible mesh protocol refused")
		return nil, pe
	}
	if err != nil {
		return nil, fmt.Errorf("membership message from %s: %w", from.Node, err)
	}
	if sender := mars.SenderOf(m); sender != from.Node {
		return nil, fmt.Errorf("membership message from %s in the name of %s", from.Node, sender)
	}
	if n.registry == nil {
		d := n.Directory()
		return mars.NotAuthority(n.cfg.Self, d.Epoch, d.Authority).AppendTo(nil), nil
	}
	c := call{message: m, reply: make(chan *mars.Ack, 1)}
	select {
	case n.inbox <- c:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-n.done:
		return nil, errors.New("membership ended")
	}
	select {
	case a := <-c.reply:
		if a == nil {
			return nil, mars.ErrMessage
		}
		return a.AppendTo(nil), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-n.done:
		return nil, errors.New("membership ended")
	}
}
