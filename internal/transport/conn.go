package transport

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Diarkis/diarkis/internal/path"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport/wheel"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Conn is the link to one client. Its exported methods are safe for concurrent
// use and never call the [Handler].
type Conn struct {
	// Set by newConn, then constant.
	core     *core
	shard    *shard
	place    *Place
	stream   *stream // nil on UDP
	scid     wire.CID
	draining bool // what Accept said

	over  atomic.Bool  // written under mu; set once nothing is received or sent any more
	ended atomic.Bool  // written under mu; over, and nothing will go on from here
	held  atomic.Int32 // written under mu; what is kept for the client, in steps

	mu      sync.Mutex // guards the fields below
	sealer  *secure.Sealer
	opener  *secure.Opener
	machine *reliable.Machine // nil once over
	path    path.Path         // where the client is; on TCP it stays there
	ending  *ending           // nil while open
	moving  *moving           // nil but between Freeze and Thaw
	accept  *sentAccept       // nil once it is too old to be repeated
	batch   *Batch            // the batch that has us on its list, if any
	idle    chan struct{}     // closed when delivering becomes nil; made by who waits
	thawed  chan struct{}     // closed when the reader may go on; made by the reader
	flow    flow
	armed   int64 // when the wheel has us, 0: it has not
	active  int64 // when a message last came or went
	sampled int64 // when the round-trip time was last observed
	counted counted
	doomed  wire.CloseCode // when the keeper has to close us; see condemnLocked
	// delivering is the batch of the reader that may be calling the Handler for us. Only
	// that reader clears it: we are in the batches of others too, who send to us.
	delivering *Batch
	yielding   int // how many newer connections of the place wait for the reader
	condemned  bool
	frozen     bool // for a move
	silent     bool // what was sent went unanswered; only the keeper changes it
	silentTold bool // as the Handler knows it; guarded by Places.mu

	links wheel.Links[Conn] // guarded by the wheel
}

// Timer is for the wheel.
func (c *Conn) Timer() *wheel.Links[Conn] { return &c.links }

// ending is what a closed connection still answers.
type ending struct {
	packet []byte // the sealed CLOSE
	until  int64
	next   int64 // not again before
}

const (
	closeFor = 3 * time.Second
	closeGap = 100 * time.Millisecond
)

// sentAccept is the Accept a repeated Confirm gets again.
type sentAccept struct {
	packet []byte
	until  int64
}

const acceptFor = 10 * time.Second

// trimAfter is how long no message comes or goes before what keys can be rebuilt
// from is all that is kept of them.
const trimAfter = 2 * time.Second

// Place returns the place this connection belongs to.
func (c *Conn) Place() *Place { return c.place }

// Transport is "UDP" or "TCP".
func (c *Conn) Transport() string { return c.core.protocol }

// Closed says that the connection is over.
func (c *Conn) Closed() bool { return c.over.Load() }

// RTT returns the smoothed round-trip time, 0 while unknown.
func (c *Conn) RTT() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.machine == nil {
		return 0
	}
	smoothed, _ := c.machine.RTT()
	return smoothed
}

// Send queues an encoded [wire.Message]; msg is copied. It is sent when b is
// flushed, or at once when b is nil: never use nil while holding a lock.
//
// It returns [ErrClosed], [ErrFrozen], or the error of the message itself (too
// large). A client too slow for its reliable messages gets closed, by another
// goroutine, and the error is [ErrClosed].
func (c *Conn) Send(b *Batch, msg []byte, rel reliable.Reliability) error {
	return c.send(b, func(now time.Time) error { return c.machine.Send(now, msg, rel) })
}

// SendShared is [Conn.Send] of a message that goes to many connections, which is not
// copied for each.
func (c *Conn) SendShared(b *Batch, msg *reliable.Shared, rel reliable.Reliability) error {
	return c.send(b, func(now time.Time) error { return c.machine.SendShared(now, msg, rel) })
}

// send queues a message by calling queue with the lock held.
func (c *Conn) send(b *Batch, queue func(now time.Time) error) error {
	now := b.now()
	c.mu.Lock()
	err := c.sendLocked(now, queue)
	if err == nil && b != nil {
		b.addLocked(c)
	}
	c.mu.Unlock()
	if err == nil && b == nil {
		c.flush()
	}
	return err
}

