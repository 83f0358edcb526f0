package exchange

import "time"

// Clock says when sids are issued, in µs: later than everything this node has issued or
// heard of. It is the wall clock at the start, and from there on a monotonic one with an
// offset that only grows: to what other nodes say, and to the wall clock when that was
// corrected, or went on while the machine was suspended. Two sids of one user id have the
// order of real time once the nodes that issued them have heard of each other, and if they
// have not, one order all the same.
//
// A clock that is ahead takes all others along, by decades too, since that is harmless:
// nobody reads the time from it. So no wall clock, whatever it shows, has a part in what is
// believed, and no node refuses what another one issued because the clocks of both differ.
type Clock struct {
	start  time.Time // of a monotonic clock
	offset int64     // to the time since start
	last   int64
}

// Bounds in µs. They are no times that a clock can come to, but a wall against what a bug
// says, such as the highest number there is: who took that over could issue nothing later.
const (
	wallMax  = 1 << 55 // of a wall clock: the year 3111
	raiseMax = 1 << 56 // what another node's clock may set this one to, at once
	// TrustMax is what another node may say at all. The 2,283 years down to raiseMax are for
	// the time that goes by once a bug has set all clocks to raiseMax.
	TrustMax = 1 << 57
	// raiseStep is by how much one message may set the clock on beyond raiseMax, so that a
	// node that joins after that catches up.
	raiseStep = int64(24 * time.Hour / time.Microsecond)
)

// NewClock makes a clock that begins at now, which has a monotonic reading.
func NewClock(now time.Time) Clock { return Clock{start: now} }

// read brings the clock to now, by the monotonic clock, and to what the wall clock shows.
func (c *Clock) read(now, wall time.Time) int64 {
	elapsed := now.Sub(c.start).Microseconds()
	c.offset = max(c.offset, min(wall.UnixMicro(), wallMax)-elapsed)
	return elapsed + c.offset
}

// Now is the time by the clock.
func (c *Clock) Now(now, wall time.Time) int64 { return max(c.last, c.read(now, wall)) }

// Issue is a time later than every one before.
func (c *Clock) Issue(now, wall time.Time) int64 {
	c.last = max(c.last+1, c.read(now, wall))
	return c.last
}

// Raise takes what another node said. It reports false for what no clock says.
func (c *Clock) Raise(now, wall time.Time, heard int64) bool {
	if heard < 0 || heard > TrustMax {
		return false
	}
	read := c.read(now, wall)
	heard = min(heard, max(raiseMax, read+raiseStep))
	if heard > read {
		c.offset += heard - read
	}
	c.last = max(c.last, heard)
	return true
}
