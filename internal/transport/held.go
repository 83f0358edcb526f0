package transport

import (
	"cmp"
	"math"
	"slices"

	"github.com/Diarkis/diarkis/internal/wire"
)

// heldStep is how exactly what is held for a client is counted, in bytes, rounded up:
// the count that all connections share changes only when that of one does.
const heldStep = 4 << 10

// heldSteps is n bytes in steps.
func heldSteps(n int) int32 { return int32((n + heldStep - 1) / heldStep) }

// addHeld counts what is held for clients, and has the keeper look when it is too much.
func (k *core) addHeld(steps int32) {
	total := k.held.Add(int64(steps) * heldStep)
	if steps > 0 && total > k.heldMax() {
		k.alarm.wake()
	}
}

// heldMax is Limits.HeldBytes, or more than there can be.
func (k *core) heldMax() int64 {
	if n := k.cfg.Limits.HeldBytes; n >= 0 {
		return int64(n)
	}
	return math.MaxInt64
}

// noteHeldLocked counts what the connection holds after a packet.
func (c *Conn) noteHeldLocked() {
	steps := heldSteps(c.machine.Held())
	if was := c.held.Load(); steps != was {
		c.held.Store(steps)
		c.core.addHeld(steps - was)
	}
}

// releaseHeldLocked counts a connection no more that is over.
func (c *Conn) releaseHeldLocked() { c.core.addHeld(-c.held.Swap(0)) }

// countSavedLocked counts what waits for the next connection, after it changed.
func (ps *Places) countSavedLocked(x *moreOfPlace) {
	steps := int32(0)
	if x.saved != nil {
		steps = heldSteps(x.saved.Held())
	}
	ps.core.addHeld(steps - x.held)
	x.held = steps
}

// holder is a place with what is held for its client.
type holder struct {
	place *Place
	steps int32
}

// holders returns the places that something is held for, those with most first.
func (ps *Places) holders() []holder {
	var all []holder
	ps.mu.Lock()
	for _, p := range ps.bySID {
		steps := int32(0)
		if p.more != nil {
			steps = p.more.held
		}
		if c := p.conn.Load(); c != nil {
			steps += c.held.Load()
		}
		if steps > 0 && p.state != placeReleasing { // another node may be giving up its user right now
			all = append(all, holder{p, steps})
		}
	}
	ps.mu.Unlock()
	slices.SortFunc(all, func(a, b holder) int { return cmp.Compare(b.steps, a.steps) })
	return all
}

// shedHeld ends places while more is held than Limits.HeldBytes: whoever holds most goes
// first, wherever the last byte came from. It goes a little below, so as not to look for
// them at every packet.
func (k *core) shedHeld() {
	most := k.heldMax()
	if k.held.Load() <= most {
		return
	}
	ended := 0
	for _, h := range k.places.holders() {
		if k.held.Load() <= most-most/16 {
			break
		}
		if k.places.End(h.place.SID(), wire.CloseFlow, "the node holds too much") {
			k.m.heldEnded.Inc()
			ended++
		}
	}
	k.log.Debug().Int("users", ended).Int64("held_bytes", k.held.Load()).Msg("users ended who held most of too much")
}
