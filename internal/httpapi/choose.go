package httpapi

import (
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

const (
	// onTheWay is for how many seconds a place that was handed out counts as a user, until
	// the node says how many it has: for the handshake (at most 4 s) and one heartbeat (at
	// most 5 s). Who has not come by then will most likely not come.
	onTheWay = 10
	// failedFor is how long a node that refused or was silent is asked after the others: each
	// try costs a player up to reserveTimeout.
	failedFor = time.Second
)

// handed are the places handed out on a run of a node of which its user count does not
// know yet. A node that sees no change says nothing for a long time, so heartbeats can't
// tell when a place is accounted for: more users do, or time.
type handed struct {
	run    id.Incarnation // of the node
	users  int            // as the directory has it
	n      int            // places, the sum of the next
	bySec  [onTheWay]int  // the second they were handed out in, modulo
	second int64          // the newest in bySec
	failed time.Time      // when the node refused last, or was silent
}

// advance forgets those who have not come.
func (h *handed) advance(second int64) {
	for ; h.second < second && h.n > 0; h.second++ {
		i := (h.second + 1) % onTheWay
		h.n -= h.bySec[i]
		h.bySec[i] = 0
	}
	h.second = max(h.second, second)
}

func (h *handed) add(second int64) {
	h.advance(second)
	h.bySec[second%onTheWay]++
	h.n++
}

// take gives back n, the oldest first: users who arrived, or a place that was not given.
func (h *handed) take(n int) {
	for s := h.second + 1; s <= h.second+onTheWay && n > 0; s++ {
		m := min(n, h.bySec[s%onTheWay])
		h.bySec[s%onTheWay] -= m
		h.n, n = h.n-m, n-m
	}
}

// pick takes two candidates at random and returns the less loaded. That spreads
// load almost as well as asking all, and unlike "the least loaded" it doesn't send
// everyone to the same node until the next heartbeat (Mitzenmacher 2001). With our own
// hand-outs counted a burst on two nodes goes half and half. Nodes that failed just now
// are taken when there is no other.
func (s *Server) pick(c []mars.Member) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	var fit []int
	for i := range c {
		if h := s.handed[c[i].Node]; h == nil || h.run != c[i].Incarnation || now.Sub(h.failed) >= failedFor {
			fit = append(fit, i)
		}
	}
	if len(fit) == 0 {
		for i := range c {
			fit = append(fit, i)
		}
	}
	second := s.second(now)
	at := s.cfg.Choose(len(fit))
	i := fit[at]
	if len(fit) > 1 {
		other := s.cfg.Choose(len(fit) - 1)
		if other >= at {
			other++
		}
		j := fit[other]
		a, b := s.usersLocked(second, c[i]), s.usersLocked(second, c[j])
		if b < a || (b == a && c[j].Load < c[i].Load) {
			i = j
		}
	}
	if h := s.handedLocked(c[i]); h != nil {
		h.add(second)
	}
	return i
}

func (s *Server) second(now time.Time) int64 { return int64(now.Sub(s.epoch) / time.Second) }

func (s *Server) usersLocked(second int64, m mars.Member) int {
	h := s.handed[m.Node]
	if h == nil || h.run != m.Incarnation {
		return m.Users
	}
	h.advance(second)
	return m.Users + h.n
}

// handedLocked returns what was handed out on a run of a node; nil when the directory names
// another by now, or none: a request that began before must not take the place of its count.
func (s *Server) handedLocked(m mars.Member) *handed {
	h := s.handed[m.Node]
	if h != nil && h.run == m.Incarnation {
		return h
	}
	if now, ok := s.seen.Lookup(m.Node); !ok || now.Incarnation != m.Incarnation {
		return nil
	}
	h = &handed{run: m.Incarnation, users: m.Users, second: s.second(time.Now())}
	s.handed[m.Node] = h
	return h
}

// handOut counts a place on a node that pick did not choose.
func (s *Server) handOut(m mars.Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.handedLocked(m); h != nil {
		h.add(s.second(time.Now()))
	}
}

// giveBack takes back one that was not given, or that nobody was told of.
func (s *Server) giveBack(m mars.Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.handedLocked(m); h != nil {
		h.take(1)
	}
}

// failed notes that a node refused, or was silent.
func (s *Server) failed(m mars.Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.handedLocked(m); h != nil {
		h.failed = time.Now()
	}
}

// arriveLocked compares what was handed out with a new directory.
func (s *Server) arriveLocked(d *mars.Directory) {
	for n, h := range s.handed {
		m, ok := d.Lookup(n)
		if !ok || m.Incarnation != h.run {
			delete(s.handed, n)
			continue
		}
		if m.Users > h.users {
			h.take(m.Users - h.users)
		}
		h.users = m.Users
	}
}
