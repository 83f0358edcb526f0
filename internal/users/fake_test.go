package users

import (
	"bytes"
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// network is a mesh in memory. cut decides, when set, what gets lost.
type network struct {
	mu    sync.Mutex
	nodes map[id.Node]map[uint16]mesh.Handler
	cut   func(from, to id.Node, cmd uint16) loss
	views map[id.Node]*mars.Directory // what nodes see of the cluster, if not all of it
	walls map[id.Node]time.Duration   // by how much wall clocks are ahead
	logs  map[id.Node]*bytes.Buffer   // of those that have one; set before start
}

// see has a node see these others, or everybody when there are none.
func (net *network) see(n id.Node, others ...mars.Member) {
	net.mu.Lock()
	defer net.mu.Unlock()
	delete(net.views, n)
	if len(others) > 0 {
		net.views[n] = mars.NewDirectory(1, others...)
	}
}

func (net *network) setWall(n id.Node, ahead time.Duration) {
	net.mu.Lock()
	defer net.mu.Unlock()
	net.walls[n] = ahead
}

func (net *network) wall(n id.Node) time.Time {
	net.mu.Lock()
	defer net.mu.Unlock()
	return time.Now().Add(net.walls[n]).Round(0)
}

func (net *network) view(n id.Node) *mars.Directory {
	net.mu.Lock()
	defer net.mu.Unlock()
	return net.views[n]
}

func (net *network) setCut(cut func(from, to id.Node, cmd uint16) loss) {
	net.mu.Lock()
	defer net.mu.Unlock()
	net.cut = cut
}

type loss uint8

const (
	delivered loss = iota
	requestLost
	replyLost
	silent // no answer until the caller gives up
	late   // the same, and then it is handled: the other process stood still
)

type fakeMesh struct {
	net  *network
	self id.Node
}

func (m *fakeMesh) Handle(cmd uint16, h mesh.Handler) {
	m.net.mu.Lock()
	defer m.net.mu.Unlock()
	if m.net.nodes[m.self] == nil {
		m.net.nodes[m.self] = make(map[uint16]mesh.Handler)
	}
	m.net.nodes[m.self][cmd] = h
}

func (m *fakeMesh) Request(ctx context.Context, to id.Node, cmd uint16, payload []byte) ([]byte, error) {
	m.net.mu.Lock()
	h, what := m.net.nodes[to][cmd], delivered
	if m.net.cut != nil {
		what = m.net.cut(m.self, to, cmd)
	}
	m.net.mu.Unlock()
	if h == nil || what == requestLost {
		return nil, mesh.ErrUnreachable
	}
	if what == silent || what == late {
		<-ctx.Done()
		if what == late {
			_, _ = h(context.WithoutCancel(ctx), peer(m.self), payload)
		}
		return nil, mesh.ErrTimeout
	}
	b, err := h(ctx, peer(m.self), payload)
	if what == replyLost {
		return nil, mesh.ErrTimeout
	}
	return b, err
}

func (m *fakeMesh) Send(ctx context.Context, to id.Node, cmd uint16, payload []byte) error {
	_, err := m.Request(ctx, to, cmd, payload)
	return err
}

// fakeLink is a connection that remembers what was sent.
type fakeLink struct {
	mu   sync.Mutex
	err  error
	sent []string

	packets, bytes time.Duration // until the client's bursts are whole again, if no time passes
}

func (l *fakeLink) Spent() (packets, bytes time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.packets, l.bytes
}

func (l *fakeLink) Spend(packets, bytes time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.packets, l.bytes = max(l.packets, packets), max(l.bytes, bytes)
}

func (l *fakeLink) SendShared(b *transport.Batch, msg *reliable.Shared, rel reliable.Reliability) error {
	return l.Send(b, msg.Bytes(), rel)
}

func (l *fakeLink) Send(_ *transport.Batch, msg []byte, _ reliable.Reliability) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.sent = append(l.sent, string(msg))
	}
	return l.err
}

func (l *fakeLink) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *fakeLink) got() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.sent...)
}

