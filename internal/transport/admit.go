package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/path"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport/limit"
	"github.com/Diarkis/diarkis/internal/wire"
)

// byCID0Of returns the place a handshake packet asks for, or nil.
func (ps *Places) byCID0Of(cid wire.CID) *Place {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.byCID0[cid]
}

// cidKey is what place limits count by.
func cidKey(cid0 wire.CID) uint64 { return binary.BigEndian.Uint64(cid0[:]) }

// chargeHello charges a Hello whose mac is good.
func (k *core) chargeHello(now time.Time, src netip.AddrPort, cid0 wire.CID) error {
	n := k.nanos(now)
	if !k.cids.Take(n, cidKey(cid0)) {
		return dropCID
	}
	if !k.addresses.Take(n, limit.AddressKey(src.Addr())) {
		return dropAddress
	}
	return nil
}

// chargeConfirm charges a Confirm whose cookie is good, before its keys are agreed on:
// with the cookie of one Hello, a client could ask for that as often as it sends.
func (k *core) chargeConfirm(now time.Time, cid0 wire.CID) error {
	if !k.cids.Take(k.nanos(now), ^cidKey(cid0)) { // another bucket than that of its Hellos
		return dropCID
	}
	return nil
}

// checkReplay says whether a Confirm may be new. An equal one to the last accepted
// returns the connection that came of it, nil when that is over.
func (ps *Places) checkReplay(p *Place, hash [32]byte) (again bool, c *Conn) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.more == nil || p.more.last.cookie == 0 || p.more.last.hash != hash {
		return false, nil
	}
	return true, p.conn.Load()
}

// afterLastCookie returns now, or the first millisecond after the cookie of the
// Confirm that was accepted last.
func (ps *Places) afterLastCookie(p *Place, now time.Time) time.Time {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.more == nil {
		return now
	}
	// Cookies count from 1 at the epoch, so this one's successor is cookie ms after it.
	next := ps.core.epoch.Add(time.Duration(p.more.last.cookie) * time.Millisecond)
	if next.After(now) {
		return next
	}
	return now
}

// mayOpenLocked says whether a checked Confirm may be accepted now. Claimed means
// that the caller is who had the user released.
func (ps *Places) mayOpenLocked(p *Place, cookie uint64, claimed bool) error {
	switch {
	case p.state == placeEnded:
		return dropGone
	case p.state == placeReleasing && !claimed:
		return dropBusy
	case p.more == nil:
		return nil
	case p.more.frozen:
		return dropFrozen
	case !ps.core.stream && cookie <= p.more.last.cookie:
		return dropReplayed
	}
	return nil
}

// claim finds out whether a Confirm may be accepted, and whether another node has
// to be asked first: then the place is ours until unclaim, or the admission.
func (ps *Places) claim(p *Place, cookie uint64) (release func(context.Context) error, err error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if err := ps.mayOpenLocked(p, cookie, false); err != nil {
		return nil, err
	}
	if p.more == nil || p.more.release == nil {
		return nil, nil
	}
	ps.setLocked(p, placeReleasing)
	return p.more.release, nil
}

// askRelease calls release and settles what follows. It returns nil when the user
// is ours, and the place still claimed.
func (ps *Places) askRelease(ctx context.Context, p *Place, release func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, ps.core.cfg.ReleaseTimeout)
	defer cancel()
	err := release(ctx)
	ps.mu.Lock()
	defer ps.core.alarm.wake()
	defer ps.mu.Unlock()
	if p.state != placeReleasing {
		return errors.Join(dropGone, err)
	}
	if err == nil { // and stays claimed until it is admitted
		p.more.release, p.more.owned = nil, true
		return nil
	}
	ps.setLocked(p, placeReserved)
	if errors.Is(err, ErrRevoked) {
		ps.endLocked(p, wire.CloseNormal)
	} else {
		ps.core.m.handshakes.WithLabelValues(resultHeld).Inc()
		ps.core.log.Warn().Err(err).Msg("moved user not released by its old node")
	}
	return err
}

// arrival is a client that proved to hold the credentials of a place.
type arrival struct {
	place    *Place
	accepted *secure.Accepted
	peer     netip.AddrPort
	shard    *shard  // whose reader it came to
	stream   *stream // nil on UDP
	rtt      time.Duration
	claimed  bool // its old node has let go, for this arrival
}

// admit makes the connection of an arrival: the old one is replaced, the Handler
// told, and the Accept queued in b, before anything the Handler sends.
func (k *core) admit(now time.Time, a arrival, b *Batch, rx *reliable.Received) (*Conn, error) {
	c, resumed, err := k.places.connect(now, a, b)
	if err != nil {
		if a.claimed {
			k.places.unclaim(a.place)
		}
		return nil, err
	}
	result := resultOpened
	if resumed {
		result = resultResumed
	}
	k.m.handshakes.WithLabelValues(result).Inc()
	k.handler.Opened(b, c, resumed)
	k.places.opened(a.place)
	c.early(now, a.accepted, b, rx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over.Load() && c.ending == nil {
		return c, nil
	}
	c.shard.add(c)
	switch {
	case !c.over.Load():
		c.rearmLocked()
		b.addLocked(c)
	case c.stream == nil: // closed meanwhile: its CLOSE overtook Accept
		b.raw(c.ending.packet, c.path.Peer())
	}
	return c, nil
}

// opened tells that Handler.Opened returned.
func (ps *Places) opened(p *Place) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p.opening = false
	ps.told.Broadcast()
}

