package room

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/router"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users"
	"github.com/Diarkis/diarkis/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is some nodes with a mesh and clients in memory. A client follows a MOVE
// by itself.
type cluster struct {
	t     testing.TB
	nodes []*node
	stop  func()

	directory atomic.Pointer[mars.Directory]
	log       bytes.Buffer // warnings and errors of all nodes
	requests  atomic.Int64 // over the mesh
	ignore    atomic.Bool  // MOVE, by all clients
	mute      atomic.Bool  // notices of who opened do not arrive

	mu       sync.Mutex
	handlers map[id.Node]map[uint16]mesh.Handler
	down     map[id.Node]bool
	clients  map[id.SID]*client
}

type node struct {
	*cluster
	name   id.Node
	users  *users.Registry
	router *router.Router[*users.User]
	rooms  *Engine

	endedGate atomic.Pointer[chan struct{}] // hooks of who ended wait for it, when there is one

	mu     sync.Mutex
	places map[id.SID]*place
}

// newCluster starts nodes; roles name them, e.g. "udp", "udp", "tcp".
func newCluster(t testing.TB, cfg Config, roles ...string) *cluster {
	t.Helper()
	return newClusterOf(t, cfg, users.Budget{}, roles...)
}

func newClusterOf(t testing.TB, cfg Config, budget users.Budget, roles ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, handlers: map[id.Node]map[uint16]mesh.Handler{}, down: map[id.Node]bool{}, clients: map[id.SID]*client{}}
	log := zerolog.New(zerolog.SyncWriter(&c.log)).Level(zerolog.WarnLevel)
	var members []mars.Member
	for i, role := range roles {
		name := id.Node(fmt.Sprintf("127.0.0.1:%d", 8000+i))
		members = append(members, mars.Member{Instance: mars.Instance{Node: name, Role: role, Type: strings.ToUpper(role)}, State: mars.Online})
	}
	c.setMembers(members...)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	c.stop = func() { cancel(); wg.Wait() }
	for i, m := range members {
		n := &node{cluster: c, name: m.Node, places: map[id.SID]*place{}}
		var err error
		n.users, err = users.New(users.Config{
			Self: m.Instance, Directory: c.directory.Load, Budget: budget,
			Endpoint: func() string { return "192.0.2.1:" + strconv.Itoa(i) },
		}, n, log, prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		n.users.OnEnded(func(*users.User, wire.CloseCode) { // runs before the engine's
			if gate := n.endedGate.Load(); gate != nil {
				<-*gate
			}
		})
		n.router = router.New[*users.User](router.Config{StructErrors: true}, log, prometheus.NewRegistry())
		if n.rooms, err = New(cfg, n.users, n.router, n, log, prometheus.NewRegistry()); err != nil {
			t.Fatal(err)
		}
		n.users.SetCommands(n.router)
		n.users.BindPlaces(n, func() *transport.Batch { return nil })
		n.users.SetState(mars.Online)
		wg.Go(func() { _ = n.rooms.Run(ctx) })
		wg.Go(func() { _ = n.users.Run(ctx) })
		c.nodes = append(c.nodes, n)
	}
	return c
}

func (c *cluster) setMembers(members ...mars.Member) {
	c.directory.Store(mars.NewDirectory(1, members...))
}

// The mesh.

func (n *node) Handle(cmd uint16, h mesh.Handler) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	if n.handlers[n.name] == nil {
		n.handlers[n.name] = map[uint16]mesh.Handler{}
	}
	n.handlers[n.name][cmd] = h
}

func (n *node) Request(ctx context.Context, to id.Node, cmd uint16, payload []byte) ([]byte, error) {
	n.requests.Add(1)
	n.cluster.mu.Lock()
	h, down := n.handlers[to][cmd], n.down[to]
	n.cluster.mu.Unlock()
	if h == nil || down || cmd == mesh.CmdUserOpened && n.mute.Load() {
		return nil, mesh.ErrUnreachable
	}
	return h(ctx, mesh.Peer{Node: n.name, Role: n.users.Self().Role}, bytes.Clone(payload))
}

func (n *node) Send(ctx context.Context, to id.Node, cmd uint16, payload []byte) error {
	_, err := n.Request(ctx, to, cmd, payload)
	return err
}

// The places.

type place struct {
	res    transport.Reservation
	opened bool
}

func (n *node) Reserve(res transport.Reservation) (*transport.Place, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.places[res.Credentials.SID] = &place{res: res}
	return nil, nil
}

func (n *node) take(sid id.SID, unopened bool) *place {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.places[sid]
	if p == nil || unopened && p.opened {
		return nil
	}
	delete(n.places, sid)
	return p
}

func (n *node) Cancel(sid id.SID) bool { return n.take(sid, true) != nil }

func (n *node) Replaced(sid id.SID) bool { return n.Cancel(sid) }

func (n *node) End(sid id.SID, code wire.CloseCode, _ string) bool {
	p := n.take(sid, false)
	if p == nil {
		return false
	}
	n.users.UserEnded(p.res.Owner.(*users.User), code)
	return true
}

func (n *node) Freeze(context.Context, id.SID) (*reliable.State, error) { return nil, nil }
func (n *node) Thaw(id.SID) bool                                        { return true }
func (n *node) Released(sid id.SID) bool                                { return n.take(sid, false) != nil }

func (n *node) Credentials(sid id.SID) (secure.Credentials, bool) {
	return secure.Credentials{SID: sid}, true
}

func (n *node) Move(sid id.SID, m wire.Move) error {
	if !n.ignore.Load() {
		go n.nodes[m.Port].connect(sid, true)
	}
	return nil
}

