package reliable

import "time"

// sample is what was known of the path when a packet left.
type sample struct {
	delivered   uint64        // bytes acknowledged by then
	deliveredAt time.Duration // when the newest of them were
	firstSent   time.Duration // when the packet that told so had left
	limited     bool          // the application had no more to send
}

// rateEstimator measures how fast the path delivers, as in
// draft-cheng-iccrg-delivery-rate-estimation: what was acknowledged between a packet's
// departure and its acknowledgement, over the longer of the time that took and the
// time the same bytes took to leave.
type rateEstimator struct {
	delivered   uint64 // bytes acknowledged so far
	deliveredAt time.Duration
	firstSent   time.Duration
	limitedTo   uint64 // samples are limited until delivered passes this; 0: they are not

	// Of the ACK being read.
	newest     sample
	newestSent time.Duration
	any        bool
}

// sample is for a packet that leaves with inFlight bytes under way.
func (e *rateEstimator) sample(at time.Duration, inFlight int) sample {
	if inFlight <= 0 {
		e.firstSent, e.deliveredAt = at, at
	}
	return sample{e.delivered, e.deliveredAt, e.firstSent, e.limitedTo > 0}
}

// limit marks what is under way as limited by the application.
func (e *rateEstimator) limit(inFlight int) {
	e.limitedTo = e.delivered + uint64(max(inFlight, 1))
}

// acked takes a packet of an ACK.
func (e *rateEstimator) acked(s *sample, sent time.Duration, size int) {
	e.delivered += uint64(size)
	if !e.any || sent >= e.newestSent {
		e.newest, e.newestSent, e.any = *s, sent, true
	}
}

// finish ends an ACK. It returns the rate in bytes a second, 0 when the ACK tells none.
func (e *rateEstimator) finish(at, rttMin time.Duration) (rate int) {
	if !e.any {
		return 0
	}
	e.any = false
	if e.limitedTo > 0 && e.delivered > e.limitedTo {
		e.limitedTo = 0
	}
	e.deliveredAt, e.firstSent = at, e.newestSent
	took := max(at-e.newest.deliveredAt, e.newestSent-e.newest.firstSent)
	if took <= 0 || took < rttMin {
		return 0 // acknowledgements that were held up came together
	}
	return int(float64(e.delivered-e.newest.delivered) / took.Seconds())
}

// maxFilter is the highest value of the last rounds, by Kathleen Nichols' algorithm:
// the best, and the best of what came after it, twice.
type maxFilter [3]struct {
	round uint32
	value int
}

// maxRounds is how many rounds a value counts: more than a cycle of probing.
const maxRounds = 10

func (f *maxFilter) value() int { return f[0].value }

func (f *maxFilter) reset(round uint32, value int) {
	for i := range f {
		f[i].round, f[i].value = round, value
	}
}

func (f *maxFilter) add(round uint32, value int) {
	if value >= f[0].value || round-f[2].round > maxRounds {
		f.reset(round, value)
		return
	}
	if value >= f[1].value {
		f[1].round, f[1].value = round, value
		f[2] = f[1]
	} else if value >= f[2].value {
		f[2].round, f[2].value = round, value
	}
	switch age := round - f[0].round; {
	case age > maxRounds:
		f[0], f[1] = f[1], f[2]
		f[2].round, f[2].value = round, value
		if round-f[0].round > maxRounds {
			f[0], f[1] = f[1], f[2]
		}
	case f[1].round == f[0].round && age > maxRounds/4:
		f[1].round, f[1].value = round, value
		f[2] = f[1]
	case f[2].round == f[1].round && age > maxRounds/2:
		f[2].round, f[2].value = round, value
	}
}
