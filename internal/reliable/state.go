package reliable

import (
	"slices"

	"github.com/Diarkis/diarkis/internal/wire"
)

// State is what outlives a connection: what was received and is not whole yet, and
// what was sent reliably and is not acknowledged yet. Unreliable messages are not
// in it. It goes on over the transport it came from.
type State struct {
	recv  []*recvChannel
	send  []*sendChannel
	queue []outMessage // reliable messages that wait, each channel's first one perhaps partly sent
}

// Export copies what has to survive the connection. The machine stays as it is: the
// caller stops using it, or throws the copy away.
func (m *Machine) Export() *State {
	st := &State{}
	for _, c := range m.inbox.channels {
		st.recv = append(st.recv, c.clone())
	}
	for _, c := range m.sent.channels {
		st.send = append(st.send, c.clone())
	}
	for i := range m.queue.lines {
		l := &m.queue.lines[i].messages
		for k := range l.len() {
			msg := *l.at(k)
			msg.data, msg.shared = slices.Clone(msg.data), nil
			st.queue = append(st.queue, msg)
		}
	}
	return st
}

func (c *recvChannel) clone() *recvChannel {
	out := *c
	out.partial = slices.Clone(c.partial)
	out.held = ring[heldFragment]{}
	for i := range c.held.len() {
		h := *c.held.at(i)
		h.data = slices.Clone(h.data)
		*out.held.push() = h
	}
	return &out
}

func (c *sendChannel) clone() *sendChannel {
	out := &sendChannel{id: c.id, base: c.base}
	for i := range c.fragments.len() {
		f := *c.fragments.at(i)
		f.data, f.shared = slices.Clone(f.data), nil
		*out.fragments.push() = f
	}
	return out
}

// resume makes the machine go on from st: everything unacknowledged is sent again,
// within the peer's window, which starts small again; what is held already counts
// nothing against ours. The peer learns by RESUME what need not come again.
func (m *Machine) resume(st *State) {
	m.resumed = true
	for _, c := range st.recv {
		for i := range c.held.len() {
			c.held.at(i).carried = true
		}
		m.inbox.partial += c.partialCost
		m.control.resumes |= channelBit(c.id)
	}
	m.inbox.channels = st.recv
	for _, c := range st.send {
		c.lost, c.again = 0, 0
		for i := range c.fragments.len() {
			f := c.fragments.at(i)
			f.counted, f.flights, f.lost = false, 0, !f.acked
			if f.lost {
				c.lost++
			}
		}
		m.sent.lost += c.lost
	}
	m.sent.channels = st.send
	for _, msg := range st.queue {
		m.queue.pushReliable(msg)
	}
}

// stateVersion opens every encoded State.
const stateVersion = 1

// Bounds of an encoded State. A sender and a receiver within their limits stay well
// inside.
const (
	// StateBytesMax is the longest encoded State, in bytes.
	StateBytesMax = 8 << 20
	// stateItemsMax bounds the fragments and messages in one.
	stateItemsMax = 1 << 17
)

// Flags of fragments in an encoded State.
const (
	stateFirst  = 1
	stateLast   = 2
	stateDone   = 4 // delivered, or acknowledged: no data follows
	stateInside = 8 // of a message: its first fragments were cut; of a channel: inside a message
)

func stateFlags(first, last, done, inside bool) (flags byte) {
	for i, set := range [...]bool{first, last, done, inside} {
		if set {
			flags |= 1 << i
		}
	}
	return flags
}

func appendBytes(dst, b []byte) []byte {
	return append(wire.AppendVarint(dst, uint64(len(b))), b...)
}

// AppendTo appends the encoded State:
//
//	version u8
//	channels received:  count, (id u8, flags u8, next, partial cost, partial,
//	                    held: count, (seq, flags u8, size if done else data)*)*
//	channels sent:      count, (id u8, base, fragments: count, (flags u8, size if acknowledged else data)*)*
//	messages waiting:   count, (channel u8, flags u8, data)*
//
// Numbers are varints; data is a varint length and bytes.
func (s *State) AppendTo(dst []byte) []byte {
	dst = append(dst, stateVersion)
	dst = wire.AppendVarint(dst, uint64(len(s.recv)))
	for _, c := range s.recv {
		dst = append(dst, c.id, stateFlags(false, false, false, c.inside))
		dst = wire.AppendVarint(dst, c.next)
		dst = wire.AppendVarint(dst, uint64(c.partialCost))
		dst = appendBytes(dst, c.partial)
		dst = wire.AppendVarint(dst, uint64(c.held.len()))
		for i := range c.held.len() {
			h := c.held.at(i)
			dst = wire.AppendVarint(dst, h.seq)
			dst = append(dst, stateFlags(h.first, h.last, h.done, false))
			dst = appendUnlessDone(dst, h.done, h.size, h.data)
		}
	}
	dst = wire.AppendVarint(dst, uint64(len(s.send)))
	for _, c := range s.send {
		dst = wire.AppendVarint(append(dst, c.id), c.base)
		dst = wire.AppendVarint(dst, uint64(c.fragments.len()))
		for i := range c.fragments.len() {
			f := c.fragments.at(i)
			dst = append(dst, stateFlags(f.first, f.last, f.acked, false))
			dst = appendUnlessDone(dst, f.acked, int(f.size), f.data)
		}
	}
	dst = wire.AppendVarint(dst, uint64(len(s.queue)))
	for _, m := range s.queue {
		dst = append(dst, m.channel, stateFlags(false, false, false, m.started))
		dst = appendBytes(dst, m.data)
	}
	return dst
}

// appendUnlessDone appends the data of a fragment, or just its size.
func appendUnlessDone(dst []byte, done bool, size int, data []byte) []byte {
	if done {
		return wire.AppendVarint(dst, uint64(size))
	}
	return appendBytes(dst, data)
}
