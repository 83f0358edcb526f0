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

// cidKey is what place limits count by.
func cidKey(cid0 wire.CID) uint64 { return binary.BigEndian.Uint64(cid0[:]) }

// chargeHello charges a Hello whose mac is good to its place, and to nobody else: it
// proves nothing of where it comes from.
func (k *core) chargeHello(now time.Time, cid0 wire.CID) error {
	if !k.cids.Take(k.nanos(now), cidKey(cid0)) {
		return dropCID
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

// chargeArrival charges the address of a client that is about to enter. It is called
// when its Confirm opened: then whoever sent it has the credentials, and got the
// Challenge at that address. What is forged or repeated never gets here, so it can't
// use up what others behind the address need. Who was here before, or comes from
// another node, is not charged: a network that fails and comes back, or a node that
// stops, brings everyone behind a carrier's NAT at once.
func (k *core) chargeArrival(now time.Time, p *Place, src netip.AddrPort) error {
	if !k.places.openedBefore(p) && !k.addresses.Take(k.nanos(now), limit.AddressKey(src.Addr())) {
		return dropAddress
	}
	return nil
}

// openedBefore says that a client of the place was in before, here or elsewhere.
func (ps *Places) openedBefore(p *Place) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return p.more != nil && p.more.opened
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
func (ps *Places) claim(p *Place, cookie uint64) (old *oldNode, err error) {
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

// askRelease has the old node let go and settles what follows. It returns nil when the user
// is ours, and the place still claimed.
func (ps *Places) askRelease(ctx context.Context, p *Place, old *oldNode) error {
	ctx, cancel := context.WithTimeout(ctx, ps.core.cfg.ReleaseTimeout)
	defer cancel()
	err := old.release(ctx)
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
	switch {
	case errors.Is(err, ErrReplaced):
		ps.endLocked(p, wire.CloseReplaced)
	case errors.Is(err, ErrRevoked):
		ps.endLocked(p, wire.CloseNormal)
	default:
		ps.core.m.handshakes.WithLabelValues(resultHeld).Inc()
		ps.core.unreleased.Note(err) // the client asks again and again
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
	claimed  bool  // its old node has let go, for this arrival
	old      *Conn // of the place, which stands aside; nil: there was none
}

// replaceOld finds the connection that an arrival replaces and has it stand aside until
// goOn is called. Idle is what to wait for, as in [Conn.standAside].
func (k *core) replaceOld(a *arrival, b *Batch) (idle <-chan struct{}, goOn func()) {
	k.places.mu.Lock()
	a.old = k.places.lastConnLocked(a.place)
	k.places.mu.Unlock()
	if a.old == nil {
		return nil, func() {}
	}
	return a.old.standAside(b), a.old.goOn
}

// admitNow admits an arrival, for the reader with batch b. When another reader is in
// the Handler for the old connection, a goroutine waits for that: b's can't.
func (k *core) admitNow(now time.Time, a arrival, b *Batch, rx *reliable.Received) error {
	for {
		idle, goOn := k.replaceOld(&a, b)
		if idle != nil {
			goOn()
			return k.admitLater(a)
		}
		_, err := k.admit(now, a, b, rx)
		goOn() // which does nothing to a connection that was replaced
		if err != errBehind {
			return err
		}
	}
}

// admitLater has a goroutine admit an arrival that has to wait, one for each place.
func (k *core) admitLater(a arrival) error {
	if !k.places.setWaits(a.place, true) {
		return dropBusy // one is waiting already; the client tries again
	}
	a.accepted.Frames = slices.Clone(a.accepted.Frames) // the packet's buffer is used again
	ok := k.spawn(func(ctx context.Context) {
		defer k.places.setWaits(a.place, false)
		var rx reliable.Received
		if _, err := k.admitAfter(ctx, a, &rx); err != nil {
			k.m.drop(err)
		}
	})
	if !ok {
		k.places.setWaits(a.place, false)
		return dropGone
	}
	return nil
}

// admitAfter waits until no reader is in the Handler for the old connection, then
// admits an arrival and sends what came of it.
func (k *core) admitAfter(ctx context.Context, a arrival, rx *reliable.Received) (*Conn, error) {
	for {
		idle, goOn := k.replaceOld(&a, nil)
		if err := await(ctx, idle); err != nil {
			goOn()
			return nil, dropGone
		}
		b := k.borrow()
		b.reader = true
		c, err := k.admit(time.Now(), a, b, rx)
		b.Flush()
		b.reader = false
		k.giveBack(b)
		goOn()
		if err != errBehind {
			return c, err
		}
	}
}

// errBehind means that the connection which stood aside is not the place's last any more.
var errBehind = errors.New("another connection came first")

// setWaits says that an arrival waits for a reader, or waits no more. It returns false
// when it said so before.
func (ps *Places) setWaits(p *Place, waits bool) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.more == nil { // it ended
		return !waits
	}
	changed := p.more.waits != waits
	p.more.waits = waits
	return changed
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
	if c.over.Load() {
		c.deliveredLocked(b) // nothing sends for it, so b's end may not say it
	}
	if c.over.Load() && c.ending == nil {
		return c, nil
	}
	c.shard.add(c)
	switch {
	case !c.over.Load():
		if away := k.offline.Load(); away != 0 && !c.draining {
			c.machine.SendOffline(uint8(away)) // Accept was made before
		}
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
	if ps.lastConnLocked(p) != a.old {
		return nil, false, errBehind
	}
	scid, err := a.shard.newSCID()
	if err != nil {
		return nil, false, err
	}
	x := p.extra()
	st := x.saved
	sent := x.spent
	if old := p.conn.Load(); old != nil {
		st = old.replace(now, b)
		sent = old.spent()
	}
	if !a.accepted.Resume {
		st = nil
	}
	x.saved, x.leaving = nil, nil
	x.opened, x.here = true, true
	ps.countSavedLocked(x)
	x.last = lastConfirm{cookie: a.accepted.CookieTime, hash: a.accepted.Hash}
	ps.unsayLostLocked(p)
	ps.keepLocked(p)
	ps.setLocked(p, placeConnected)
	c = ps.core.newConn(now, a, scid, st, b)
	c.flow.spent = sent // nobody else knows c yet
	p.conn.Store(c)
	p.opening = true
	return c, st != nil, nil
}

// newConn makes a connection and queues its Accept.
func (k *core) newConn(now time.Time, a arrival, scid wire.CID, st *reliable.State, b *Batch) *Conn {
	c := &Conn{core: k, shard: a.shard, place: a.place, stream: a.stream, scid: scid, path: path.New(a.peer)}
	c.delivering = b // from Opened on
	c.active = k.nanos(now)
	c.flow.since = c.active
	body := wire.Accept{
		SCID: scid, IdleTimeout: k.cfg.IdleTimeout, ServerTime: now, Resumed: st != nil,
		MaxDatagram:      uint16(k.cfg.MaxDatagram),
		PacketsPerSecond: clampU16(k.cfg.Limits.PacketsPerSec),
		KiBPerSecond:     clampU16(k.cfg.Limits.BytesPerSec >> 10),
		Draining:         k.State() != StateOnline,
		Token:            k.cfg.NodeToken,
	}
	c.draining = body.Draining
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
