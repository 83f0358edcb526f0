package mars

import (
	"fmt"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// Report is what an operator sees of a node's part in the cluster.
type Report struct {
	Authority     id.Node // empty: none known
	AuthorityRole string
	Reigns        bool // this node is it
	Epoch         Epoch
	Lease         time.Duration // of this node; 0 when it is not the authority or may not write
	Provisional   bool
	Voters        []Seat
	Members       []MemberStatus // all that this node knows; of every namespace on the authority
	Waiting       string         // for what, empty for nothing
}

// MemberStatus is one member with the time since it was heard, which only the
// authority knows: elsewhere it is 0.
type MemberStatus struct {
	Member
	Age time.Duration
}

// Status tells how this node stands at now.
func (m *Machine) Status(now time.Time) Report {
	s := Report{
		Authority: m.leader(now), Reigns: m.reign != nil, Epoch: m.observer.epoch, Lease: m.Lease(now),
		Voters: m.observer.council.Seats, Waiting: m.waiting(now),
	}
	if m.reign != nil {
		s.Authority = m.seat().Node
		s.Provisional = now.Before(m.reign.provisional)
	}
	if m.registry != nil {
		for rec := range m.registry.all() {
			s.Members = append(s.Members, MemberStatus{rec.Member, now.Sub(rec.heard)})
		}
	} else {
		for _, mem := range m.dir.Members {
			s.Members = append(s.Members, MemberStatus{Member: mem})
		}
	}
	for _, mem := range s.Members {
		if mem.Node == s.Authority {
			s.AuthorityRole = mem.Role
		}
	}
	return s
}

func (m *Machine) waiting(now time.Time) string {
	round := func(d time.Duration) string { return max(d, 0).Round(100 * time.Millisecond).String() }
	r := m.reign
	switch {
	case r != nil && r.yield != nil:
		return "for " + r.yield.to.Node.String() + " to take the members over"
	case r != nil && m.Lease(now) <= 0:
		return fmt.Sprintf("for a majority of %d voters to answer", len(r.council.Seats))
	case r != nil && !r.committed():
		return "for the voters to hold the new council"
	case r != nil && r.learner != Seat{}:
		return "for " + r.learner.Node.String() + " to answer before it becomes a voter"
	case r != nil && r.wish.to != "" && now.Before(r.wish.until):
		return "to hand the office to " + r.wish.to.String()
	case r != nil:
		return ""
	case m.campaign != nil:
		return fmt.Sprintf("for the votes of %d voters", len(m.campaign.council.Seats))
	case m.poll != nil:
		return "for answers, before a new generation is founded"
	case m.leader(now) != "":
		return ""
	}
	var parts []string
	if !m.electAt.IsZero() {
		parts = append(parts, "to campaign in "+round(m.electAt.Sub(now)))
	}
	switch at := m.foundWake(); {
	case !at.IsZero():
		parts = append(parts, "to found a new generation in "+round(at.Sub(now)))
	case m.cfg.Recovery == RecoveryManual:
		parts = append(parts, "for an authority, or an operator to recover")
	default:
		parts = append(parts, "for an authority")
	}
	return strings.Join(parts, ", ")
}

// Epoch returns the highest epoch seen.
func (m *Machine) Epoch() Epoch { return m.observer.epoch }

// Council returns the newest list of voters held. Its seats must not be changed.
func (m *Machine) Council() Council { return m.observer.council }

// Registry returns the registry while this node is the authority, else nil.
func (m *Machine) Registry() *Registry { return m.registry }

// Directory returns the last picture published, never nil.
func (m *Machine) Directory() *Directory { return m.dir }

// Self returns what this node last said of itself.
func (m *Machine) Self() Member { return m.observer.Self() }

// Left tells whether this node has left.
func (m *Machine) Left() bool { return m.observer.Left() }

// Kept tells whether the authority asked this node, which is about to leave, to stay until
// the council can do without its vote.
func (m *Machine) Kept() bool { return m.observer.Kept() }

// Joined tells whether this node ever registered, and in one line how it stands.
func (m *Machine) Joined() (bool, string) { return m.observer.Joined() }

// Shared returns the data that all nodes see, sorted by key. It must not be changed.
func (m *Machine) Shared() []Shared { return m.observer.shared }

// Heard returns when an authority last said that it is one, zero before any did. It is
// not kept by the authority itself.
func (m *Machine) Heard() time.Time { return m.observer.spoken }
