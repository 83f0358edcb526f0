package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

const (
	tickEvery = 250 * time.Millisecond
	// identityEvery is how often the files of the identity are read: what an operator
	// changes there is logged within 10 s.
	identityEvery = 4 * time.Second

	// A QUIC connection without a sign of life for quicIdle ends; keep-alives are
	// sent often enough that only a dead peer or path gets there.
	quicIdle      = 6 * time.Second
	quicKeepAlive = 2 * time.Second
	// A dial that hears nothing at all for handshakeIdle ends.
	handshakeIdle = 1500 * time.Millisecond
	// With more handshakes than this under way, new addresses must prove
	// themselves with a Retry first.
	handshakesFree = 32

	// Flow control, in bytes. The connection's window covers every stream's, so
	// that a one-way stream nobody reads never holds up the requests beside it.
	streamWindow     = 2 << 20
	connectionWindow = (bodyStreamsMax + classes + 2) * streamWindow
)

// Mesh is one node's end of the mesh. Its methods are safe for concurrent use.
type Mesh struct {
	// Set by New and Listen, then constant.
	cfg        Config
	log        zerolog.Logger
	metrics    *metrics
	identity   *identity
	serverTLS  *tls.Config
	clientTLS  *tls.Config
	quicConfig *quic.Config
	transport  *quic.Transport
	listener   *quic.Listener
	self       Peer
	ctx        context.Context // ends when the mesh stops
	cancel     context.CancelFunc
	local      local
	workers    workers
	relays     relayLog
	refusedIn  limiter            // of refusals of nodes that dial this one, and
	refusedOut limiter            // of those it dials, so that strangers do not hide them
	complaints telemetry.Throttle // about nodes that do what they may not, or are not where they say
	dialBacks  dialBacks
	lookup     atomic.Pointer[map[uint16]Handler]

	tick       atomic.Int64  // counts the janitor's rounds, from 1
	handshakes atomic.Int64  // incoming ones under way
	running    atomic.Int64  // handlers
	draining   atomic.Bool   // incoming requests are refused
	stopping   atomic.Bool   // outgoing calls are refused too
	quiet      chan struct{} // told when the last handler ends while draining
	stopOnce   sync.Once
	stopErr    error

	wg sync.WaitGroup // everything spawned

	mu       sync.RWMutex       // guards the fields below
	closed   bool               // nothing is spawned any more
	handlers map[uint16]Handler // what lookup holds
	peers    map[id.Node]*peer
	conns    map[*conn]struct{}
	keep     map[id.Node]bool
}

// New checks cfg and prepares the identity. Problems wrap [ErrConfig].
func New(cfg Config) (*Mesh, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	who, err := openIdentity(cfg)
	if err != nil {
		return nil, err
	}
	m := &Mesh{
		cfg: cfg, log: cfg.Log, identity: who, metrics: newMetrics(cfg.Reg),
		handlers: map[uint16]Handler{}, peers: map[id.Node]*peer{}, conns: map[*conn]struct{}{}, keep: map[id.Node]bool{},
		dialBacks: dialBacks{turns: make(chan struct{}, dialBacksMax), byNode: map[id.Node]*dialBack{}},
		quiet:     make(chan struct{}, 1),
		quicConfig: &quic.Config{
			Versions:             []quic.Version{quic.Version1},
			HandshakeIdleTimeout: handshakeIdle, MaxIdleTimeout: quicIdle, KeepAlivePeriod: quicKeepAlive,
			MaxStreamReceiveWindow:         streamWindow,
			InitialConnectionReceiveWindow: connectionWindow, MaxConnectionReceiveWindow: connectionWindow,
			MaxIncomingStreams: 1, MaxIncomingUniStreams: bodyStreamsMax + classes,
			EnableDatagrams: true,
		},
	}
	if _, err := who.certificate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.serverTLS, m.clientTLS = who.tlsConfigs()
	m.tick.Store(1)
	m.local.init(m)
	m.workers = workers{m: m, jobs: make(chan job)}
	m.registerRelays()
	return m, nil
}

// Listen binds the socket, searching for a free port when configured so, and
// returns the address others reach this node by. Calls work from then on;
// incoming connections wait for Run.
func (m *Mesh) Listen() (id.Node, error) {
	bind, err := netip.ParseAddr(m.cfg.Address)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrConfig, err)
	}
	socket, err := m.bind(bind)
	if err != nil {
		return "", err
	}
	local, err := netip.ParseAddrPort(socket.LocalAddr().String())
	if err != nil {
		_ = socket.Close()
		return "", fmt.Errorf("read own address: %w", err)
	}
	announced := bind
	if m.cfg.Advertise.IsValid() {
		announced = m.cfg.Advertise
	}
	m.self = Peer{Node: id.NodeOf(netip.AddrPortFrom(announced, local.Port())), Incarnation: m.cfg.Incarnation, Role: m.cfg.Role}
	key, err := m.identity.resetKey(m.self.Node)
	if err != nil {
		_ = socket.Close()
		return "", err
	}
	quietBufferWarning()
	m.transport = &quic.Transport{
		Conn: m.newSocket(socket), StatelessResetKey: (*quic.StatelessResetKey)(&key),
		VerifySourceAddress: func(net.Addr) bool { return m.handshakes.Load() > handshakesFree },
		ConnContext:         m.watchHandshake,
	}
	m.listener, err = m.transport.Listen(m.serverTLS, m.quicConfig)
	if err != nil {
		m.transport = nil // Close looks at it, and so does who asks whether this node listens
		_ = socket.Close()
		return "", fmt.Errorf("listen on %v: %w", m.self.Node, err)
	}
	return m.self.Node, nil
}