func (c *Conn) sendLocked(now time.Time, queue func(now time.Time) error) error {
	switch {
	case c.over.Load() || c.condemned:
		return ErrClosed
	case c.frozen && c.delivering == nil: // what a running Handle sends still goes along
		return ErrFrozen
	}
	err := queue(now)
	if errors.Is(err, reliable.ErrSlow) {
		c.condemnLocked(now, wire.CloseSlow)
		return ErrClosed
	}
	c.active = c.core.nanos(now)
	return err
}

// flush sends what is queued on this connection alone.
func (c *Conn) flush() {
	b := c.core.borrow()
	c.mu.Lock()
	b.addLocked(c)
	c.mu.Unlock()
	c.core.giveBack(b)
}

// condemnLocked has the keeper close the connection, for callers that can't do so
// themselves because of what they hold.
func (c *Conn) condemnLocked(now time.Time, code wire.CloseCode) {
	c.condemned, c.doomed = true, code
	c.armLocked(now)
}

// Close sends CLOSE and ends the connection. The place ends with it, unless the
// code is idle or replaced. It does nothing on a connection that is over.
func (c *Conn) Close(code wire.CloseCode, reason string) {
	if c.hangUp(code, reason) {
		c.core.places.connEnded(c, code, time.Now())
	}
}

// hangUp sends CLOSE and ends the connection but not the place. It returns false
// when it was over before.
func (c *Conn) hangUp(code wire.CloseCode, reason string) bool {
	b := c.core.borrow()
	defer c.core.giveBack(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeLocked(time.Now(), b, wire.Close{Code: code, Reason: reason})
}

// closeLocked ends the connection and puts the CLOSE into b. The state of its
// reliable messages stays for takeState.
func (c *Conn) closeLocked(now time.Time, b *Batch, body wire.Close) bool {
	if c.over.Load() {
		return false
	}
	switch body.Code {
	case wire.CloseNormal, wire.CloseKicked, wire.CloseShutdown:
		if !c.frozen {
			c.lastWordsLocked(now, b)
		}
	}
	c.over.Store(true)
	pkt := body.AppendTo(c.sealer.Begin(c.room(nil)))
	pkt = c.sealer.Finish(now, pkt, c.roomBytes())
	c.ending = &ending{packet: pkt, until: c.core.nanos(now.Add(closeFor)), next: c.core.nanos(now.Add(closeGap))}
	c.settleLocked(body.Code, body.Code.String())
	c.armLocked(now.Add(closeFor))
	if c.stream != nil {
		c.stream.closing = true
	}
	c.sendBuiltLocked(b, pkt)
	return true
}

// What connections that ended without a CLOSE are counted as.
const (
	closedMoved = "moved" // another node has the user
	closedLost  = "lost"  // the stream ended
)

// settleLocked is what every end of a connection has in common. It is counted as why.
func (c *Conn) settleLocked(code wire.CloseCode, why string) {
	if c.machine != nil {
		c.countLocked()
	}
	c.releaseHeldLocked()
	c.accept, c.moving, c.sealer = nil, nil, nil
	if code != wire.CloseIdle && code != wire.CloseReplaced {
		c.machine = nil
		c.ended.Store(true)
	}
	c.core.m.closed.WithLabelValues(why).Inc()
	c.releaseReaderLocked()
}

// gone ends the connection without a CLOSE: its peer sent one, or the link broke. It is
// counted as why.
func (c *Conn) gone(code wire.CloseCode, why string) {
	now := time.Now()
	c.mu.Lock()
	if c.over.Load() {
		c.mu.Unlock()
		return
	}
	c.over.Store(true)
	c.settleLocked(code, why)
	c.mu.Unlock()
	c.shard.remove(c)
	if c.stream != nil {
		c.stream.abort()
	}
	c.core.places.connEnded(c, code, now)
}

// vanish is gone for a place that ended already.
func (c *Conn) vanish() {
	c.mu.Lock()
	if !c.over.Swap(true) {
		c.settleLocked(wire.CloseNormal, closedMoved)
	}
	c.mu.Unlock()
	c.shard.remove(c)
	if c.stream != nil {
		c.stream.abort()
	}
}

// takeState takes the state of the reliable messages out of a connection that is
// over, for the next one. The machine is gone then. Busy says that a reader may still
// be in the Handler with what the state tells as received.
func (c *Conn) takeState() (st *reliable.State, busy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.takeStateLocked(), c.delivering != nil
}

func (c *Conn) takeStateLocked() *reliable.State {
	if c.machine == nil {
		return nil
	}
	st := c.machine.Export()
	c.machine = nil
	return st
}

// offline queues an OFFLINE frame. A frozen client gets it if it goes on here.
func (c *Conn) offline(b *Batch, reason uint8) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over.Load() {
		return
	}
	c.machine.SendOffline(reason)
	b.addLocked(c)
}

