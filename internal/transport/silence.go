package transport

// What becomes of a client that does not answer, as counted.
const (
	silenceBegan = "began"
	silenceHeard = "heard"
)

// silenceTurned has the Handler told that c fell silent or was heard again.
func (ps *Places) silenceTurned(c *Conn) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.events = append(ps.events, event{place: c.place, conn: c})
	ps.core.alarm.wake()
}

// turnedLocked returns whether c is silent, and whether that is news to the Handler. It is
// none when c is not the connection of the place any more: Lost or Opened told more.
func (ps *Places) turnedLocked(p *Place, c *Conn) (silent, turned bool) {
	if p.conn.Load() != c {
		return false, false
	}
	c.mu.Lock()
	silent = c.silent
	c.mu.Unlock()
	if silent == c.silentTold {
		return silent, false
	}
	c.silentTold = silent
	event := silenceHeard
	if silent {
		event = silenceBegan
	}
	ps.core.m.silences.WithLabelValues(event).Inc()
	return silent, true
}
