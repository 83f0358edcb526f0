package reliable

import (
	"errors"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// ErrState means that bytes are not an encoded State.
var ErrState = errors.New("malformed connection state")

// ParseState reads an encoded State. It copies what it keeps and refuses with
// [ErrState] whatever [State.AppendTo] would not write.
func ParseState(b []byte) (*State, error) {
	if len(b) == 0 || len(b) > StateBytesMax || b[0] < stateVersion1 || b[0] > stateVersion {
		return nil, ErrState
	}
	r := stateReader{b: b[1:], items: stateItemsMax, version: b[0]}
	st := &State{}
	seen := uint32(0)
	for range r.count() {
		c := r.recvChannel()
		r.require(seen&channelBit(c.id) == 0)
		seen |= channelBit(c.id)
		st.recv = append(st.recv, c)
	}
	seen = 0
	for range r.count() {
		c := r.sendChannel()
		r.require(seen&channelBit(c.id) == 0)
		seen |= channelBit(c.id)
		st.send = append(st.send, c)
	}
	seen = 0
	for range r.count() {
		m := outMessage{channel: r.channel()}
		flags := r.byte()
		m.started = flags == stateInside
		m.data = r.data(wire.MessageMax)
		r.require(flags == 0 && len(m.data) >= messageMin || m.started && seen&channelBit(m.channel) == 0 && len(m.data) > 0)
		seen |= channelBit(m.channel)
		st.queue = append(st.queue, m)
	}
	r.require(len(r.b) == 0)
	if r.bad || st.Held() > heldMax {
		return nil, ErrState
	}
	return st, nil
}

// stateReader reads fields until one is wrong; from then on all are zero.
type stateReader struct {
	b       []byte
	version byte
	items   int // how many more may come
	bad     bool
}

func (r *stateReader) require(ok bool) {
	if !ok {
		r.bad, r.b = true, nil
	}
}

func (r *stateReader) byte() byte {
	if r.require(len(r.b) > 0); r.bad {
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *stateReader) varint(limit uint64) uint64 {
	v, n := wire.ParseVarint(r.b)
	if r.require(n > 0 && v <= limit); r.bad {
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count reads how many items follow; each takes at least one byte.
func (r *stateReader) count() int {
	n := int(r.varint(uint64(min(r.items, len(r.b)))))
	r.items -= n
	return n
}

func (r *stateReader) channel() uint8 {
	id := r.byte()
	if r.require(wire.ChannelValid(id)); r.bad {
		return 0
	}
	return id
}

func (r *stateReader) data(limit int) []byte {
	n := int(r.varint(uint64(min(limit, len(r.b)))))
	if r.require(n <= len(r.b)); r.bad {
		return nil
	}
	out := slices.Clone(r.b[:n])
	r.b = r.b[n:]
	return out
}

// fragment reads flags and data, or the size of what is done.
func (r *stateReader) fragment(limit int) (flags byte, data []byte, size int) {
	flags = r.byte()
	r.require(flags&^(stateFirst|stateLast|stateDone) == 0)
	if flags&stateDone != 0 {
		return flags, nil, int(r.varint(uint64(limit)))
	}
	data = r.data(limit)
	return flags, data, len(data)
}

// seqMax leaves room for a lifetime of fragments above it.
const seqMax = 1 << 50

func (r *stateReader) recvChannel() *recvChannel {
	c := &recvChannel{id: r.channel()}
	flags := r.byte()
	c.inside = flags == stateInside
	c.next = r.varint(wire.VarintMax)
	if r.version > stateVersion1 {
		c.grown = -time.Duration(r.varint(uint64(incompleteAge/time.Millisecond))) * time.Millisecond
	}
	c.partialCost = int32(r.varint(heldMax))
	c.partial = r.data(wire.MessageMax)
	r.require(flags&^stateInside == 0 && len(c.partial) <= int(c.partialCost) && (c.inside || c.partialCost == 0))
	low := c.next + 1 // what is missing
	for range r.count() {
		h := heldFragment{seq: r.varint(wire.VarintMax), carried: true}
		flags, data, size := r.fragment(wire.MessageMax)
		h.data, h.size = data, int32(size)
		h.first, h.last, h.done = flags&stateFirst != 0, flags&stateLast != 0, flags&stateDone != 0
		r.require(h.seq >= low && (size > 0 || h.last) && (!h.done || c.id == ChannelUnordered))
		low = h.seq + 1
		*c.held.push() = h
	}
	return c
}

func (r *stateReader) sendChannel() *sendChannel {
	c := &sendChannel{id: r.channel(), base: r.varint(seqMax)}
	if r.version > stateVersion1 {
		c.behind = int(r.varint(heldMax))
	}
	for range r.count() {
		flags, data, size := r.fragment(fragmentMax)
		r.require(size > 0)
		*c.fragments.push() = fragment{
			data: data, size: uint16(size),
			first: flags&stateFirst != 0, last: flags&stateLast != 0, acked: flags&stateDone != 0,
		}
	}
	return c
}
