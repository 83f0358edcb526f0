package exchange

import "time"

// Clock says when sids are issued, in µs: later than everything this node has issued or
// heard of. Wall clocks differ by hours; so it is a wall clock once, at the start, and
// from there on a monotonic one with an offset that only grows: to what other nodes
// say. Two sids of one user id have the order of real time once the nodes that issued
// them have heard of each other, and if they have not, one order all the same.
//
// A clock that is ahead takes all others along, since that is harmless: nobody reads
// the time from it.
type Clock struct {
	wall   time.Time // when it began, with a monotonic reading
	offset int64
	last   int64
}

const (
	// raiseMax is how far another node's clock may pull this one ahead of its own wall
	// clock, and TrustMax what it may say at all. Nodes whose clocks are further apart have no
	// valid certificates for each other. The gap between both is for honest nodes whose wall
	// clocks differ and whom a liar has pulled ahead as far as goes.
	raiseMax = 180 * 24 * time.Hour
	TrustMax = 2 * raiseMax
)

// NewClock makes a clock that begins at now.
func NewClock(now time.Time) Clock { return Clock{wall: now} }

// Now is the time by the clock.
func (c *Clock) Now(now time.Time) int64 {
	return max(c.last, c.own(now)+c.offset)
}

// own is this node's own idea of the time: its wall clock may have been set since.
func (c *Clock) own(now time.Time) int64 { return c.wall.UnixMicro() + now.Sub(c.wall).Microseconds() }

// Issue is a time later than every one before.
func (c *Clock) Issue(now time.Time) int64 {
	c.last = max(c.last+1, c.own(now)+c.offset)
	return c.last
}

// Raise takes what another node said. It reports false for what no clock says.
func (c *Clock) Raise(now time.Time, heard int64) bool {
	own := c.own(now)
	if heard < 0 || heard > own+TrustMax.Microseconds() {
		return false
	}
	heard = min(heard, own+raiseMax.Microseconds())
	c.offset, c.last = max(c.offset, heard-own), max(c.last, heard)
	return true
}