func (*fakeLink) RTT() time.Duration         { return time.Millisecond }
func (*fakeLink) RemoteAddr() netip.AddrPort { return netip.MustParseAddrPort("192.0.2.1:9") }
func (*fakeLink) Transport() string          { return "UDP" }

// fakePlaces behaves like the transport, one client at a time.
type fakePlaces struct {
	r *Registry

	mu     sync.Mutex
	places map[id.SID]*fakePlace
	err    error // of Reserve
	moved  []wire.Move

	replaced []id.SID // what Replaced dropped
}

type fakePlace struct {
	res       transport.Reservation
	link      *fakeLink
	opened    bool
	releasing bool
	frozen    bool
}

func (p *fakePlaces) Reserve(res transport.Reservation) (*transport.Place, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return nil, p.err
	}
	if p.places[res.Credentials.SID] != nil {
		return nil, transport.ErrPlaceExists
	}
	place := &fakePlace{res: res}
	p.places[res.Credentials.SID] = place
	time.AfterFunc(res.TTL, func() { p.expire(res.Credentials.SID, place) })
	return nil, nil
}

func (p *fakePlaces) expire(sid id.SID, place *fakePlace) {
	p.mu.Lock()
	due := p.places[sid] == place && !place.opened && !place.releasing
	p.mu.Unlock()
	if due {
		p.End(sid, wire.CloseIdle, "")
	}
}

func (p *fakePlaces) Cancel(sid id.SID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	place := p.places[sid]
	if place == nil || place.opened || place.releasing {
		return false
	}
	delete(p.places, sid)
	return true
}

func (p *fakePlaces) Replaced(sid id.SID) bool {
	if !p.Cancel(sid) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replaced = append(p.replaced, sid)
	return true
}

func (p *fakePlaces) End(sid id.SID, code wire.CloseCode, _ string) bool {
	p.mu.Lock()
	place := p.places[sid]
	delete(p.places, sid)
	p.mu.Unlock()
	if place == nil {
		return false
	}
	if place.link != nil {
		place.link.set(transport.ErrClosed)
	}
	p.r.UserEnded(place.res.Owner.(*User), code)
	return true
}

func (p *fakePlaces) ttl(sid id.SID) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.places[sid].res.TTL
}

func (p *fakePlaces) Freeze(context.Context, id.SID) (*reliable.State, error) { return nil, nil }

func (p *fakePlaces) freeze(sid id.SID, err error, frozen bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	place := p.places[sid]
	if place == nil {
		return false
	}
	place.frozen = frozen
	if place.link != nil {
		place.link.set(err)
	}
	return true
}

func (p *fakePlaces) Thaw(sid id.SID) bool { return p.freeze(sid, nil, false) }

func (p *fakePlaces) Move(sid id.SID, m wire.Move) error {
	p.mu.Lock()
	p.moved = append(p.moved, m)
	p.mu.Unlock()
	p.freeze(sid, transport.ErrFrozen, true)
	return nil
}

func (p *fakePlaces) Released(sid id.SID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.places, sid)
	return true
}

func (p *fakePlaces) Credentials(sid id.SID) (secure.Credentials, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if place := p.places[sid]; place != nil {
		return place.res.Credentials, true
	}
	return secure.Credentials{}, false
}

// releaseTimeout is the transport's.
const releaseTimeout = 5 * time.Second

// connect is a client's valid Confirm. It returns nil when that was not accepted.
func (p *fakePlaces) connect(sid id.SID, resumed bool) *fakeLink {
	p.mu.Lock()
	place := p.places[sid]
	if place == nil || place.frozen || place.releasing {
		p.mu.Unlock()
		return nil
	}
	if !place.opened && place.res.Release != nil {
		place.releasing = true
		p.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
		err := place.res.Release(ctx)
		cancel()
		p.mu.Lock()
		place.releasing = false
		if err != nil {
			p.mu.Unlock()
			if isRevoked(err) {
				p.End(sid, wire.CloseNormal, "")
			}
			return nil
		}
		resumed = true
	}
	place.opened = true
	place.link = &fakeLink{}
	p.mu.Unlock()
	p.r.UserOpened(nil, place.res.Owner.(*User), place.link, resumed)
	return place.link
}

