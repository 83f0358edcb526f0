package reliable

import (
	"math"

	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	// skipMean is how many packets there are between two numbers that are left out, on
	// average.
	skipMean = 1000
	// skipsKept is how many of those numbers are remembered.
	skipsKept = 8
)

// skips are packet numbers that were never used. Who acknowledges one acknowledges
// ahead of receipt, to be sent more than its path carries.
type skips struct {
	next uint64 // the next number to leave out
	last *lastSkips
}

// lastSkips are the numbers left out last.
type lastSkips struct {
	pn [skipsKept]uint64
	n  uint64 // so many were left out, the newest is pn[(n-1)%skipsKept]
}

// skipAfter draws the next number to leave out: every one above pn has the same chance,
// so that those before tell nothing of it.
func (m *Machine) skipAfter(pn uint64) {
	if m.cfg.random == nil || m.cfg.stream {
		m.skips.next = math.MaxUint64
		return
	}
	u := (float64(m.cfg.random()>>11) + 0.5) / (1 << 53) // above 0, below 1
	m.skips.next = pn + 1 + uint64(-math.Log(u)*skipMean)
}

// Skip reports whether the packet number pn, the next one, is to be left out, so that
// an acknowledgement of it gives a liar away. It is asked before every Append.
func (m *Machine) Skip(pn uint64) bool {
	if pn < m.skips.next {
		return false
	}
	s := &m.skips
	if s.last == nil {
		s.last = new(lastSkips)
	}
	s.last.pn[s.last.n%skipsKept] = pn
	s.last.n++
	m.skipAfter(pn + 1) // never two in a row
	return true
}

// covered reports whether an ACK covers a number that was left out.
func (s *skips) covered(a *wire.Ack) bool {
	l := s.last
	if l == nil {
		return false
	}
	kept := l.pn[:min(l.n, skipsKept)]
	oldest := kept[0]
	if l.n > skipsKept {
		oldest = kept[l.n%skipsKept]
	}
	for r := range a.Ranges {
		if r.Hi < oldest {
			return false
		}
		for _, pn := range kept {
			if pn >= r.Lo && pn <= r.Hi {
				return true
			}
		}
	}
	return false
}
