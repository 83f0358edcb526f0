package reliable

import (
	"sort"
	"time"
)

// Owes is since when the peer owes a sign of life: when the first packet that asks for
// an answer left after the last one that opened. It is false when the peer owes none.
// Over TCP nothing but a PING is sure to be answered soon.
func (m *Machine) Owes() (since time.Time, ok bool) {
	if m.cfg.stream {
		at := m.ping.owed - 1
		return m.start.Add(at), at >= m.heard // also false without any, which is -1
	}
	// What left after the last packet came can't be acknowledged, so it is all here.
	packets := &m.loss.packets
	i := sort.Search(packets.len(), func(i int) bool { return packets.at(i).at >= m.heard })
	for ; i < packets.len(); i++ {
		if p := packets.at(i); !p.done {
			return m.start.Add(p.at), true
		}
	}
	return time.Time{}, false
}

// Spoke reports whether anything left after the last packet that opened.
func (m *Machine) Spoke() bool { return m.lastSent > m.heard }

// ProbeTimeout is how long an answer takes at most, as far as the path is known: the PTO
// of RFC 9002, not doubled.
func (m *Machine) ProbeTimeout() time.Duration { return m.rtt.probeAfter() }

// left notes that a PING leaves. It is owed an answer since the first of those that
// left after the peer was heard last.
func (p *pinger) left(at, heard time.Duration) {
	if p.owed == 0 || p.owed-1 < heard {
		p.owed = at + 1
	}
	p.sentAt = at
}
