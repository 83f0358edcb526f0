package reliable

// A receiver holds at most heldMax for its peer. What it may come to hold are, at the
// most, the bytes from the first fragment of each channel's oldest message that is not
// wholly acknowledged to the newest one sent. Those are sent.span; a message begins only
// if all of it keeps them below.

// leastCost is the most that a message counts when its remaining n bytes are cut as
// small as we do, see leastCut.
func leastCost(n int) int { return n + fragmentCost*(1+n/partMin) }

// roomForAll reports whether the peer can hold all that waits, besides what was sent: no
// messages cost more than 5/4 of what they count while they wait.
func (m *Machine) roomForAll() bool {
	return m.sent.span+m.queue.reliableBytes*5/4 <= heldMax
}

// takeTurn reports whether the message whose turn it is may be sent. When it may not
// begin yet it gives its turn to one that may go on or begin.
func (m *Machine) takeTurn() bool {
	if m.cfg.stream {
		return true // nothing is beyond a hole there
	}
	q := &m.queue
	room, longest := heldMax-m.sent.span, 0
	for i := range q.lines {
		if l := &q.lines[i].messages; l.len() > 0 {
			if h := l.at(0); h.started {
				room -= leastCost(len(h.data))
			} else {
				longest = max(longest, leastCost(len(h.data)))
			}
		}
	}
	for i := range q.lines {
		k := (int(q.turn) + i) % len(q.lines)
		if l := &q.lines[k].messages; l.len() > 0 && mayBegin(l.at(0), room, longest) {
			q.turn = int32(k)
			return true
		}
	}
	return false
}

// mayBegin reports whether a message may go on, or begin in so much room. While the
// longest of those that have not begun has to wait for room, others of several fragments
// wait with it, or it would wait for ever.
func mayBegin(m *outMessage, room, longest int) bool {
	if m.started {
		return true
	}
	return leastCost(len(m.data)) <= room && (longest <= room || len(m.data) <= fragmentMax)
}
