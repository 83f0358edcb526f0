package reliable

import (
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// messageMin is the shortest message: kind, ver and cmd.
const messageMin = 4

// outMessage is a message that waits, or the rest of one partly sent.
type outMessage struct {
	data    []byte
	shared  *Shared // whose bytes data is, or nil
	channel uint8
	started bool // its first fragments were cut
}

// line is what waits to be sent on one channel.
type line struct {
	channel  uint8
	messages ring[outMessage]
}

// queue is what waits to be sent: reliable messages in a line a channel, which take
// turns fragment by fragment, and unreliable ones in a line of their own.
type queue struct {
	lines         []line // made as channels are used, gone when all are empty and quiet
	turn          int    // the line whose turn it is; never an empty one while another is not
	reliable      int    // messages in lines
	reliableBytes int

	unreliable      ring[outMessage]
	unreliableBytes int
}

// head is the reliable message the next fragment is cut from. There must be one.
func (q *queue) head() *outMessage { return q.lines[q.turn].messages.at(0) }

// waiting counts what waits behind the reliable message being sent. When several
// are, on different channels, the longest is meant.
func (q *queue) waiting() (messages, bytes int) {
	messages, bytes = q.reliable+q.unreliable.len(), q.reliableBytes+q.unreliableBytes
	longest := 0
	for i := range q.lines {
		if l := &q.lines[i].messages; l.len() > 0 {
			longest = max(longest, len(l.at(0).data))
		}
	}
	return messages - min(q.reliable, 1), bytes - longest
}

// dropOldest drops unreliable messages until size more bytes fit behind the message
// being sent. It returns how many it dropped and whether that was enough.
func (q *queue) dropOldest(cfg *Config, size int) (dropped int, ok bool) {
	for {
		messages, bytes := q.waiting()
		if messages < cfg.QueueMessages && bytes+size <= cfg.QueueBytes {
			return dropped, true
		}
		if q.unreliable.len() == 0 {
			return dropped, false
		}
		q.popUnreliable()
		dropped++
	}
}

// pushReliable takes over a message.
func (q *queue) pushReliable(msg outMessage) {
	i := slices.IndexFunc(q.lines, func(l line) bool { return l.channel == msg.channel })
	if i < 0 {
		i = len(q.lines)
		q.lines = append(q.lines, line{channel: msg.channel})
	}
	if q.reliable == 0 {
		q.turn = i
	}
	*q.lines[i].messages.push() = msg
	q.reliable++
	q.reliableBytes += len(msg.data)
}

// pushUnreliable takes over a message.
func (q *queue) pushUnreliable(msg outMessage) {
	*q.unreliable.push() = msg
	q.unreliableBytes += len(msg.data)
}

func (q *queue) popUnreliable() {
	m := q.unreliable.at(0)
	q.unreliableBytes -= len(m.data)
	free(m.data, m.shared)
	q.unreliable.pop()
}

// cut takes the next n bytes off the reliable message whose turn it is.
func (q *queue) cut(n int) fragment {
	m := q.head()
	f := fragment{data: m.data[:n], shared: m.shared, size: uint16(n), first: !m.started, last: n == len(m.data)}
	m.started = true
	m.data = m.data[n:]
	q.reliableBytes -= n
	if f.last {
		q.lines[q.turn].messages.pop()
		q.reliable--
	}
	for range q.lines {
		if q.turn = (q.turn + 1) % len(q.lines); q.lines[q.turn].messages.len() > 0 {
			break
		}
	}
	return f
}

// trim gives back the memory of bursts gone by.
func (q *queue) trim() {
	if q.reliable == 0 {
		q.lines, q.turn = nil, 0
	}
	q.unreliable.trim()
}

// accept checks the size of a message and makes room for it in the queue.
func (m *Machine) accept(size int, rel Reliability) error {
	if size < messageMin {
		return wire.ErrMessage
	}
	if size > wire.MessageMax || rel == Unreliable && size > m.cfg.UnreliableMax {
		return ErrTooLarge
	}
	if rel != Unreliable && m.queue.reliable == 0 {
		return nil // it is the one being sent
	}
	dropped, ok := m.queue.dropOldest(&m.cfg, size)
	m.stats.DroppedUnreliable += uint64(dropped)
	if !ok {
		return ErrSlow
	}
	return nil
}

// Send queues a copy of an encoded message.
//
// When too much waits already, an unreliable message replaces the oldest unreliable
// ones; a reliable one does so too and is refused with [ErrSlow] if that is not
// enough, after which the caller closes the connection. [ErrTooLarge], [ErrChannel]
// and [wire.ErrMessage] are the caller's mistakes and change nothing.
func (m *Machine) Send(now time.Time, msg []byte, rel Reliability) error {
	take, err := m.admit(len(msg), rel)
	if take {
		m.enqueue(now, outMessage{data: copyOf(msg)}, rel)
	}
	return err
}

// SendShared is [Machine.Send] of a message that is not copied.
func (m *Machine) SendShared(now time.Time, msg *Shared, rel Reliability) error {
	take, err := m.admit(len(msg.b), rel)
	if take {
		msg.refs.Add(1)
		m.enqueue(now, outMessage{data: msg.b, shared: msg}, rel)
	}
	return err
}

// admit says whether a message is to be queued, having made room for it.
func (m *Machine) admit(size int, rel Reliability) (bool, error) {
	if !rel.Valid() {
		return false, ErrChannel
	}
	err := m.accept(size, rel)
	if err == ErrSlow && rel == Unreliable {
		m.stats.DroppedUnreliable++
		return false, nil
	}
	return err == nil, err
}

func (m *Machine) enqueue(now time.Time, msg outMessage, rel Reliability) {
	switch {
	case rel == Unreliable:
		m.queue.pushUnreliable(msg)
	case m.cfg.Stream:
		m.queue.pushReliable(msg) // all channels are the default one
	default:
		msg.channel = rel.Channel()
		m.queue.pushReliable(msg)
	}
	m.noteStall(m.at(now))
}
