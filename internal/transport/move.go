package transport

import (
	"context"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// moving is a MOVE that is repeated until the client is gone.
type moving struct {
	to    wire.Move
	until int64
	next  int64
}

// moveEvery is how often a MOVE is repeated.
const moveEvery = 250 * time.Millisecond

// Freeze stops processing what the client sends, so that the user can be moved,
// and returns what the other node goes on from, for reading only. When it returns,
// every message that was received went through Handler.Handle, and what Handle sent
// is in the state. From now on [Conn.Send] returns [ErrFrozen], no connection can be
// opened and timers stand still, until Thaw, Released or End. It waits for a running Handle: never call it from a [Handler].
//
// It returns [ErrNoPlace] when there is none, or nobody ever connected to it,
// [ErrFrozen] when it is frozen already, [ErrThawed] when Thaw was called meanwhile,
// and an error with the cause of ctx when Handle took too long; then the user goes on here.
func (ps *Places) Freeze(ctx context.Context, sid id.SID) (*reliable.State, error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.bySID[sid]
	if p == nil || p.state != placeConnected && p.state != placeLost {
		return nil, ErrNoPlace
	}
	x := p.extra()
	if x.frozen {
		return nil, ErrFrozen
	}
	if p.state == placeLost && x.saved == nil {
		return nil, ErrNoPlace
	}
	x.frozen = true
	x.freezes++
	mine := x.freezes
	if c := ps.lastConnLocked(p); c != nil {
		ps.mu.Unlock()
		err := c.freeze(ctx)
		ps.mu.Lock()
		switch {
		case p.state == placeEnded:
			return nil, ErrNoPlace
		case !x.frozen:
			c.thaw(time.Now()) // in case it was frozen after the Thaw
			return nil, ErrThawed
		case x.freezes != mine: // and somebody else froze it again
			return nil, ErrThawed
		case err != nil:
			ps.thawLocked(p)
			return nil, fmt.Errorf("freeze connection: %w", err)
		}
		if st := c.export(); st != nil {
			return st, nil
		}
	}
	// Lost, perhaps while we waited.
	ps.keepLocked(p)
	if x.saved == nil {
		ps.thawLocked(p)
		return nil, ErrNoPlace
	}
	return x.saved, nil
}

// Thaw lets a frozen user go on here. It returns false when there is none.
func (ps *Places) Thaw(sid id.SID) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.bySID[sid]
	if p == nil || p.more == nil || !p.more.frozen {
		return false
	}
	ps.thawLocked(p)
	return true
}

func (ps *Places) thawLocked(p *Place) {
	now := time.Now()
	p.more.frozen = false
	if c := p.conn.Load(); c != nil {
		c.thaw(now)
	} else if p.state == placeLost {
		ps.expireAtLocked(p, now.Add(ps.core.cfg.ResumeTTL))
	}
}

// Move tells a frozen user's client where to go on, every 250 ms with the time
// that remains of m.Deadline, until it passed or Thaw, Released or End was called.
// It returns [ErrNoPlace] unless the user is frozen and connected.
func (ps *Places) Move(sid id.SID, m wire.Move) error {
	if len(m.Host) == 0 || len(m.Host) > 255 {
		return fmt.Errorf("move to a host name of %d bytes: must be 1 to 255", len(m.Host))
	}
	ps.mu.Lock()
	p := ps.bySID[sid]
	var c *Conn
	if p != nil && p.more != nil && p.more.frozen {
		c = p.conn.Load()
	}
	ps.mu.Unlock()
	if c == nil {
		return ErrNoPlace
	}
	b := ps.core.borrow()
	defer ps.core.giveBack(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over.Load() || !c.frozen {
		return ErrNoPlace
	}
	now := time.Now()
	c.moving = &moving{to: m, until: ps.core.nanos(now.Add(m.Deadline)), next: ps.core.nanos(now)}
	c.moveLocked(now, b)
	return nil
}

// lastConnLocked is the connection of a place, or the one it lost while a reader was
// in the Handler for it. The caller holds Places.mu.
func (ps *Places) lastConnLocked(p *Place) *Conn {
	if c := p.conn.Load(); c != nil || p.more == nil {
		return c
	}
	return p.more.leaving
}

// freeze stops the reader, and waits until the Handler is not called for this
// connection any more.
func (c *Conn) freeze(ctx context.Context) error {
	c.mu.Lock()
	c.frozen = !c.over.Load()
	idle := c.busyLocked(nil)
	c.mu.Unlock()
	return await(ctx, idle)
}

// standAside stops the reader for a newer connection of the place, until goOn. It
// returns what to wait for before that may take over: closed once no reader is in the
// Handler for this one. Nil means that none is, unless it is the caller, whose batch is b.
func (c *Conn) standAside(b *Batch) (idle <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.yielding++
	return c.busyLocked(b)
}

// goOn takes back what standAside did.
func (c *Conn) goOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.yielding--
	if c.yielding == 0 && !c.frozen {
		c.releaseReaderLocked()
	}
}

// busyLocked returns nil when no reader is in the Handler for this connection, or only
// the one with batch b, else what is closed when it is not any more.
func (c *Conn) busyLocked(b *Batch) <-chan struct{} {
	if c.delivering == nil || c.delivering == b {
		return nil
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	return c.idle
}

// await waits for idle, when it is not nil.
func await(ctx context.Context, idle <-chan struct{}) error {
	if idle == nil {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// awaitThaw keeps the reader of a TCP connection from reading what nobody would
// process, until the connection goes on or is over.
func (c *Conn) awaitThaw() {
	for {
		c.mu.Lock()
		if c.over.Load() || !c.frozen && c.yielding == 0 {
			c.mu.Unlock()
			return
		}
		if c.thawed == nil {
			c.thawed = make(chan struct{})
		}
		thawed := c.thawed
		c.mu.Unlock()
		<-thawed
	}
}

func (c *Conn) releaseReaderLocked() {
	if c.thawed != nil {
		close(c.thawed)
		c.thawed = nil
	}
}

// export copies the state of a connection that is still there, or returns nil.
func (c *Conn) export() *reliable.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over.Load() {
		return nil
	}
	return c.machine.Export()
}

// thaw lets a frozen connection go on.
func (c *Conn) thaw(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over.Load() || !c.frozen {
		return
	}
	c.frozen, c.moving = false, nil
	c.machine.Thaw(now)
	c.releaseReaderLocked()
	c.armLocked(now)
}

// moveLocked sends MOVE when it is due. The machine stands still, but has to know
// that the packet was sent.
func (c *Conn) moveLocked(now time.Time, b *Batch) {
	m, n := c.moving, c.core.nanos(now)
	if m == nil || n >= m.until {
		return // the owner decides: Thaw or Released
	}
	if n >= m.next {
		m.next = n + int64(moveEvery)
		left := m.to
		left.Deadline = time.Duration(m.until - n).Truncate(time.Millisecond)
		pn := c.sealer.NextPN()
		pkt := left.AppendTo(c.sealer.Begin(c.room(nil)))
		c.machine.Sent(pn)
		c.sendBuiltLocked(b, c.sealer.Finish(now, pkt, c.roomBytes()))
	}
	c.armLocked(now.Add(time.Duration(m.next - n)))
}

// deliveredLocked is called when who has batch b calls the Handler no more: that
// matters if it is the reader which was in the Handler for this connection.
func (c *Conn) deliveredLocked(b *Batch) {
	if c.delivering != b {
		return
	}
	c.delivering = nil
	if c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}
