package transport

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/Diarkis/diarkis/internal/path"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/telemetry"
	"github.com/Diarkis/diarkis/internal/wire"
)

// challengeBytes is the packet a PATH_CHALLENGE goes in: it travels alone, because all
// else goes to the address that is proven.
const challengeBytes = wire.ServerHeaderBytes + 1 + len(path.Token{}) + wire.TagBytes

// Results of following a client to another address.
const (
	pathMoved   = "moved"
	pathFailed  = "failed"  // no answer from there, in time or before a newer one
	pathLimited = "limited" // it changes too often
)

// RemoteAddr returns where the client sends from, as far as it proved that.
func (c *Conn) RemoteAddr() netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.path.Peer()
}

// elsewhereLocked takes note of a packet that opened and came from another address
// than the client's, and of what was in it.
func (c *Conn) elsewhereLocked(now time.Time, src netip.AddrPort, size int, newest bool, b *Batch, rx *reliable.Received) {
	at := time.Duration(c.core.nanos(now))
	out, err := c.path.Received(at, src, size, newest, c.core.cfg.Rand)
	if err != nil {
		c.core.unrandom.Note(fmt.Errorf("ask for an answer from a new address: %w", err))
	}
	c.countPath(out)
	if r := &rx.PathResponse; r.Has {
		from := c.path.Peer()
		if rtt, moved := c.path.Answered(at, src, r.Token); moved {
			c.accept = nil // it arrived, or the client had not the keys to move
			c.machine.PathChanged(now, rtt)
			c.core.m.paths.WithLabelValues(pathMoved).Inc()
			c.core.log.Debug().Stringer("from", from).Stringer("to", src).Str("rtt", telemetry.Span(rtt)).Msg("client moved to another address")
		}
	}
	c.challengeLocked(now, b)
}

// roamLocked does what is due for a client that may have moved.
func (c *Conn) roamLocked(now time.Time, b *Batch) {
	c.countPath(c.path.Tick(time.Duration(c.core.nanos(now))))
	c.challengeLocked(now, b)
}

// challengeLocked asks a candidate for an answer when that is due. The machine only
// hears of the number: whether the packet arrives says nothing of the path in use.
func (c *Conn) challengeLocked(now time.Time, b *Batch) {
	to, token, ok := c.path.Challenge(time.Duration(c.core.nanos(now)), challengeBytes)
	if ok {
		pn := c.sealer.NextPN()
		pkt := wire.AppendPathChallenge(c.sealer.Begin(make([]byte, 0, challengeBytes)), token)
		c.machine.Sent(pn)
		b.raw(c.sealer.Finish(now, pkt, 0), to)
	}
	c.rearmPathLocked()
}

// rearmPathLocked follows the path's next deadline.
func (c *Conn) rearmPathLocked() {
	if at, ok := c.path.WakeAt(); ok {
		c.armLocked(c.core.epoch.Add(at))
	}
}

func (c *Conn) countPath(out path.Outcome) {
	if out.Failed {
		c.core.m.paths.WithLabelValues(pathFailed).Inc()
	}
	if out.Limited {
		c.core.m.paths.WithLabelValues(pathLimited).Inc()
	}
}
