// Package clienttest is a small node for tests of what is built on package client:
// the server's side of DX1 over loopback with commands the test supplies, and none of
// the limits, batches and metrics of a real node.
//
// Handlers and the methods of [Conn] run under the node's lock; tests take it with
// [Node.Do].
package clienttest

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Options configures a [Node]. The zero value is ready to use.
type Options struct {
	// TCP makes the node speak TCP instead of UDP.
	TCP bool
	// ClientKey is the shared client key.
	ClientKey string
	// IdleTimeout is how long clients may be silent. Zero means 10s.
	IdleTimeout time.Duration
	// PacketsPerSecond and KiBPerSecond are advertised. Zero means unlimited.
	PacketsPerSecond, KiBPerSecond uint16
	// Token names the run of the node, in answers of the HTTP role and in Accepts.
	Token string
	// Forget drops the state of a connection as soon as it is lost.
	Forget bool
	// Handle is called with each request. Nil answers with the payload, see [Echo].
	Handle func(c *Conn, m wire.Message, rel reliable.Reliability)
	// Opened is called after a handshake. Nil does nothing.
	Opened func(c *Conn, resumed bool)
	// Ended is called when a client left or its state was dropped. Nil does nothing.
	Ended func(p *Place, code wire.CloseCode)
}

// Echo answers a request with its own payload.
func Echo(c *Conn, m wire.Message, rel reliable.Reliability) { c.Respond(m, 1, m.Payload) }

// Place is a reservation and what became of it.
type Place struct {
	UID  string
	Conn *Conn // nil unless connected
	User any   // for the test

	creds   secure.Credentials
	base    secure.Base
	state   *reliable.State // of the connection that was lost
	cookie  uint64          // of the last accepted Confirm
	hash    [32]byte
	accept  []byte
	release func() *reliable.State // MOVE: takes the state from the old node
}

// Node is one server on loopback.
type Node struct {
	opts Options
	gate *secure.Gate
	udp  *net.UDPConn
	tcp  net.Listener
	quit chan struct{}
	wg   sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	places map[wire.CID]*Place
	conns  map[wire.CID]*Conn
	socks  map[net.Conn]bool
	stays  map[wire.CID]stay // that ended
	deaf   bool
	losing int // Accepts
	recv   reliable.Received
	out    []byte
	// Handshakes counts accepted Confirms.
	Handshakes int
}

// Start starts a node on a free port of 127.0.0.1.
func Start(o Options) (*Node, error) {
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 10 * time.Second
	}
	if o.Handle == nil {
		o.Handle = Echo
	}
	gate, err := secure.NewGate(rand.Reader, time.Now())
	if err != nil {
		return nil, err
	}
	n := &Node{
		opts: o, gate: gate, quit: make(chan struct{}), places: make(map[wire.CID]*Place),
		conns: make(map[wire.CID]*Conn), socks: make(map[net.Conn]bool), stays: make(map[wire.CID]stay),
	}
	if o.TCP {
		n.tcp, err = net.Listen("tcp", "127.0.0.1:0")
	} else {
		n.udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	}
	if err != nil {
		return nil, fmt.Errorf("start test node: %w", err)
	}
	n.wg.Add(2)
	go n.tick()
	if o.TCP {
		go n.acceptTCP()
	} else {
		go n.readUDP()
	}
	return n, nil
}

// Kill closes the sockets without a word, as a crash does, and waits for the node's
// goroutines.
func (n *Node) Kill() {
	select {
	case <-n.quit:
		return
	default:
	}
	close(n.quit)
	if n.udp != nil {
		_ = n.udp.Close()
	} else {
		_ = n.tcp.Close()
	}
	n.mu.Lock()
	for s := range n.socks {
		_ = s.Close()
	}
	n.mu.Unlock()
	n.wg.Wait()
}

// Addr returns where the node listens.
func (n *Node) Addr() netip.AddrPort {
	if n.udp != nil {
		return n.udp.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	return n.tcp.Addr().(*net.TCPAddr).AddrPort()
}

// Do calls f under the node's lock.
func (n *Node) Do(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

// Reserve makes a place for a user.
func (n *Node) Reserve(uid string) (*Place, error) {
	creds, err := secure.NewCredentials(rand.Reader)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reserveLocked(uid, creds), nil
}

func (n *Node) reserveLocked(uid string, creds secure.Credentials) *Place {
	p := &Place{UID: uid, creds: creds, base: secure.Derive(creds, n.opts.ClientKey)}
	n.places[p.base.CID0()] = p
	return p
}

// Drop forgets a place, and its connection without telling the client.
func (n *Node) Drop(p *Place) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p.Conn != nil {
		p.Conn.forget()
	}
	delete(n.places, p.base.CID0())
}

// Answer returns what the HTTP role answers for a place.
func (n *Node) Answer(p *Place) []byte {
	typ := "UDP"
	if n.opts.TCP {
		typ = "TCP"
	}
	b, _ := json.Marshal(map[string]any{
		"sid": p.creds.SID.Hex(), "encryptionKey": fmt.Sprintf("%x", p.creds.Key[:]), "encryptionIV": fmt.Sprintf("%x", p.creds.IV[:]),
		"encryptionMacKey": fmt.Sprintf("%x", p.creds.Mac[:]), "serverType": typ, "serverHost": n.Addr().Addr().String(),
		"serverPort": n.Addr().Port(), "expiresIn": 60, "node": n.opts.Token,
	})
	return b
}

// Endpoints is the HTTP role: it hands out places on the node that pick returns for
// a type, and answers 503 when that is nil.
func Endpoints(pick func(typ string) *Node) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/endpoint/type/{type}/user/{uid}", func(w http.ResponseWriter, r *http.Request) {
		n := pick(r.PathValue("type"))
		if n == nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`{"error":{"code":503,"message":"no node"}}`))
			return
		}
		if _, err := id.ParseUID(r.PathValue("uid")); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error":{"code":1001,"message":"bad uid"}}`))
			return
		}
		p, err := n.Reserve(r.PathValue("uid"))
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(n.Answer(p))
	})
	return mux
}

