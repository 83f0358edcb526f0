package users

import (
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Whoever can ask for places can ask for any number, under any user ids, and never
// come. So the places nobody opened yet are bounded by themselves, far below the
// node, and a new one never waits for an old one to expire: the oldest goes.

// ageOrder is one of the lists an unopened place stands in, oldest first.
type ageOrder uint8

const (
	ageOfAll   ageOrder = iota
	ageOfProps          // among those that bring properties
	ageOfUID            // among those of the same user id
	ageOrders
)

// Why an unopened place is cancelled: the values of a metric's label.
const (
	cancelUser     = "user"     // its user id has a newer one too many
	cancelShare    = "share"    // all unopened places fill their share of the node
	cancelFull     = "full"     // the node is full and somebody new is at the door
	cancelBytes    = "bytes"    // the properties of all take too much memory
	cancelReplaced = "replaced" // a newer sid of the user id opened
	cancelAsker    = "asker"    // who asked for it took that back
)

// unopenedPlace is a place in the lists of [unopened]. It exists until the first
// client is there.
type unopenedPlace struct {
	user  *User
	bytes int    // of properties
	nonce uint64 // its key in unopened.byNonce, zero for none
	links [ageOrders]struct{ older, newer *unopenedPlace }
}

// ageList is unopened places, oldest first.
type ageList struct {
	oldest, newest *unopenedPlace
	n              int
}

func (l *ageList) push(p *unopenedPlace, o ageOrder) {
	if p.links[o].older = l.newest; l.newest != nil {
		l.newest.links[o].newer = p
	} else {
		l.oldest = p
	}
	l.newest = p
	l.n++
}

func (l *ageList) remove(p *unopenedPlace, o ageOrder) {
	at := &p.links[o]
	if at.older != nil {
		at.older.links[o].newer = at.newer
	} else {
		l.oldest = at.newer
	}
	if at.newer != nil {
		at.newer.links[o].older = at.older
	} else {
		l.newest = at.older
	}
	at.older, at.newer = nil, nil
	l.n--
}

// unopened keeps the places that strangers asked for and no client has opened. Users
// on the way from other nodes are not among them.
type unopened struct {
	mu        sync.Mutex // taken before every other lock, held for a whole reservation
	all       ageList
	withProps ageList
	byUID     map[id.UID]ageList
	bytes     int
	byNonce   map[uint64]*unopenedPlace
	cancels   cancels
}

func (w *unopened) init() {
	w.byUID, w.byNonce = make(map[id.UID]ageList), make(map[uint64]*unopenedPlace)
	w.cancels.init()
}

// addLocked adds u, whose request has the given key in byNonce, zero for none.
func (w *unopened) addLocked(u *User, nonce uint64) {
	p := &unopenedPlace{user: u, bytes: len(u.props.encoded), nonce: nonce}
	u.unopened = p
	if nonce != 0 {
		w.byNonce[nonce] = p
	}
	w.all.push(p, ageOfAll)
	if p.bytes > 0 {
		w.withProps.push(p, ageOfProps)
		w.bytes += p.bytes
	}
	l := w.byUID[u.ID]
	l.push(p, ageOfUID)
	w.byUID[u.ID] = l
}

// removeLocked does nothing when u is not there any more.
func (w *unopened) removeLocked(u *User) {
	p := u.unopened
	if p == nil {
		return
	}
	u.unopened = nil
	if p.nonce != 0 {
		delete(w.byNonce, p.nonce)
	}
	w.all.remove(p, ageOfAll)
	if p.bytes > 0 {
		w.withProps.remove(p, ageOfProps)
		w.bytes -= p.bytes
	}
	l := w.byUID[u.ID]
	if l.remove(p, ageOfUID); l.n > 0 {
		w.byUID[u.ID] = l
	} else {
		delete(w.byUID, u.ID)
	}
}

func (w *unopened) remove(u *User) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removeLocked(u)
}

// sizes returns how many places wait, and the bytes of their properties.
func (w *unopened) sizes() (n, bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.n, w.bytes
}

// makeWayLocked cancels what has to go before u may wait too.
func (r *Registry) makeWayLocked(u *User) {
	w := &r.unopened
	for w.byUID[u.ID].n >= r.cfg.ReservationsPerUser {
		r.cancelLocked(w.byUID[u.ID].oldest.user, cancelUser)
	}
	for w.all.n >= r.cfg.ReservationsMax {
		r.cancelLocked(w.all.oldest.user, cancelShare)
	}
	if n := len(u.props.encoded); n > 0 {
		for w.withProps.n > 0 && w.bytes+n > r.cfg.ReservedBytesMax {
			r.cancelLocked(w.withProps.oldest.user, cancelBytes)
		}
	}
}

// fitLocked makes the node hold no more users than it may, the newest counted
// already, at the cost of who is not here yet. It reports false when it is full of
// players.
func (r *Registry) fitLocked() bool {
	for r.count.Load() > int64(r.cfg.UsersMax) {
		if r.unopened.all.n == 0 {
			return false
		}
		r.cancelLocked(r.unopened.all.oldest.user, cancelFull)
	}
	return true
}

// cancelLocked gives up an unopened place, unless its client is being let in right
// now, and reports which. Either way it is on no list any more.
func (r *Registry) cancelLocked(u *User, reason string) bool {
	r.unopened.removeLocked(u)
	cancel := r.places.Cancel
	if reason == cancelReplaced {
		cancel = r.places.Replaced // so its client hears why
	}
	if !cancel(u.SID) {
		return false
	}
	r.metrics.cancelled.WithLabelValues(reason).Inc()
	r.forget(u, wire.CloseNormal)
	return true
}

// reserveTTL is how long the newest of n unopened places waits for its client: while
// they fill at most half their share Config.ReserveTTL, then linearly less, down to
// Config.ReserveTTLMin for the one that fills it.
func (c Config) reserveTTL(n int) time.Duration {
	half := c.ReservationsMax / 2
	if n <= half || c.ReserveTTL <= c.ReserveTTLMin {
		return c.ReserveTTL
	}
	less := float64(c.ReserveTTL-c.ReserveTTLMin) * float64(n-half) / float64(c.ReservationsMax-half)
	return max(c.ReserveTTL-time.Duration(less), c.ReserveTTLMin).Truncate(time.Millisecond)
}
