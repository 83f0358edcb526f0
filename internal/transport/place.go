package transport

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport/wheel"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Place is one user's right to be connected here, from its reservation to its end.
type Place struct {
	// Set by Reserve, then constant.
	creds secure.Credentials
	base  secure.Base
	uid   id.UID
	owner any

	conn atomic.Pointer[Conn] // written under Places.mu

	// Guarded by Places.mu.
	more    *moreOfPlace // nil until there is something to keep
	expires int64        // nanoseconds since the epoch; 0: never
	state   placeState
	opening bool // Handler.Opened is running

	links wheel.Links[Place] // guarded by the wheel
}

// Timer is for the wheel.
func (p *Place) Timer() *wheel.Links[Place] { return &p.links }

type placeState uint8

const (
	placeReserved placeState = iota
	placeReleasing
	placeConnected
	placeLost
	placeEnded
)

// moreOfPlace is what a place needs once it was opened, or when it came by MOVE. A
// place that waits for its first client does without, to stay small.
type moreOfPlace struct {
	last    lastConfirm
	saved   *reliable.State // what a resume goes on from, while there is no connection
	held    int32           // what of it is counted, in steps
	spent   spent           // what the client has sent lately, while there is no connection
	release *oldNode
	opened  bool   // a client was in, here or at the node the user comes from
	here    bool   // a client was in here
	owned   bool   // its old node has let go of the user
	frozen  bool   // no connection may open until Thaw
	waits   bool   // a newer connection does, for a reader that is in the Handler
	freezes uint32 // how often it was frozen
	leaving *Conn  // lost while a reader was in the Handler for it
	lost    bool   // Lost is waiting to be told
}

// oldNode is the node a moved user comes from, until it has let go.
type oldNode struct {
	node    id.Node
	release func(ctx context.Context) error // Reservation.Release
}

// lastConfirm keeps a Confirm from being accepted twice.
type lastConfirm struct {
	cookie uint64 // when its Challenge was made
	hash   [32]byte
}

// SID returns the id of the stay.
func (p *Place) SID() id.SID { return p.creds.SID }

// UID returns the id of the user.
func (p *Place) UID() id.UID { return p.uid }

// Credentials returns what the client was given, for a move to another node.
func (p *Place) Credentials() secure.Credentials { return p.creds }

// Owner returns what was set at the reservation.
func (p *Place) Owner() any { return p.owner }

// Conn returns the live connection, or nil.
func (p *Place) Conn() *Conn { return p.conn.Load() }

// extra returns the part that is allocated late. The caller holds Places.mu.
func (p *Place) extra() *moreOfPlace {
	if p.more == nil {
		p.more = &moreOfPlace{}
	}
	return p.more
}

// Reservation asks for a place.
type Reservation struct {
	Credentials secure.Credentials
	UID         id.UID
	// Owner is for the caller, who finds it with Place.Owner.
	Owner any
	// TTL is how long the place waits for its client. Zero means Config.ReserveTTL.
	TTL time.Duration
	// State is what the reliable messages of a moved user go on from, else nil. It
	// belongs to the place from here on.
	State *reliable.State
	// From is the node a moved user comes from: how many calls of Release run at once
	// is counted by it.
	From id.Node
	// Release asks the node a user comes from to give it up for good. It is called
	// at the client's first valid Confirm, from a goroutine of its own and with at
	// most Config.ReleaseTimeout; only when it returns nil is the Confirm accepted.
	// An error that wraps ErrRevoked or ErrReplaced ends the place; after any other, the
	// client's next Confirm makes it be called again. Nil means there is nobody to ask.
	Release func(ctx context.Context) error
}

// Places are the users a server expects or has. It is safe for concurrent use.
type Places struct {
	core   *core
	timers *wheel.Wheel[Place, *Place]
	seed   maphash.Seed // of userOf; constant

	mu     sync.Mutex // guards the fields below and those of Place
	told   sync.Cond  // telling, or opening of a place, changed
	bySID  map[id.SID]*Place
	byCID0 map[wire.CID]*Place
	counts [placeEnded]int
	events []event // to be told by the keeper, oldest first
	spent  []event // the backing array of the batch told last
	// telling is the place the keeper calls the Handler about right now.
	telling *Place
	memory  memory
}

// event is a call of the Handler to be made.
type event struct {
	place *Place
	conn  *Conn // whose silence turned; nil: lost, or ended
	ended bool  // else lost
	code  wire.CloseCode
}

