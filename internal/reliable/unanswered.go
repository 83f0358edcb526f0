package reliable

import "time"

const (
	// answerMin is how long the peer has at least to be heard after it was asked for
	// something, over UDP: then three probes or more were lost, or it is gone.
	answerMin = 2 * time.Second
	// answerProbes is how many probe timeouts it has at least, without their doubling, so
	// that a long path is no reason.
	answerProbes = 3
	// answerStream is the same over TCP. There one lost segment stalls all behind it until
	// the system has sent it again, for 0.2, 0.4, 0.8, 1.6 s: after 5 s all four were lost.
	answerStream = 5 * time.Second
)

// inVain is when a peer was asked that is found gone.
const inVain = time.Duration(-1)

// noteAsked remembers when the peer was first asked for an answer since it was heard: over
// UDP by anything that is to be acknowledged, over TCP by a PING or a fragment, whose
// acknowledgement is a RESUME. It is never while it is asked for nothing.
func (m *Machine) noteAsked(at time.Duration, p *packet) {
	if m.asked == never && p.eliciting && (p.asks || !m.cfg.stream) {
		m.asked = at
	}
}

// askAnew gives the peer its time over again, unless it is found gone: only a packet of
// its changes that.
func (m *Machine) askAnew(at time.Duration) {
	if m.asked != never && m.asked != inVain {
		m.asked = max(m.asked, at)
	}
}

// answerWithin is how long the peer has to be heard after it was asked.
func (m *Machine) answerWithin() time.Duration {
	if m.cfg.stream {
		return answerStream
	}
	return max(answerMin, answerProbes*m.rtt.probeAfter())
}

// Unanswered reports whether, at the last [Machine.Tick], the peer had been asked for an
// answer for so long that it is most likely gone, and nothing opened since. A peer that is
// asked for nothing never is: its silence means nothing.
func (m *Machine) Unanswered() bool { return m.asked == inVain }

// unansweredAt is when the peer counts as such, if nothing opens until then.
func (m *Machine) unansweredAt() time.Duration {
	if m.asked == never || m.asked == inVain {
		return never
	}
	return m.asked + m.answerWithin()
}

// Woke tells that the process did not run for a while before a time. What came meanwhile
// is not read yet: before there was time for that nobody is idle, slow, or does not answer.
// It may be told again.
func (m *Machine) Woke(at time.Time) {
	woke := m.at(at)
	m.askAnew(woke)
	if m.stalledAt != never {
		m.stalledAt = max(m.stalledAt, woke-streamStallMax+m.answerWithin())
	}
	if m.slowSince != never {
		m.slowSince = max(m.slowSince, woke)
	}
	if later := woke - max(m.cfg.idleTimeout-m.answerWithin(), 0) - m.heard; m.cfg.idleTimeout > 0 && later > 0 {
		m.away += later // which lived does not count
		m.heard += later
	}
}
