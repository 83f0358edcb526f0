package reliable

import (
	"math"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// never is later than any deadline.
const never = time.Duration(math.MaxInt64)

// rangesMax bounds the ranges of an ACK. Older ones are forgotten: what they told
// was told before.
const rangesMax = 32

// ackTracker decides when to acknowledge and knows what.
type ackTracker struct {
	ranges    []wire.Range // received, highest first
	arrived   time.Duration
	waiting   int           // packets that ask for an ACK and got none
	due       time.Duration // when the ACK must leave; never when nothing waits
	immediate bool

	// What an ACK said need not be said for ever, even if the peer has nothing to
	// acknowledge ACKs with: ranges up to agedBelow were in at least agedAcks.
	agedBelow uint64
	agedAt    time.Duration
	said      int // ACKs since agedAt
}

// A range is forgotten when it was in so many ACKs over so long.
const (
	agedAcks  = 8
	agedAfter = 250 * time.Millisecond
)

// The handshake is packet 0 of both directions.
func newAckTracker() ackTracker {
	return ackTracker{ranges: make([]wire.Range, 1, 2), due: never}
}

// received notes a packet. At once is acknowledged every second one that asks for
// it, and one that does not follow the highest.
func (a *ackTracker) received(now time.Duration, pn uint64, eliciting bool) {
	largest := a.ranges[0].Hi
	if pn > largest {
		a.arrived = now
	}
	a.insert(pn)
	if !eliciting {
		return
	}
	a.waiting++
	if a.waiting >= 2 || pn != largest+1 {
		a.immediate = true
	}
	a.due = min(a.due, now+ackDelayMax)
}

func (a *ackTracker) insert(pn uint64) {
	for i := range a.ranges {
		r := &a.ranges[i]
		switch {
		case pn > r.Hi+1:
			a.ranges = slices.Insert(a.ranges, i, wire.Range{Lo: pn, Hi: pn})
			if len(a.ranges) > rangesMax {
				a.ranges = a.ranges[:rangesMax]
			}
			return
		case pn == r.Hi+1:
			r.Hi = pn
			return
		case pn >= r.Lo:
			return
		case pn == r.Lo-1:
			r.Lo = pn
			if i+1 < len(a.ranges) && a.ranges[i+1].Hi == pn-1 {
				r.Lo = a.ranges[i+1].Lo
				a.ranges = slices.Delete(a.ranges, i+1, i+2)
			}
			return
		}
	}
	if len(a.ranges) < rangesMax {
		a.ranges = append(a.ranges, wire.Range{Lo: pn, Hi: pn})
	}
}

// again makes an ACK leave now although nothing new arrived.
func (a *ackTracker) again() {
	a.waiting = max(a.waiting, 1)
	a.immediate = true
}

// isDue reports whether an ACK must leave now, company or not.
func (a *ackTracker) isDue(now time.Duration) bool { return a.immediate || now >= a.due }

// append adds the ACK frame.
func (a *ackTracker) append(now time.Duration, dst []byte) []byte {
	delay := uint64(max(now-a.arrived, 0) / time.Microsecond)
	a.waiting, a.immediate, a.due = 0, false, never
	dst = wire.AppendAck(dst, delay, a.ranges)
	if a.said++; a.said >= agedAcks && now-a.agedAt >= agedAfter {
		a.told(a.agedBelow)
		a.agedBelow, a.agedAt, a.said = a.ranges[0].Hi, now, 0
	}
	return dst
}

// frameMax is the longest the ACK frame can be.
func (a *ackTracker) frameMax() int { return 1 + 8 + 8 + 1 + 8 + 16*(len(a.ranges)-1) }

// told forgets the ranges the peer knows of, because it acknowledged an ACK of largest.
func (a *ackTracker) told(largest uint64) {
	for i := 1; i < len(a.ranges); i++ {
		if a.ranges[i].Hi <= largest {
			a.ranges = a.ranges[:i]
			return
		}
	}
}
