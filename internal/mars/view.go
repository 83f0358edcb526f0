package mars

import (
	"cmp"
	"maps"
	"slices"

	"github.com/Diarkis/diarkis/internal/id"
)

// view is an observer's copy of its namespace.
type view struct {
	epoch     Epoch // that version counts in
	version   uint64
	authority id.Node
	members   map[id.Node]seen // exactly what the authority had at version
	loading   map[id.Node]seen // a whole directory of which pages are still missing
	// kept are members that a settling authority has not heard yet, known from
	// the one before.
	kept   map[id.Node]seen
	digest uint64 // of members, or of loading
	dirty  bool   // publish
	prev   []Member
}

type seen struct {
	Member
	digest uint64
}

// have returns the version to ask a delta from, zero for the whole directory.
func (v *view) have(highest Epoch) uint64 {
	if v.epoch != highest {
		return 0
	}
	return v.version
}

func (v *view) lookup(n id.Node) (Member, bool) {
	m, ok := v.members[n]
	if !ok {
		m, ok = v.kept[n]
	}
	return m.Member, ok
}

func (v *view) size() int { return len(v.members) + len(v.kept) }

type applied uint8

const (
	done     applied = iota
	more             // ask at once for the next page
	mismatch         // ask for the whole directory
)

// apply brings the view to the version of an ack. What it already has, as in a
// late copy, changes nothing: entries arrive whole.
func (v *view) apply(a Ack, out *ObserverOutput) applied {
	d := a.Delta
	v.authority = a.From
	switch {
	case d.From == 0 && d.To == 0 && len(d.Upserts) == 0:
		return done // no directory in this ack
	case d.From == 0:
		v.loading = make(map[id.Node]seen)
		v.epoch, v.digest = a.Epoch, 0
	case v.epoch != a.Epoch || d.From > v.version:
		v.reset()
		return mismatch
	case d.To < v.version:
		return done
	}
	into := v.members
	if v.loading != nil {
		into = v.loading
	}
	for _, e := range d.Upserts {
		v.put(into, e, out)
	}
	for _, g := range d.Removed {
		v.remove(into, g)
	}
	v.version = d.To
	if d.More {
		return more
	}
	if v.digest != d.Digest {
		v.reset()
		return mismatch
	}
	v.settle(a.Settling)
	v.dirty = v.dirty || len(d.Upserts)+len(d.Removed) > 0 || d.From == 0
	return done
}

// reset makes the next request ask for everything. What is published stays.
func (v *view) reset() {
	v.version, v.loading, v.digest = 0, nil, 0
}

func (v *view) put(into map[id.Node]seen, e Entry, out *ObserverOutput) {
	m := seen{Member: e.Member, digest: e.digest()}
	if len(e.Values) > 0 {
		values, err := DecodeValues(e.Values)
		if err != nil {
			values = nil // its own fault; the rest of the entry stands
		}
		m.Member.Values = values
	}
	v.digest ^= into[e.Node].digest ^ m.digest
	into[e.Node] = m
}

func (v *view) remove(from map[id.Node]seen, g Removal) {
	if m, ok := from[g.Node]; ok && m.Incarnation == g.Incarnation {
		v.digest ^= m.digest
		delete(from, g.Node)
	}
	if v.loading != nil { // what it replaces is about to become kept
		if m, ok := v.members[g.Node]; ok && m.Incarnation == g.Incarnation {
			delete(v.members, g.Node)
		}
	}
	if m, ok := v.kept[g.Node]; ok && m.Incarnation == g.Incarnation {
		delete(v.kept, g.Node)
		v.dirty = true
	}
}

// settle makes a loaded directory the current one. While the authority is
// settling, members it has not heard are kept; afterwards it knows better.
func (v *view) settle(settling bool) {
	if v.loading != nil {
		if v.kept == nil {
			v.kept = make(map[id.Node]seen)
		}
		maps.Copy(v.kept, v.members)
		v.members, v.loading = v.loading, nil
	}
	before := len(v.kept)
	if !settling {
		v.kept = nil
	}
	maps.DeleteFunc(v.kept, func(n id.Node, _ seen) bool { _, ok := v.members[n]; return ok })
	v.dirty = v.dirty || len(v.kept) != before
}

// publish makes a new Directory when something in it changed, and tells who
// appeared and vanished.
func (v *view) publish(o *Observer, out *ObserverOutput) {
	if !v.dirty || v.loading != nil && o.live {
		return // pages are missing: what is published stands until then
	}
	v.dirty = false
	d := &Directory{Epoch: v.epoch, Version: v.version, Live: o.live, Authority: v.authority}
	d.Members = make([]Member, 0, v.size())
	for _, from := range []map[id.Node]seen{v.kept, v.members} {
		for _, m := range from {
			m.AppName, m.AppVersion = o.self.AppName, o.self.AppVersion
			d.Members = append(d.Members, m.Member)
		}
	}
	d.index()
	diff(v.prev, d.Members, out)
	v.prev = d.Members
	out.Directory = d
}

// diff reports incarnations that appeared and vanished; both are sorted by node.
func diff(before, after []Member, out *ObserverOutput) {
	for len(before)+len(after) > 0 {
		c := 0
		switch {
		case len(before) == 0:
			c = 1
		case len(after) == 0:
			c = -1
		default:
			c = cmp.Compare(before[0].Node, after[0].Node)
		}
		if c == 0 && before[0].Incarnation == after[0].Incarnation {
			before, after = before[1:], after[1:]
			continue
		}
		if c <= 0 {
			out.event(memberEvent(MemberVanished, before[0]))
			before = before[1:]
		}
		if c >= 0 {
			out.event(memberEvent(MemberAppeared, after[0]))
			after = after[1:]
		}
	}
}

func memberEvent(k Kind, m Member) Event {
	return Event{Kind: k, Node: m.Node, Incarnation: m.Incarnation, Role: m.Role, Type: m.Type}
}

func sorted(ns []id.Node) []id.Node {
	slices.Sort(ns)
	return ns
}
