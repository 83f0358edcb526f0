package transport

import (
	"time"

	"github.com/Diarkis/diarkis/internal/transport/limit"
	"github.com/Diarkis/diarkis/internal/wire"
)

// flow is the rate limit of what a client sends. The buckets are the place's: the next
// connection goes on with them, or who comes back often would have a burst each time.
type flow struct {
	spent
	since        int64 // start of the span below
	got, dropped uint32
	ackable      uint32 // packets we sent that the client has not acknowledged in one of its own
}

// spent is what a client has sent lately.
type spent struct{ packets, bytes limit.Bucket }

const (
	// flowSpan is how long a client may send too much before that closes it.
	flowSpan = 10 * time.Second
	// ackableMax is what a client may save up: about the packets of the largest window
	// of ours, 2 MiB, that can be on their way to it.
	ackableMax = 2048
	// acksMax is the longest packet of acknowledgements alone that is looked for, in
	// bytes: a few ranges. Others count as what they may carry.
	acksMax = 256
)

// sent notes that a packet went to the client.
func (f *flow) sent() {
	if f.ackable < ackableMax {
		f.ackable++
	}
}

// take charges one packet of n bytes, with these frames. Abuse means that more than half
// of a whole span was dropped.
//
// A packet of nothing but acknowledgements is none to the limit of packets as long as
// there were packets to acknowledge: how many those are is up to whoever makes the
// server send, and not to this client.
func (f *flow) take(now int64, packets, bytes limit.Rate, n int, frames []byte) (ok, abuse bool) {
	if now-f.since > int64(flowSpan) {
		abuse = f.dropped*2 > f.got
		f.since, f.got, f.dropped = now, 0, 0
	}
	f.got++
	acks := f.ackable > 0 && onlyAcks(frames)
	ok = (acks || f.packets.Wait(now, packets, 1) == 0) && f.bytes.Take(now, bytes, n)
	switch {
	case !ok:
		f.dropped++
	case acks:
		f.ackable--
	default:
		f.packets.Take(now, packets, 1)
	}
	return ok, abuse
}

// onlyAcks says that a packet carries nothing but acknowledgements.
func onlyAcks(frames []byte) bool {
	if len(frames) == 0 || len(frames) > acksMax || wire.FrameType(frames[0]) != wire.FrameAck {
		return false
	}
	var f wire.Frame
	for len(frames) > 0 {
		n, err := f.Parse(frames)
		if err != nil || f.Type != wire.FrameAck {
			return false
		}
		frames = frames[n:]
	}
	return true
}

// force charges one packet of n bytes whether that is left or not, for who makes the
// client wait instead of dropping what it sends.
func (f *flow) force(now int64, packets, bytes limit.Rate, n int) {
	f.packets.Force(now, packets, 1)
	f.bytes.Force(now, bytes, n)
}

// Spent returns how long it takes until the client may send its whole bursts of packets
// and bytes again, zero when it may now. It works on a connection that is over, too.
func (c *Conn) Spent() (packets, bytes time.Duration) {
	now := c.core.nanos(time.Now())
	s := c.spent()
	return s.packets.Spent(now), s.bytes.Spent(now)
}

func (c *Conn) spent() spent {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flow.spent
}

// Spend makes the connection one that will have its whole bursts again in so long, or
// leaves it as it is when it has spent more. Call it from [Handler.Opened], for a
// client that has sent much over another connection.
func (c *Conn) Spend(packets, bytes time.Duration) {
	now := c.core.nanos(time.Now())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flow.packets.Spend(now, packets)
	c.flow.bytes.Spend(now, bytes)
}