func newPlaces(k *core) *Places {
	ps := &Places{
		core: k, timers: wheel.New[Place](k.epoch), seed: maphash.MakeSeed(),
		bySID: map[id.SID]*Place{}, byCID0: map[wire.CID]*Place{},
	}
	ps.told.L = &ps.mu
	return ps
}

// Reserve makes a place. It returns [ErrPlacesFull] or [ErrPlaceExists].
func (ps *Places) Reserve(r Reservation) (*Place, error) {
	now := time.Now()
	p := &Place{creds: r.Credentials, uid: r.UID, owner: r.Owner}
	p.base = secure.Derive(r.Credentials, ps.core.cfg.ClientKey)
	if r.State != nil || r.Release != nil {
		p.more = &moreOfPlace{saved: r.State, opened: true}
		if r.Release != nil {
			p.more.release = &oldNode{r.From, r.Release}
		}
	}
	ttl := r.TTL
	if ttl <= 0 {
		ttl = ps.core.cfg.ReserveTTL
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if len(ps.bySID) >= ps.core.cfg.PlacesMax {
		return nil, ErrPlacesFull
	}
	if ps.bySID[p.SID()] != nil || ps.byCID0[p.base.CID0()] != nil {
		return nil, ErrPlaceExists
	}
	if old, ok := ps.memory.take(p.base.CID0()); ok && old.cookie != 0 {
		p.extra().last.cookie, p.more.opened = old.cookie, true
	}
	if p.more != nil {
		ps.countSavedLocked(p.more)
	}
	ps.bySID[p.SID()] = p
	ps.byCID0[p.base.CID0()] = p
	ps.counts[placeReserved]++
	ps.core.m.places.Inc()
	ps.expireAtLocked(p, now.Add(ttl))
	return p, nil
}

// Cancel drops a place that no client has opened here, without telling the
// Handler. It returns false when there is none, a client is opening it now, or the
// old node of a moved user has let go of it. A place is being opened from the moment a
// Confirm for it is accepted, also while Handler.Opened has not been called yet: of
// Cancel and that Confirm one wins, and a client that was let in stays.
func (ps *Places) Cancel(sid id.SID) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.cancelledLocked(sid)
	if p == nil {
		return false
	}
	ps.removeLocked(p, 0, false)
	return true
}

// cancelledLocked returns the place of a sid if Cancel may drop it, or nil.
func (ps *Places) cancelledLocked(sid id.SID) *Place {
	p := ps.bySID[sid]
	if p == nil || p.state != placeReserved || p.more != nil && p.more.owned {
		return nil
	}
	return p
}

// Get returns the place of a sid, or nil.
func (ps *Places) Get(sid id.SID) *Place {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.bySID[sid]
}

// End closes the connection, if there is one, and ends the place; Handler.Ended is
// told. It returns false when there is no such place.
func (ps *Places) End(sid id.SID, code wire.CloseCode, reason string) bool {
	ps.mu.Lock()
	p := ps.bySID[sid]
	if p == nil {
		ps.mu.Unlock()
		return false
	}
	c := ps.endLocked(p, code)
	ps.mu.Unlock()
	if c != nil {
		c.hangUp(code, reason)
	}
	ps.core.alarm.wake()
	return true
}

// Released ends a place whose user another node has now. The Handler is not told,
// the client gets no CLOSE, and what still comes from it is dropped.
func (ps *Places) Released(sid id.SID) bool {
	ps.mu.Lock()
	p := ps.bySID[sid]
	if p == nil {
		ps.mu.Unlock()
		return false
	}
	c := ps.removeLocked(p, 0, false)
	ps.mu.Unlock()
	if c != nil {
		c.vanish()
	}
	return true
}

// Counts returns how many places wait for their client, are connected, and wait
// for their client to come back.
func (ps *Places) Counts() (reserved, connected, lost int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.counts[placeReserved] + ps.counts[placeReleasing], ps.counts[placeConnected], ps.counts[placeLost]
}

// Each calls f for the places there were when it was called, until f returns false.
func (ps *Places) Each(f func(*Place) bool) {
	ps.mu.Lock()
	all := make([]*Place, 0, len(ps.bySID))
	for _, p := range ps.bySID {
		all = append(all, p)
	}
	ps.mu.Unlock()
	for _, p := range all {
		if !f(p) {
			return
		}
	}
}

// setLocked moves p to another state and keeps the counts.
func (ps *Places) setLocked(p *Place, s placeState) {
	ps.counts[p.state]--
	p.state = s
	if s != placeEnded {
		ps.counts[s]++
	}
	ps.core.m.connected.Set(float64(ps.counts[placeConnected]))
}

