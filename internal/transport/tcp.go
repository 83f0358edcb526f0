package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/listener"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport/record"
	"github.com/Diarkis/diarkis/internal/wire"
)

// TCP is the server for clients on TCP: a goroutine that accepts, and one that
// reads for each connection.
type TCP struct {
	*core
	reg      prometheus.Registerer
	slots    *slots
	listener *listener.Listener // set by Listen

	socketsMu sync.Mutex // guards the field below
	sockets   map[*listener.Conn]struct{}
}

var _ Server = (*TCP)(nil)

// NewTCP makes a server. Its error lists all that is wrong with cfg.
func NewTCP(cfg Config, h Handler, log zerolog.Logger, reg prometheus.Registerer) (*TCP, error) {
	k, err := newCore(cfg, h, log, reg, "TCP")
	if err != nil {
		return nil, err
	}
	l := k.cfg.Limits
	return &TCP{
		core: k, reg: reg, slots: newSlots(l.HandshakesMax, l.HandshakesPerAddress), sockets: map[*listener.Conn]struct{}{},
	}, nil
}

// Listen binds the socket and returns its address.
func (t *TCP) Listen() (netip.AddrPort, error) {
	l, err := bind(t.cfg, func(hostPort string) (net.Listener, error) { return net.Listen("tcp", hostPort) })
	if err != nil {
		return netip.AddrPort{}, err
	}
	t.listener = listener.Wrap(l, listener.Options{Name: "tcp", MakeRoom: t.slots.makeRoom, Log: t.log, Reg: t.reg})
	return addrPortOf(l.Addr()), nil
}

// Run serves until ctx ends, then closes what is left and returns nil.
func (t *TCP) Run(ctx context.Context) error {
	if t.listener == nil {
		return errors.New("run TCP server: Listen was not called")
	}
	ended := t.begin()
	var accepting sync.WaitGroup
	accepting.Go(t.acceptAll)
	<-ctx.Done()
	err := t.listener.Close()
	accepting.Wait()
	ended(func() {
		t.CloseAll(wire.CloseShutdown, "")
		t.hurry()
	})
	return err
}

// hurry gives every socket a moment to get rid of its CLOSE.
func (t *TCP) hurry() {
	t.socketsMu.Lock()
	defer t.socketsMu.Unlock()
	for s := range t.sockets {
		_ = s.SetDeadline(time.Now().Add(lingerFor))
	}
}

// acceptAll takes connections until the listener is closed.
func (t *TCP) acceptAll() {
	for {
		s, err := t.listener.Accept()
		if err != nil {
			return
		}
		t.serve(s.(*listener.Conn))
	}
}

// serve starts the reader of a new connection.
func (t *TCP) serve(s *listener.Conn) {
	t.socketsMu.Lock()
	t.sockets[s] = struct{}{}
	t.socketsMu.Unlock()
	peer := addrPortOf(s.RemoteAddr())
	mine := t.slots.enter(peer.Addr(), func() { _ = s.Close() })
	if !t.spawn(func(ctx context.Context) { t.read(ctx, s, peer, mine) }) {
		t.slots.leave(mine)
		t.forget(s)
	}
}

func (t *TCP) forget(s *listener.Conn) {
	_ = s.Close()
	t.socketsMu.Lock()
	delete(t.sockets, s)
	t.socketsMu.Unlock()
}

// read is the reader of one connection.
func (t *TCP) read(ctx context.Context, s *listener.Conn, peer netip.AddrPort, mine *slot) {
	defer t.forget(s)
	defer t.slots.leave(mine)
	socket := s.Conn.(*net.TCPConn)
	_ = socket.SetNoDelay(!t.cfg.Nagle)
	raw, err := socket.SyscallConn()
	if err != nil {
		return
	}
	r := &tcpReader{tcp: t, slot: mine, stream: &stream{socket: socket, raw: raw}, peer: peer, records: record.NewReader(socket)}
	_ = socket.SetReadDeadline(time.Now().Add(t.cfg.HandshakeTimeout))
	err = r.handshake(ctx)
	if evicted := t.slots.leave(mine); evicted != "" {
		err = evicted
	}
	if err != nil {
		if isTimeout(err) {
			err = dropTimeout
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) { // who just looked is no failure
			t.m.refused.Inc()
			t.m.drop(err)
		}
		return
	}
	if r.conn == nil {
		return // it was a probe, or of a stay that is over
	}
	r.serve()
	t.lostLink(r.conn)
	r.linger()
}

// lostLink tells that the socket of c is of no more use.
func (k *core) lostLink(c *Conn) {
	c.gone(wire.CloseIdle, closedLost)
}

// tcpReader is what the goroutine that reads a connection works with.
type tcpReader struct {
	tcp     *TCP
	slot    *slot
	stream  *stream
	peer    netip.AddrPort
	records record.Reader
	conn    *Conn // after the handshake
	rx      reliable.Received
}

// stalledHellos is what a Hello whose Confirm never came costs its place on top of
// itself, in Hellos: at the default rate a place that stalls has one handshake in 2 s. A
// client's own next attempts are as far apart.
const stalledHellos = 10

