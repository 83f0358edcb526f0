package mars

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// Seat is one voter: a run of a node. A restarted node is another run, and owes
// nothing of what the one before it promised.
type Seat struct {
	Node        id.Node
	Incarnation id.Incarnation // see Run
}

// SeatOf returns what a member votes as.
func SeatOf(n id.Node, i id.Incarnation) Seat { return Seat{Node: n, Incarnation: Run(i)} }

// Run returns what all incarnations of one run of a process have in common: the
// others are counted up from the first, see Evicted. A voter that was evicted as a
// member keeps its seat and its word.
func Run(i id.Incarnation) id.Incarnation { return i.Run() }

// Token names i's run of a process to players, who can't learn i from it: 32 hex digits,
// the first 16 bytes of SHA-256("dx1 node" ‖ Run(i)).
func Token(i id.Incarnation) string {
	run := Run(i)
	sum := sha256.Sum256(append([]byte("dx1 node"), run[:]...))
	return hex.EncodeToString(sum[:16])
}

// Compare orders by node, then incarnation.
func (s Seat) Compare(o Seat) int {
	return cmp.Or(strings.Compare(string(s.Node), string(o.Node)), bytes.Compare(s.Incarnation[:], o.Incarnation[:]))
}

// later decides between two that are equal otherwise.
func (s Seat) later(o Seat) bool { return bytes.Compare(s.Incarnation[:], o.Incarnation[:]) > 0 }

// Council is the list of voters: the one thing the nodes agree on. It changes by
// one seat at a time, so that majorities of neighbouring councils overlap.
type Council struct {
	Epoch   Epoch  // it was written in
	Version uint64 // grows within the epoch, from 1
	Seats   []Seat // in order of appointment; never changed in place
}

// seatsMax is how many seats a council may have, one being added included.
const seatsMax = 8

// Compare orders by epoch, then version: the later council counts.
func (c Council) Compare(o Council) int {
	return cmp.Or(c.Epoch.Compare(o.Epoch), cmp.Compare(c.Version, o.Version))
}

// IsZero tells whether no council was ever heard of.
func (c Council) IsZero() bool { return len(c.Seats) == 0 }

// Has tells whether s is a voter.
func (c Council) Has(s Seat) bool { return slices.Contains(c.Seats, s) }

// Majority is how many voters decide.
func (c Council) Majority() int { return len(c.Seats)/2 + 1 }

// with returns the next version of c with a voter more.
func (c Council) with(s Seat) Council {
	return Council{Epoch: c.Epoch, Version: c.Version + 1, Seats: append(slices.Clone(c.Seats), s)}
}

// without returns the next version of c with a voter less.
func (c Council) without(s Seat) Council {
	seats := slices.DeleteFunc(slices.Clone(c.Seats), func(o Seat) bool { return o == s })
	return Council{Epoch: c.Epoch, Version: c.Version + 1, Seats: seats}
}

// mark tells two councils, with what goes with them, apart in a heartbeat, for a few
// bytes.
func (c Council) mark(a Around) uint64 {
	if c.IsZero() {
		return 0
	}
	e := c.Epoch
	h := hash64(e.Founder[:])
	for _, v := range [...]uint64{e.Generation, e.Term, c.Version} {
		h = (h ^ v) * 1099511628211
	}
	for _, ns := range [...][]id.Node{a.Homes, a.Elsewhere} {
		for _, n := range ns {
			h = (h ^ hash64([]byte(n))) * 1099511628211
		}
	}
	return h
}

// The timers of the council.
const (
	renewEvery = 500 * time.Millisecond // authority to voters
	// promiseFor is how long a voter that granted a renewal grants nobody else,
	// from its receipt; leaseFor how long the authority relies on it, from the
	// sending. The difference allows clocks to run at rates 20 % apart.
	promiseFor = 3 * time.Second
	leaseFor   = 2500 * time.Millisecond
	// abdicateAfter is how long an authority without a lease hopes for it.
	abdicateAfter = promiseFor + 2*time.Second
	campaignFor   = 500 * time.Millisecond // for the answers to one request for votes
	campaignStep  = 100 * time.Millisecond // between two voters' turns
	retryCampaign = 300 * time.Millisecond // at least, twice that at most
)

// promise is a voter's word to grant nobody else until then.
type promise struct {
	to    Seat
	epoch Epoch // in which that one reigns, or wants to
	until time.Time
}

// bound tells whether the promise keeps its maker from granting s something.
func (p promise) bound(now time.Time, s Seat) bool { return p.to != s && now.Before(p.until) }
