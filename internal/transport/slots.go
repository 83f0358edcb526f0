package transport

import (
	"container/list"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	"github.com/Diarkis/diarkis/internal/wire"
)

// slots bounds the TCP handshakes under way: all of them, those of one IPv4 address or
// IPv6 /64, and those of one IPv6 /48. When one of these is full, the newcomer gets
// in and one of the same goes, in all one of an address that has many; from the larger
// of two halves: those that proved nothing, and those whose Hello was good and whose
// Confirm is awaited. Of the latter the oldest goes, of the silent ones of an address any:
// were it the oldest, a neighbour who comes again and again would push out for certain
// whose Hello takes longer than their round, however often they try. So who connects and
// is silent keeps out nobody who speaks, neither half can empty the other, and who comes
// again and again mostly pushes out their own. Whose Confirm is awaited counts by place too: a newer handshake of a
// place ends its oldest, so that who says Hello and stalls fills no more than a few.
type slots struct {
	most, perAddress, perNetwork int             // constant; zero or less: any number
	pick                         func(n int) int // a number below n, by chance; constant

	mu     sync.Mutex // guards the fields below and those of slot
	total  crowd
	crowds map[netip.Prefix]*crowd
	places map[wire.CID][]*slot // awaited ones, oldest first
}

// awaitedPerPlace is how many handshakes of one place may await their Confirm: the one a
// client gave up on, because its address changed for one, and the one it goes on with.
const awaitedPerPlace = 2

// networkShare is how many times the handshakes of one /64 a whole /48 may have, which
// is what a site gets.
const networkShare = 4

// crowd is the handshakes that share a limit.
type crowd struct {
	halves [2]list.List // of *slot, oldest first: silent, and awaited
}

func (c *crowd) len() int { return c.halves[0].Len() + c.halves[1].Len() }

// victim is who goes when one of c has to; of those that proved nothing the one that pick
// says.
func (c *crowd) victim(pick func(n int) int) *slot {
	half, skip := &c.halves[0], 0
	switch n := half.Len(); {
	case c.halves[1].Len() > n:
		half = &c.halves[1]
	case n == 0:
		return nil
	default:
		skip = pick(n)
	}
	e := half.Front()
	for ; skip > 0; skip-- {
		e = e.Next()
	}
	return e.Value.(*slot)
}

// oldest is the pick of who came first.
func oldest(int) int { return 0 }

// slot is one handshake.
type slot struct {
	end func() // closes its connection; constant

	groups  [3]group // nil crowds, once it left
	awaited bool
	cid0    wire.CID     // of the place, when awaited
	evicted wire.Refusal // why it was, "" if it was not
}

// group is the place of a slot in one crowd.
type group struct {
	crowd *crowd
	key   netip.Prefix // of crowds, invalid for the total
	spot  *list.Element
}

func newSlots(total, perAddress int) *slots {
	return &slots{
		most: total, perAddress: perAddress, perNetwork: networkShare * perAddress, pick: rand.IntN,
		crowds: map[netip.Prefix]*crowd{}, places: map[wire.CID][]*slot{},
	}
}

// enter takes a slot for a handshake from addr. End is called, from this or a later
// call of enter or makeRoom, when the handshake has to go for another.
func (s *slots) enter(addr netip.Addr, end func()) *slot {
	addr = addr.Unmap().WithZone("")
	n := &slot{end: end}
	var gone []*slot
	s.mu.Lock()
	gone = s.joinLocked(n, 2, netip.Prefix{}, s.most, dropSlot, gone) // first: its address counts without it
	if addr.Is6() {
		gone = s.joinLocked(n, 0, prefix(addr, 64), s.perAddress, dropShare, gone)
		gone = s.joinLocked(n, 1, prefix(addr, 48), s.perNetwork, dropNetwork, gone)
	} else {
		gone = s.joinLocked(n, 0, prefix(addr, 32), s.perAddress, dropShare, gone)
	}
	s.mu.Unlock()
	for _, v := range gone {
		v.end()
	}
	return n
}

