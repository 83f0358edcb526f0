package mesh

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// Why a connection ended, when this side ended it.
var (
	errRetired   = errors.New("connection retired") // both sides were done with it
	errRestarted = errors.New("peer restarted")
	errSilent    = errors.New("peer stopped answering")
	errStopping  = errors.New("mesh is stopping")
	errExpelled  = fmt.Errorf("%w any more", errForeign)
)

// Silence is measured in ticks of the janitor, so that a process that was
// paused or starved does not take its own absence for its peer's.
const (
	silencePing = 2  // ticks without an answer, then a ping
	silenceMax  = 8  // ticks without an answer, then the connection is given up
	retiredMax  = 40 // ticks a retired connection may take to finish
	expelledMax = 8  // ticks one may whose peer is of this cluster no more
)

// class separates our one-way messages from the application's, so that a slow
// handler there does not hold ours up.
type class uint8

const (
	classBuiltin class = 0
	classApp     class = 1
	classes            = 2
)

func classOf(cmd uint16) class {
	if cmd > CommandBuiltinMax {
		return classApp
	}
	return classBuiltin
}

type result struct {
	payload []byte
	err     error
}

// call waits for one response. deliver sends to ch exactly once per use.
type call struct {
	ch    chan result
	timer *time.Timer // stopped between uses
}

var calls = sync.Pool{New: func() any {
	w := &call{make(chan result, 1), time.NewTimer(time.Hour)}
	w.timer.Stop()
	return w
}}

// conn is an authenticated connection to one peer, after the hellos.
type conn struct {
	// Set by newConn, then constant.
	m      *Mesh
	p      *peer
	qc     *quic.Conn
	remote Peer
	chain  []*x509.Certificate // what remote proved itself by
	tag    uint64              // chosen by the dialer
	dialed bool                // by this side
	in     *bufio.Reader
	out    *writer
	ctx    context.Context // ends with the connection; its cause says why
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // run waits for it; nothing is added once ended is set

	used  atomic.Int64 // tick of the last message in either direction
	asked atomic.Int64 // tick since when an answer is due, 0 when none is
	gone  atomic.Int64 // tick when the peer was expelled, 0 before

	mu       sync.Mutex // guards the fields below
	calls    map[uint64]*call
	lastID   uint64
	inbound  map[uint64]*request
	oneWay   [classes]oneWay
	retired  int64 // tick when this side stopped starting anything, 0 before
	sentDone bool
	peerDone bool
	ended    bool
}

func newConn(m *Mesh, p *peer, qc *quic.Conn, stream *quic.Stream, in *bufio.Reader, remote Peer) *conn {
	c := &conn{
		m: m, p: p, qc: qc, remote: remote, in: in, chain: qc.ConnectionState().TLS.PeerCertificates,
		calls: map[uint64]*call{}, inbound: map[uint64]*request{},
	}
	c.ctx, c.cancel = context.WithCancelCause(qc.Context())
	c.out = newWriter(stream, c.cancel)
	c.used.Store(m.tick.Load())
	return c
}

// run serves the connection until it ends, and cleans up after it.
func (c *conn) run() {
	c.m.track(c)
	defer c.m.untrack(c)
	c.wg.Go(func() { c.out.run(c.ctx) })
	c.wg.Go(func() { c.cancel(c.read()) })
	c.wg.Go(c.acceptStreams)
	c.wg.Go(c.receiveDatagrams)
	<-c.ctx.Done()
	cause := context.Cause(c.ctx)
	code, text := closeNormal, ""
	if errors.Is(cause, errFrame) {
		code, text = closeProtocol, cause.Error()
		c.m.log.Warn().Stringer("peer", c.remote.Node).Err(cause).Msg("mesh peer broke the protocol")
	} else if errors.Is(cause, errForeign) {
		code, text = closeRefused, cause.Error()
	}
	_ = c.qc.CloseWithError(code, text)
	c.end(cause)
	if diedOfSilence(cause) && !c.m.stopping.Load() {
		c.m.cfg.LinkFailed(c.remote.Node)
	}
	c.wg.Wait()
}

// diedOfSilence tells whether a connection ended because nothing came back. A
// stateless reset is not that: it comes from the peer's next process, which is well.
func diedOfSilence(cause error) bool {
	_, idle := errors.AsType[*quic.IdleTimeoutError](cause)
	return idle || errors.Is(cause, errSilent)
}

// end fails everything that waits for the connection.
func (c *conn) end(cause error) {
	c.p.forget(c)
	for i := range c.p.last {
		c.p.last[i].CompareAndSwap(c, nil)
	}
	err := fmt.Errorf("%w: %w", ErrUnreachable, cause)
	c.mu.Lock()
	c.ended = true
	waiting := c.calls
	c.calls = nil
	var lost [classes]uint64
	for i := range c.oneWay {
		lost[i] = c.oneWay[i].endLocked()
	}
	c.mu.Unlock()
	for _, w := range waiting {
		w.ch <- result{err: err}
	}
	for i, n := range lost {
		if n == 0 {
			continue
		}
		c.m.metrics.oneWayLost.Add(float64(n))
		ev := c.m.log.Debug() // ours are repeated until they are answered
		if class(i) == classApp {
			ev = c.m.log.Warn()
		}
		ev.Stringer("peer", c.remote.Node).Uint64("messages", n).AnErr("cause", cause).Msg("mesh link ended with unconfirmed one-way messages")
	}
}

func (c *conn) closing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended || c.retired != 0
}

// heard notes a sign of life.
func (c *conn) heard() {
	if c.asked.Load() != 0 {
		c.asked.Store(0)
	}
}

