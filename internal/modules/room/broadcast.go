package room

import (
	"encoding/binary"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
)

const (
	// MessageMax is the longest room message, in bytes.
	MessageMax = 64 << 10
	// UnreliableMax is the longest unreliable room message, in bytes: what a member's
	// broadcast has room for in one datagram. 1168 bytes of a client's message fit, of
	// which the header takes 4, the room id 52 and the reliability 1.
	UnreliableMax = 1168 - 4 - id.RoomBytes - 1

	// A merged push is cut at these many bytes; a longer message goes alone.
	mergedUnreliableMax = 1176 - 4 // a server's header in a datagram is shorter than a client's
	mergedReliableMax   = MessageMax + 4
	// More than this is not collected: it goes at once, so that what waits is
	// bounded and the members' send queues push back.
	waitingBytesMax = 256 << 10
	waitingMax      = 1024
	// A sender gets what waits without their own messages, which costs a copy each. What
	// waits goes before these copies pass as many bytes, so that a flush holds the room
	// for a millisecond or two.
	waitingCopiesMax = 2 << 20
)

// broadcast is one message that waits to be merged.
type broadcast struct {
	from       int // position in members: membership does not change while anything waits
	start, end int // in Machine.bytes
	rel        reliable.Reliability
}

func checkSize(message []byte, rel reliable.Reliability) error {
	switch {
	case len(message) > MessageMax:
		return ErrTooLarge
	case rel == reliable.Unreliable && len(message) > UnreliableMax:
		return ErrTooLargeUnreliable
	}
	return nil
}

func (m *Machine[L]) broadcast(now time.Time, in Input[L], out *Output[L]) error {
	from := m.find(in.User)
	if from < 0 {
		return ErrNotIn
	}
	if err := checkSize(in.Message, in.Rel); err != nil {
		return err
	}
	if m.copies(from, len(in.Message)) > waitingCopiesMax {
		m.flush(out)
	}
	start := len(m.bytes)
	m.bytes = binary.BigEndian.AppendUint32(m.bytes, uint32(len(in.Message)))
	m.bytes = append(m.bytes, in.Message...)
	m.waiting = append(m.waiting, broadcast{from, start, len(m.bytes), in.Rel})
	out.Deliveries += (len(m.members) - 1) * reliable.Datagrams(len(in.Message))
	if m.settings.Interval < IntervalMin {
		m.flush(out)
		return nil
	}
	m.senders.add(from, len(m.members))
	switch {
	case len(m.bytes) > waitingBytesMax, len(m.waiting) >= waitingMax:
		m.flush(out)
	case m.flushAt.IsZero():
		m.flushAt = now.Add(m.settings.Interval)
	}
	return nil
}

// copies is how many bytes a flush would copy if one more message waited.
func (m *Machine[L]) copies(from, size int) int {
	senders := m.senders.count
	if !m.senders.has(from) {
		senders++
	}
	return senders * (len(m.bytes) + 4 + size)
}

// flush pushes what waits: one shared payload to those who sent none of it, and
// to each sender one without their own messages. It runs before membership
// changes, so that whoever was in when a message was sent gets it, and nobody else.
func (m *Machine[L]) flush(out *Output[L]) {
	if len(m.waiting) == 0 {
		return
	}
	for rest := m.waiting; len(rest) > 0; {
		n := m.run(rest)
		m.flushRun(rest[:n], out)
		rest = rest[n:]
	}
	m.waiting, m.bytes, m.flushAt = m.waiting[:0], m.bytes[:0], time.Time{}
	m.senders.clear()
	if cap(m.bytes) > mergedReliableMax {
		m.bytes = nil // one busy moment must not cost every room its memory for good
	}
}

// run is how many of waiting fit one push: the same reliability, in order.
func (m *Machine[L]) run(waiting []broadcast) int {
	limit := mergedReliableMax
	if waiting[0].rel == reliable.Unreliable {
		limit = mergedUnreliableMax
	}
	n := 1
	for n < len(waiting) && waiting[n].rel == waiting[0].rel && waiting[n].end-waiting[0].start <= limit {
		n++
	}
	return n
}

func (m *Machine[L]) flushRun(run []broadcast, out *Output[L]) {
	rel := run[0].rel
	shared := m.bytes[run[0].start:run[len(run)-1].end]
	if len(run) == 1 {
		out.add(CmdBroadcast, rel, shared, out.linksOf(m.members, func(i int) bool { return i != run[0].from }))
		return
	}
	m.inRun.clear()
	for _, b := range run {
		m.inRun.add(b.from, len(m.members))
	}
	out.add(CmdBroadcast, rel, shared, out.linksOf(m.members, func(i int) bool { return !m.inRun.has(i) }))
	if m.inRun.count == 1 {
		return // nobody else's to send them
	}
	for _, b := range run {
		if !m.inRun.remove(b.from) {
			continue // this sender is done
		}
		at := len(out.bytes)
		for _, o := range run {
			if o.from != b.from {
				out.bytes = append(out.bytes, m.bytes[o.start:o.end]...)
			}
		}
		to := out.linksOf(m.members[b.from:b.from+1], func(int) bool { return true })
		out.Pushes = append(out.Pushes, Push[L]{Cmd: CmdBroadcast, Rel: rel, Payload: out.bytes[at:len(out.bytes):len(out.bytes)], To: to})
	}
}

// linksOf returns the links of the members at the positions that f picks.
func (o *Output[L]) linksOf(members []Member[L], f func(i int) bool) []L {
	start := len(o.links)
	for i := range members {
		if f(i) {
			o.links = append(o.links, members[i].Link)
		}
	}
	return o.links[start:len(o.links):len(o.links)]
}

// marks is a set of positions in Machine.members.
type marks struct {
	is    []bool // grown to the number of members at the first add
	count int
}

// add marks position i of n.
func (s *marks) add(i, n int) {
	if len(s.is) < n {
		s.is = append(s.is, make([]bool, n-len(s.is))...)
	}
	if !s.is[i] {
		s.is[i] = true
		s.count++
	}
}

func (s *marks) has(i int) bool { return i < len(s.is) && s.is[i] }

// remove reports whether i was marked.
func (s *marks) remove(i int) bool {
	if !s.has(i) {
		return false
	}
	s.is[i] = false
	s.count--
	return true
}

func (s *marks) clear() {
	if s.count > 0 {
		clear(s.is)
		s.count = 0
	}
}

// message goes at once to the members among in.To, each of them once, in room
// order. Messages are never merged and do not wait for broadcasts.
func (m *Machine[L]) message(in Input[L], out *Output[L]) error {
	if in.User != "" && m.find(in.User) < 0 {
		return ErrNotIn
	}
	if err := checkSize(in.Message, in.Rel); err != nil {
		return err
	}
	named := m.named(in.To)
	defer clear(named)
	start := len(out.links)
	for i := range m.members {
		if _, ok := named[m.members[i].User]; ok {
			out.links = append(out.links, m.members[i].Link)
		}
	}
	out.add(CmdMessage, in.Rel, in.Message, out.links[start:len(out.links):len(out.links)])
	out.Deliveries += (len(out.links) - start) * reliable.Datagrams(len(in.Message))
	return nil
}

// named returns users as a set, lent until the next call. The caller clears it.
func (m *Machine[L]) named(users []id.UID) map[id.UID]struct{} {
	if m.addressed == nil {
		m.addressed = make(map[id.UID]struct{}, len(users))
	}
	for _, user := range users {
		m.addressed[user] = struct{}{}
	}
	return m.addressed
}
