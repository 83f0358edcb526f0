package client

import (
	"errors"
	"os"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// outcome is why serving a link ended.
type outcome uint8

const (
	goOn      outcome = iota
	stopped           // Close was called
	left              // Reenter was called
	lost              // silence, or the socket broke
	refused           // nothing listens at the node's address any more
	closed            // the server sent CLOSE
	violation         // the server broke the protocol
	moved             // the connection goes on with ending.link, at another node
	resumed           // it goes on with ending.link, which was made beside
	over              // a node said, asked to let the user in, that the stay is over
	gone              // the HTTP role said that the node is gone
)

// ending is an outcome with what belongs to it. The zero value means go on.
type ending struct {
	outcome outcome
	code    CloseCode
	reason  string
	link    *link
}

// serve reads l until something ends it. It runs on the client's goroutine.
func (c *Client) serve(l *link) ending {
	early := l.early
	l.early = nil
	for _, p := range early {
		if e := c.receive(l, p); e.outcome != goOn {
			return e
		}
	}
	refusals := 0
	for {
		if e := c.prepare(l); e.outcome != goOn {
			return e
		}
		if len(l.late) > 0 {
			if e := c.receiveLate(l); e.outcome != goOn {
				return e
			}
			continue
		}
		err := l.fill()
		switch {
		case err == nil:
			refusals = 0
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case !l.stream && isRefused(err):
			if refusals++; refusals >= refusedMax && !c.awaitMove() {
				return ending{outcome: refused}
			}
			continue
		case !l.stream && isUnroutable(err):
			c.mu.Lock()
			c.brokenLocked(l)
			c.mu.Unlock()
			if refusals++; refusals >= refusedMax && !c.awaitMove() {
				return ending{outcome: lost, reason: err.Error()}
			}
			continue
		default:
			if !c.awaitMove() {
				return ending{outcome: lost}
			}
			continue
		}
		if e := c.receiveAll(l); e.outcome != goOn {
			return e
		}
	}
}

// receiveLate takes in what came to the former socket.
func (c *Client) receiveLate(l *link) ending {
	for _, p := range l.late {
		if e := c.receive(l, p); e.outcome != goOn {
			return e
		}
	}
	return ending{}
}

// receiveAll takes in every packet that was read.
func (c *Client) receiveAll(l *link) ending {
	for {
		p, err := l.next()
		switch {
		case err != nil:
			return ending{outcome: violation, code: CloseProtocol, reason: err.Error()}
		case p == nil:
			return ending{}
		}
		if e := c.receive(l, p); e.outcome != goOn {
			return e
		}
	}
}

// prepare does what is due, sends, and sets the deadline of the next read.
func (c *Client) prepare(l *link) ending {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if l.judge.wakeUp(now, l.armed, l.poked) {
		c.machine.Woke(now)
	}
	c.dispatching, l.poked, l.armed = false, false, time.Time{}
	l.late, l.roam.late = l.roam.late, nil
	switch e := c.attemptedLocked(); {
	case e.outcome == resumed:
		return e // also to hang up there: the old connection is none any more
	case c.stopping:
		return ending{outcome: stopped}
	case c.reenter:
		return ending{outcome: left}
	case e.outcome != goOn:
		return e
	}
	if m := c.move; m != nil {
		if !m.over {
			_ = l.conn.SetReadDeadline(time.Time{}) // the end of the move pokes
			return ending{}
		}
		switch {
		case m.link != nil:
			return ending{outcome: moved, link: m.link}
		case m.ended != nil:
			return ending{outcome: over, code: m.ended.Code, reason: m.ended.Reason}
		}
		c.endMoveLocked(now)
	}
	if l.roam.fresh != nil {
		c.switchLocked(l, now)
	}
	if l.sealer.WantsPing(now) {
		c.machine.SendPing(now)
	}
	if err := c.machine.Tick(now); err != nil {
		if _, ok := errors.AsType[*reliable.Violation](err); ok {
			return violationOf(err)
		}
		return ending{outcome: lost, reason: err.Error()}
	}
	c.judgeLocked(l, now)
	c.flushLocked(l, now)
	if c.closing && !c.waitingLocked() {
		c.drainedLocked()
		return ending{outcome: stopped}
	}
	if e := c.roamLocked(l, now); e.outcome != goOn {
		return e
	}
	c.armLocked(l, now)
	return ending{}
}

// receive takes in one packet and calls the callbacks for what it brought.
func (c *Client) receive(l *link, pkt []byte) ending {
	now := time.Now()
	c.mu.Lock()
	pn, plain, err := l.opener.Open(now, pkt)
	if err != nil {
		c.mu.Unlock()
		if l.stream || errors.Is(err, secure.ErrForged) {
			return ending{outcome: violation, code: CloseProtocol, reason: "packet does not open"}
		}
		return ending{} // anybody can send datagrams
	}
	if e := c.openedLocked(); e.outcome != goOn {
		c.mu.Unlock()
		return e
	}
	c.stats.PacketsReceived++
	c.stats.BytesReceived += uint64(len(pkt))
	if c.move != nil {
		if e, again := c.receiveMovingLocked(l, now, pn, plain); !again {
			c.mu.Unlock()
			return e
		}
	}
	err = c.machine.Receive(now, pn, plain, &c.recv)
	if largest, ok := c.machine.LargestAcked(); ok {
		l.sealer.Acked(largest)
	}
	if c.recv.PathChallenge.Has {
		l.roam.foundHere(now)
	}
	switch {
	case c.recv.Move != nil:
		l.moved = max(l.moved, pn)
	case pn > l.moved && err == nil:
		c.elsewhere = "" // a node that gives a user away says nothing but MOVE: this one took ours back
	}
	l.judge.opened(now, len(c.recv.Messages) > 0)
	c.dispatching = true // until prepare: what callbacks send leaves together
	c.mu.Unlock()
	if err != nil {
		return violationOf(err)
	}
	return c.dispatch(l, &c.recv)
}

func violationOf(err error) ending {
	e := ending{outcome: violation, code: CloseProtocol, reason: "protocol error"}
	if v, ok := errors.AsType[*reliable.Violation](err); ok {
		e.code, e.reason = v.Code, v.Reason
	}
	return e
}

// receiveMovingLocked looks for the newest MOVE and for CLOSE. What else comes by UDP while
// the user is between two nodes stays unacknowledged, so that whoever owns the user
// sends it again. TCP keeps order: what comes after MOVE there says that the server has
// given the move up, and again that the packet is to be taken in after all.
func (c *Client) receiveMovingLocked(l *link, now time.Time, pn uint64, plain []byte) (_ ending, again bool) {
	var f wire.Frame
	for len(plain) > 0 {
		n, err := f.Parse(plain)
		if err != nil {
			return ending{outcome: violation, code: CloseProtocol, reason: err.Error()}, false
		}
		plain = plain[n:]
		switch f.Type {
		case wire.FrameMove:
			l.moved = max(l.moved, pn)
			c.beginMoveLocked(l, f.Move)
			return ending{}, false
		case wire.FrameClose:
			return ending{outcome: closed, code: f.Close.Code, reason: f.Close.Reason}, false
		}
	}
	if !l.stream || c.move.link != nil {
		return ending{}, false
	}
	c.endMoveLocked(now)
	return ending{}, true
}

// endMoveLocked goes on where the client was before the MOVE.
func (c *Client) endMoveLocked(now time.Time) {
	c.elsewhere = c.move.addr
	c.abandonMoveLocked()
	c.machine.Thaw(now)
}

// dispatch hands out what a packet brought, messages first.
func (c *Client) dispatch(l *link, r *reliable.Received) ending {
	for i := range r.Messages {
		c.deliver(&r.Messages[i])
	}
	if r.Offline != 0 && !c.quiet.Load() {
		if c.opts.OnOffline != nil {
			c.calling.Add(1)
			c.opts.OnOffline(r.Offline)
			c.calling.Add(-1)
		}
		if c.opts.LeaveOffline {
			_ = c.Reenter() // where there is no other place the client stays
		}
	}
	if r.Close != nil {
		return ending{outcome: closed, code: r.Close.Code, reason: r.Close.Reason}
	}
	if r.Move != nil {
		c.mu.Lock()
		c.beginMoveLocked(l, *r.Move)
		c.mu.Unlock()
	}
	return ending{}
}

// deliver calls the callback for a message, unless there are none any more.
func (c *Client) deliver(d *reliable.Delivery) {
	if c.quiet.Load() {
		return
	}
	c.calling.Add(1)
	m := &d.Message
	switch m.Kind {
	case wire.Push:
		if c.opts.OnPush != nil {
			c.opts.OnPush(Push{Ver: m.Ver, Cmd: m.Cmd, Payload: m.Payload, Rel: d.Rel})
		}
	case wire.Response:
		r := Response{Ver: m.Ver, Cmd: m.Cmd, Status: m.Status, Payload: m.Payload}
		if m.HasID {
			c.answer(m.ID, r)
		} else if c.opts.OnResponse != nil {
			c.opts.OnResponse(r)
		}
	}
	c.calling.Add(-1)
}

// flushLocked sends what the machine has to say as far as the pace allows. Over TCP
// it lets go of c.mu while it writes.
func (c *Client) flushLocked(l *link, now time.Time) {
	switch {
	case c.link != l || c.move != nil || c.dispatching:
	case l.stream:
		c.flushStreamLocked(l, now)
	default:
		c.flushDatagramsLocked(l, now)
	}
}

// appendPacketLocked appends the next packet to dst, or nothing.
func (c *Client) appendPacketLocked(l *link, now time.Time, dst []byte) []byte {
	if l.pace.ready(now).After(now) {
		return dst
	}
	pkt, start := l.begin(dst)
	empty := len(pkt)
	pkt = c.machine.Append(now, l.sealer.NextPN(), pkt, l.frames)
	if len(pkt) == empty {
		return pkt[:len(dst)]
	}
	pkt = l.finish(now, pkt, start)
	l.pace.spend(len(pkt) - len(dst))
	c.stats.PacketsSent++
	c.stats.BytesSent += uint64(len(pkt) - len(dst))
	return pkt
}

func (c *Client) flushDatagramsLocked(l *link, now time.Time) {
	for {
		l.out = c.appendPacketLocked(l, now, l.out[:0])
		if len(l.out) == 0 {
			return
		}
		// What else can go wrong here shows as silence, and that has its own remedy.
		_, err := l.conn.Write(l.out)
		if isRefused(err) {
			_, err = l.conn.Write(l.out) // the error was about an earlier datagram
		}
		if isUnroutable(err) {
			c.brokenLocked(l)
		}
	}
}

// flushStreamLocked writes outside the lock: a socket that doesn't take more must not
// keep the reader from what would make room.
func (c *Client) flushStreamLocked(l *link, now time.Time) {
	c.buildStreamLocked(l, now)
	if l.writing {
		return // that goroutine goes on with what was built
	}
	l.writing = true
	for len(l.out) > 0 {
		b := l.out
		l.out, l.spare = l.spare[:0], nil
		c.mu.Unlock()
		_ = l.conn.SetWriteDeadline(time.Now().Add(writeDeadline))
		_, err := l.conn.Write(b)
		c.mu.Lock()
		if l.spare = b[:0]; cap(b) > 2*writeAhead {
			l.spare = nil
		}
		if err != nil {
			_ = l.conn.Close() // the reader finds out
			break
		}
		if c.link != l || c.move != nil || c.stopping {
			break
		}
		c.buildStreamLocked(l, time.Now())
	}
	l.writing = false
}

func (c *Client) buildStreamLocked(l *link, now time.Time) {
	for len(l.out) < writeAhead {
		n := len(l.out)
		if l.out = c.appendPacketLocked(l, now, l.out); len(l.out) == n {
			return
		}
	}
}

// armLocked makes the reader wake up when the machine wants to be called.
func (c *Client) armLocked(l *link, now time.Time) {
	if c.link != l || c.move != nil || l.poked {
		return
	}
	wake := c.machine.WakeAt()
	if wake.IsZero() {
		if l.armed.IsZero() {
			_ = l.conn.SetReadDeadline(time.Time{})
		}
		return
	}
	if ready := l.pace.ready(now); wake.Before(ready) {
		wake = ready
	}
	if at := l.roam.wake; !at.IsZero() && at.Before(wake) {
		wake = at
	}
	if at, _ := c.verdictLocked(l, now); !at.IsZero() && at.Before(wake) {
		wake = at
	}
	if !wake.After(now) {
		wake = now.Add(time.Millisecond) // it was just asked and had nothing to send
	}
	if l.armed.IsZero() || wake.Before(l.armed) {
		l.armed = wake
		_ = l.conn.SetReadDeadline(wake)
	}
}
