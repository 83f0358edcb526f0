package reliable

import "time"

const (
	// windowFloor lets game traffic through whatever is lost: 60 packets/s of 500
	// bytes over 500 ms are 15 KB in flight.
	windowFloor = 32 << 10
	// bulkQuiet is how long a connection has to need no more than the floor to be a
	// game's again.
	bulkQuiet = 2 * time.Second
)

// congestion bounds the bytes in flight. Up to the floor nothing is measured,
// bounded or paced, and nothing is lost that would matter; beyond it, the connection
// carries bulk, and a model of its path says how much and how fast.
type congestion struct {
	bulk *bulkModel // nil while the floor is enough
	// since is when the path changed last: packets sent before tell nothing of it.
	since time.Duration
}

// allows reports whether one more packet may leave with inFlight bytes under way.
func (c *congestion) allows(inFlight int) bool {
	if c.bulk == nil {
		return inFlight < windowFloor
	}
	return inFlight < windowLeast || inFlight < c.bulk.window && !c.bulk.pace.holds()
}

// sent notes a packet; l holds it already.
func (c *congestion) sent(l *losses, p *sentPacket, rtt time.Duration) {
	if c.bulk == nil {
		if l.inFlight < windowFloor {
			return
		}
		c.bulk = newBulkModel(l, rtt)
		l.samples = &c.bulk.samples
	} else {
		*l.samples.push() = c.bulk.rate.sample(p.at, l.inFlight-int(p.size))
	}
	c.bulk.pace.spend(p.at, int(p.size))
}

// refused notes that something would leave if the path took more.
func (c *congestion) refused(at time.Duration) {
	if c.bulk != nil {
		c.bulk.refusedAt = at
	}
}

// idle notes that nothing more waits, though the path would take it: how fast what
// is under way arrives tells the application's rate, not the path's.
func (c *congestion) idle(inFlight int) {
	if c.bulk != nil {
		c.bulk.rate.limit(inFlight)
	}
}

// widened notes that the peer takes more at once: that may have been the limit.
func (c *congestion) widened() {
	if b := c.bulk; b != nil && b.limit.most == 0 {
		b.phase, b.full, b.fullCount = phaseStart, false, 0
	}
}

// forget drops the model. What is known of packets under way goes with it.
func (c *congestion) forget(l *losses) {
	c.bulk, l.samples = nil, nil
}

// trim drops the model of a connection that no longer needs one.
func (c *congestion) trim(l *losses, at time.Duration) {
	if c.bulk != nil && l.inFlight < windowFloor && at-c.bulk.refusedAt >= bulkQuiet {
		c.forget(l)
	}
}