// armLocked has the keeper call tick at a time or earlier.
func (c *Conn) armLocked(at time.Time) {
	n := c.core.nanos(at)
	if c.armed != 0 && c.armed <= n {
		return
	}
	c.armed = n
	c.shard.arm(c, at)
}

// rearmLocked follows the machine's next deadline.
func (c *Conn) rearmLocked() {
	if at := c.machine.WakeAt(); !at.IsZero() {
		c.armLocked(at)
	}
	c.rearmPathLocked()
}

// tick is called by the keeper when the connection is due, or was.
func (c *Conn) tick(now time.Time, b *Batch) {
	c.mu.Lock()
	c.armed = 0
	silent := c.silent
	code, tell, over := c.tickLocked(now, b)
	turned := c.silent != silent
	c.mu.Unlock()
	switch {
	case over:
		c.shard.remove(c)
	case tell:
		c.core.places.connEnded(c, code, now)
	case turned:
		c.core.places.silenceTurned(c)
	}
}

// tickLocked returns the code it closed the connection with, if it did, or that a
// closed connection has answered long enough.
func (c *Conn) tickLocked(now time.Time, b *Batch) (code wire.CloseCode, closed, over bool) {
	switch {
	case c.over.Load():
		if c.ending == nil || c.core.nanos(now) >= c.ending.until {
			c.ending = nil
			return 0, false, true
		}
		c.armLocked(now.Add(time.Duration(c.ending.until - c.core.nanos(now))))
		return 0, false, false
	case c.condemned:
		return c.doomed, c.closeLocked(now, b, wire.Close{Code: c.doomed}), false
	case c.frozen:
		c.moveLocked(now, b)
		return 0, false, false
	}
	if woke := c.shard.woke; !woke.IsZero() {
		c.machine.Woke(woke)
	}
	if err := c.machine.Tick(now); err != nil {
		body := closeOf(err)
		return body.Code, c.closeLocked(now, b, body), false
	}
	c.silent = c.machine.Unanswered()
	if c.sealer.WantsPing(now) {
		c.machine.SendPing(now)
	}
	c.roamLocked(now, b)
	b.addNowLocked(c)
	c.observeLocked(now)
	return 0, false, false
}

// trimLocked drops what can be made again when only PINGs come and go, or nothing
// does. While messages do, it has the keeper look later.
func (c *Conn) trimLocked(now time.Time) {
	quiet := c.core.nanos(now) - c.active
	if quiet <= int64(trimAfter) {
		c.armLocked(now.Add(trimAfter - time.Duration(quiet) + time.Millisecond))
		return
	}
	c.sealer.Trim()
	c.opener.Trim(now)
}

// counted is what of a machine's counters the metrics have.
type counted struct{ repeats, proactive, overflow uint64 }

// countLocked adds what the machine counted since the last call to the metrics.
func (c *Conn) countLocked() {
	now := c.machine.Stats()
	if n := now.Retransmitted - c.counted.repeats; n > 0 {
		c.core.m.repeats.Add(float64(n))
	}
	if n := now.Repeated - c.counted.proactive; n > 0 {
		c.core.m.proactive.Add(float64(n))
	}
	if n := now.DroppedUnreliable - c.counted.overflow; n > 0 {
		c.core.m.overflow.Add(float64(n))
	}
	c.counted = counted{repeats: now.Retransmitted, proactive: now.Repeated, overflow: now.DroppedUnreliable}
}

// observeLocked keeps figures; it is cheap enough for every tick.
func (c *Conn) observeLocked(now time.Time) {
	n := c.core.nanos(now)
	if c.accept != nil && n > c.accept.until {
		c.accept = nil
	}
	c.countLocked()
	if n-c.active < 2*int64(rttEvery) && n-c.sampled >= int64(rttEvery) {
		c.sampled = n
		if rtt, _ := c.machine.RTT(); rtt > 0 {
			c.core.m.rtt.Observe(rtt.Seconds())
		}
	}
}