func prefix(a netip.Addr, bits int) netip.Prefix {
	p, _ := a.Prefix(bits) // bits fit the address
	return p
}

// joinLocked adds n to a crowd as its i-th group. Who has to go for it is appended to gone.
func (s *slots) joinLocked(n *slot, i int, key netip.Prefix, most int, why wire.Refusal, gone []*slot) []*slot {
	if c := s.crowdLocked(key); most > 0 && c.len() >= most {
		var v *slot
		if c == &s.total {
			v = s.victimLocked()
		} else {
			v = c.victim(s.pick)
		}
		s.evictLocked(v, why)
		gone = append(gone, v)
	}
	c := s.crowdLocked(key) // another, when the last of it went
	n.groups[i] = group{c, key, c.halves[0].PushBack(n)}
	return gone
}

func (s *slots) crowdLocked(key netip.Prefix) *crowd {
	if !key.IsValid() {
		return &s.total
	}
	c := s.crowds[key]
	if c == nil {
		c = &crowd{}
		s.crowds[key] = c
	}
	return c
}

// await notes that the Hello of a handshake was good, which was for the place of cid0.
func (s *slots) await(n *slot, cid0 wire.CID) {
	var gone *slot
	s.mu.Lock()
	if n.awaited || n.evicted != "" {
		s.mu.Unlock()
		return
	}
	n.awaited, n.cid0 = true, cid0
	for i := range n.groups {
		if g := &n.groups[i]; g.crowd != nil {
			g.crowd.halves[0].Remove(g.spot)
			g.spot = g.crowd.halves[1].PushBack(n)
		}
	}
	if same := s.places[cid0]; len(same) >= awaitedPerPlace {
		gone = same[0]
		s.evictLocked(gone, dropCID)
	}
	s.places[cid0] = append(s.places[cid0], n)
	s.mu.Unlock()
	if gone != nil {
		gone.end()
	}
}

// leave gives a slot back. It returns why the handshake was evicted, "" when it was not.
func (s *slots) leave(n *slot) (evicted wire.Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveLocked(n)
	return n.evicted
}

func (s *slots) leaveLocked(n *slot) {
	half := 0
	if n.awaited {
		half = 1
		s.leavePlaceLocked(n)
	}
	for i := range n.groups {
		g := n.groups[i]
		if g.crowd == nil {
			continue
		}
		g.crowd.halves[half].Remove(g.spot)
		if g.key.IsValid() && g.crowd.len() == 0 {
			delete(s.crowds, g.key)
		}
		n.groups[i] = group{}
	}
}

// leavePlaceLocked does nothing when n left before.
func (s *slots) leavePlaceLocked(n *slot) {
	rest := slices.DeleteFunc(s.places[n.cid0], func(o *slot) bool { return o == n })
	if len(rest) == 0 {
		delete(s.places, n.cid0)
	} else {
		s.places[n.cid0] = rest
	}
}

func (s *slots) evictLocked(n *slot, why wire.Refusal) {
	s.leaveLocked(n)
	n.evicted = why
}

// sample is how many crowds are compared to find one that has many.
const sample = 32

// victimLocked is who goes when there are too many in all: one of the largest of a few
// crowds, as chance has it, and the oldest of all when each has one. Nil when there is none.
func (s *slots) victimLocked() *slot {
	most, from, seen := 1, &s.total, 0
	for key, c := range s.crowds {
		n := c.len()
		if key.Addr().Is6() && key.Bits() == 48 {
			n /= networkShare
		}
		if n > most {
			most, from = n, c
		}
		if seen++; seen == sample {
			break
		}
	}
	if from == &s.total {
		return from.victim(oldest)
	}
	return from.victim(s.pick)
}

// makeRoom ends one handshake for a connection that there is no descriptor for. It
// returns false when there is none.
func (s *slots) makeRoom() bool {
	s.mu.Lock()
	v := s.victimLocked()
	if v != nil {
		s.evictLocked(v, dropDescriptors)
	}
	s.mu.Unlock()
	if v == nil {
		return false
	}
	v.end()
	return true
}