// bind takes the first free port of the configured range.
func (m *Mesh) bind(addr netip.Addr) (*net.UDPConn, error) {
	last := min(m.cfg.Port+m.cfg.PortSearch, 65535)
	for port := m.cfg.Port; ; port++ {
		socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, uint16(port))))
		if err == nil {
			return socket, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) || port == last {
			return nil, fmt.Errorf("listen on mesh ports %d to %d: %w", m.cfg.Port, last, err)
		}
	}
}

// quietBufferWarning keeps quic-go from printing to the standard logger that it
// could not enlarge the socket's buffers.
var quietBufferWarning = sync.OnceFunc(func() {
	_ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
})

// Run serves until ctx ends, then stops the mesh as Close does. It returns nil
// when it ended because ctx did.
func (m *Mesh) Run(ctx context.Context) error {
	if m.listener == nil {
		return errors.New("run mesh: Listen comes first")
	}
	stop := context.AfterFunc(ctx, func() { _ = m.Close() })
	defer stop()
	m.spawn(m.janitor)
	m.spawn(m.watchIdentity)
	var failure error
	for {
		qc, err := m.listener.Accept(m.ctx)
		if err != nil {
			if !m.stopping.Load() && m.ctx.Err() == nil {
				failure = fmt.Errorf("accept mesh connection: %w", err)
			}
			break
		}
		if done, ok := qc.Context().Value(handshakeDone{}).(func()); ok {
			done()
		}
		if !m.spawn(func() { m.accept(qc) }) {
			_ = qc.CloseWithError(closeNormal, "")
		}
	}
	return errors.Join(failure, m.Close())
}

// Close refuses new calls, lets running handlers and calls finish for a moment,
// ends every connection and waits for everything the mesh started. It is idempotent.
func (m *Mesh) Close() error {
	m.stopOnce.Do(m.stop)
	return m.stopErr
}

func (m *Mesh) stop() {
	m.Drain()
	wait, cancel := context.WithTimeout(context.Background(), m.cfg.StopTime)
	defer cancel()
	m.awaitQuiet(wait)
	m.stopping.Store(true)
	for _, c := range m.connections() {
		c.retire()
	}
	m.awaitConns(wait)
	m.cancel()
	for _, c := range m.connections() {
		c.cancel(errStopping)
	}
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.wg.Wait()
	if m.listener != nil {
		m.stopErr = errors.Join(m.listener.Close(), m.transport.Close(), m.transport.Conn.Close())
	}
}

// awaitQuiet waits until no handler runs, or ctx ends.
func (m *Mesh) awaitQuiet(ctx context.Context) {
	for m.running.Load() > 0 {
		select {
		case <-m.quiet:
		case <-ctx.Done():
			return
		}
	}
}

// awaitConns waits until every connection has retired, or ctx ends.
func (m *Mesh) awaitConns(ctx context.Context) {
	for _, c := range m.connections() {
		select {
		case <-c.ctx.Done():
		case <-ctx.Done():
			return
		}
	}
}

// Drain refuses incoming requests and datagrams with [ErrDraining] from now on;
// one-way messages and relays are still handled and outgoing calls still work.
// Close begins with it; a node that still moves its users away must not call it earlier.
func (m *Mesh) Drain() { m.draining.Store(true) }

// spawn runs f unless the mesh has stopped. Close waits for f.
func (m *Mesh) spawn(f func()) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return false
	}
	m.wg.Go(f)
	return true
}

func (m *Mesh) track(c *conn) {
	m.metrics.connections.Inc()
	m.mu.Lock()
	m.conns[c] = struct{}{}
	m.mu.Unlock()
	if m.identity.verifyChain(c.chain) != nil { // it changed since the handshake
		c.expel()
	}
	if m.stopping.Load() {
		c.retire()
	}
	if m.ctx.Err() != nil {
		c.cancel(errStopping)
	}
}

func (m *Mesh) untrack(c *conn) {
	m.metrics.connections.Dec()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.conns, c)
}

func (m *Mesh) connections() []*conn {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]*conn, 0, len(m.conns))
	for c := range m.conns {
		out = append(out, c)
	}
	return out
}

// janitor watches over connections: silent ones end, idle ones retire.
func (m *Mesh) janitor() {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	idleTicks := max(1, int64(m.cfg.IdleTimeout/tickEvery))
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-ticker.C:
		}
		now := m.tick.Add(1)
		for _, c := range m.connections() {
			c.check(now, idleTicks, m.keeps(c.remote.Node))
		}
		m.sweep(now, max(idleTicks, int64(time.Minute/tickEvery)))
	}
}

func (m *Mesh) keeps(n id.Node) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.keep[n]
}

// sweep forgets peers nobody asked for in a while.
func (m *Mesh) sweep(now, age int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for node, p := range m.peers {
		if now-p.touched.Load() <= age || p.conn.Load() != nil {
			continue
		}
		p.mu.Lock()
		unused := p.dialing == nil && !p.datagrams.sending
		p.mu.Unlock()
		if unused {
			delete(m.peers, node)
		}
	}
}

// peer returns what is known of the node at a mesh address.
func (m *Mesh) peer(n id.Node) (*peer, error) {
	m.mu.RLock()
	p := m.peers[n]
	m.mu.RUnlock()
	if p == nil {
		addr, err := n.AddrPort()
		if err != nil || addr.Port() == 0 || addr.Addr().IsUnspecified() {
			return nil, fmt.Errorf("%w: %q", ErrAddress, string(n))
		}
		m.mu.Lock()
		if p = m.peers[n]; p == nil {
			p = &peer{m: m, node: n}
			m.peers[n] = p
		}
		m.mu.Unlock()
	}
	if t := m.tick.Load(); p.touched.Load() != t {
		p.touched.Store(t)
	}
	return p, nil
}