func (ps *Places) expireAtLocked(p *Place, at time.Time) {
	p.expires = ps.core.nanos(at)
	ps.timers.Arm(p, at)
	ps.core.alarm.wakeBy(at)
}

func (ps *Places) keepLocked(p *Place) {
	p.expires = 0
	ps.timers.Disarm(p)
}

// endLocked removes p and has the Handler told. It returns the connection that is
// left to close.
func (ps *Places) endLocked(p *Place, code wire.CloseCode) *Conn {
	c := ps.leaveLocked(p, code)
	ps.events = append(ps.events, event{place: p, ended: true, code: code})
	return c
}

// removeLocked forgets p, but for what a replayed Confirm would need, and what a Hello is
// answered with if told is set. It returns the connection that is left to close.
func (ps *Places) removeLocked(p *Place, code wire.CloseCode, told bool) *Conn {
	delete(ps.bySID, p.SID())
	delete(ps.byCID0, p.base.CID0())
	ps.keepLocked(p)
	ps.core.m.places.Dec()
	ps.setLocked(p, placeEnded)
	ps.unsayLostLocked(p)
	ps.rememberLocked(p, code, told)
	if p.more != nil {
		p.more.saved = nil
		ps.countSavedLocked(p.more)
	}
	p.more = nil
	return p.conn.Swap(nil)
}

// unsayLostLocked takes back a Lost that was not told yet: tellLocked skips it.
func (ps *Places) unsayLostLocked(p *Place) {
	if p.more != nil {
		p.more.lost = false
	}
}

// connEnded tells that c was closed with code. Its place waits for the next
// connection when the code leaves that open, and ends otherwise.
func (ps *Places) connEnded(c *Conn, code wire.CloseCode, now time.Time) {
	ps.mu.Lock()
	defer ps.core.alarm.wake()
	defer ps.mu.Unlock()
	p := c.place
	if p.conn.Load() != c {
		return // replaced, or the place ended first
	}
	if code != wire.CloseIdle && code != wire.CloseReplaced {
		ps.endLocked(p, code)
		return
	}
	p.conn.Store(nil)
	ps.setLocked(p, placeLost)
	x := p.extra()
	st, busy := c.takeState()
	x.saved, x.lost, x.spent = st, true, c.spent()
	if busy {
		x.leaving = c
	}
	ps.countSavedLocked(x)
	ps.events = append(ps.events, event{place: p})
	if !x.frozen {
		ps.expireAtLocked(p, now.Add(ps.core.cfg.ResumeTTL))
	}
}

// expire ends the places whose time is over.
func (ps *Places) expire(now time.Time, due []*Place) []*Place {
	due = ps.timers.Collect(now, due)
	if len(due) == 0 {
		return due
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range due {
		switch {
		case p.state == placeEnded || p.expires == 0 || p.expires > ps.core.nanos(now):
			// changed since it was collected, and armed again if need be
		case p.state == placeReleasing:
			ps.expireAtLocked(p, now.Add(ps.core.cfg.ReleaseTimeout)) // its client is at the door
		default:
			ps.endLocked(p, wire.CloseIdle)
		}
	}
	return due
}

// tell makes the calls of the Handler that are due. Only the keeper calls it.
func (ps *Places) tell() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for len(ps.events) > 0 {
		batch := ps.events
		ps.events = ps.spent[:0]
		for i := range batch {
			ps.tellLocked(&batch[i])
		}
		clear(batch)
		ps.spent = batch[:0]
	}
}

// tellLocked makes one call, giving up the lock meanwhile.
func (ps *Places) tellLocked(e *event) {
	p := e.place
	if p == nil {
		return
	}
	if e.conn == nil && !e.ended {
		if p.more == nil || !p.more.lost {
			return // taken back after this batch was taken out
		}
		p.more.lost = false
	}
	for p.opening {
		ps.told.Wait()
	}
	silent, turned := false, false
	if e.conn != nil {
		if silent, turned = ps.turnedLocked(p, e.conn); !turned {
			return
		}
	}
	ps.telling = p
	ps.mu.Unlock()
	switch {
	case turned:
		ps.core.handler.Silent(p, silent)
	case e.ended:
		ps.core.handler.Ended(p, e.code)
	default:
		ps.core.handler.Lost(p)
	}
	ps.mu.Lock()
	ps.telling = nil
	ps.told.Broadcast()
}
