package reliable

import (
	"sort"

	"github.com/Diarkis/diarkis/internal/wire"
)

// heldFragment waits beyond a hole.
type heldFragment struct {
	seq         uint64
	data        []byte // nil when done
	first, last bool
	done        bool // its message was delivered; only on the unordered channel
	carried     bool // came with a State: counts nothing against the window
	size        int  // of data, also when done
}

func (h *heldFragment) cost() int {
	if h.carried {
		return 0
	}
	return h.size + fragmentCost
}

// recvChannel puts the fragments of one channel together.
type recvChannel struct {
	id     uint8
	inside bool   // the newest fragment in order was not the last of its message
	next   uint64 // the lowest sequence number not received

	partial     []byte // the message whose first fragments are in order, if inside
	partialCost int
	held        ring[heldFragment] // beyond next, ascending
}

// find returns where seq is or belongs in held.
func (c *recvChannel) find(seq uint64) (int, bool) {
	n := c.held.len()
	if n == 0 || c.held.at(n-1).seq < seq {
		return n, false // the usual case
	}
	i := sort.Search(n, func(i int) bool { return c.held.at(i).seq >= seq })
	return i, c.held.at(i).seq == seq
}

// fits reports whether f can stand at index i of held: a message starts exactly
// where the one before it ended.
func (c *recvChannel) fits(i int, f *wire.Frame) bool {
	if i > 0 {
		if h := c.held.at(i - 1); h.seq+1 == f.Seq && h.last != f.First {
			return false
		}
	}
	if i == c.held.len() {
		return true
	}
	h := c.held.at(i)
	return h.seq != f.Seq+1 || h.first == f.Last
}

// inbox is the receiving half: all channels and what they share.
type inbox struct {
	channels []*recvChannel
	window   int // bytes held beyond holes, at most
	held     int // bytes held beyond holes
	partial  int // bytes in incomplete messages
	dropped  int // bytes dropped since the next in order last advanced
}

// trim gives back memory of bursts gone by.
func (in *inbox) trim() {
	for _, c := range in.channels {
		c.held.trim()
	}
}

// channel returns the channel, or nil when nothing arrived on it.
func (in *inbox) channel(id uint8) *recvChannel {
	for _, c := range in.channels {
		if c.id == id {
			return c
		}
	}
	return nil
}

// fragment takes a RELIABLE frame. It reports false when the fragment was dropped,
// so that its packet must not be acknowledged.
func (in *inbox) fragment(f *wire.Frame, r *Received) (kept bool, err error) {
	c := in.channel(f.Channel)
	if c == nil {
		c = &recvChannel{id: f.Channel}
		in.channels = append(in.channels, c)
	}
	switch {
	case f.Seq < c.next:
		return true, nil
	case f.Seq > c.next:
		return in.hold(c, f, r)
	}
	h := heldFragment{seq: f.Seq, data: f.Data, first: f.First, last: f.Last}
	if err := in.take(c, &h, r); err != nil {
		return false, err
	}
	return true, in.advance(c, r)
}

// hold keeps a fragment beyond a hole, if the window has room.
func (in *inbox) hold(c *recvChannel, f *wire.Frame, r *Received) (kept bool, err error) {
	i, found := c.find(f.Seq)
	if found {
		return true, nil
	}
	if !c.fits(i, f) {
		return false, errFragment
	}
	h := heldFragment{seq: f.Seq, first: f.First, last: f.Last, size: len(f.Data)}
	if in.held+h.cost() > in.window {
		if in.dropped += h.cost(); in.dropped > in.window {
			return false, errWindow
		}
		return false, nil
	}
	in.held += h.cost()
	if c.id == ChannelUnordered && h.first && h.last {
		h.done = true
		*c.held.insert(i) = h
		return true, r.deliver(f.Data, OnChannel(c.id), c.id)
	}
	h.data = copyOf(f.Data)
	*c.held.insert(i) = h
	if c.id == ChannelUnordered {
		return true, c.deliverEarly(i, r)
	}
	return true, nil
}

// deliverEarly delivers the message around held fragment i if all of it is there.
func (c *recvChannel) deliverEarly(i int, r *Received) error {
	from, to := i, i
	for !c.held.at(from).first {
		if from == 0 || c.held.at(from-1).seq+1 != c.held.at(from).seq {
			return nil
		}
		from--
	}
	for !c.held.at(to).last {
		if to+1 == c.held.len() || c.held.at(to+1).seq != c.held.at(to).seq+1 {
			return nil
		}
		to++
	}
	var message []byte
	for k := from; k <= to; k++ {
		h := c.held.at(k)
		if len(message)+h.size > wire.MessageMax {
			return errLong
		}
		message = append(message, h.data...)
		release(h.data)
		h.data, h.done = nil, true
	}
	return r.deliver(message, OnChannel(c.id), c.id)
}

// advance takes what is in order now that a hole was filled.
func (in *inbox) advance(c *recvChannel, r *Received) error {
	in.dropped = 0
	for c.held.len() > 0 && c.held.at(0).seq == c.next {
		h := *c.held.at(0)
		c.held.pop()
		in.held -= h.cost()
		if h.first && h.last && !h.done {
			r.lend(h.data)
		}
		if err := in.take(c, &h, r); err != nil {
			return err
		}
		if !h.done && !(h.first && h.last) {
			release(h.data)
		}
	}
	return nil
}

// take appends the next fragment in order and delivers the message it completes.
func (in *inbox) take(c *recvChannel, h *heldFragment, r *Received) error {
	if c.inside == h.first {
		return errFragment
	}
	c.inside = !h.last
	c.next++
	if h.done {
		return nil
	}
	if h.first && h.last {
		if len(h.data) > wire.MessageMax {
			return errLong
		}
		return r.deliver(h.data, OnChannel(c.id), c.id)
	}
	if len(c.partial)+len(h.data) > wire.MessageMax {
		return errLong
	}
	cost := len(h.data) + fragmentCost
	if in.partial+cost > incompleteMax {
		return errIncomplete
	}
	in.partial += cost
	c.partialCost += cost
	if h.first {
		c.partial = r.borrow()
	}
	c.partial = append(c.partial, h.data...)
	if !h.last {
		return nil
	}
	message := c.partial
	in.partial -= c.partialCost
	c.partial, c.partialCost = nil, 0
	r.lendLong(message)
	return r.deliver(message, OnChannel(c.id), c.id)
}
