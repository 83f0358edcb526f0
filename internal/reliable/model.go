package reliable

import "time"

// The constants of the model, after BBR (draft-ietf-ccwg-bbr).
const (
	// windowLeast is what may be in flight whatever the model says, in bytes.
	windowLeast = 4 * packetBytes
	// windowMost bounds what is in flight, in bytes.
	windowMost = 8 << 20
	// packetBytes is a usual packet of bulk.
	packetBytes = 1252

	startGain  = 2.77 // doubles the rate every round
	drainGain  = 0.4
	paceMargin = 0.99 // of the rate, so that a queue goes away

	windowGain = 2.0 // products in flight while the rate is searched
	// cruiseGain is the same afterwards. It bounds the queue we build, and what we
	// take from others: beside loss-based flows at a queue of one product, whoever
	// keeps twice the product in flight takes more than half.
	cruiseGain    = 1.6
	windowBursts  = 3   // more for what owners and peers hold up
	rttProbeShare = 0.5 // of the product in flight, to see the least round trip

	fullGrowth = 1.25 // less in fullRounds rounds, and the rate is found
	fullRounds = 3

	probeGrowth = 1.15 // of the rate after asking for more: ask again

	rttMinFor   = 10 * time.Second // how long the least round trip counts
	rttLongFor  = 8                // or that many rounds of twice as long: the path may be another
	rttProbeFor = 200 * time.Millisecond
)

type phase uint8

const (
	phaseStart phase = iota // search the rate
	phaseDrain              // let the queue go that this built
	phaseProbe              // follow the rate
	phaseRTT                // send less, to see the round trip without our queue
)

// probeGains is the cycle of phaseProbe, a round trip each: ask for more, give back
// what queued, keep on.
var probeGains = [...]float64{1.25, 0.75, 1, 1, 1, 1, 1, 1}

// bulkModel is a model of the path: how fast it delivers, how long it takes at
// least, and how much overflows its queue. Sending at the first with the product of
// both in flight fills the path and no queue, whatever single packets are lost.
type bulkModel struct {
	phase   phase
	full    bool // the rate was found
	window  int  // bytes that may be in flight
	pace    pace
	rate    rateEstimator
	highest maxFilter // rates of the last rounds, bytes a second
	samples ring[sample]
	limit   ceiling

	rtt       time.Duration // the newest
	rttMin    time.Duration
	rttMinAt  time.Duration
	rttLong   int           // rounds in a row that took more than twice rttMin
	refusedAt time.Duration // when something last had to wait

	rounds      uint32
	round       roundTrip
	fullRate    int // the highest rate when it last grew
	fullCount   int // rounds since
	cycle       int // index of probeGains
	cycleAt     time.Duration
	cycleRate   int           // the highest rate when more was asked for
	rttProbeEnd time.Duration // of phaseRTT; 0: still too much in flight
}

// roundTrip is what happened since the packet left whose acknowledgement ends it.
type roundTrip struct {
	end    uint64        // of rate.delivered when that packet left
	rtt    time.Duration // the least; never when there was none
	flight int           // most bytes in flight
	rate   int           // highest
	lost   bool          // a packet was
}

// queued reports whether a queue stood all the time.
func (r *roundTrip) queued(rttMin time.Duration) bool {
	return r.rtt != never && r.rtt > time.Duration(queueGrown*float64(rttMin))+queueNoise
}

// newBulkModel starts with what is under way.
func newBulkModel(l *losses, rtt time.Duration) *bulkModel {
	first, last := l.packets.at(0).at, l.packets.at(l.packets.len()-1).at
	if rtt == 0 {
		rtt = rttInitial
	}
	m := &bulkModel{window: windowFloor, rtt: rtt, rttMin: rtt, rttMinAt: last, refusedAt: last}
	m.round.rtt = never
	m.rate.deliveredAt, m.rate.firstSent = first, first
	for range l.packets.len() {
		*m.samples.push() = m.rate.sample(first, l.inFlight)
	}
	m.pace.rate = int(startGain * windowFloor / rtt.Seconds())
	return m
}

// acked takes a packet of an ACK.
func (m *bulkModel) acked(s *sample, p *sentPacket) {
	m.limit.tally.acked++
	m.rate.acked(s, p.at, int(p.size))
}

// lost takes a packet that was lost.
func (m *bulkModel) lost() {
	m.limit.tally.lost++
	m.round.lost = true
}

// measured takes a round trip.
func (m *bulkModel) measured(at, rtt time.Duration) {
	rtt = max(rtt, time.Microsecond)
	m.rtt = rtt
	m.round.rtt = min(m.round.rtt, rtt)
	if rtt <= m.rttMin {
		m.rttMin, m.rttMinAt = rtt, at
	}
}

