package reliable

import (
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// messageMin is the shortest message: kind, ver and cmd.
const messageMin = 4

// outMessage is a message that waits, or the rest of one partly sent.
type outMessage struct {
	data    []byte
	channel uint8
	started bool // its first fragments were cut
}

// queue is what waits to be sent: reliable messages in one line, since what blocks
// one channel blocks all, and unreliable ones in another.
type queue struct {
	reliable, unreliable           ring[outMessage]
	reliableBytes, unreliableBytes int
}

// waiting counts what waits behind the reliable message being sent.
func (q *queue) waiting() (messages, bytes int) {
	messages, bytes = q.reliable.len()+q.unreliable.len(), q.reliableBytes+q.unreliableBytes
	if q.reliable.len() > 0 {
		messages--
		bytes -= len(q.reliable.at(0).data)
	}
	return messages, bytes
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

func (q *queue) pushReliable(msg []byte, channel uint8) {
	*q.reliable.push() = outMessage{data: copyOf(msg), channel: channel}
	q.reliableBytes += len(msg)
}

func (q *queue) pushUnreliable(msg []byte) {
	*q.unreliable.push() = outMessage{data: copyOf(msg)}
	q.unreliableBytes += len(msg)
}

func (q *queue) popUnreliable() {
	data := q.unreliable.at(0).data
	q.unreliableBytes -= len(data)
	release(data)
	q.unreliable.pop()
}

// cut takes the next n bytes off the reliable message being sent.
func (q *queue) cut(n int) fragment {
	m := q.reliable.at(0)
	f := fragment{data: m.data[:n], size: uint16(n), first: !m.started, last: n == len(m.data)}
	m.started = true
	m.data = m.data[n:]
	q.reliableBytes -= n
	if f.last {
		q.reliable.pop()
	}
	return f
}

// accept checks the size of a message and makes room for it in the queue.
func (m *Machine) accept(size int, rel Reliability) error {
	if size < messageMin {
		return wire.ErrMessage
	}
	if size > wire.MessageMax || rel == Unreliable && size > m.cfg.UnreliableMax {
		return ErrTooLarge
	}
	if rel == Reliable && m.queue.reliable.len() == 0 {
		return nil // it is the one being sent
	}
	dropped, ok := m.queue.dropOldest(&m.cfg, size)
	m.stats.DroppedUnreliable += uint64(dropped)
	if !ok {
		return ErrSlow
	}
	return nil
}

// Send queues a copy of an encoded message. On UDP channel is 0 to 15 or 255 for a
// reliable message; otherwise it is ignored.
//
// When too much waits already, an unreliable message replaces the oldest unreliable
// ones; a reliable one does so too and is refused with [ErrSlow] if that is not
// enough, after which the caller closes the connection. [ErrTooLarge], [ErrChannel]
// and [wire.ErrMessage] are the caller's mistakes and change nothing.
func (m *Machine) Send(now time.Time, msg []byte, rel Reliability, channel uint8) error {
	if rel > Reliable {
		rel, channel = Reliable, rel.Channel()
	}
	if rel == Reliable && m.cfg.Stream {
		channel = ChannelDefault
	}
	if rel == Reliable && !wire.ChannelValid(channel) {
		return ErrChannel
	}
	err := m.accept(len(msg), rel)
	switch {
	case err == ErrSlow && rel == Unreliable:
		m.stats.DroppedUnreliable++
		return nil
	case err != nil:
		return err
	case rel == Reliable:
		m.queue.pushReliable(msg, channel)
	default:
		m.queue.pushUnreliable(msg)
	}
	m.noteStall(m.at(now))
	return nil
}
