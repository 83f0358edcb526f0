package reliable

import "time"

// Machine is one side of one connection; see the package comment.
type Machine struct {
	// Set by New, then constant.
	cfg   settings
	start time.Time // times inside are counted from here

	acks       ackTracker
	inbox      inbox
	queue      queue
	sent       sent
	loss       losses
	rtt        rttEstimator
	congestion congestion
	size       pathSize
	repeat     repeats
	control    control
	ping       pinger
	skips      skips
	stats      Stats

	now       time.Duration // of the last call of Receive, Tick or Append
	heard     time.Duration // when the last packet opened
	away      time.Duration // see lived
	lastSent  time.Duration
	stalledAt time.Duration // TCP: since when nothing can leave
	slowSince time.Duration // since when too much waits without progress, see noteSlow
	asked     time.Duration // since when the peer is asked for an answer and not heard, see noteAsked
}

// Stats counts what happened on the connection.
type Stats struct {
	Retransmitted     uint64 // fragments sent again
	Repeated          uint64 // fragments sent again before they counted as lost
	Lost              uint64 // packets that were given up on
	Probes            uint64 // probe timeouts
	DroppedUnreliable uint64 // unreliable messages that never left
}

// New returns the machine for a connection whose handshake is done, or about to be:
// packet 0 of both directions. With st it goes on where an earlier connection of
// the same transport stopped, and takes st over; without, it starts afresh.
func New(now time.Time, cfg Config, st *State) *Machine {
	cfg = cfg.withDefaults()
	m := &Machine{
		cfg: cfg.settings(), start: now,
		acks:      newAckTracker(),
		repeat:    newRepeats(),
		size:      newPathSize(&cfg),
		stalledAt: never, slowSince: never, asked: never,
	}
	m.skipAfter(0)
	m.inbox.window = int32(min(cfg.Window, 1<<30))
	m.loss.lostAt = never
	m.control.resumeAt = never
	m.control.window = !cfg.Stream && cfg.Window > WindowMin
	m.sent.window = WindowMin
	if cfg.Stream {
		m.sent.window = streamWindow
	}
	if cfg.RTT > 0 {
		m.rtt.sample(cfg.RTT, 0)
	}
	if st != nil {
		m.resume(st)
	}
	return m
}

// at is the time since New.
func (m *Machine) at(now time.Time) time.Duration { return now.Sub(m.start) }

// Tick does what time alone brings about; call it when [Machine.WakeAt] has passed,
// then Append. It returns [ErrIdle], [ErrDead], [ErrSlow] or a [*Violation] when the
// connection is over.
func (m *Machine) Tick(now time.Time) error {
	at := m.at(now)
	m.now = at
	switch {
	case m.cfg.idleTimeout > 0 && at >= m.heard+m.cfg.idleTimeout:
		return ErrIdle
	case m.stalledAt != never && at >= m.stalledAt+streamStallMax, m.slowSince != never && at >= m.slowAt():
		return ErrSlow
	case m.inbox.total > 0 && m.lived(at) >= m.inbox.oldest()+incompleteAge:
		return errOld
	}
	if m.cfg.keepAlive > 0 && at >= m.lastSent+m.cfg.keepAlive {
		m.control.ping = true
	}
	if at >= m.unansweredAt() {
		m.asked = inVain
	}
	m.trim(at)
	return m.checkLoss(at)
}

// WakeAt is when to call [Machine.Tick]; zero means never. It is in the past while
// Append has something to send. It changes with every other call.
func (m *Machine) WakeAt() time.Time {
	if m.pending() {
		return m.start
	}
	wake := min(m.acks.due, m.control.resumeAt, m.repeat.due, m.lossTimer(), m.unansweredAt())
	if m.slowSince != never {
		wake = min(wake, m.slowAt())
	}
	if m.inbox.total > 0 {
		wake = min(wake, m.livedAt(m.inbox.oldest()+incompleteAge))
	}
	if m.cfg.idleTimeout > 0 {
		wake = min(wake, m.heard+m.cfg.idleTimeout)
	}
	if m.cfg.keepAlive > 0 {
		wake = min(wake, m.lastSent+m.cfg.keepAlive)
	}
	if m.stalledAt != never {
		wake = min(wake, m.stalledAt+streamStallMax)
	}
	if b := m.congestion.bulk; b != nil && b.pace.holds() && m.waits() && m.loss.inFlight < b.window {
		wake = min(wake, b.pace.until)
	}
	if wake == never {
		return time.Time{}
	}
	return m.start.Add(wake)
}

