package room

import (
	"errors"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/users"
)

// Hooks are the application's. Each may be nil. They are called without any lock
// and may block: JoinAllowed before the join, the others after the pushes were
// queued, all in the goroutine that acted. That is the executor of the user whose
// command it was, a goroutine of its own for a user whose connection ended, a timer's
// or one of its own for a room that ended empty, or the caller of one of Engine's methods.
type Hooks struct {
	// JoinAllowed refuses a join by returning an error, which the client gets, or by
	// panicking.
	JoinAllowed func(r id.Room, u *users.User) error
	// Joined tells that u is a member.
	Joined func(r id.Room, u *users.User)
	// Left tells that u is a member no more: left, kicked, lost, or the room is deleted.
	Left func(r id.Room, u *users.User)
	// OwnerChanged tells of a new owner; before is empty for the first member, after
	// is empty when nobody is in any more.
	OwnerChanged func(r id.Room, before, after id.UID)
	// Ended tells that the room is no more.
	Ended func(r id.Room)
}

// SetHooks sets what the application wants to know. Call it before Run. A hook that
// panics is counted and logged, and the others are called all the same.
func (e *Engine) SetHooks(h Hooks) { e.hooks = h }

// joinAllowed asks the application. Who can't be judged, because its hook panicked, is
// not let in.
func (e *Engine) joinAllowed(r id.Room, u *users.User) (err error) {
	allowed := e.hooks.JoinAllowed
	if allowed == nil {
		return nil
	}
	if panicked := e.guard.Do("room join allowed hook", func() { err = allowed(r, u) }); panicked != nil {
		return errHook
	}
	return err
}

// tell calls the hooks for what came out of a step. It holds no lock.
func (e *Engine) tell(r id.Room, in *input, out *output) {
	h := &e.hooks
	if h.Joined != nil && in.Op == OpJoin && out.Err == nil {
		_ = e.guard.Do("room joined hook", func() { h.Joined(r, in.Link) })
	}
	if h.Left != nil {
		for _, u := range out.Left {
			_ = e.guard.Do("room left hook", func() { h.Left(r, u) })
		}
	}
	if h.OwnerChanged != nil && out.OwnerChanged {
		_ = e.guard.Do("room owner changed hook", func() { h.OwnerChanged(r, out.OwnerOld, out.OwnerNew) })
	}
	if h.Ended != nil && out.Closed && !errors.Is(out.Err, ErrNotFound) { // that is: by this step
		_ = e.guard.Do("room ended hook", func() { h.Ended(r) })
	}
}
