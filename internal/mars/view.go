package mars

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"time"

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
	kept      map[id.Node]seen
	digest    uint64    // of members, or of loading
	keepUntil time.Time // whom another founding does not know yet is kept until then
	kin       Epoch     // of that founding
	settling  bool      // who is not in members may still be there
	whole     bool      // what we hold is of no use: ask for everything
	ask       bool      // send the digests of the buckets
	gone      *graves
	ended     ended
	dirty     bool // publish
	prev      []Member
}

type seen struct {
	Entry  // with Member.Values decoded
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

// parts are the digests of the buckets.
func (v *view) parts() []uint64 {
	p := make([]uint64, Buckets)
	for n, m := range v.members {
		p[bucketOf(n)] ^= m.digest
	}
	return p
}

// ghosts are members that have ended, as we know and the authority does not.
func (v *view) ghosts(now time.Time) []id.Incarnation {
	var found []id.Incarnation
	if len(v.gone.at) == 0 {
		return nil
	}
	for _, m := range v.members {
		if v.gone.has(now, m.Incarnation) {
			found = append(found, m.Incarnation)
		}
	}
	slices.SortFunc(found, func(a, b id.Incarnation) int { return bytes.Compare(a[:], b[:]) })
	return found[:min(len(found), GhostsMax)]
}

// entries are all members held, for who takes the office over, sorted by node.
func (v *view) entries() []Entry {
	var es []Entry
	for _, m := range v.members {
		es = append(es, m.Entry)
	}
	for n, m := range v.kept {
		if _, again := v.members[n]; !again {
			es = append(es, m.Entry)
		}
	}
	slices.SortFunc(es, func(a, b Entry) int { return cmp.Compare(a.Node, b.Node) })
	return es
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
func (v *view) apply(now time.Time, a Ack) applied {
	d := a.Delta
	v.authority = a.From
	v.ask = d.Ask
	switch {
	case d.Ask:
		return more
	case d.Same:
		return v.same(now, a)
	case d.Parts != nil:
		return v.patch(now, a)
	case d.From == 0 && d.To == 0 && len(d.Upserts) == 0:
		return done // no directory in this ack
	case d.From == 0:
		v.loading = make(map[id.Node]seen)
		v.epoch, v.digest, v.whole = a.Epoch, 0, false
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
		v.put(now, into, e, v.loading != nil)
	}
	for _, g := range d.Removed {
		v.remove(now, into, g)
	}
	v.version = d.To
	if d.More {
		return more
	}
	if v.digest != d.Digest {
		v.reset()
		return mismatch
	}
	v.settle(now, a.Settling)
	v.dirty = v.dirty || len(d.Upserts)+len(d.Removed) > 0 || d.From == 0
	return done
}

// same means that what is held from before is what the new authority has.
func (v *view) same(now time.Time, a Ack) applied {
	if v.digest != a.Delta.Digest || v.loading != nil {
		v.reset()
		return mismatch
	}
	v.epoch, v.version, v.dirty = a.Epoch, a.Delta.To, true
	v.settle(now, a.Settling)
	return done
}

// patch replaces the buckets that differ from those of the new authority.
func (v *view) patch(now time.Time, a Ack) applied {
	d := a.Delta
	if len(d.Parts) != Buckets/8 || v.loading != nil {
		v.reset()
		return mismatch
	}
	if v.kept == nil {
		v.kept = make(map[id.Node]seen)
	}
	for n, m := range v.members {
		if i := bucketOf(n); d.Parts[i/8]&(1<<(i%8)) != 0 {
			v.kept[n] = m // back in members at once, or the authority has not heard it
			v.digest ^= m.digest
			delete(v.members, n)
		}
	}
	if v.members == nil {
		v.members = make(map[id.Node]seen)
	}
	for _, e := range d.Upserts {
		v.put(now, v.members, e, true)
	}
	for _, g := range d.Removed {
		v.remove(now, v.members, g)
	}
	v.epoch, v.version, v.dirty = a.Epoch, d.To, true
	if v.digest != d.Digest {
		v.reset()
		return mismatch
	}
	v.settle(now, a.Settling)
	return done
}

// reset makes the next request ask for everything. What is published stays.
func (v *view) reset() {
	v.version, v.loading, v.whole = 0, nil, true
}

func (v *view) put(now time.Time, into map[id.Node]seen, e Entry, foreign bool) {
	m := seen{Entry: e, digest: e.digest()}
	if len(e.Values) > 0 {
		values, err := DecodeValues(e.Values)
		if err != nil {
			values = nil // its own fault; the rest of the entry stands
		}
		m.Member.Values = values
	}
	if !v.gone.has(now, m.Incarnation) {
		v.ended.back(m.Incarnation)
	}
	v.supersede(now, m, foreign)
	v.digest ^= into[e.Node].digest ^ m.digest
	into[e.Node] = m
}

// supersede notes which of two incarnations at one address has ended: of one run the
// earlier, of two the one known before, unless that is contested.
func (v *view) supersede(now time.Time, m seen, foreign bool) {
	for _, known := range [...]map[id.Node]seen{v.members, v.kept} {
		old, ok := known[m.Node]
		switch {
		case !ok || old.Incarnation == m.Incarnation:
		case Run(old.Incarnation) == Run(m.Incarnation) && bytes.Compare(old.Incarnation[:], m.Incarnation[:]) > 0:
			v.gone.add(now, m.Incarnation)
		case !foreign || !contests(old, m):
			v.gone.add(now, old.Incarnation)
		}
	}
}

// contests tells whether a member we know may be newer than what an authority that
// just began has at its address: that one may know less than we do. Which of two runs
// is later can only be guessed, for a clock may jump back between them.
func contests(held, m seen) bool {
	return Run(held.Incarnation) != Run(m.Incarnation) && held.Started > m.Started
}

func (v *view) remove(now time.Time, from map[id.Node]seen, g Removal) {
	v.gone.add(now, g.Incarnation)
	v.finish(now, from, g)
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
func (v *view) settle(now time.Time, settling bool) {
	if !sameFounding(v.kin, v.epoch) {
		// The authority may have heard all of its own long ago, but those who followed
		// the same one as we did are on their way to it as we were.
		v.kin, v.keepUntil = v.epoch, now.Add(TTLMin+GraceExtra)
	}
	settling = settling || now.Before(v.keepUntil)
	v.settling = settling
	if v.loading != nil {
		if v.kept == nil {
			v.kept = make(map[id.Node]seen)
		}
		for _, n := range slices.Sorted(maps.Keys(v.kept)) {
			if m, ok := v.members[n]; ok && m.Incarnation != v.kept[n].Incarnation {
				v.gone.add(now, v.kept[n].Incarnation) // the contest is over
			}
		}
		maps.Copy(v.kept, v.members)
		v.members, v.loading = v.loading, nil
	}
	if len(v.kept) == 0 {
		return
	}
	if !settling { // who has not come by now has ended
		for _, n := range slices.Sorted(maps.Keys(v.kept)) {
			if m, ok := v.members[n]; !ok || m.Incarnation != v.kept[n].Incarnation {
				v.gone.add(now, v.kept[n].Incarnation)
			}
		}
	}
	before := len(v.kept)
	if !settling {
		v.kept = nil
	}
	maps.DeleteFunc(v.kept, func(n id.Node, held seen) bool {
		m, ok := v.members[n]
		return ok && !v.gone.has(now, m.Incarnation) && !contests(held, m)
	})
	v.dirty = v.dirty || len(v.kept) != before
}

// publish makes a new Directory when something in it changed, and tells who
// appeared and vanished.
func (v *view) publish(now time.Time, o *Observer, out *ObserverOutput) {
	if !v.dirty || v.loading != nil && o.live {
		return // pages are missing: what is published stands until then
	}
	v.dirty = false
	d := &Directory{Epoch: v.epoch, Version: v.version, Live: o.live, Authority: v.authority, Ended: v.ended.list(now)}
	d.Members = make([]Member, 0, v.size())
	shown := func(m seen) bool { return !v.gone.has(now, m.Incarnation) }
	for _, from := range []map[id.Node]seen{v.kept, v.members} {
		for n, m := range from {
			if held, ok := v.kept[n]; !shown(m) || ok && held.Incarnation != m.Incarnation && shown(held) {
				continue
			}
			m.AppName, m.AppVersion = o.self.AppName, o.self.AppVersion
			d.Members = append(d.Members, m.Member)
		}
	}
	d.addSelf(o)
	d.index()
	diff(v.prev, d.Members, out)
	v.prev = d.Members
	out.Directory = d
}

// addSelf makes sure that a node is in its own directory, also while it is told to
// go on as another incarnation.
func (d *Directory) addSelf(o *Observer) {
	if o.everJoined && !o.left && !slices.ContainsFunc(d.Members, func(m Member) bool { return m.Node == o.self.Node }) {
		d.Members = append(d.Members, o.Self())
	}
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
