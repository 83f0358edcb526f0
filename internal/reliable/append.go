package reliable

import (
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// packet is one packet being filled.
type packet struct {
	dst        []byte
	start, end int // of the frames in dst
	eliciting  bool
	asks       bool // TCP: for an answer
	sentPacket
}

func (p *packet) room() int { return p.end - len(p.dst) }

// put takes the packet with one more frame.
func (p *packet) put(dst []byte, eliciting bool) {
	p.dst = dst
	p.eliciting = p.eliciting || eliciting
}

// Append adds the frames of one packet, at most max bytes, and remembers them under
// the packet number pn, which must be above all before. It returns dst unchanged
// when nothing is to be sent now; otherwise the caller seals and sends the packet
// and calls Append again. max is at least Config.FramesBase, and Config.FramesMax
// for the path to be searched.
func (m *Machine) Append(now time.Time, pn uint64, dst []byte, max int) []byte {
	at := m.at(now)
	m.now = at
	m.noteFlight(at)
	if !m.ready(at) {
		m.noteStall(at)
		return dst
	}
	p := packet{dst: dst, start: len(dst), end: len(dst) + m.limit(max)}
	p.pn, p.refs = pn, m.loss.nextRef()
	if m.appendSizeProbe(at, pn, &p, max); len(p.dst) == p.start {
		m.fill(now, at, &p)
	}
	if len(p.dst) == p.start {
		return dst
	}
	m.lastSent = at
	m.noteAsked(at, &p)
	m.Sent(pn)
	if p.eliciting && !m.cfg.stream {
		p.at = at
		p.size = uint16(min(len(p.dst)-p.start+packetCost, 1<<16-1))
		m.loss.record(&p.sentPacket)
		m.congestion.sent(&m.loss, &p.sentPacket, m.rtt.smoothed)
	}
	return p.dst
}

// fill adds all that is due, as far as it fits.
func (m *Machine) fill(now time.Time, at time.Duration, p *packet) {
	m.appendAck(at, p)
	m.appendControl(now, at, p)
	if m.mayFly() {
		m.appendAgain(p)
		m.appendNew(p)
	}
	m.appendRepeats(at, p)
	if m.loss.probes > 0 && !p.eliciting {
		m.appendProbe(at, p)
	}
	if m.maySlow() {
		m.noteSlow(at)
		if m.loss.nextRef() != p.refs {
			m.noteTry()
		}
	}
}

// Sent notes that pn was used for a packet the caller built itself, so that its
// acknowledgement is no surprise.
func (m *Machine) Sent(pn uint64) { m.loss.largestSent = max(m.loss.largestSent, pn) }

// ready reports whether Append has something to send at the time.
func (m *Machine) ready(at time.Duration) bool {
	return m.pending() || m.acks.isDue(at) || at >= m.control.resumeAt || at >= m.repeat.due
}

// pending reports whether Append has something to send, whatever the time.
func (m *Machine) pending() bool {
	if m.acks.immediate || m.control.pending() || m.loss.probes > 0 || m.repeat.holes {
		return true
	}
	return m.mayFly() && m.waits()
}

// waits reports whether messages would leave if congestion control let them.
func (m *Machine) waits() bool {
	return m.queue.unreliable.len() > 0 || m.nextCut() > 0 || m.sent.canSendAgain()
}

// noteFlight tells congestion control what keeps us from sending: itself, or that
// there is nothing.
func (m *Machine) noteFlight(at time.Duration) {
	b := m.congestion.bulk
	if b == nil {
		return
	}
	b.pace.release(at)
	switch flies, waits := m.mayFly(), m.waits(); {
	case waits && !flies:
		m.congestion.refused(at)
	case flies && !waits && m.queue.reliable == 0: // else the peer's window is full
		m.congestion.idle(m.loss.inFlight)
	}
}

// mayFly reports whether congestion control lets a packet go.
func (m *Machine) mayFly() bool {
	return m.cfg.stream || m.loss.probes > 0 || m.congestion.allows(m.loss.inFlight)
}

// nextCut returns the size of the next new fragment, or 0 when none may be sent.
func (m *Machine) nextCut() int {
	if m.queue.reliable == 0 || m.sent.lost > 0 || !m.roomForAll() && !m.takeTurn() {
		return 0
	}
	n := min(len(m.queue.head().data), fragmentMax)
	if m.sent.outstanding > 0 && m.sent.outstanding+n+fragmentCost > m.sent.window {
		return 0
	}
	return n
}

// noteStall remembers since when reliable data can't leave for want of
// acknowledgements. Over UDP the probe timeout watches over that.
func (m *Machine) noteStall(at time.Duration) {
	switch {
	case !m.cfg.stream, m.queue.reliable == 0 && m.sent.lost == 0, m.nextCut() > 0, m.sent.canSendAgain():
		m.stalledAt = never
	default:
		m.stalledAt = min(m.stalledAt, at)
	}
}

func (m *Machine) appendAck(at time.Duration, p *packet) {
	if m.acks.waiting == 0 || m.acks.frameMax() > p.room() {
		return
	}
	p.put(m.acks.append(at, p.dst), false)
	p.hasAck, p.ack = true, m.acks.ranges[0].Hi
}

// appendControl adds whatever waits in m.control, as far as it fits.
func (m *Machine) appendControl(now time.Time, at time.Duration, p *packet) {
	c := &m.control
	const frameMax = 17 // of all but MOVE
	for c.pongsLen > 0 && p.room() >= frameMax {
		c.pongsLen--
		var micros uint64
		if m.cfg.server {
			micros = uint64(now.UnixMicro())
		}
		p.put(wire.AppendPong(p.dst, c.pongs[c.pongsLen], micros), false)
	}
	if c.path.Has && p.room() >= frameMax {
		p.put(wire.AppendPathResponse(p.dst, c.path.Token), false)
		c.path.Has = false
	}
	if c.window && p.room() >= frameMax {
		p.put(wire.AppendWindow(p.dst, uint64(m.inbox.window)), true)
		c.window, p.window = false, true
	}
	if c.offline != 0 && p.room() >= frameMax {
		p.put(wire.AppendOffline(p.dst, c.offline), true)
		c.offline, p.offline = 0, c.offline
	}
	if c.ping && p.room() >= frameMax {
		m.appendPing(at, p)
	}
	if c.move != nil && p.room() >= 8+len(c.move.Host) {
		p.put(c.move.AppendTo(p.dst), true)
		c.move = nil
	}
	m.appendResumes(p)
}

func (m *Machine) appendPing(at time.Duration, p *packet) {
	m.control.ping = false
	m.ping.token++
	m.ping.sentAt, m.ping.waiting = at, true
	p.put(wire.AppendPing(p.dst, m.ping.token), true)
	p.asks = true
}

// appendResumes says what is expected next. On TCP that is the acknowledgement, and
// any packet takes it along.
func (m *Machine) appendResumes(p *packet) {
	c := &m.control
	if c.resumeAt != never {
		c.resumes |= channelBit(ChannelDefault)
	}
	if c.resumes == 0 {
		return
	}
	for _, ch := range m.inbox.channels {
		if bit := channelBit(ch.id); c.resumes&bit != 0 && p.room() >= 10 {
			p.put(wire.AppendResume(p.dst, ch.id, ch.next), true)
			c.resumes &^= bit
			p.resumes |= bit
		}
	}
	if c.resumes&channelBit(ChannelDefault) == 0 {
		c.resumeAt, c.unsaid = never, 0
	}
}

// appendAgain adds fragments that were lost.
func (m *Machine) appendAgain(p *packet) {
	if m.sent.lost == 0 {
		return
	}
	for _, c := range m.sent.channels {
		for {
			f, seq := m.sent.again(c)
			if f == nil || wire.ReliableFrameLen(seq, len(f.data)) > p.room() {
				break
			}
			m.putFragment(p, c, f, seq)
			m.sent.resent(c, f)
			m.stats.Retransmitted++
		}
	}
}

func (m *Machine) putFragment(p *packet, c *sendChannel, f *fragment, seq uint64) {
	p.put(wire.AppendReliable(p.dst, c.id, seq, f.first, f.last, f.data), true)
	p.asks = true
	if !m.cfg.stream {
		f.newest = uint32(p.pn)
		*m.loss.refs.push() = refOf(c.id, seq)
		p.count++
	}
}

// appendNew adds what was not sent yet. Reliable and unreliable messages take turns
// at being first, so that neither starves the other.
func (m *Machine) appendNew(p *packet) {
	if m.queue.after = !m.queue.after; m.queue.after {
		m.appendUnreliable(p)
		m.appendReliable(p)
	} else {
		m.appendReliable(p)
		m.appendUnreliable(p)
	}
}

func (m *Machine) appendUnreliable(p *packet) {
	for m.queue.unreliable.len() > 0 {
		data := m.queue.unreliable.at(0).data
		switch n := wire.MessageFrameLen(len(data)); {
		case n <= p.room():
			p.put(wire.AppendMessage(p.dst, data), true)
		case n <= p.end-p.start:
			return // fits the next packet
		default:
			m.stats.DroppedUnreliable++ // fits no packet of this size
		}
		m.queue.popUnreliable()
	}
}

func (m *Machine) appendReliable(p *packet) {
	for {
		n := m.nextCut()
		if n == 0 {
			return
		}
		c := m.sent.open(m.queue.head().channel)
		seq := c.next()
		if over := wire.ReliableFrameLen(seq, n) - p.room(); over > 0 {
			if n -= over; n < m.leastCut(p) {
				return // fits the next packet
			}
		}
		f := m.sent.push(c, m.queue.cut(n))
		m.putFragment(p, c, f, seq)
		m.sent.count(f)
	}
}

// partMin is the least worth a frame of its own, in bytes.
const partMin = 128

// leastCut is the shortest fragment to fill a packet with. A message that takes
// several anyway may fill what the last one left; others stay whole, so that what
// is small depends on one packet.
func (m *Machine) leastCut(p *packet) int {
	switch {
	case len(p.dst) == p.start:
		return 1
	case len(m.queue.head().data) > fragmentMax:
		return partMin
	}
	return fragmentMax
}

// appendProbe makes sure that a probe asks for an acknowledgement: with the oldest
// fragment under way and the small ones after it, else with a PING.
func (m *Machine) appendProbe(at time.Duration, p *packet) {
	l := &m.loss
	for i, looked := 0, 0; i < l.packets.len() && looked < repeatLook; i++ {
		old := *l.packets.at(i)
		for k := uint16(0); k < old.count && !old.done; k++ {
			looked++
			r := l.ref(&old, k)
			c, f, _ := m.sent.find(r)
			if c == nil || f.acked || f.lost || f.newest == uint32(p.pn) || p.count > 0 && f.size > repeatBytesMax ||
				wire.ReliableFrameLen(r.seq(), len(f.data)) > p.room() {
				continue
			}
			m.putFragment(p, c, f, r.seq())
			m.sent.count(f)
			m.stats.Retransmitted++
		}
	}
	if !p.eliciting && p.room() >= 9 {
		m.appendPing(at, p)
	}
}
