package reliable

import "time"

const (
	// windowFloor lets game traffic through whatever is lost: 60 packets/s of 500
	// bytes over 500 ms are 15 KB in flight.
	windowFloor = 32 << 10
	windowCeil  = 4 << 20
	windowStep  = 1200 // bytes gained per window acknowledged, after slow start
)

// congestion bounds the bytes in flight as RFC 9002 section 7 does, with a floor.
type congestion struct {
	window    int // bytes
	threshold int // slow start ends here
	// recovery is when the window was last halved. Packets sent before tell nothing new.
	recovery time.Duration
}

func newCongestion() congestion {
	return congestion{window: windowFloor, threshold: windowCeil, recovery: -1}
}

// acked counts a packet of size bytes, sent at a time when inFlight bytes were out.
func (c *congestion) acked(size int, sent time.Duration, inFlight int) {
	if sent <= c.recovery || 2*inFlight < c.window {
		return // a window that is not used proves nothing
	}
	if c.window < c.threshold {
		c.window += size
	} else {
		c.window += windowStep * size / c.window
	}
	c.window = min(c.window, windowCeil)
}

// lost halves the window, once per round trip.
func (c *congestion) lost(now, sent time.Duration) {
	if sent <= c.recovery {
		return
	}
	c.recovery = now
	c.window = max(c.window/2, windowFloor)
	c.threshold = c.window
}
