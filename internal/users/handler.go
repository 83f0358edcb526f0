package users

import (
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// The methods of [transport.Handler]. The owner of a place is always a *User.

// Opened implements [transport.Handler].
func (r *Registry) Opened(b *transport.Batch, c *transport.Conn, resumed bool) {
	r.UserOpened(b, c.Place().Owner().(*User), c, resumed)
}

// Handle implements [transport.Handler].
func (r *Registry) Handle(b *transport.Batch, c *transport.Conn, m wire.Message, rel reliable.Reliability) {
	r.commands.Serve(b, c.Place().Owner().(*User), m, rel)
}

// Lost implements [transport.Handler].
func (r *Registry) Lost(p *transport.Place) { r.UserLost(p.Owner().(*User)) }

// Ended implements [transport.Handler].
func (r *Registry) Ended(p *transport.Place, code wire.CloseCode) {
	r.UserEnded(p.Owner().(*User), code)
}

// UserOpened is [Registry.Opened] for any kind of connection: u's first one, or one
// after a loss or takeover.
func (r *Registry) UserOpened(b *transport.Batch, u *User, link Link, resumed bool) {
	u.mu.Lock()
	before := u.phase
	if before == ended {
		u.mu.Unlock()
		return
	}
	first := before != open
	if first {
		u.phase = open
		if !u.movedIn { // who was moved counts as open for long: any newer sid replaces them
			u.openedAt = time.Now()
		}
		r.opened.Add(1)
	} else if !resumed {
		u.dropParkedLocked() // the client starts over, and knows that it lost something
	}
	u.link.Store(&link)
	u.unparkLocked(b, link)
	revoked := u.revoked
	u.mu.Unlock()
	if !first {
		r.tellPresence(u)
	}
	switch {
	case revoked:
		r.end(u, wire.CloseReplaced, "a newer sid of this user is open")
	case first && u.movedIn:
		r.finishMoveIn(b, u, link)
	case first:
		r.replaceOlder(u)
		r.notify(u)
		for _, f := range r.hooks.opened {
			f(u)
		}
	}
}

// UserLost is [Registry.Lost]: u may come back.
func (r *Registry) UserLost(u *User) {
	u.link.Store(nil)
	r.tellPresence(u)
}

// UserEnded is [Registry.Ended]: the end of u on this node. The hooks run in a goroutine of their
// own: this may be called while the caller of Send holds a room's lock.
func (r *Registry) UserEnded(u *User, code wire.CloseCode) {
	u.mu.Lock()
	before := u.phase
	u.phase = ended
	u.link.Store(nil)
	u.dropParkedLocked()
	u.box.queue, u.box.ordered = nil, 0
	move, moveIn := u.move, u.moveIn
	u.mu.Unlock()
	if before == ended {
		return
	}
	if move != nil {
		move.stop()
	}
	if moveIn != nil {
		r.moves.dropIn(moveIn)
	}
	r.drop(u)
	if before != open {
		return
	}
	finish := func() {
		for _, f := range r.hooks.ended {
			f(u, code)
		}
		r.leftOpen() // after the hooks: who waits for empty waits for them too
	}
	if !r.spawn(finish) {
		finish()
	}
}

// end closes u's place with a code, and with it u. It returns at once and may be
// called with locks held.
func (r *Registry) end(u *User, code wire.CloseCode, reason string) {
	r.spawn(func() { r.places.End(u.SID, code, reason) })
}
