package reliable

import (
	"slices"
	"time"

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
	lived := m.lived(m.now)
	for _, c := range m.inbox.channels {
		out := c.clone()
		if out.grown = 0; c.holds() {
			out.grown = min(max(c.grown-lived, -incompleteAge), 0)
		}
		st.recv = append(st.recv, out)
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
	out := &sendChannel{id: c.id, base: c.base, behind: c.behind}
	for i := range c.fragments.len() {
		f := *c.fragments.at(i)
		f.data, f.shared = slices.Clone(f.data), nil
		*out.fragments.push() = f
	}
	return out
}

// resume makes the machine go on from st: everything unacknowledged is sent again,
// within the peer's window, which starts small again; what is held already counts
// nothing against ours, but is held all the same and as old as it is. The peer learns
// by RESUME what need not come again.
func (m *Machine) resume(st *State) {
	m.cfg.resumed = true
	for _, c := range st.recv {
		for i := range c.held.len() {
			h := c.held.at(i)
			h.carried = true
			m.inbox.total += h.kept()
		}
		m.inbox.total += int(c.partialCost)
		m.control.resumes |= channelBit(c.id)
	}
	m.inbox.channels = st.recv
	for _, c := range st.send {
		c.lost, c.again = 0, 0
		m.sent.span += c.behind
		for i := range c.fragments.len() {
			f := c.fragments.at(i)
			f.counted, f.flights, f.lost = false, 0, !f.acked
			m.sent.span += f.cost()
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
	// What waited for the peer to come back is yet to be sent, and must not be too much
	// because something waited before. Only once: nobody gains by coming back often.
	m.queue.carried = min(int32(m.queue.reliableBytes), m.cfg.queueBytesMax, carriedMax)
	m.noteSlow(0)
}

// An encoded State opens with its version: the later one where there is something that
// the first could not say, so that nodes of before take most users.
const (
	stateVersion1 = 1
	stateVersion  = 2
)

// Bounds of an encoded State.
const (
	// StateBytesMax is the longest encoded State, in bytes: 4 MiB that wait behind a message
	// of 1 MiB, 2 MiB under way, 2 MiB held. Longer is only what waits besides because it
	// was carried over, when all of that is used to the full: it can't be moved then.
	StateBytesMax = 9 << 20
	// carriedMax is how much may wait for a while besides Config.QueueBytesMax because that
	// much waited before, in bytes: what is kept for a peer without a connection.
	carriedMax = 1 << 20
	// stateItemsMax bounds the fragments and messages in one.
	stateItemsMax = 1 << 18
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
//	channels received:  count, (id u8, flags u8, next, [age in ms,] partial cost, partial,
//	                    held: count, (seq, flags u8, size if done else data)*)*
//	channels sent:      count, (id u8, base, [bytes behind,] fragments: count, (flags u8, size if acknowledged else data)*)*
//	messages waiting:   count, (channel u8, flags u8, data)*
//
// Numbers are varints; data is a varint length and bytes. What is in brackets is in
// version 2 only.
func (s *State) AppendTo(dst []byte) []byte {
	version := s.version()
	dst = append(dst, version)
	dst = wire.AppendVarint(dst, uint64(len(s.recv)))
	for _, c := range s.recv {
		dst = append(dst, c.id, stateFlags(false, false, false, c.inside))
		dst = wire.AppendVarint(dst, c.next)
		if version > stateVersion1 {
			dst = wire.AppendVarint(dst, uint64(-c.grown/time.Millisecond))
		}
		dst = wire.AppendVarint(dst, uint64(c.partialCost))
		dst = appendBytes(dst, c.partial)
		dst = wire.AppendVarint(dst, uint64(c.held.len()))
		for i := range c.held.len() {
			h := c.held.at(i)
			dst = wire.AppendVarint(dst, h.seq)
			dst = append(dst, stateFlags(h.first, h.last, h.done, false))
			dst = appendUnlessDone(dst, h.done, int(h.size), h.data)
		}
	}
	dst = wire.AppendVarint(dst, uint64(len(s.send)))
	for _, c := range s.send {
		dst = wire.AppendVarint(append(dst, c.id), c.base)
		if version > stateVersion1 {
			dst = wire.AppendVarint(dst, uint64(c.behind))
		}
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

// version is the least that says all of s.
func (s *State) version() byte {
	for _, c := range s.recv {
		if c.grown <= -time.Millisecond {
			return stateVersion
		}
	}
	for _, c := range s.send {
		if c.behind > 0 {
			return stateVersion
		}
	}
	return stateVersion1
}

// Held is what of s is held for the peer, see [Machine.Held].
func (s *State) Held() int {
	n := 0
	for _, c := range s.recv {
		n += int(c.partialCost)
		for i := range c.held.len() {
			n += c.held.at(i).kept()
		}
	}
	return n
}

// appendUnlessDone appends the data of a fragment, or just its size.
func appendUnlessDone(dst []byte, done bool, size int, data []byte) []byte {
	if done {
		return wire.AppendVarint(dst, uint64(size))
	}
	return appendBytes(dst, data)
}
