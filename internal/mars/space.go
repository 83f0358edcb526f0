package mars

import (
	"slices"
	"strings"

	"github.com/Diarkis/diarkis/internal/id"
)

// removalsMax is how many removals a namespace remembers for deltas. An observer
// further behind gets the whole directory.
const removalsMax = 4096

// space is one namespace of the registry: its members and the history that
// deltas are made of.
type space struct {
	name     Namespace
	version  uint64    // grows with every change
	brief    uint64    // version of the last change that everybody sees
	records  []*record // sorted by node
	removals []removalAt
	forgot   uint64 // version of the newest removal no longer in removals
	// XOR of the entries' digests, by view
	briefDigest, fullDigest uint64
}

type removalAt struct {
	Removal
	version uint64
}

func (s *space) find(n id.Node) (int, bool) {
	return slices.BinarySearchFunc(s.records, n, func(r *record, n id.Node) int {
		return strings.Compare(string(r.Node), string(n))
	})
}

// insert adds a record that change has yet to give a version.
func (s *space) insert(rec *record) {
	rec.host = host(rec.Node)
	i, _ := s.find(rec.Node)
	s.records = slices.Insert(s.records, i, rec)
}

// change makes e the entry of rec. An entry that only counted a heartbeat is no
// change: directories would never come to rest.
func (s *space) change(rec *record, e Entry) {
	full, brief := sameFull(rec.Entry, e), sameBrief(rec.Entry, e)
	if rec.fullVersion != 0 && full && brief {
		return
	}
	s.briefDigest ^= rec.briefDigest
	s.fullDigest ^= rec.fullDigest
	s.version++
	rec.fullVersion = s.version
	if !brief || rec.briefVersion == 0 {
		rec.briefVersion, s.brief = s.version, s.version
	}
	rec.Entry = e
	rec.briefDigest, rec.fullDigest = e.brief().digest(), e.digest()
	s.briefDigest ^= rec.briefDigest
	s.fullDigest ^= rec.fullDigest
}

func sameBrief(a, b Entry) bool {
	return a.Endpoint == b.Endpoint && a.State == b.State && a.Hidden == b.Hidden
}

func sameFull(a, b Entry) bool {
	return a.Users == b.Users && a.Load == b.Load && string(a.Values) == string(b.Values)
}

func (s *space) drop(rec *record) {
	if i, ok := s.find(rec.Node); ok {
		s.records = slices.Delete(s.records, i, i+1)
	}
	s.briefDigest ^= rec.briefDigest
	s.fullDigest ^= rec.fullDigest
}

func (s *space) removed(g Removal) {
	s.version++
	s.brief = s.version
	s.removals = append(s.removals, removalAt{g, s.version})
	if len(s.removals) > removalsMax {
		s.forgot = s.removals[0].version
		s.removals = s.removals[1:]
	}
}

// askMin is how many members a directory has at least before its buckets are
// compared: the digests of a smaller one are more than the directory.
const askMin = 64

// delta returns what an observer misses that holds version m.Have. When that is
// not valid, as under a new authority, the digests of what it holds from before
// tell what differs; else it gets everything, with graves including who is gone,
// for observers that keep members of the authority before this one.
func (s *space) delta(m Heartbeat, valid, graves, full bool) Delta {
	have := m.Have
	if !valid || have > s.version || have < s.forgot {
		have = 0
	}
	d := Delta{From: have, To: s.version, Digest: s.briefDigest}
	latest := s.brief
	if full {
		d.Digest, latest = s.fullDigest, s.version
	}
	switch {
	case have > 0 && have >= latest:
	case have > 0 || m.Whole || m.Held == 0:
		s.fill(&d, full, graves)
	case m.Held == d.Digest:
		d.Same = true
	case len(m.Parts) == Buckets:
		s.patch(&d, m.Parts, full)
	case len(s.records) >= askMin:
		d.Ask = true
	default:
		s.fill(&d, full, graves)
	}
	return d
}

// view is the entry of rec and its digest as an observer has them.
func (rec *record) view(full bool) (Entry, uint64) {
	if full {
		return rec.Entry, rec.fullDigest
	}
	return rec.Entry.brief(), rec.briefDigest
}

// patchRemovals is how many of its removals an authority tells those who only compare: of
// who left or was replaced since it began nothing else would tell that it is over for good.
const patchRemovals = 256

// patch puts the buckets into d that differ from theirs.
func (s *space) patch(d *Delta, theirs []uint64, full bool) {
	var ours [Buckets]uint64
	for _, rec := range s.records {
		_, digest := rec.view(full)
		ours[bucketOf(rec.Node)] ^= digest
	}
	size := 0
	d.Parts = make([]byte, Buckets/8)
	for i := range ours {
		if ours[i] != theirs[i] {
			d.Parts[i/8] |= 1 << (i % 8)
		}
	}
	for _, rec := range s.records {
		if i := bucketOf(rec.Node); d.Parts[i/8]&(1<<(i%8)) != 0 {
			e, _ := rec.view(full)
			d.Upserts = append(d.Upserts, e)
			size += e.size()
		}
	}
	for _, g := range s.removals[max(0, len(s.removals)-patchRemovals):] {
		d.Removed = append(d.Removed, g.Removal)
		size += removalMin + len(g.Node)
	}
	if size > pageBytes { // too much for one message: what differs is most of it
		d.Parts, d.Upserts, d.Removed = nil, nil, nil
		s.fill(d, full, true)
	}
}

// fill collects changes in the order of their versions up to a page.
func (s *space) fill(d *Delta, full, graves bool) {
	var changed []*record
	version := func(rec *record) uint64 {
		if full {
			return rec.fullVersion
		}
		return rec.briefVersion
	}
	for _, rec := range s.records {
		if version(rec) > d.From {
			changed = append(changed, rec)
		}
	}
	slices.SortFunc(changed, func(a, b *record) int {
		if version(a) < version(b) {
			return -1
		}
		return 1
	})
	removals := s.removals
	if d.From > 0 || !graves {
		i, _ := slices.BinarySearchFunc(removals, d.From+1, func(g removalAt, v uint64) int {
			if g.version < v {
				return -1
			}
			return 1
		})
		removals = removals[i:]
	}
	if d.From == 0 && !graves {
		removals = nil
	}
	size := 0
	for len(changed) > 0 || len(removals) > 0 {
		if size >= pageBytes {
			d.More = true
			return
		}
		if len(removals) == 0 || len(changed) > 0 && version(changed[0]) < removals[0].version {
			e := changed[0].Entry
			if !full {
				e = e.brief()
			}
			d.Upserts = append(d.Upserts, e)
			d.To = version(changed[0])
			size += e.size()
			changed = changed[1:]
			continue
		}
		d.Removed = append(d.Removed, removals[0].Removal)
		d.To = removals[0].version
		size += removalMin + len(removals[0].Node)
		removals = removals[1:]
	}
	d.To = s.version
}
