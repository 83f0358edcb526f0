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
	turn          int32  // the line whose turn it is; never an empty one while another is not
	carried       int32  // what of them came with a State and may wait besides Config.QueueBytesMax
	reliable      int    // messages in lines
	reliableBytes int    // as they count: each its length and messageCost

	unreliable      ring[outMessage]
	unreliableBytes int32 // likewise
	after           bool  // whose turn it is in appendNew: reliable after unreliable ones
}

// messageCost is what a message that waits counts on top of its length, in bytes:
// about what we need to remember it.
const messageCost = 32

// head is the reliable message the next fragment is cut from. There must be one.
func (q *queue) head() *outMessage { return q.lines[q.turn].messages.at(0) }

// waiting counts what waits behind the reliable message being sent. When several
// are, on different channels, the longest is meant.
func (q *queue) waiting() (messages, bytes int) {
	longest := 0
	for i := range q.lines {
		if l := &q.lines[i].messages; l.len() > 0 {
			longest = max(longest, len(l.at(0).data)+messageCost)
		}
	}
	return q.reliable - min(q.reliable, 1), q.reliableBytes - longest
}

// makeRoom drops the oldest unreliable messages until one of size bytes fits. It
// returns how many.
func (q *queue) makeRoom(cfg *settings, size int) (dropped uint64) {
	for n := q.unreliable.len(); n > 0 && (n >= int(cfg.queueMessages) || int(q.unreliableBytes)+size+messageCost > int(cfg.queueBytes)); n-- {
		q.popUnreliable()
		dropped++
	}
	return dropped
}

// full reports whether a reliable message of size bytes is too much. The one being
// sent and one behind it always fit: how long they may be is another limit.
func (q *queue) full(cfg *settings, size int) bool {
	messages, bytes := q.waiting()
	return messages > 0 && bytes+size+messageCost > int(cfg.queueBytesMax)+int(q.carried) ||
		cfg.queueReliable > 0 && messages >= int(cfg.queueReliable)
}

// pushReliable takes over a message.
func (q *queue) pushReliable(msg outMessage) {
	i := slices.IndexFunc(q.lines, func(l line) bool { return l.channel == msg.channel })
	if i < 0 {
		i = len(q.lines)
		q.lines = append(q.lines, line{channel: msg.channel})
	}
	if q.reliable == 0 {
		q.turn = int32(i)
	}
	*q.lines[i].messages.push() = msg
	q.reliable++
	q.reliableBytes += len(msg.data) + messageCost
}

// pushUnreliable takes over a message.
func (q *queue) pushUnreliable(msg outMessage) {
	*q.unreliable.push() = msg
	q.unreliableBytes += int32(len(msg.data) + messageCost)
}

func (q *queue) popUnreliable() {
	m := q.unreliable.at(0)
	q.unreliableBytes -= int32(len(m.data) + messageCost)
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
		q.reliableBytes -= messageCost
		if q.reliable--; q.reliable == 0 {
			q.carried = 0
		}
	}
	for range q.lines {
		if q.turn = (q.turn + 1) % int32(len(q.lines)); q.lines[q.turn].messages.len() > 0 {
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

// admit checks a message and makes room for it in the queue.
func (m *Machine) admit(size int, rel Reliability) error {
	switch {
	case !rel.Valid():
		return ErrChannel
	case size < messageMin:
		return wire.ErrMessage
	case size > wire.MessageMax || rel == Unreliable && size > int(m.cfg.unreliableMax):
		return ErrTooLarge
	case rel == Unreliable:
		m.stats.DroppedUnreliable += m.queue.makeRoom(&m.cfg, size)
	case m.queue.reliable > 0 && m.queue.full(&m.cfg, size):
		return ErrSlow
	}
	return nil
}

// Send queues a copy of an encoded message.
//
// When too much waits already, an unreliable message replaces the oldest unreliable
// ones, and a reliable one is refused with [ErrSlow]: a server then closes the
// connection, a client tries again later. [ErrTooLarge], [ErrChannel] and
// [wire.ErrMessage] are the caller's mistakes. No error changes anything.
func (m *Machine) Send(now time.Time, msg []byte, rel Reliability) error {
	if err := m.admit(len(msg), rel); err != nil {
		return err
	}
	m.enqueue(now, outMessage{data: copyOf(msg)}, rel)
	return nil
}

// SendShared is [Machine.Send] of a message that is not copied.
func (m *Machine) SendShared(now time.Time, msg *Shared, rel Reliability) error {
	if err := m.admit(len(msg.b), rel); err != nil {
		return err
	}
	msg.refs.Add(1)
	m.enqueue(now, outMessage{data: msg.b, shared: msg}, rel)
	return nil
}

func (m *Machine) enqueue(now time.Time, msg outMessage, rel Reliability) {
	switch {
	case rel == Unreliable:
		m.queue.pushUnreliable(msg)
		return
	case !m.cfg.stream: // there all channels are the default one
		msg.channel = rel.Channel()
	}
	m.queue.pushReliable(msg)
	at := m.at(now)
	m.noteStall(at)
	if m.maySlow() {
		m.noteSlow(at)
	}
}
