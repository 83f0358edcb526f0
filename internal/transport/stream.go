package transport

import (
	"context"
	"net"
	"syscall"
	"time"

	"github.com/Diarkis/diarkis/internal/transport/record"
)

// stream is the TCP half of a [Conn].
type stream struct {
	// Constant.
	socket streamSocket
	raw    syscall.RawConn

	bounded bool // there is a deadline for writes; owned by who set writing

	// Guarded by Conn.mu.
	writing bool   // somebody is in pump or drain; it takes along what comes meanwhile
	closing bool   // nothing follows what is queued
	queued  []byte // records that are sealed: they go before any other
}

// streamSocket is what of a *net.TCPConn is used.
type streamSocket interface {
	net.Conn
	CloseWrite() error
}

const (
	// lingerFor is how long we wait for the client's end of a connection we closed,
	// so that our CLOSE is not lost to a reset.
	lingerFor = time.Second
	// lingerBytes is how much we read meanwhile.
	lingerBytes = 256 << 10
)

// queueLocked adds a record that was built in [Conn.room].
func (s *stream) queueLocked(rec []byte) {
	record.PutLength(rec)
	s.queued = append(s.queued, rec...)
}

// abort ends the socket at once; its reader and writer return.
func (s *stream) abort() { _ = s.socket.Close() }

// pump writes what c has to send, without waiting: when the system takes no more,
// a goroutine goes on.
func (s *stream) pump(c *Conn, b *Batch, now time.Time) {
	c.mu.Lock()
	c.deliveredLocked(b)
	c.batch = nil
	if s.writing {
		c.mu.Unlock()
		return
	}
	s.writing = true
	c.mu.Unlock()
	for {
		out, done := s.take(c, now, b.slab[:0], false)
		if done {
			return
		}
		n, err := b.pipe.Try(s.raw, out)
		b.core.m.bytesOut.Add(float64(n))
		if err != nil {
			s.broke(c)
			return
		}
		if n < len(out) {
			rest := append([]byte(nil), out[n:]...)
			if !c.core.spawn(func(ctx context.Context) { s.drain(ctx, c, rest) }) {
				s.broke(c)
			}
			return
		}
	}
}

// take appends records to dst as long as another surely fits. Done means that
// there was nothing, and the caller did not hold anything either: it is no longer the
// one who writes.
func (s *stream) take(c *Conn, now time.Time, dst []byte, holding bool) (out []byte, done bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	records := 0
	out = append(dst, s.queued...)
	s.queued = nil
	for !c.over.Load() && !c.frozen && cap(out)-len(out) >= c.core.cfg.MaxRecord {
		start := len(out)
		out = append(out, 0, 0, 0)
		pkt, ok := c.packetLocked(now, out)
		if !ok {
			out = out[:start]
			break
		}
		out = pkt
		record.PutLength(out[start:])
		records++
	}
	c.core.m.packetsOut.Add(float64(records))
	if len(out) > 0 || holding {
		return out, false
	}
	if s.bounded { // while nobody else can write, whose deadline that would be
		_ = s.socket.SetWriteDeadline(time.Time{})
		s.bounded = false
	}
	s.writing = false
	switch {
	case s.closing:
		_ = s.socket.CloseWrite()
		_ = s.socket.SetReadDeadline(now.Add(lingerFor))
	case !c.over.Load() && !c.frozen:
		c.trimLocked(now)
		c.rearmLocked()
	}
	return nil, true
}

// drainRecords is how many records of the longest size drain builds at once: what a
// client that takes nothing can make us hold, beside what the socket refused.
const drainRecords = 4

// drain is what pump leaves to a goroutine that may wait, for at most
// Config.WriteTimeout at a time. What the socket refused and what was built since go
// in one vectored write.
func (s *stream) drain(ctx context.Context, c *Conn, rest []byte) {
	buf := make([]byte, 0, drainRecords*c.core.cfg.MaxRecord)
	for {
		more, done := s.take(c, time.Now(), buf, len(rest) > 0)
		if done {
			return
		}
		s.bounded = true
		_ = s.socket.SetWriteDeadline(time.Now().Add(c.core.cfg.WriteTimeout))
		if ctx.Err() != nil { // hurry may have set its deadline before ours
			_ = s.socket.SetWriteDeadline(time.Now().Add(lingerFor))
		}
		n, err := (&net.Buffers{rest, more}).WriteTo(s.socket)
		c.core.m.bytesOut.Add(float64(n))
		if err != nil {
			s.broke(c)
			return
		}
		rest = nil
	}
}

// broke ends a connection that can't be written to: the client is gone, or takes
// nothing any more. The place waits for its return.
func (s *stream) broke(c *Conn) {
	s.abort()
	c.core.lostLink(c)
}
