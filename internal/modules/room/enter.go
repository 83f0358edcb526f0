package room

import (
	"time"

	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users"
)

// claim notes that u is about to be in r; a user is in one room at most.
func (e *Engine) claim(u *users.User, r *room) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.index.in[u].room != nil {
		return false
	}
	e.index.in[u] = membership{room: r}
	return true
}

func (e *Engine) unclaim(u *users.User, r *room) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.index.leave(u, r)
}

// roomOf returns the room that u is in, nil for none.
func (e *Engine) roomOf(u *users.User) *room {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.index.in[u].room
}

// enter puts u into r. answer is called when that went well, under the room's lock
// and before the others are told.
func (e *Engine) enter(r *room, u *users.User, message []byte, answer func(b *transport.Batch)) error {
	if !e.claim(u, r) {
		return ErrIn
	}
	err := e.joinAllowed(r.id, u)
	if err == nil {
		e.replaceMember(r, u)
		_, err = e.step(nil, r, input{Op: OpJoin, By: u, User: u.ID, Link: u, Message: message}, answer)
	}
	if err != nil {
		e.unclaim(u, r)
		return err
	}
	if u.Gone() { // ended while we joined: OnEnded may have run before the claim
		e.vanish(u)
	}
	return nil
}

// replaceMember takes an older connection of u's user id, which is ending, out of r, because
// its hooks may run behind the join of the newer. u has its seat.
func (e *Engine) replaceMember(r *room, u *users.User) {
	r.mu.Lock()
	old, ok := r.m.Member(u.ID)
	r.mu.Unlock()
	if !ok || old == u || !old.Leaving() {
		return
	}
	_, err := e.step(nil, r, input{Op: OpHold, User: u.ID, Until: time.Now().Add(pickedSeat)}, nil)
	if err == nil {
		_, _ = e.step(nil, r, input{Op: OpLeave, User: u.ID, Link: old, Lost: true}, nil) // has left meanwhile: as well
	}
}

// vanish takes a user who ended or was moved away out of their room.
func (e *Engine) vanish(u *users.User) {
	if r := e.roomOf(u); r != nil {
		_, _ = e.step(nil, r, input{Op: OpLeave, User: u.ID, Link: u, Lost: true}, nil) // not in it any more: nothing to do
	}
}
