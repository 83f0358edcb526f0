package reliable

import (
	"sort"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// heldFragment waits beyond a hole.
type heldFragment struct {
	seq         uint64
	data        []byte // nil when done
	first, last bool
	done        bool  // its message was delivered; only on the unordered channel
	carried     bool  // came with a State: counts nothing against the window
	size        int32 // of data, also when done
}

// cost is what a fragment counts against the window.
func (h *heldFragment) cost() int {
	if h.carried {
		return 0
	}
	return int(h.size) + fragmentCost
}

// kept is what it counts of what is held for the peer.
func (h *heldFragment) kept() int { return len(h.data) + fragmentCost }

// recvChannel puts the fragments of one channel together.
type recvChannel struct {
	id          uint8
	inside      bool   // the newest fragment in order was not the last of its message
	partialCost int32  // what partial counts
	next        uint64 // the lowest sequence number not received

	partial []byte             // the message whose first fragments are in order, if inside
	held    ring[heldFragment] // beyond next, ascending

	// grown is when something last arrived in order, or the first thing beyond a hole
	// while nothing was held, in the time of inbox.now.
	grown time.Duration
}

// holds reports whether the channel keeps anything for the peer.
func (c *recvChannel) holds() bool { return c.partialCost > 0 || c.held.len() > 0 }

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
	window   int32 // bytes held beyond holes, at most
	dropped  int32 // bytes dropped since the next in order last advanced
	held     int   // bytes held beyond holes, but for what came with a State
	total    int   // bytes held in all, see Machine.Held

	now time.Duration // what the connection has lived, see Machine.lived
}

// oldest is since when the channel that waits longest holds something and nothing in
// order arrived. There must be one.
func (in *inbox) oldest() time.Duration {
	oldest := never
	for _, c := range in.channels {
		if c.holds() {
			oldest = min(oldest, c.grown)
		}
	}
	return oldest
}

// keep counts what is held from now on.
func (in *inbox) keep(bytes int) error {
	if in.total+bytes > heldMax {
		return errHeld
	}
	in.total += bytes
	return nil
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
	h := heldFragment{seq: f.Seq, first: f.First, last: f.Last, size: int32(len(f.Data))}
	if in.held+h.cost() > int(in.window) {
		if in.dropped += int32(h.cost()); in.dropped > in.window {
			return false, errWindow
		}
		return false, nil
	}
	if !c.holds() {
		c.grown = in.now
	}
	if c.id == ChannelUnordered && h.first && h.last {
		h.done = true
	} else {
		h.data = f.Data
	}
	if err := in.keep(h.kept()); err != nil {
		return false, err
	}
	in.held += h.cost()
	h.data = copyOf(h.data)
	*c.held.insert(i) = h
	switch {
	case h.done:
		return true, r.deliver(f.Data, OnChannel(c.id), c.id)
	case c.id == ChannelUnordered:
		return true, in.deliverEarly(c, i, r)
	}
	return true, nil
}

// deliverEarly delivers the message around held fragment i if all of it is there.
func (in *inbox) deliverEarly(c *recvChannel, i int, r *Received) error {
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
		if len(message)+len(h.data) > wire.MessageMax {
			return errLong
		}
		message = append(message, h.data...)
		in.total -= len(h.data)
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
		in.total -= h.kept()
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
	c.grown = in.now
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
	c.partial = r.extend(c.partial, h.data)
	if !h.last {
		cost := len(h.data) + fragmentCost
		c.partialCost += int32(cost)
		return in.keep(cost)
	}
	message := c.partial
	in.total -= int(c.partialCost)
	c.partial, c.partialCost = nil, 0
	r.lendLong(message)
	return r.deliver(message, OnChannel(c.id), c.id)
}
