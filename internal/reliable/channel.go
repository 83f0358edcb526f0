package reliable

// fragment was sent, or was on the connection before and waits to be sent again.
type fragment struct {
	data   []byte  // nil once acknowledged
	shared *Shared // whose bytes data is, or nil
	size   uint16
	first  bool
	last   bool
	acked  bool
	lost   bool // must be sent again
	// counted means it is part of what is outstanding: sent on this connection.
	counted bool
	flights uint8  // packets under way that carry it
	newest  uint32 // low bits of the number of the last packet that carried it
}

func (f *fragment) cost() int { return int(f.size) + fragmentCost }

// sendChannel is what was sent on one channel, from the oldest unacknowledged
// fragment to the newest.
type sendChannel struct {
	id    uint8
	base  uint64 // sequence number of fragments.at(0)
	lost  int32  // fragments that must be sent again
	again int32  // index below which none of them is
	// behind is what fragments below base cost whose message is not wholly acknowledged.
	behind int

	fragments ring[fragment]
}

// next is the sequence number of the next new fragment.
func (c *sendChannel) next() uint64 { return c.base + uint64(c.fragments.len()) }

// ref names a fragment: its sequence number and, in the low byte, its channel.
type ref uint64

func refOf(channel uint8, seq uint64) ref { return ref(seq<<8 | uint64(channel)) }

func (r ref) channel() uint8 { return uint8(r) }
func (r ref) seq() uint64    { return uint64(r >> 8) }

// sent is what all channels have under way.
type sent struct {
	channels    []*sendChannel
	outstanding int   // bytes between the oldest unacknowledged and the newest sent
	window      int   // most that may be outstanding
	span        int   // bytes from the first fragment of the oldest message not wholly acknowledged on
	lost        int32 // fragments that must be sent again, all channels
	progress    bool  // a fragment was acknowledged, see noteSlow
	tries       uint8 // packets with fragments since Machine.slowSince, up to slowTriesMin
}

// channel returns the channel, or nil when nothing was sent on it.
func (s *sent) channel(id uint8) *sendChannel {
	for _, c := range s.channels {
		if c.id == id {
			return c
		}
	}
	return nil
}

// open returns the channel and makes it if it is new.
func (s *sent) open(id uint8) *sendChannel {
	c := s.channel(id)
	if c == nil {
		c = &sendChannel{id: id}
		s.channels = append(s.channels, c)
	}
	return c
}

// find returns the fragment and its index, or nil when it needs nothing any more.
func (s *sent) find(r ref) (*sendChannel, *fragment, int) {
	c := s.channel(r.channel())
	if c == nil || r.seq() < c.base || r.seq() >= c.next() {
		return nil, nil, 0
	}
	i := int(r.seq() - c.base)
	return c, c.fragments.at(i), i
}

// push adds the newest fragment of a channel and returns it.
func (s *sent) push(c *sendChannel, f fragment) *fragment {
	s.span += f.cost()
	p := c.fragments.push()
	*p = f
	return p
}

// acked forgets a fragment the peer has.
func (s *sent) acked(r ref) {
	if c, f, _ := s.find(r); c != nil && !f.acked {
		s.ack(c, f)
		s.slide(c)
	}
}

// ackedBelow forgets all fragments of a channel below seq.
func (s *sent) ackedBelow(c *sendChannel, seq uint64) {
	for i := 0; i < c.fragments.len() && c.base+uint64(i) < seq; i++ {
		if f := c.fragments.at(i); !f.acked {
			s.ack(c, f)
		}
	}
	s.slide(c)
}

func (s *sent) ack(c *sendChannel, f *fragment) {
	f.acked, s.progress = true, true
	if f.lost {
		f.lost = false
		c.lost--
		s.lost--
	}
	if f.first && f.last {
		free(f.data, f.shared) // no other fragment has a part of it
	}
	f.data, f.shared = nil, nil
}

// slide moves the base past what is acknowledged.
func (s *sent) slide(c *sendChannel) {
	for c.fragments.len() > 0 && c.fragments.at(0).acked {
		f := c.fragments.at(0)
		if f.counted {
			s.outstanding -= f.cost()
		}
		if c.behind += f.cost(); f.last {
			s.span -= c.behind
			c.behind = 0
		}
		c.fragments.pop()
		c.base++
		c.again = max(c.again-1, 0)
	}
}

// missed notes that a packet with the fragment was lost.
func (s *sent) missed(r ref) {
	c, f, i := s.find(r)
	if c == nil || f.acked {
		return
	}
	f.flights = max(f.flights, 1) - 1
	if f.flights > 0 || f.lost {
		return
	}
	f.lost = true
	c.lost++
	s.lost++
	c.again = min(c.again, int32(i))
}

// again returns the next fragment of c to send again, or nil when there is none
// or the window has no room for it.
func (s *sent) again(c *sendChannel) (*fragment, uint64) {
	if c.lost == 0 {
		return nil, 0
	}
	for !c.fragments.at(int(c.again)).lost {
		c.again++
	}
	f := c.fragments.at(int(c.again))
	if !f.counted && s.outstanding > 0 && s.outstanding+f.cost() > s.window {
		return nil, 0
	}
	return f, c.base + uint64(c.again)
}

// resent notes that the fragment returned by again went out.
func (s *sent) resent(c *sendChannel, f *fragment) {
	f.lost = false
	c.lost--
	s.lost--
	c.again++
	s.count(f)
}

// count notes that f is in one more packet.
func (s *sent) count(f *fragment) {
	if f.flights < 255 {
		f.flights++
	}
	if !f.counted {
		f.counted = true
		s.outstanding += f.cost()
	}
}

// canSendAgain reports whether some lost fragment may go out now.
func (s *sent) canSendAgain() bool {
	if s.lost == 0 {
		return false
	}
	for _, c := range s.channels {
		if f, _ := s.again(c); f != nil {
			return true
		}
	}
	return false
}

// trim gives back memory of bursts gone by.
func (s *sent) trim() {
	for _, c := range s.channels {
		c.fragments.trim()
	}
}