// Thaw starts all timers over, after a time without Receive, Append and Tick.
func (m *Machine) Thaw(now time.Time) {
	at := m.at(now)
	m.away = at - m.lived(m.now)
	m.now, m.heard, m.lastSent, m.loss.sentAt = at, at, at, at
	if m.slowSince != never {
		m.slowSince = at
	}
	m.loss.retries = 0
	if m.stalledAt != never {
		m.stalledAt = at
	}
	m.askAnew(at)
}

// PathChanged forgets what was learned about the old path, after roaming: rtt is what
// finding the new one took, 0 if unknown. What is under way went the old one, so the next
// Append asks what of it arrived, and tells again what arrived here.
func (m *Machine) PathChanged(now time.Time, rtt time.Duration) {
	m.rtt = rttEstimator{}
	if rtt > 0 {
		m.rtt.sample(rtt, 0)
	}
	m.repeat = newRepeats()
	m.congestion.forget(&m.loss)
	m.congestion.since = m.at(now) + 1
	m.size.restart()
	m.loss.retries = 0
	if m.loss.inFlight > 0 {
		m.loss.probes = 1
	}
	m.acks.again()
}

// Silence is for how long no packet opened, and how many probes in a row nobody
// acknowledged.
func (m *Machine) Silence(now time.Time) (quiet time.Duration, probes int) {
	return m.at(now) - m.heard, int(m.loss.retries)
}

// LargestAcked is the highest packet number the peer acknowledged; false before any.
func (m *Machine) LargestAcked() (uint64, bool) { return m.loss.largestAcked, m.loss.anyAcked }

// RTT is the round-trip time, smoothed and latest; zeros before the first measurement.
func (m *Machine) RTT() (smoothed, latest time.Duration) { return m.rtt.smoothed, m.rtt.latest }

// ClockOffset is the server's clock less ours; false before the first PONG of a server.
func (m *Machine) ClockOffset() (time.Duration, bool) { return m.ping.offset, m.ping.offsetRTT > 0 }

// Stats returns the counters so far.
func (m *Machine) Stats() Stats { return m.stats }

// Queued is how much waits: reliable messages behind the one being sent, and
// unreliable ones. Each counts its length and 32 bytes.
func (m *Machine) Queued() (messages, bytes int) {
	messages, bytes = m.queue.waiting()
	return messages + m.queue.unreliable.len(), bytes + int(m.queue.unreliableBytes)
}

// Held is how many bytes are kept for the peer: incomplete messages, and what came
// beyond a hole. A fragment counts its length and 32 bytes.
func (m *Machine) Held() int { return m.inbox.total }

// Unacked reports whether reliable messages are still to be sent or acknowledged.
func (m *Machine) Unacked() bool {
	if m.queue.reliable > 0 {
		return true
	}
	for _, c := range m.sent.channels {
		if c.fragments.len() > 0 {
			return true
		}
	}
	return false
}

// quietAfter is how long after the last packet a burst's memory is given back.
const quietAfter = time.Second

func (m *Machine) trim(at time.Duration) {
	m.congestion.trim(&m.loss, at)
	if m.loss.packets.len() > 0 || at-m.lastSent < quietAfter {
		return
	}
	m.congestion.forget(&m.loss)
	m.loss.packets.trim()
	m.loss.refs.trim()
	m.queue.trim()
	m.sent.trim()
	m.inbox.trim()
}