// fakeCommands runs run on the executor; command 1 runs at once unless something
// ordered waits, command 2 is ordered, others are the application's.
type fakeCommands struct {
	mu   sync.Mutex
	ran  []string
	run  func(u *User, m wire.Message)
	errs []error
}

func (c *fakeCommands) Serve(_ *transport.Batch, u *User, m wire.Message, rel reliable.Reliability) {
	var err error
	posted := true
	switch m.Cmd {
	case 1:
		posted, err = u.PostBehind(m, rel)
	case 2:
		err = u.PostOrdered(m, rel)
	default:
		err = u.Post(m, rel)
	}
	if err != nil {
		c.mu.Lock()
		c.errs = append(c.errs, err)
		c.mu.Unlock()
	} else if !posted {
		c.Run(u, m, rel)
	}
}

func (c *fakeCommands) Run(u *User, m wire.Message, _ reliable.Reliability) {
	c.mu.Lock()
	c.ran = append(c.ran, string(m.Payload))
	run := c.run
	c.mu.Unlock()
	if run != nil {
		run(u, m)
	}
}

func (c *fakeCommands) got() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.ran...)
}

// node is a registry on fakes.
type node struct {
	*Registry
	places   *fakePlaces
	commands *fakeCommands
	ended    []wire.CloseCode
	mu       sync.Mutex
}

func newNetwork() *network {
	return &network{nodes: make(map[id.Node]map[uint16]mesh.Handler), views: make(map[id.Node]*mars.Directory), walls: make(map[id.Node]time.Duration)}
}

// start makes nodes "a:1", "b:1", … of role udp and runs them until the returned
// function is called.
func start(t *testing.T, net *network, cfg Config, names ...string) (nodes []*node, stop func()) {
	t.Helper()
	var members []mars.Member
	for _, name := range names {
		members = append(members, mars.Member{Instance: mars.Instance{Node: id.Node(name), Role: "udp", Type: "UDP"}, State: mars.Online})
	}
	directory := mars.NewDirectory(1, members...)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, m := range members {
		cfg.Self, cfg.Directory = m.Instance, func() *mars.Directory {
			if d := net.view(m.Node); d != nil {
				return d
			}
			return directory
		}
		cfg.Endpoint = func() string { return "192.0.2.7:7100" }
		cfg.Wall = func() time.Time { return net.wall(m.Node) }
		log := zerolog.Nop()
		if b := net.logs[m.Node]; b != nil {
			log = zerolog.New(b)
		}
		r, err := New(cfg, &fakeMesh{net, m.Node}, log, prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		n := &node{Registry: r, places: &fakePlaces{r: r, places: make(map[id.SID]*fakePlace)}, commands: &fakeCommands{}}
		r.places = n.places
		r.SetCommands(n.commands)
		r.SetState(mars.Online)
		r.OnEnded(func(_ *User, code wire.CloseCode) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.ended = append(n.ended, code)
		})
		wg.Go(func() { _ = r.Run(ctx) })
		nodes = append(nodes, n)
	}
	return nodes, func() { cancel(); wg.Wait() }
}

func (n *node) endCodes() []wire.CloseCode {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]wire.CloseCode(nil), n.ended...)
}

// login reserves and connects.
func (n *node) login(t *testing.T, uid id.UID) (*User, *fakeLink) {
	t.Helper()
	reply, err := n.Reserve(ReserveRequest{UID: uid})
	if err != nil || reply.Refused != Accepted {
		t.Fatalf("reserve = %v, %v", reply.Refused, err)
	}
	link := n.places.connect(reply.SID, false)
	if link == nil {
		t.Fatal("the place did not take its client")
	}
	return n.BySID(reply.SID), link
}

func request(cmd uint16, payload string) wire.Message {
	return wire.Message{Kind: wire.Request, Ver: 2, Cmd: cmd, HasID: true, ID: 7, Payload: []byte(payload)}
}

// pass lets the clock of a synctest bubble run.
func pass(d time.Duration) { <-time.After(d) }