// handshake gets the connection from its first byte to Accept, or answers a probe.
func (r *tcpReader) handshake(ctx context.Context) error {
	k := r.tcp.core
	pkt, err := r.records.Next(wire.HelloBytes)
	if err != nil {
		return err
	}
	if wire.TypeOf(pkt) == wire.PacketProbe {
		reply, err := k.probe(time.Now(), pkt, r.peer)
		if err != nil {
			return err
		}
		return r.answer(reply)
	}
	cid0, ok := wire.PeekCID0(pkt)
	if !ok {
		return wire.RefusedLength
	}
	p, gone, over := k.places.askedFor(time.Now(), cid0)
	switch {
	case over:
		answer, err := k.answerEnded(time.Now(), nil, pkt, &gone)
		if err != nil {
			return err
		}
		return r.answer(answer)
	case p == nil:
		return secure.RefusedCID
	}
	if !k.charge(time.Now(), cidKey(cid0)) {
		return dropProcess
	}
	gate, asked := k.gate.Stream(), time.Now()
	challenge, err := gate.Challenge(nil, asked, pkt, &p.base)
	if err != nil {
		return err
	}
	if err := k.chargeHello(asked, cid0); err != nil {
		return err
	}
	r.tcp.slots.await(r.slot, cid0)
	if err := r.answer(challenge); err != nil {
		return err
	}
	if pkt, err = r.records.Next(handshakeRecord); err != nil {
		if why := r.tcp.slots.leave(r.slot); why == "" || why == dropCID { // else it went for others
			k.cids.Charge(k.nanos(time.Now()), cidKey(cid0), stalledHellos)
		}
		return err
	}
	rtt := max(time.Since(asked), time.Microsecond)
	accepted, err := gate.Confirm(pkt)
	if err != nil {
		return err
	}
	if err := k.chargeArrival(time.Now(), p, r.peer); err != nil {
		return err
	}
	if evicted := r.tcp.slots.leave(r.slot); evicted != "" {
		return evicted // its last packet came when the socket was closed already
	}
	return r.admit(ctx, arrival{place: p, accepted: accepted, peer: r.peer, shard: k.shardOf(cid0), stream: r.stream, rtt: rtt})
}

// answer writes one handshake packet.
func (r *tcpReader) answer(pkt []byte) error {
	rec := append(make([]byte, record.PrefixBytes), pkt...)
	record.PutLength(rec)
	_ = r.stream.socket.SetWriteDeadline(time.Now().Add(r.tcp.cfg.HandshakeTimeout))
	defer func() { _ = r.stream.socket.SetWriteDeadline(time.Time{}) }()
	_, err := r.stream.socket.Write(rec)
	return err
}

// admit asks the old node of a moved user, has an older connection finish what it
// received, and makes this one the user's.
func (r *tcpReader) admit(ctx context.Context, a arrival) error {
	k := r.tcp.core
	old, err := k.places.claim(a.place, 0)
	if err != nil {
		return err
	}
	if old != nil {
		if !k.releases.begin(old.node) {
			k.places.unclaim(a.place)
			return dropBusy
		}
		defer k.releases.end(old.node)
		if err := k.places.askRelease(ctx, a.place, old); err != nil {
			return dropGone
		}
		a.claimed = true
	}
	_ = r.stream.socket.SetReadDeadline(time.Time{})
	if ctx.Err() != nil {
		return dropGone // and hurry may have set its deadline before we took it away
	}
	r.conn, err = k.admitAfter(ctx, a, &r.rx)
	return err
}

// serve handles records until the connection is over.
func (r *tcpReader) serve() {
	k, c := r.tcp.core, r.conn
	for !c.Closed() {
		// What the last burst left is not announced by the socket again.
		if pkt, err := r.records.Buffered(k.cfg.MaxRecord - record.PrefixBytes); pkt == nil && err == nil {
			if err := r.records.Wait(); err != nil {
				return
			}
		}
		b := k.borrow()
		b.reader = true
		pause, err := r.burst(b)
		b.Flush()
		b.reader = false
		k.giveBack(b)
		if err != nil {
			c.Close(wire.CloseProtocol, err.Error())
			return
		}
		if pause > 0 {
			<-time.After(min(pause, time.Second)) // so TCP slows the client down
		}
		c.awaitThaw()
	}
}

// burst handles the records that are there. It stops early when the client sends
// too much, and returns how long to wait then.
func (r *tcpReader) burst(b *Batch) (pause time.Duration, err error) {
	k, c := r.tcp.core, r.conn
	now := time.Now()
	packets, size := 0, 0
	defer func() {
		k.m.packetsIn.Add(float64(packets))
		k.m.bytesIn.Add(float64(size))
	}()
	for !c.Closed() {
		pkt, err := r.records.Buffered(k.cfg.MaxRecord - record.PrefixBytes)
		if pkt == nil || err != nil {
			return 0, err
		}
		dropped := c.receive(now, pkt, r.peer, b, &r.rx)
		if dropped == dropFrozen {
			return 0, nil // it is read again after the thaw
		}
		r.records.Consume()
		packets++
		size += len(pkt) + record.PrefixBytes
		if dropped != nil {
			k.m.drop(dropped)
		}
		if pause := c.pause(now); pause > 0 {
			return pause, nil
		}
	}
	return 0, nil
}

// pause is how long the reader waits before the next record. On TCP nobody else changes
// what it reads here without a lock.
func (c *Conn) pause(now time.Time) time.Duration {
	k, at := c.core, c.core.nanos(now)
	return max(c.flow.packets.Wait(at, k.packets, 1), c.flow.bytes.Wait(at, k.bytes, 1))
}

// linger waits for the client to end its side after our CLOSE.
func (r *tcpReader) linger() {
	_, _ = io.CopyN(io.Discard, r.stream.socket, lingerBytes)
}