// tick serves timers; a real node has a wheel.
func (n *Node) tick() {
	defer n.wg.Done()
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-n.quit:
			return
		case <-t.C:
		}
		n.mu.Lock()
		now := time.Now()
		for _, c := range n.conns {
			if !n.deaf {
				c.tick(now)
			}
		}
		n.mu.Unlock()
	}
}

func (n *Node) readUDP() {
	defer n.wg.Done()
	buf := make([]byte, 2048)
	for {
		size, src, err := n.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		n.mu.Lock()
		if !n.deaf {
			n.datagram(time.Now(), src, buf[:size])
		}
		n.mu.Unlock()
	}
}

func (n *Node) datagram(now time.Time, src netip.AddrPort, b []byte) {
	reply := func(p []byte) { _, _ = n.udp.WriteToUDPAddrPort(p, src) }
	switch wire.TypeOf(b) {
	case wire.PacketHello:
		cid, _ := wire.PeekCID0(b)
		if p := n.places[cid]; p != nil {
			if out, err := n.gate.Challenge(nil, now, src, b, &p.base); err == nil {
				reply(out)
			}
		} else if out := n.endedLocked(b); out != nil {
			reply(out)
		}
	case wire.PacketConfirm:
		cid, _ := wire.PeekCID0(b)
		p := n.places[cid]
		if p == nil {
			return
		}
		if h, ok := secure.ConfirmHash(b); ok && h == p.hash {
			if !n.losesLocked() {
				reply(p.accept)
			}
			return
		}
		checked, err := n.gate.Confirm(now, src, b, &p.base)
		if err != nil || checked.CookieTime <= p.cookie {
			return
		}
		acc, err := checked.Open()
		if err != nil {
			return
		}
		p.cookie, p.hash = checked.CookieTime, checked.Hash
		n.open(now, p, acc, &Conn{src: src}, reply)
	case wire.PacketData:
		cid, ok := wire.PeekSCID(b)
		if c := n.conns[cid]; ok && c != nil {
			c.receive(now, b)
		}
	}
}

// open makes a connection of an accepted Confirm and answers it.
func (n *Node) open(now time.Time, p *Place, acc *secure.Accepted, c *Conn, reply func([]byte)) {
	if p.release != nil {
		p.state, p.release = p.release(), nil
	}
	if old := p.Conn; old != nil {
		p.state = old.machine.Export()
		old.say(wire.Close{Code: wire.CloseReplaced})
		old.forget()
	}
	var state *reliable.State
	if acc.Resume {
		state = p.state
	}
	p.state = nil
	c.node, c.Place = n, p
	_, _ = rand.Read(c.scid[:])
	body := wire.Accept{
		SCID: c.scid, IdleTimeout: n.opts.IdleTimeout, ServerTime: now, MaxDatagram: 1200,
		PacketsPerSecond: n.opts.PacketsPerSecond, KiBPerSecond: n.opts.KiBPerSecond, Resumed: state != nil, Token: n.opts.Token,
	}
	if n.opts.TCP {
		body.MaxDatagram = 8000
	}
	p.accept, c.sealer, c.opener = acc.Accept(now, nil, body, secure.RekeyPolicy{})
	c.machine = reliable.New(now, reliable.Config{Server: true, Stream: n.opts.TCP, IdleTimeout: n.opts.IdleTimeout}, state)
	p.Conn = c
	n.conns[c.scid] = c
	n.Handshakes++
	if !n.losesLocked() {
		reply(p.accept)
	}
	if n.opts.Opened != nil {
		n.opts.Opened(c, state != nil)
	}
	if err := c.machine.ReceiveConfirm(now, acc.Frames, acc.Resume, &n.recv); err != nil {
		c.lost()
		return
	}
	c.handle(&n.recv)
	c.flush(now)
}

// Conns returns the connections there are.
func (n *Node) Conns() []*Conn {
	return slices.Collect(maps.Values(n.conns))
}

// Adopt makes a place with the same credentials, but nothing of its state, here.
func (n *Node) Adopt(p *Place) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reserveLocked(p.UID, p.creds)
}

// BreakAll closes the sockets of all TCP connections. When it returns they are lost
// to the node.
func (n *Node) BreakAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.Conns() {
		if c.sock != nil {
			c.lost()
		}
	}
	for s := range n.socks {
		_ = s.Close()
	}
}