func (n *node) connect(sid id.SID, resumed bool) {
	n.mu.Lock()
	p := n.places[sid]
	n.mu.Unlock()
	if p == nil {
		return
	}
	if p.res.Release != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) // the transport's
		defer cancel()
		if err := p.res.Release(ctx); err != nil {
			return
		}
	}
	n.mu.Lock()
	p.opened = true
	n.mu.Unlock()
	n.cluster.mu.Lock()
	c := n.clients[sid]
	c.at, c.user = n, p.res.Owner.(*users.User)
	n.cluster.mu.Unlock()
	n.users.UserOpened(nil, c.user, c, resumed)
}

// client is a player, and their link.
type client struct {
	cluster *cluster
	uid     id.UID
	at      *node       // guarded by cluster.mu
	user    *users.User // likewise
	nextID  uint64

	mu       sync.Mutex
	received []wire.Message
}

func (n *node) login(uid id.UID) *client {
	n.t.Helper()
	reply, err := n.users.Reserve(users.ReserveRequest{UID: uid})
	if err != nil || reply.Refused != users.Accepted {
		n.t.Fatalf("reserve: %v %v", reply.Refused, err)
	}
	c := &client{cluster: n.cluster, uid: uid}
	n.cluster.mu.Lock()
	n.clients[reply.SID] = c
	n.cluster.mu.Unlock()
	n.connect(reply.SID, false)
	return c
}

func (c *client) SendShared(b *transport.Batch, msg *reliable.Shared, rel reliable.Reliability) error {
	return c.Send(b, msg.Bytes(), rel)
}

func (c *client) Send(_ *transport.Batch, msg []byte, _ reliable.Reliability) error {
	m, err := wire.ParseMessage(bytes.Clone(msg))
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received = append(c.received, m)
	return nil
}

func (*client) RTT() time.Duration                    { return 0 }
func (*client) RemoteAddr() netip.AddrPort            { return netip.AddrPort{} }
func (*client) Transport() string                     { return "UDP" }
func (*client) Spent() (packets, bytes time.Duration) { return 0, 0 }
func (*client) Spend(packets, bytes time.Duration)    {}

func (c *client) where() (*node, *users.User) {
	c.cluster.mu.Lock()
	defer c.cluster.mu.Unlock()
	return c.at, c.user
}

// serve has the client's node run a command.
func (c *client) serve(cmd uint16, id uint64, payload []byte) {
	n, u := c.where()
	m := wire.Message{Ver: Ver, Cmd: cmd, HasID: id != 0, ID: id, Payload: payload}
	n.router.Serve(nil, u, m, reliable.Reliable)
}

// ask sends a request and returns its one answer, after all that it causes.
func (c *client) ask(cmd uint16, payload []byte) (wire.Message, error) {
	c.cluster.t.Helper()
	c.nextID++
	c.serve(cmd, c.nextID, payload)
	synctest.Wait()
	if len(c.answers(c.nextID)) == 0 {
		pass(newcomerMax) // the longest that any command here waits
		synctest.Wait()
	}
	answers := c.answers(c.nextID)
	if len(answers) != 1 {
		return wire.Message{}, fmt.Errorf("%d answers to command %d", len(answers), cmd)
	}
	if a := answers[0]; a.Status != 1 {
		return a, fmt.Errorf("status %d code %d %s", a.Status, uint32(a.Payload[0])<<24|uint32(a.Payload[1])<<16|uint32(a.Payload[2])<<8|uint32(a.Payload[3]), a.Payload[4:])
	}
	return answers[0], nil
}

func (c *client) answers(id uint64) (all []wire.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.received {
		if m.Kind == wire.Response && m.HasID && m.ID == id {
			all = append(all, m)
		}
	}
	return all
}

// must is ask for what has to work; it returns the payload.
func (c *client) must(cmd uint16, payload []byte) []byte {
	c.cluster.t.Helper()
	a, err := c.ask(cmd, payload)
	if err != nil {
		c.cluster.t.Fatalf("command %d of %s: %v", cmd, c.uid, err)
	}
	return a.Payload
}

// pushes returns what was pushed since the last call, as "cmd payload".
func (c *client) pushes() (all []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.received {
		if m.Kind != wire.Push {
			continue
		}
		if m.Cmd == CmdBroadcast {
			all = append(all, fmt.Sprintf("103 %s", strings.Join(messages(m.Payload), "+")))
		} else {
			all = append(all, fmt.Sprintf("%d %s", m.Cmd, m.Payload))
		}
	}
	c.received = nil
	return all
}

// slowHooks has the rooms told of users who ended only once the gate is closed.
func (n *node) slowHooks() (gate chan struct{}) {
	gate = make(chan struct{})
	n.endedGate.Store(&gate)
	return gate
}

func (c *client) disconnect() {
	n, u := c.where()
	n.End(u.SID, wire.CloseIdle, "")
}

// options of a room with join set.
func options(s Settings) []byte {
	if s.EmptyTTL == 0 {
		s.EmptyTTL = 10 * time.Second
	}
	if s.MembersMax == 0 {
		s.MembersMax = 4
	}
	b := appendOptions(nil, s)
	b[3] = 1
	return b
}

// create makes a room and joins it.
func (c *client) create(s Settings) []byte { return c.must(CmdCreate, options(s))[4:] }

func with(room []byte, parts ...string) []byte {
	b := bytes.Clone(room)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// pass lets the clock of a synctest bubble run.
func pass(d time.Duration) { <-time.After(d) }
