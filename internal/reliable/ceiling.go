package reliable

import (
	"math"
	"time"
)

const (
	// queueGrown and queueNoise tell a queue: the shortest round trip of a round is
	// so many times the least, and longer by more than clocks and owners blur.
	queueGrown = 1.25
	queueNoise = 2 * time.Millisecond
	// congestedKeep is what of the bytes in flight goes on after a queue overflowed.
	congestedKeep = 0.8

	// lossShare is what radio links may lose without any queue overflowing.
	lossShare = 0.05
	// lossHeavy is too much in any case: a queue too short to show in round trips, or
	// a path that is not to be used like that.
	lossHeavy = 0.08
	// tallyMost is how many packets are counted together.
	tallyMost = 1000
)

// ceiling bounds what is in flight by what overflowed a queue. A loss while a queue
// stands is taken for an overflow, as others who share that queue take it; a loss
// without one is not, unless there are too many.
type ceiling struct {
	most  int // bytes in flight; 0: nothing is known
	step  int // what it grows by in the next round
	tally tally
}

func (c *ceiling) bytes() int {
	if c.most == 0 {
		return windowMost
	}
	return c.most
}

// judge looks at a round trip that ended.
func (c *ceiling) judge(r *roundTrip, rttMin time.Duration) (congested, heavily bool) {
	heavily = c.tally.heavy()
	switch {
	case heavily || r.lost && r.queued(rttMin):
		c.most, c.step = max(int(congestedKeep*float64(r.flight)), windowLeast), packetBytes
		c.tally = tally{}
		return true, heavily
	case c.most > 0 && r.flight > c.most-c.most/8: // it is in our way
		c.most = min(c.most+c.step, windowMost)
		c.step = min(2*c.step, windowMost)
	}
	return false, false
}

// tally counts packets until there are enough to tell a share that was lost.
type tally struct{ acked, lost int }

// heavy reports whether more was lost than lossShare explains, by three standard
// deviations.
func (t *tally) heavy() bool {
	n, lost := float64(t.acked+t.lost), float64(t.lost)
	heavy := lost > lossHeavy*n && lost > lossShare*n+3*math.Sqrt(lossShare*(1-lossShare)*n)+1
	if n > tallyMost {
		*t = tally{}
	}
	return heavy
}