// finish ends an ACK: flight bytes were under way before it, inFlight still are.
func (m *bulkModel) finish(at time.Duration, flight, inFlight int) {
	newest, any := m.rate.newest, m.rate.any
	rate := m.rate.finish(at, m.rttMin)
	if newest.limited && rate < m.highest.value() {
		rate = 0
	}
	if rate > 0 {
		m.highest.add(m.rounds, rate)
		m.round.rate = max(m.round.rate, rate)
	}
	m.round.flight = max(m.round.flight, flight)
	if any && newest.delivered >= m.round.end {
		m.endRound(newest.limited)
	}
	m.advance(at, inFlight)
	m.steer()
}

// endRound draws the conclusions from a round trip.
func (m *bulkModel) endRound(limited bool) {
	congested, heavily := m.limit.judge(&m.round, m.rttMin)
	switch {
	case heavily: // what was before is over
		m.highest.reset(m.rounds, max(m.round.rate, m.highest.value()/2))
		fallthrough
	case congested:
		m.full = true
	case !m.full && !limited:
		m.full = m.growthEnded()
	}
	if m.rttLong++; m.round.rtt <= 2*m.rttMin+queueNoise || m.round.rtt == never {
		m.rttLong = 0
	}
	m.rounds++
	m.round = roundTrip{end: m.rate.delivered, rtt: never}
}

// growthEnded reports that asking for more yields no more.
func (m *bulkModel) growthEnded() bool {
	if rate := m.highest.value(); float64(rate) >= fullGrowth*float64(m.fullRate) {
		m.fullRate, m.fullCount = rate, 0
		return false
	}
	m.fullCount++
	return m.fullCount >= fullRounds
}

// advance goes from phase to phase.
func (m *bulkModel) advance(at time.Duration, inFlight int) {
	switch {
	case m.phase == phaseRTT:
		m.advanceRTT(at, inFlight)
		return
	case at-m.rttMinAt > rttMinFor, m.full && m.rttLong >= rttLongFor:
		m.phase, m.rttProbeEnd, m.rttLong = phaseRTT, 0, 0
	case m.phase == phaseStart && m.full:
		m.phase = phaseDrain
	case m.phase == phaseDrain && inFlight <= m.products(1):
		m.cruise(at)
	case m.phase == phaseProbe:
		m.advanceProbe(at, inFlight)
	}
}

// advanceRTT waits until little is in flight, then for a round trip of that.
func (m *bulkModel) advanceRTT(at time.Duration, inFlight int) {
	switch {
	case m.rttProbeEnd == 0 && inFlight <= m.products(rttProbeShare):
		m.rttProbeEnd = at + max(rttProbeFor, m.rtt)
		m.rttMin = m.rtt
	case m.rttProbeEnd == 0 || at < m.rttProbeEnd:
	case m.full:
		m.rttMinAt = at
		m.cruise(at)
	default:
		m.rttMinAt = at
		m.phase = phaseStart
	}
}

// cruise enters phaseProbe somewhere in its calm part: flows that begin together
// must not ask for more together.
func (m *bulkModel) cruise(at time.Duration) {
	m.phase, m.cycleAt, m.cycleRate = phaseProbe, at, m.highest.value()
	m.cycle = 2 + int(at/time.Microsecond)%(len(probeGains)-2)
}

func (m *bulkModel) advanceProbe(at time.Duration, inFlight int) {
	spent := at - m.cycleAt
	over := spent > m.rttMin
	switch gain := probeGains[m.cycle]; {
	case gain > 1: // until it shows
		over = over && (m.round.lost || inFlight >= m.products(gain) || spent > 2*m.rttMin)
	case gain < 1:
		over = over || inFlight <= m.products(1)
	}
	if !over {
		return
	}
	m.cycle, m.cycleAt = (m.cycle+1)%len(probeGains), at
	switch rate := m.highest.value(); {
	case m.cycle == 1:
		return // what was asked for shows a round trip later
	case m.cycle == 2 && float64(rate) >= probeGrowth*float64(m.cycleRate) && !m.round.queued(m.rttMin):
		m.cycle = 0
		fallthrough
	default:
		m.cycleRate = rate
	}
}

// products is what the path holds without a queue, gain times, in bytes.
func (m *bulkModel) products(gain float64) int {
	return max(int(gain*float64(m.highest.value())*m.rttMin.Seconds()), windowLeast)
}

// steer sets window and pace.
func (m *bulkModel) steer() {
	pacing, window := 1.0, cruiseGain
	switch m.phase {
	case phaseStart:
		pacing, window = startGain, windowGain
	case phaseDrain:
		pacing, window = drainGain, windowGain
	case phaseProbe:
		pacing = probeGains[m.cycle]
	case phaseRTT:
		m.window = m.products(rttProbeShare)
	}
	if rate := m.highest.value(); rate > 0 {
		m.pace.rate = max(int(paceMargin*pacing*float64(rate)), int(windowLeast/m.rtt.Seconds()))
	}
	if m.phase == phaseRTT {
		return
	}
	m.window = m.products(window) + windowBursts*m.pace.burst()
	if !m.full {
		m.window = max(m.window, windowFloor)
	}
	m.window = min(m.limit.bytes(), m.window, windowMost)
}
