package transport

import (
	"errors"
	"net/netip"
	"time"

	"github.com/Diarkis/diarkis/internal/path"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// receive takes one data packet and calls the Handler with what is in it. Only the
// reader calls it, with its own b and rx. It returns why the packet was dropped.
func (c *Conn) receive(now time.Time, pkt []byte, src netip.AddrPort, b *Batch, rx *reliable.Received) (dropped error) {
	c.mu.Lock()
	end, dropped := c.openLocked(now, pkt, src, b, rx)
	c.mu.Unlock()
	if end != nil {
		c.core.places.connEnded(c, end.Code, now)
		return dropped
	}
	if dropped != nil {
		return dropped
	}
	c.deliver(b, rx)
	return nil
}

// openLocked opens a packet and gives it to the machine. It returns the CLOSE
// with which the packet made us end the connection.
func (c *Conn) openLocked(now time.Time, pkt []byte, src netip.AddrPort, b *Batch, rx *reliable.Received) (end *wire.Close, dropped error) {
	switch {
	case c.over.Load():
		return nil, c.answerLocked(now, pkt, src, b)
	case c.frozen || c.yielding > 0:
		return nil, dropFrozen
	}
	highest := c.opener.Largest()
	pn, frames, err := c.opener.Open(now, pkt)
	if err != nil {
		if c.stream != nil || err == secure.ErrForged {
			return c.failLocked(now, b, wire.Close{Code: wire.CloseProtocol, Reason: "packet does not open"}), err
		}
		return nil, err
	}
	if c.stream != nil { // its reader waits then, instead of dropping
		c.flow.force(c.core.nanos(now), c.core.packets, c.core.bytes, len(pkt))
	} else {
		ok, abuse := c.flow.take(c.core.nanos(now), c.core.packets, c.core.bytes, len(pkt), frames)
		if abuse {
			return c.failLocked(now, b, wire.Close{Code: wire.CloseRate}), dropRate
		}
		if !ok {
			return nil, dropRate
		}
	}
	if err := c.machine.Receive(now, pn, frames, rx); err != nil {
		return c.failLocked(now, b, closeOf(err)), nil
	}
	if c.silent {
		c.armLocked(now) // the keeper tells that it is not any more
	}
	c.noteHeldLocked()
	if acked, ok := c.machine.LargestAcked(); ok {
		c.sealer.Acked(acked)
	}
	if src != c.path.Peer() {
		c.elsewhereLocked(now, src, len(pkt), pn > highest, b, rx)
	}
	c.receivedLocked(now, b, rx)
	return nil, nil
}

// receivedLocked prepares for deliver.
func (c *Conn) receivedLocked(now time.Time, b *Batch, rx *reliable.Received) {
	if len(rx.Messages) > 0 {
		c.delivering = b
		c.active = c.core.nanos(now)
	}
	b.addLocked(c)
}

// failLocked closes the connection for what its peer did.
func (c *Conn) failLocked(now time.Time, b *Batch, body wire.Close) *wire.Close {
	c.closeLocked(now, b, body)
	return &body
}

// closeOf is how the error of a machine is told to the peer.
func closeOf(err error) wire.Close {
	if v, ok := errors.AsType[*reliable.Violation](err); ok {
		return wire.Close{Code: v.Code, Reason: v.Reason}
	}
	switch err {
	case reliable.ErrSlow:
		return wire.Close{Code: wire.CloseSlow, Reason: "the client does not take what is sent to it"}
	case reliable.ErrIdle, reliable.ErrDead:
		return wire.Close{Code: wire.CloseIdle}
	}
	return wire.Close{Code: wire.CloseInternal}
}

// deliver calls the Handler with what was received, without locks. When the connection
// is lost or replaced meanwhile it goes on: the messages count as received.
func (c *Conn) deliver(b *Batch, rx *reliable.Received) {
	for i := range rx.Messages {
		d := &rx.Messages[i]
		if d.Message.Kind != wire.Request {
			continue // a client has nothing to answer or push
		}
		if c.ended.Load() {
			return
		}
		c.core.handler.Handle(b, c, d.Message, d.Rel)
	}
	if rx.Close != nil {
		code := rx.Close.Code
		if code != wire.CloseIdle && code != wire.CloseReplaced {
			// To us the others mean the same. Counted as what the client calls it, it could
			// ring the alarm for faults of ours.
			c.core.log.Debug().Stringer("code", code).Str("reason", rx.Close.Reason).Msg("client closed")
			code = wire.CloseNormal
		}
		c.gone(code, code.String())
	}
}

// answerLocked answers a packet to a closed connection with its CLOSE, when the
// packet opens and is none itself.
func (c *Conn) answerLocked(now time.Time, pkt []byte, src netip.AddrPort, b *Batch) error {
	n := c.core.nanos(now)
	if c.ending == nil || c.stream != nil || n < c.ending.next || n >= c.ending.until {
		return dropClosed
	}
	_, frames, err := c.opener.Open(now, pkt)
	if err != nil {
		return err
	}
	if src != c.path.Peer() && len(c.ending.packet) > path.Amplification*len(pkt) {
		return dropClosed // that address is not known to be the client's
	}
	if !hasClose(frames) {
		c.ending.next = n + int64(closeGap)
		b.raw(c.ending.packet, src)
	}
	return dropClosed
}

// hasClose looks for a CLOSE among frames.
func hasClose(frames []byte) bool {
	var f wire.Frame
	for len(frames) > 0 {
		n, err := f.Parse(frames)
		if err != nil {
			return true // not worth an answer
		}
		if f.Type == wire.FrameClose {
			return true
		}
		frames = frames[n:]
	}
	return false
}
