package reliable

import "time"

const (
	rttInitial     = 333 * time.Millisecond // RFC 9002 section 6.2.2
	rttGranularity = time.Millisecond
)

// rttEstimator follows RFC 9002 section 5.
type rttEstimator struct {
	latest, smoothed, variance, least time.Duration // all 0 until the first sample
}

// sample takes a round trip of which the peer says it spent delay waiting.
func (e *rttEstimator) sample(rtt, delay time.Duration) {
	rtt = max(rtt, time.Microsecond)
	e.latest = rtt
	if e.smoothed == 0 {
		e.least, e.smoothed, e.variance = rtt, rtt, rtt/2
		return
	}
	e.least = min(e.least, rtt)
	if delay = min(delay, ackDelayMax); rtt-delay >= e.least {
		rtt -= delay
	}
	e.variance = (3*e.variance + (e.smoothed - rtt).Abs()) / 4
	e.smoothed = (7*e.smoothed + rtt) / 8
}

// probeAfter is the probe timeout before backing off.
func (e *rttEstimator) probeAfter() time.Duration {
	if e.smoothed == 0 {
		return 3 * rttInitial
	}
	return e.smoothed + max(4*e.variance, rttGranularity) + ackDelayMax
}

// lossAfter is how long after sending a packet is lost, if a later one arrived.
func (e *rttEstimator) lossAfter() time.Duration {
	rtt := max(e.latest, e.smoothed)
	if rtt == 0 {
		rtt = rttInitial
	}
	return max(rtt*9/8, rttGranularity)
}
