package reliable

import "time"

// hear notes that a packet opened. Silence before it counts only in part for what a
// peer that is there has to do in time.
func (m *Machine) hear(at time.Duration) {
	if at-m.heard > slowSilence { // the shorter of the two
		m.away += max(0, at-m.heard-silenceLived)
		if m.slowSince != never {
			m.slowSince += max(0, at-max(m.heard, m.slowSince)-slowSilence)
		}
	}
	m.heard, m.now = at, at
	m.asked = never
	m.inbox.now = at - m.away // that is lived(at)
}

// lived is for how long the connection was alive: not frozen, and its peer heard. Of
// every silence it counts the first silenceLived.
func (m *Machine) lived(at time.Duration) time.Duration {
	return min(at, m.heard+silenceLived) - m.away
}

// livedAt is when the connection will have lived so long, if its peer is heard no
// more until then; never if that has to happen first.
func (m *Machine) livedAt(lived time.Duration) time.Duration {
	if at := lived + m.away; at <= m.heard+silenceLived {
		return at
	}
	return never
}

// maySlow reports whether there is something for noteSlow to do.
func (m *Machine) maySlow() bool {
	return m.queue.reliableBytes > int(m.cfg.queueBytes) || m.slowSince != never
}

// noteSlow remembers since when too much waits and nothing of what is under way was
// acknowledged.
func (m *Machine) noteSlow(at time.Duration) {
	if m.cfg.slowAfter == 0 {
		return
	}
	over := m.queue.reliableBytes > int(m.cfg.queueBytes)
	if over {
		_, bytes := m.queue.waiting()
		over = bytes > int(m.cfg.queueBytes)
	}
	switch {
	case !over:
		m.slowSince, m.sent.tries = never, 0
	case m.sent.progress:
		m.slowSince, m.sent.tries = at, 0
	default:
		m.slowSince = min(m.slowSince, at)
	}
	m.sent.progress = false
}

// slowTriesMin is how many packets with fragments a peer must not have acknowledged to
// count as slow. On a link that loses a quarter of them two seconds of probes, three or
// four, are lost now and then; so many are lost together once in 10^5 times.
const slowTriesMin = 8

// noteTry counts a packet with fragments while too much waits.
func (m *Machine) noteTry() {
	if m.slowSince != never && m.sent.tries < slowTriesMin {
		m.sent.tries++
	}
}

// slowAt is when the peer counts as slow, if nothing changes until then: never when
// it has to be heard first, or has to be sent more. Too much must wait.
func (m *Machine) slowAt() time.Duration {
	if !m.cfg.stream && m.sent.tries < slowTriesMin {
		return never
	}
	if max(m.heard, m.slowSince)+slowSilence < m.slowSince+m.cfg.slowAfter {
		return never
	}
	return m.slowSince + m.cfg.slowAfter
}
