package reliable

import (
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// Proactive repeat: while packets get lost, small fragments ride along again in later
// packets before anyone knows whether they arrived. A loss then costs an interval
// between packets instead of a round trip, for the fragment and all that waits behind it.
const (
	// repeatBytesMax is the largest fragment that is repeated. Larger ones are bulk.
	repeatBytesMax = 300
	// repeatFlightMax is with how many bytes in flight nothing is repeated: that is
	// no game's traffic, or the path is full.
	repeatFlightMax = 16 << 10
	// repeatRate and repeatBurst bound the repeated bytes, per second and at once.
	repeatRate  = 32 << 10
	repeatBurst = 4 << 10
	// repeatQueueMax is by how much the round trip may exceed twice its least. Beyond,
	// packets are lost because a queue is full, and repeating would keep it full.
	repeatQueueMax = 100 * time.Millisecond

	// repeatLossMin is the share of packets lost from which on repeating pays,
	// repeatLossLate the same while packets come late, so that some that will yet
	// come count as lost, and repeatLossAge how long after the last loss repeating
	// ends whatever the share was.
	repeatLossMin  = 0.002
	repeatLossLate = 0.01
	repeatLossAge  = 30 * time.Second
	// repeatLossWeight is what one packet weighs in that share: after a single loss,
	// repeating ends some 170 packets later.
	repeatLossWeight = 1.0 / 256

	// lateMax is the share of messages that may come late: those that were lost with
	// the packet after, and what a round trip brings behind them. Third copies of
	// some fragments keep it that low.
	lateMax = 0.007
	// thirdShareMax is the share of fragments that get a third copy at most: with it,
	// messages of 100 bytes take 3.5 bytes on the wire for one. thirdsMax is how many
	// third copies may be saved up.
	thirdShareMax = 0.81
	thirdsMax     = 4

	// repeatSpacing keeps copies apart: what loses one packet may lose the next.
	repeatSpacing = 3 * time.Millisecond
	// repeatAlone is how long at least a fragment waits for a packet to ride in
	// before one is made for it.
	repeatAlone = 20 * time.Millisecond
	// repeatReordered is how long after a packet came late a hole in what arrived is
	// no sign of loss.
	repeatReordered = 10 * time.Second
	// repeatLook bounds how many fragments one search looks at.
	repeatLook = 64
)

// repeats decides what rides along once more.
type repeats struct {
	loss   float32       // share of packets lost lately
	thirds float32       // third copies that may go out
	tokens int32         // bytes that may be repeated
	holes  bool          // an ACK showed that fragments are missing
	late   bool          // a packet of the ACK being read came late
	filled time.Duration // when tokens were last added
	lostAt time.Duration // when the last loss was found
	lateAt time.Duration // when a packet last came late
	due    time.Duration // when fragments get a packet of their own; never when none wait
	missed [4]uint32     // low bits of the numbers of the newest packets lost; 0: none
}

func newRepeats() repeats {
	return repeats{tokens: repeatBurst, due: never, lateAt: -repeatReordered}
}

// acked notes that a packet arrived; late means after one with a higher number.
func (r *repeats) acked(late bool) {
	r.loss -= r.loss * repeatLossWeight
	r.late = r.late || late
}

// lost notes that a packet counts as lost.
func (r *repeats) lost(at time.Duration, pn uint64) {
	r.loss += (1 - r.loss) * repeatLossWeight
	r.lostAt = at
	copy(r.missed[1:], r.missed[:])
	r.missed[0] = uint32(pn)
}

// recount takes back the losses of packets that arrived after all.
func (r *repeats) recount(a *wire.Ack) {
	for i, low := range r.missed {
		// The number is the newest one below a.Largest with these low bits.
		if pn := a.Largest - uint64(uint32(a.Largest)-low); low != 0 && covers(a, pn) {
			r.loss = max(r.loss-repeatLossWeight, 0)
			r.missed[i] = 0
			r.late = true
		}
	}
}

func covers(a *wire.Ack, pn uint64) bool {
	for r := range a.Ranges {
		if pn >= r.Lo {
			return pn <= r.Hi
		}
	}
	return false
}

// active reports whether losses are recent enough to repeat.
func (r *repeats) active(at time.Duration) bool {
	least := float32(repeatLossMin)
	if r.disordered(at) {
		least = repeatLossLate
	}
	return r.loss >= least && at-r.lostAt < repeatLossAge
}

// disordered reports whether packets came late recently.
func (r *repeats) disordered(at time.Duration) bool { return at-r.lateAt < repeatReordered }

// take takes n bytes from what may be repeated, or reports that they are too many.
func (r *repeats) take(at time.Duration, n int) bool {
	if added := min(at-r.filled, time.Second) * repeatRate / time.Second; added > 0 {
		r.tokens = min(r.tokens+int32(added), repeatBurst)
		r.filled = at
	}
	if int(r.tokens) < n {
		return false
	}
	r.tokens -= int32(n)
	return true
}

// earnThird notes that a fragment got its second copy while so many packets were
// under way. Two losses in a row make all of these late if there is no third copy,
// and one message if there is.
func (r *repeats) earnThird(underWay int) {
	twice := r.loss * r.loss
	all := twice * float32(underWay)
	if all <= lateMax {
		return
	}
	share := 1 - max(lateMax-twice, 0)/(all-twice)
	r.thirds = min(r.thirds+min(share, thirdShareMax), thirdsMax)
}

// mayRepeat reports whether what is under way is a game's traffic on a path that is
// not full.
func (m *Machine) mayRepeat() bool {
	return !m.cfg.stream && m.mayFly() && m.loss.probes == 0 && m.loss.inFlight <= repeatFlightMax &&
		m.rtt.smoothed <= 2*m.rtt.least+repeatQueueMax
}

// appendRepeats adds fragments that may have been lost.
func (m *Machine) appendRepeats(at time.Duration, p *packet) {
	r := &m.repeat
	holes, active := r.holes, r.active(at)
	r.holes = false
	if at >= r.due {
		r.due = never
	}
	if !holes && !active || !m.mayRepeat() {
		return
	}
	m.appendMissing(at, p, holes, active)
	if active {
		m.appendCopies(at, p)
		if p.count > 0 {
			wait := m.rtt.smoothed
			if at-m.loss.sentAt >= wait {
				wait /= 2 // packets are rare: don't wait for the next
			}
			r.due = at + max(repeatAlone, wait)
		}
	}
}

// appendMissing adds fragments that most likely were lost, oldest first: those that
// lookForHoles found and those whose acknowledgement is overdue.
func (m *Machine) appendMissing(at time.Duration, p *packet, holes, overdue bool) {
	l := &m.loss
	for i, looked := 0, 0; i < l.packets.len(); i++ {
		old := *l.packets.at(i)
		if !(holes && old.pn < l.largestAcked || overdue && at-old.at >= m.rtt.probeAfter()) {
			return
		}
		for k := uint16(0); k < old.count && !old.done; k++ {
			if looked++; looked > repeatLook {
				return
			}
			if c, f, seq := m.newestIn(&old, k); f != nil && !m.putRepeat(at, p, c, f, seq) {
				return
			}
		}
	}
}

// appendCopies adds second and third copies of fragments, the newest packet's first.
func (m *Machine) appendCopies(at time.Duration, p *packet) {
	r, l := &m.repeat, &m.loss
	for i, looked := l.packets.len()-1, 0; i >= 0; i-- {
		old := *l.packets.at(i)
		if at-old.at < repeatSpacing {
			continue
		}
		for k := uint16(0); k < old.count && !old.done; k++ {
			if looked++; looked > repeatLook {
				return
			}
			c, f, seq := m.newestIn(&old, k)
			if f == nil || f.flights > 2 || f.flights == 2 && r.thirds < 1 {
				continue
			}
			if !m.putRepeat(at, p, c, f, seq) {
				return
			}
			if f.flights > 2 {
				r.thirds--
			} else {
				r.earnThird(l.packets.len())
			}
		}
	}
}

// newestIn returns the k-th fragment of a packet if it is small, still needed, and
// went out in no later packet.
func (m *Machine) newestIn(p *sentPacket, k uint16) (*sendChannel, *fragment, uint64) {
	r := m.loss.ref(p, k)
	c, f, _ := m.sent.find(r)
	if c == nil || f.acked || f.lost || f.size > repeatBytesMax || f.newest != uint32(p.pn) {
		return nil, nil, 0
	}
	return c, f, r.seq()
}

// putRepeat adds one more copy of a fragment and reports whether it could.
func (m *Machine) putRepeat(at time.Duration, p *packet, c *sendChannel, f *fragment, seq uint64) bool {
	n := wire.ReliableFrameLen(seq, len(f.data))
	if n > p.room() || !m.repeat.take(at, n) {
		return false
	}
	m.putFragment(p, c, f, seq)
	m.sent.count(f)
	m.stats.Repeated++
	return true
}

// lookForHoles runs after an ACK. A small fragment all of whose packets lie below the
// largest acknowledged is missing: it goes out at once, although its packets don't
// count as lost before the thresholds say so.
func (m *Machine) lookForHoles(at time.Duration, a *wire.Ack) {
	r, l := &m.repeat, &m.loss
	r.recount(a)
	if r.late {
		r.late, r.lateAt = false, at
	}
	if l.inFlight == 0 {
		r.due = never
	}
	if r.disordered(at) || !m.mayRepeat() {
		return
	}
	for i, looked := 0, 0; i < l.packets.len() && !r.holes; i++ {
		old := *l.packets.at(i)
		if old.pn >= l.largestAcked {
			return
		}
		for k := uint16(0); k < old.count && !old.done && looked < repeatLook; k++ {
			_, f, _ := m.newestIn(&old, k)
			r.holes = r.holes || f != nil
			looked++
		}
	}
}
