package mars

import (
	"slices"
	"strings"

	"github.com/Diarkis/diarkis/internal/id"
)

// Directory is an immutable picture of one namespace. It and all it leads to,
// the slices and maps of its methods included, are shared and never changed.
// The zero value and nil are empty directories.
type Directory struct {
	Epoch   Epoch
	Version uint64 // counts changes within the epoch
	// Live tells whether an authority vouched for this picture just now. A
	// directory that is not live is the last one known and is kept in use.
	Live      bool
	Authority id.Node  // who sent it, empty before the first
	Members   []Member // sorted by Node
	// Ended are runs, see [Run], of which an authority told that they are over for good
	// within the last hour: they left, or another run has their address. Runs evicted for
	// their silence are not among them, for those may be heard again. Newest last.
	Ended []id.Incarnation

	byType    map[string][]Member
	available map[string][]Member
}

// NewDirectory returns a live directory of these members, sorted. It is for
// tests and tools; observers make their own.
func NewDirectory(version uint64, members ...Member) *Directory {
	d := &Directory{Version: version, Live: true, Members: members}
	d.index()
	return d
}

// index sorts the members and fills the lookups by type.
func (d *Directory) index() {
	slices.SortFunc(d.Members, func(a, b Member) int { return strings.Compare(string(a.Node), string(b.Node)) })
	counts := make(map[string]int)
	for _, m := range d.Members {
		counts[m.Type]++
	}
	d.byType = make(map[string][]Member, len(counts))
	d.available = make(map[string][]Member, len(counts))
	for typ, n := range counts {
		d.byType[typ] = make([]Member, 0, n)
	}
	for _, m := range d.Members {
		d.byType[m.Type] = append(d.byType[m.Type], m)
	}
	for typ, ms := range d.byType {
		fit := ms // most often all of them
		if slices.ContainsFunc(ms, unavailable) {
			fit = slices.DeleteFunc(slices.Clone(ms), unavailable)
		}
		d.available[typ] = fit
	}
}

func unavailable(m Member) bool { return !m.Available() }

// Lookup returns the member at a mesh address.
func (d *Directory) Lookup(n id.Node) (Member, bool) {
	if d == nil {
		return Member{}, false
	}
	i, ok := slices.BinarySearchFunc(d.Members, n, func(m Member, n id.Node) int {
		return strings.Compare(string(m.Node), string(n))
	})
	if !ok {
		return Member{}, false
	}
	return d.Members[i], true
}

// ByType returns the members of a type in any state, sorted by node.
func (d *Directory) ByType(typ string) []Member {
	if d == nil {
		return nil
	}
	return d.byType[typ]
}

// Available returns the members of a type to which new users may be sent:
// online and not hidden, sorted by node.
func (d *Directory) Available(typ string) []Member {
	if d == nil {
		return nil
	}
	return d.available[typ]
}

// ByRole returns the members of a role in any state, sorted by node.
func (d *Directory) ByRole(role string) []Member {
	if d == nil {
		return nil
	}
	var ms []Member
	for _, m := range d.Members {
		if strings.EqualFold(m.Role, role) {
			ms = append(ms, m)
		}
	}
	return ms
}
