package mars

import "time"

// CurrentUntil returns until when the directory is the whole truth as far as an authority
// can know it: who is not in it has ended, or was never there. The zero time means that it
// is not: nobody vouches for it, this node is not a member, pages of it are missing, or the
// authority, or this node as its follower, is too young to have heard of everybody.
//
// It counts from when the last heartbeat left, for the answer may have waited while this
// process stood still.
func (o *Observer) CurrentUntil() time.Time {
	v := &o.dir
	switch {
	case !o.live || o.left || o.registered.IsZero() || o.registered != o.epoch,
		v.epoch != o.epoch || v.loading != nil || v.whole || v.settling:
		return time.Time{}
	}
	return o.vouched.Add(o.staleAfter())
}

// CurrentUntil returns until when the directory is the whole truth, zero when it is not.
func (m *Machine) CurrentUntil() time.Time { return m.observer.CurrentUntil() }
