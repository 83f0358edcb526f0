package mesh

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/Diarkis/diarkis/internal/id"
)

const (
	helloTimeout = 3 * time.Second
	// dialBackoffMin doubles with every failure up to Config.RetryInterval; until it
	// is over calls fail at once with the last error.
	dialBackoffMin = 50 * time.Millisecond
)

// dial is an attempt to connect that any number of callers wait for.
type dial struct {
	done chan struct{}
	err  error // set before done is closed
}

// peer is what this node knows of one mesh address.
type peer struct {
	m       *Mesh
	node    id.Node
	touched atomic.Int64                  // tick of the last look-up
	conn    atomic.Pointer[conn]          // the one to use, nil when none
	last    [classes]atomic.Pointer[conn] // the one that carried the last one-way message
	order   [classes]sync.Mutex           // held while one-way messages are received

	mu        sync.Mutex // guards the fields below
	dialing   *dial
	failures  int
	retryAt   time.Time
	lastErr   error
	lost      uint64 // tag of the last connection that ended
	datagrams datagrams
}

// connect returns the connection to the peer, dialing when there is none.
func (p *peer) connect(ctx context.Context, deadline time.Time) (*conn, error) {
	if c := p.conn.Load(); c != nil {
		return c, nil
	}
	ctx, cancel := withDeadline(ctx, deadline)
	defer cancel()
	for {
		p.mu.Lock()
		if c := p.conn.Load(); c != nil {
			p.mu.Unlock()
			return c, nil
		}
		d := p.dialing
		if d == nil {
			if now := p.m.cfg.now(); now.Before(p.retryAt) {
				err := p.lastErr
				p.mu.Unlock()
				return nil, err
			}
			d = &dial{done: make(chan struct{})}
			p.dialing = d
			if !p.m.spawn(func() { p.dial(d) }) {
				p.dialing = nil
				p.mu.Unlock()
				return nil, ErrDraining
			}
		}
		p.mu.Unlock()
		select {
		case <-d.done:
			if d.err != nil {
				return nil, d.err
			}
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, fmt.Errorf("%w: %w while connecting", ErrUnreachable, ErrTimeout)
			}
			return nil, context.Cause(ctx)
		}
	}
}

// settleDialLocked ends a dial attempt. Only the first call for it counts.
func (p *peer) settleDialLocked(d *dial, err error) {
	if d == nil || p.dialing != d {
		return
	}
	p.dialing = nil
	if err == nil {
		p.failures, p.retryAt, p.lastErr = 0, time.Time{}, nil
	} else {
		p.failures++
		p.retryAt = p.m.cfg.now().Add(min(p.m.cfg.RetryInterval, dialBackoffMin<<min(p.failures-1, 10)))
		p.lastErr = err
		d.err = err
	}
	close(d.done)
}

// dial makes one attempt.
func (p *peer) dial(d *dial) {
	c, err := p.open()
	if err == nil {
		p.m.metrics.dials.WithLabelValues("ok").Inc()
		p.install(c, 0)
		c.run()
		return
	}
	p.m.metrics.dials.WithLabelValues(dialResult(err)).Inc()
	p.m.reportRefusal(string(p.node), "outgoing", err)
	p.m.reportOwnAddress(p.node, err)
	p.mu.Lock()
	p.settleDialLocked(d, fmt.Errorf("%w: %w", ErrUnreachable, err))
	p.mu.Unlock()
	if !refused(err) && !p.m.stopping.Load() {
		p.m.cfg.LinkFailed(p.node)
	}
}

// refused tells whether a dial was answered, only not with yes.
func refused(err error) bool {
	_, closed := errors.AsType[*quic.ApplicationError](err)
	return closed || isHandshakeRefusal(err) || errors.Is(err, errBusy)
}

