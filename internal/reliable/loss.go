package reliable

import (
	"sort"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// packetThreshold is how many later packets must have arrived for one to be lost.
const packetThreshold = 3

// sentPacket is a packet that asked for an acknowledgement.
type sentPacket struct {
	pn      uint64
	at      time.Duration
	ack     uint64 // the highest packet its ACK named, if hasAck
	resumes uint32 // channels with a RESUME in it, see channelBit
	refs    uint32 // number of its first ref
	count   uint16 // of refs
	size    uint16 // bytes, with packetCost
	hasAck  bool
	window  bool  // holds a WINDOW
	done    bool  // acknowledged or lost
	offline uint8 // reason of an OFFLINE in it
}

// losses knows which packets are under way and when to give up on them.
type losses struct {
	packets  ring[sentPacket]
	refs     ring[ref]     // of the packets, in order
	refsBase uint32        // number of refs.at(0)
	samples  *ring[sample] // of the packets, in bulk; else nil

	largestSent  uint64
	largestAcked uint64
	anyAcked     bool
	inFlight     int           // bytes
	sentAt       time.Duration // the newest packet that asks for an acknowledgement
	lostAt       time.Duration // when the next packet counts as lost; never if none may be
	retries      int32         // probe timeouts since the last acknowledgement
	probes       int32         // packets that may leave in spite of congestion control
}

// record notes that a packet left.
func (l *losses) record(p *sentPacket) {
	*l.packets.push() = *p
	l.inFlight += int(p.size)
	l.sentAt = p.at
	l.probes = max(l.probes-1, 0)
}

// nextRef is the number the next ref gets.
func (l *losses) nextRef() uint32 { return l.refsBase + uint32(l.refs.len()) }

// ref returns the k-th ref of a packet.
func (l *losses) ref(p *sentPacket, k uint16) ref {
	return *l.refs.at(int(p.refs + uint32(k) - l.refsBase))
}

// newest is the index of the newest packet up to pn, -1 when there is none.
func (l *losses) newest(pn uint64) int {
	return sort.Search(l.packets.len(), func(i int) bool { return l.packets.at(i).pn > pn }) - 1
}

// slide forgets the oldest packets that are done.
func (l *losses) slide() {
	for l.packets.len() > 0 && l.packets.at(0).done {
		n := l.packets.at(0).count
		for range n {
			l.refs.pop()
		}
		l.refsBase += uint32(n)
		l.packets.pop()
		if l.samples != nil {
			l.samples.pop()
		}
	}
}

// timer is when checkLoss has something to do.
func (m *Machine) lossTimer() time.Duration {
	l := &m.loss
	switch {
	case l.lostAt != never:
		return l.lostAt
	case l.inFlight == 0:
		return never
	}
	return l.sentAt + min(m.rtt.probeAfter()<<min(l.retries, 10), m.cfg.retryIntervalMax)
}

// checkLoss runs when lossTimer has passed.
func (m *Machine) checkLoss(at time.Duration) error {
	if at < m.lossTimer() {
		return nil
	}
	l := &m.loss
	if l.lostAt != never {
		m.detectLost(at)
		return nil
	}
	if l.retries++; l.retries > m.cfg.maxRetry {
		return ErrDead
	}
	l.sentAt = at
	l.probes = 1
	m.size.restart() // large packets may be what does not arrive any more
	m.stats.Probes++
	return nil
}

// acknowledged takes an ACK frame.
func (m *Machine) acknowledged(at time.Duration, a *wire.Ack) error {
	l := &m.loss
	if a.Largest > l.largestSent || m.skips.covered(a) {
		return errAckUnsent
	}
	progress, flight := false, l.inFlight
	i := l.newest(a.Largest)
	for r := range a.Ranges {
		for i >= 0 && l.packets.at(i).pn > r.Hi {
			i--
		}
		for ; i >= 0 && l.packets.at(i).pn >= r.Lo; i-- {
			p := l.packets.at(i)
			if p.done {
				continue
			}
			if p.pn == a.Largest && p.pn > 0 {
				m.rtt.sample(at-p.at, time.Duration(min(a.DelayMicros, 1<<24))*time.Microsecond)
				if b := m.congestion.bulk; b != nil && p.at >= m.congestion.since {
					b.measured(at, at-p.at)
				}
			}
			m.repeat.acked(p.pn < l.largestAcked)
			m.packetAcked(i)
			progress = true
		}
		if i < 0 {
			break
		}
	}
	l.largestAcked, l.anyAcked = max(l.largestAcked, a.Largest), true
	if progress {
		l.retries, l.probes = 0, 0
	}
	if m.slowSince != never {
		m.noteSlow(at)
	}
	m.detectLost(at)
	m.lookForHoles(at, a)
	if b := m.congestion.bulk; b != nil {
		b.finish(at, flight, l.inFlight)
	}
	return nil
}

// packetAcked forgets what packet i carried.
func (m *Machine) packetAcked(i int) {
	p := m.loss.packets.at(i)
	p.done = true
	m.size.acked(p)
	if b := m.congestion.bulk; b != nil {
		b.acked(m.loss.samples.at(i), p)
	}
	m.loss.inFlight -= int(p.size)
	for k := range p.count {
		m.sent.acked(m.loss.ref(p, k))
	}
	if p.hasAck {
		m.acks.told(p.ack)
	}
}

// detectLost gives up on packets that later ones overtook by too much, and sets
// lostAt for those that may yet come.
func (m *Machine) detectLost(at time.Duration) {
	l := &m.loss
	l.lostAt = never
	after := m.rtt.lossAfter()
	for i := range l.packets.len() {
		p := l.packets.at(i)
		if p.pn > l.largestAcked {
			break
		}
		switch {
		case p.done:
		case l.largestAcked-p.pn >= packetThreshold, p.at+after <= at:
			m.packetLost(at, p)
		default:
			l.lostAt = min(l.lostAt, p.at+after)
		}
	}
	l.slide()
}

// packetLost makes what the packet carried due again. Unreliable messages are gone.
func (m *Machine) packetLost(at time.Duration, p *sentPacket) {
	p.done = true
	m.loss.inFlight -= int(p.size)
	if m.size.lost(p, m.loss.largestSent) {
		return
	}
	m.stats.Lost++
	m.repeat.lost(at, p.pn)
	if b := m.congestion.bulk; b != nil && p.at >= m.congestion.since {
		b.lost()
	}
	for k := range p.count {
		m.sent.missed(m.loss.ref(p, k))
	}
	m.control.resumes |= p.resumes
	m.control.window = m.control.window || p.window
	if p.offline != 0 {
		m.control.offline = p.offline
	}
}