// early handles the frames that came with Confirm.
func (c *Conn) early(now time.Time, a *secure.Accepted, b *Batch, rx *reliable.Received) {
	rx.Reset()
	c.mu.Lock()
	if c.over.Load() {
		c.mu.Unlock()
		return
	}
	var end *wire.Close
	if err := c.machine.ReceiveConfirm(now, a.Frames, a.Resume, rx); err != nil {
		end = c.failLocked(now, b, closeOf(err))
	} else {
		c.noteHeldLocked()
		c.receivedLocked(now, b, rx)
	}
	c.mu.Unlock()
	if end != nil {
		c.core.places.connEnded(c, end.Code, now)
		return
	}
	c.deliver(b, rx)
}

// connect makes a Conn the connection of its place.
func (ps *Places) connect(now time.Time, a arrival, b *Batch) (c *Conn, resumed bool, err error) {
	p := a.place
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for ps.telling == p || p.opening {
		ps.told.Wait()
	}
	if err := ps.mayOpenLocked(p, a.accepted.CookieTime, a.claimed); err != nil {
		return nil, false, err
	}
	scid, err := a.shard.newSCID()
	if err != nil {
		return nil, false, err
	}
	x := p.extra()
	st := x.saved
	if old := p.conn.Load(); old != nil {
		st = old.replace(now, b)
	}
	if !a.accepted.Resume {
		st = nil
	}
	x.saved = nil
	ps.countSavedLocked(x)
	x.last = lastConfirm{cookie: a.accepted.CookieTime, hash: a.accepted.Hash}
	ps.unsayLostLocked(p)
	ps.keepLocked(p)
	ps.setLocked(p, placeConnected)
	c = ps.core.newConn(now, a, scid, st, b)
	p.conn.Store(c)
	p.opening = true
	return c, st != nil, nil
}

// newConn makes a connection and queues its Accept.
func (k *core) newConn(now time.Time, a arrival, scid wire.CID, st *reliable.State, b *Batch) *Conn {
	c := &Conn{core: k, shard: a.shard, place: a.place, stream: a.stream, scid: scid, path: path.New(a.peer)}
	c.active = k.nanos(now)
	c.flow.since = c.active
	body := wire.Accept{
		SCID: scid, IdleTimeout: k.cfg.IdleTimeout, ServerTime: now, Resumed: st != nil,
		MaxDatagram:      uint16(k.cfg.MaxDatagram),
		PacketsPerSecond: clampU16(k.cfg.Limits.PacketsPerSec),
		KiBPerSecond:     clampU16(k.cfg.Limits.BytesPerSec >> 10),
		Draining:         k.State() != StateOnline,
	}
	if a.stream != nil {
		body.MaxDatagram = uint16(k.cfg.MaxRecord)
	}
	pkt, sealer, opener := a.accepted.Accept(now, c.room(nil), body, secure.RekeyPolicy{Packets: k.cfg.RekeyPackets})
	c.sealer, c.opener = sealer, opener
	c.machine = reliable.New(now, k.machineConfig(a.rtt), st)
	c.mu.Lock()
	defer c.mu.Unlock()
	if a.stream == nil {
		c.accept = &sentAccept{packet: slices.Clip(pkt), until: k.nanos(now.Add(acceptFor))}
	}
	c.noteHeldLocked()
	c.sendBuiltLocked(b, pkt)
	return c
}

// clampU16 is a rate as Accept tells it: 0 means unlimited.
func clampU16(n int) uint16 { return uint16(min(max(n, 0), 1<<16-1)) }

// newSCID returns a connection id of this shard that is not in use.
func (s *shard) newSCID() (scid wire.CID, err error) {
	for {
		if _, err := io.ReadFull(s.core.cfg.Rand, scid[:]); err != nil {
			return scid, fmt.Errorf("read random bytes for connection id: %w", err)
		}
		if scid = s.own(scid); s.lookup(scid) == nil {
			return scid, nil
		}
	}
}

// replace closes the connection in favour of a newer one of the same place, and
// returns what that one can go on from.
func (c *Conn) replace(now time.Time, b *Batch) *reliable.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeLocked(now, b, wire.Close{Code: wire.CloseReplaced})
	return c.takeStateLocked() // also of one that was over, when nobody took it yet
}

// repeatAccept answers a repeated Confirm as before.
func (c *Conn) repeatAccept(now time.Time, src netip.AddrPort, b *Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.accept == nil || c.over.Load() || src != c.path.Peer() || c.core.nanos(now) > c.accept.until {
		return dropReplayed
	}
	b.raw(c.accept.packet, src)
	return nil
}

// mayOpen is mayOpenLocked for who holds no lock.
func (ps *Places) mayOpen(p *Place, cookie uint64) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.mayOpenLocked(p, cookie, false)
}

// unclaim gives back what claim took when nobody could be asked, or let in.
func (ps *Places) unclaim(p *Place) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.state == placeReleasing {
		ps.setLocked(p, placeReserved)
	}
}