func dialResult(err error) string {
	if isHandshakeRefusal(err) {
		return "refused"
	}
	if e, ok := errors.AsType[*quic.ApplicationError](err); ok && e.ErrorCode == closeBusy || errors.Is(err, errBusy) {
		return "busy"
	}
	return "unreachable"
}

// open dials and exchanges hellos.
func (p *peer) open() (*conn, error) {
	addr, err := p.node.AddrPort()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(p.m.ctx, helloTimeout)
	defer cancel()
	qc, err := p.m.transport.Dial(ctx, net.UDPAddrFromAddrPort(addr), p.m.clientTLS, p.m.quicConfig)
	if err != nil {
		return nil, err
	}
	c, err := p.greet(ctx, qc)
	if err != nil {
		if cause := context.Cause(qc.Context()); cause != nil {
			err = cause // why the connection ended tells more than why the stream did
		}
		_ = qc.CloseWithError(closeRefused, err.Error())
		return nil, err
	}
	return c, nil
}

func (p *peer) greet(ctx context.Context, qc *quic.Conn) (*conn, error) {
	stream, err := qc.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails
	p.mu.Lock()
	mine := p.m.hello(binary.BigEndian.Uint64(random[:])|1, p.lost)
	p.mu.Unlock()
	if err := writeHello(stream, mine); err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(stream, InlineMax)
	theirs, err := readHello(ctx, stream, in)
	if err != nil {
		return nil, err
	}
	remote, err := p.m.checkHello(qc, theirs)
	if err != nil {
		return nil, err
	}
	if theirs.node != p.node {
		if err := p.m.confirm(ctx, remote); err != nil {
			return nil, p.m.refuseAddress(p.node, remote, err)
		}
	}
	c := newConn(p.m, p, qc, stream, in, remote)
	c.tag, c.dialed = mine.tag, true
	return c, nil
}

func writeHello(stream *quic.Stream, h hello) error {
	payload := h.appendTo(nil)
	b := header{size: uint32(len(payload)), kind: kindHello}.appendTo(nil)
	_, err := stream.Write(append(b, payload...))
	return err
}

func readHello(ctx context.Context, stream *quic.Stream, in *bufio.Reader) (hello, error) {
	if deadline, ok := ctx.Deadline(); ok {
		if err := stream.SetReadDeadline(deadline); err != nil {
			return hello{}, err
		}
	}
	stop := context.AfterFunc(ctx, func() { stream.CancelRead(streamGaveUp) })
	h, payload, err := readFrame(in, helloMax)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return hello{}, fmt.Errorf("read hello: %w", err)
	}
	if h.kind != kindHello {
		return hello{}, fmt.Errorf("%w: kind %d instead of hello", errFrame, h.kind)
	}
	theirs, err := parseHello(payload)
	if err != nil {
		return hello{}, err
	}
	return theirs, stream.SetReadDeadline(time.Time{})
}

// install makes c the connection to use, unless both sides dialed at the same
// time and the other one counts: that is the one the lower address dialed, and
// both sides see it alike. theirLost is the tag of the connection that the peer says it lost.
func (p *peer) install(c *conn, theirLost uint64) {
	p.mu.Lock()
	old := p.conn.Load()
	keepOld := false
	restarted := old != nil && old.remote.Incarnation != c.remote.Incarnation
	if old != nil && !restarted && old.tag != theirLost && old.dialed != c.dialed {
		keepOld = old.dialer() < c.dialer()
	}
	if !keepOld {
		p.conn.Store(c)
	}
	p.settleDialLocked(p.dialing, nil)
	p.mu.Unlock()
	switch {
	case keepOld:
		c.retire()
	case restarted:
		p.m.log.Debug().Stringer("peer", p.node).Msg("mesh peer restarted")
		old.cancel(errRestarted)
	case old != nil:
		old.retire()
	}
	c.m.metrics.established.Inc()
}

// forget stops using c.
func (p *peer) forget(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn.CompareAndSwap(c, nil) {
		p.lost = c.tag
	}
}
