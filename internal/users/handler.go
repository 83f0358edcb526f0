package users

import (
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

// Silent implements [transport.Handler].
func (r *Registry) Silent(p *transport.Place, silent bool) {
	r.UserSilent(p.Owner().(*User), silent)
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
		u.setPhaseLocked(open)
		r.opened.Add(1)
	} else if !resumed {
		u.dropParkedLocked() // the client starts over, and knows that it lost something
	}
	u.silent.Store(false)
	u.link.Store(&link)
	u.countLocked()
	u.unparkLocked(b, link)
	revoked := u.revoked
	u.mu.Unlock()
	if before == reserved {
		r.unopened.remove(u)
	}
	if first {
		r.begin(b, u, link)
	} else {
		r.tellPresence(u)
	}
	switch {
	case revoked:
		r.end(u, wire.CloseReplaced, "a newer sid of this user is open")
	case first && u.movedIn:
		// Of a newer sid the old node may have heard too late, and this one too early.
		r.replaceOlder(u)
		r.finishMoveIn(b, u, link)
	case first:
		r.replaceOlder(u)
		for _, f := range r.hooks.opened {
			_ = r.guard.Do("opened hook", func() { f(u) })
		}
	}
}

// UserSilent is [Registry.Silent]: u is connected and does not answer, or answers again.
func (r *Registry) UserSilent(u *User, silent bool) {
	if u.silent.Swap(silent) == silent {
		return
	}
	u.mu.Lock()
	u.countLocked()
	u.mu.Unlock()
	r.tellPresence(u)
}

// UserLost is [Registry.Lost]: u may come back.
func (r *Registry) UserLost(u *User) {
	u.mu.Lock()
	if l := u.link.Swap(nil); l != nil {
		s := u.spentLocked(r.budgets.now(nil), l)
		u.linkSpent.packets, u.linkSpent.bytes = s.packets, s.bytes
	}
	u.countLocked()
	u.mu.Unlock()
	r.tellPresence(u)
}

// UserEnded is [Registry.Ended]: the end of u on this node. The hooks run later, on a
// goroutine of the registry.
func (r *Registry) UserEnded(u *User, code wire.CloseCode) {
	r.unopened.remove(u)
	r.forget(u, code)
}

// forget takes u, who is on no list of unopened places any more, out of everything.
func (r *Registry) forget(u *User, code wire.CloseCode) {
	u.mu.Lock()
	before := u.phase
	u.setPhaseLocked(ended)
	if link := u.link.Swap(nil); before == open {
		r.noteSpentLocked(u, link)
	}
	u.dropParkedLocked()
	u.box.clear()
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
	r.afterwards(func() {
		for _, f := range r.hooks.ended {
			_ = r.guard.Do("ended hook", func() { f(u, code) })
		}
		r.leftOpen(u) // after the hooks: who waits for empty waits for them too
	})
}

// afterwards runs the hooks of a user who is gone where no lock is held and nobody
// waits for them, also when Run has ended.
func (r *Registry) afterwards(f func()) {
	if !r.hookers.do(f) {
		go f()
	}
}

// end closes u's place with a code, and with it u. It returns at once and may be
// called with locks held, and again: the first time counts.
func (r *Registry) end(u *User, code wire.CloseCode, reason string) {
	if !u.ending.Swap(true) {
		r.enders.do(func() { r.places.End(u.SID, code, reason) })
	}
}
