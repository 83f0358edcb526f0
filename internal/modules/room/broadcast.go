package room

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
)

const (
	// MessageMax is the longest room message, in bytes.
	MessageMax = 64 << 10
	// UnreliableMax is the longest unreliable room message, in bytes: what a
	// 1200-byte datagram holds beside its headers.
	UnreliableMax = 1168

	// A merged push is cut at these many bytes; a longer message goes alone.
	mergedUnreliableMax = UnreliableMax + 4
	mergedReliableMax   = MessageMax + 4
	// More than this is not collected: it goes at once, so that what waits is
	// bounded and the members' send queues push back.
	waitingBytesMax = 256 << 10
	waitingMax      = 1024
)

// broadcast is one message that waits to be merged.
type broadcast struct {
	from       int // position in members: membership does not change while anything waits
	start, end int // in Machine.bytes
	rel        reliable.Reliability
}

func checkSize(message []byte, rel reliable.Reliability) error {
	if len(message) > MessageMax || rel == reliable.Unreliable && len(message) > UnreliableMax {
		return ErrTooLarge
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
	start := len(m.bytes)
	m.bytes = binary.BigEndian.AppendUint32(m.bytes, uint32(len(in.Message)))
	m.bytes = append(m.bytes, in.Message...)
	m.waiting = append(m.waiting, broadcast{from, start, len(m.bytes), in.Rel})
	switch {
	case m.settings.Interval < IntervalMin, len(m.bytes) > waitingBytesMax, len(m.waiting) >= waitingMax:
		m.flush(out)
	case m.flushAt.IsZero():
		m.flushAt = now.Add(m.settings.Interval)
	}
	return nil
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
	start := len(out.links)
	for i := range m.members {
		if !slices.ContainsFunc(run, func(b broadcast) bool { return b.from == i }) {
			out.links = append(out.links, m.members[i].Link)
		}
	}
	out.add(CmdBroadcast, rel, shared, out.links[start:len(out.links):len(out.links)])
	if len(run) == 1 {
		return
	}
	for i, b := range run {
		if slices.ContainsFunc(run[:i], func(a broadcast) bool { return a.from == b.from }) {
			continue // this sender is done
		}
		var own []byte
		for _, o := range run {
			if o.from != b.from {
				own = append(own, m.bytes[o.start:o.end]...)
			}
		}
		if len(own) > 0 {
			at := len(out.links)
			out.links = append(out.links, m.members[b.from].Link)
			out.add(CmdBroadcast, rel, own, out.links[at:len(out.links):len(out.links)])
		}
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
	if m.addressed == nil {
		m.addressed = make(map[id.UID]struct{}, len(in.To))
	}
	defer clear(m.addressed)
	for _, user := range in.To {
		m.addressed[user] = struct{}{}
	}
	start := len(out.links)
	for i := range m.members {
		if _, ok := m.addressed[m.members[i].User]; ok {
			out.links = append(out.links, m.members[i].Link)
		}
	}
	out.add(CmdMessage, in.Rel, in.Message, out.links[start:len(out.links):len(out.links)])
	return nil
}