// ask notes that the peer owes a sign of life.
func (c *conn) ask() {
	if c.asked.Load() == 0 {
		c.asked.CompareAndSwap(0, c.m.tick.Load())
	}
}

func (c *conn) use() {
	if t := c.m.tick.Load(); c.used.Load() != t {
		c.used.Store(t)
	}
}

// read handles the frames of the main stream. It never waits for a handler.
func (c *conn) read() error {
	for {
		h, payload, err := readFrame(c.in, InlineMax)
		if err != nil {
			return err
		}
		c.heard()
		if err := c.handle(h, payload); err != nil {
			return err
		}
	}
}

// readFrame reads one frame whose payload is at most max bytes.
func readFrame(r *bufio.Reader, max int) (header, []byte, error) {
	b, err := r.Peek(headerLen)
	if err != nil {
		return header{}, nil, err
	}
	h, err := parseHeader(b, max)
	if err != nil {
		return header{}, nil, err
	}
	_, _ = r.Discard(headerLen) // can't fail after Peek
	if h.size == 0 {
		return h, nil, nil
	}
	payload := make([]byte, h.size)
	_, err = io.ReadFull(r, payload)
	return h, payload, err
}

func (c *conn) handle(h header, payload []byte) error {
	switch h.kind {
	case kindRequest:
		c.serve(h, payload)
	case kindResponse:
		c.deliver(h, payload)
	case kindCancel:
		c.cancelInbound(h.id)
	case kindAck:
		return c.acked(h)
	case kindPing:
		return c.out.tryWrite(header{kind: kindPong}, nil)
	case kindPong:
	case kindKeep:
		c.use()
	case kindGoAway:
		c.retire()
	case kindDone:
		c.mu.Lock()
		c.peerDone = true
		c.mu.Unlock()
		c.settle()
	default:
		return fmt.Errorf("%w: kind %d on the main stream", errFrame, h.kind)
	}
	return nil
}

// begin registers a call. It returns nil when the connection starts nothing new.
// A call is urgent when it is the only one.
func (c *conn) begin() (n uint64, w *call, u urgency) {
	w, _ = calls.Get().(*call)
	c.mu.Lock()
	if c.ended || c.retired != 0 {
		c.mu.Unlock()
		calls.Put(w)
		return 0, nil, batched
	}
	c.lastID++
	n = c.lastID
	c.calls[n] = w
	u = urgency(len(c.calls) == 1)
	c.mu.Unlock()
	c.use()
	c.ask()
	return n, w, u
}

// take removes a call. Whoever gets it from take answers it, or lets it go.
func (c *conn) take(n uint64) *call {
	c.mu.Lock()
	w := c.calls[n]
	delete(c.calls, n)
	settle := c.retired != 0
	c.mu.Unlock()
	if settle {
		c.settle()
	}
	return w
}

func (c *conn) deliver(h header, payload []byte) {
	w := c.take(h.id)
	if w == nil {
		return // the caller gave up
	}
	if h.arg != uint32(CodeOK) {
		w.ch <- result{err: &RemoteError{Code: Code(h.arg), Text: string(payload)}}
		return
	}
	w.ch <- result{payload: payload}
}

// request sends one request and waits for its answer. sent tells whether the
// peer may have seen it.
func (c *conn) request(ctx context.Context, deadline time.Time, cmd uint16, payload []byte) (answer []byte, sent bool, err error) {
	n, w, u := c.begin()
	if w == nil {
		return nil, false, errRetired
	}
	now := c.m.cfg.now()
	h := header{size: uint32(len(payload)), kind: kindRequest, cmd: cmd, id: n, arg: timeLeft(now, deadline)}
	if err := c.put(ctx, deadline, u, h, payload); err != nil {
		if c.take(n) == nil {
			<-w.ch
		}
		calls.Put(w)
		return nil, true, c.explain(ctx, deadline, err)
	}
	w.timer.Reset(deadline.Sub(now))
	var r result
	select {
	case r = <-w.ch:
	case <-w.timer.C:
		r = c.abandon(n, w, ErrTimeout)
	case <-ctx.Done():
		r = c.abandon(n, w, c.explain(ctx, deadline, ctx.Err()))
	}
	w.timer.Stop()
	calls.Put(w)
	return r.payload, true, r.err
}

// abandon gives a call up and tells the peer, unless the answer came at the same moment.
func (c *conn) abandon(n uint64, w *call, why error) result {
	if c.take(n) == nil {
		return <-w.ch
	}
	_ = c.out.tryWrite(header{kind: kindCancel, id: n}, nil)
	return result{err: why}
}

// explain turns what stopped a call into one of the package's errors.
func (c *conn) explain(ctx context.Context, deadline time.Time, err error) error {
	switch {
	case c.ctx.Err() != nil:
		return fmt.Errorf("%w: %w", ErrUnreachable, context.Cause(c.ctx))
	case ctx.Err() != nil:
		return contextError(ctx)
	case errors.Is(err, context.DeadlineExceeded) || !c.m.cfg.now().Before(deadline):
		return ErrTimeout
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// put sends a frame on the main stream, or on one of its own when it is large.
// A zero deadline is none.
func (c *conn) put(ctx context.Context, deadline time.Time, u urgency, h header, payload []byte) error {
	if len(payload) <= InlineMax {
		return c.out.write(ctx, deadline, u, h, payload)
	}
	ctx, cancel := withDeadline(ctx, deadline)
	defer cancel()
	return c.putBody(ctx, h, payload)
}
