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
// for a room that ended empty, or the caller of one of Engine's methods.
type Hooks struct {
	// JoinAllowed refuses a join by returning an error, which the client gets.
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

// SetHooks sets what the application wants to know. Call it before Run.
func (e *Engine) SetHooks(h Hooks) { e.hooks = h }

func (h *Hooks) joinAllowed(r id.Room, u *users.User) error {
	if h.JoinAllowed == nil {
		return nil
	}
	return h.JoinAllowed(r, u)
}

// call tells what came out of a step.
func (h *Hooks) call(r id.Room, in input, out *output) {
	if h.Joined != nil && in.Op == OpJoin && out.Err == nil {
		h.Joined(r, in.Link)
	}
	if h.Left != nil {
		for _, u := range out.Left {
			h.Left(r, u)
		}
	}
	if h.OwnerChanged != nil && out.OwnerChanged {
		h.OwnerChanged(r, out.OwnerOld, out.OwnerNew)
	}
	if h.Ended != nil && out.Closed && !errors.Is(out.Err, ErrNotFound) { // that is: by this step
		h.Ended(r)
	}
}
