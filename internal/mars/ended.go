package mars

import (
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// endedMax is how many runs that are over a directory names, endedTTL for how long: players
// ask for them for some minutes.
const (
	endedMax = 1024
	endedTTL = time.Hour
)

// ended remembers the runs of which an authority said that they are over for good: they
// left, or another run has their address. One that was evicted for its silence is none of
// them, for it may be heard again.
type ended struct {
	runs []id.Incarnation // see Run, oldest first; directories share it, so it only grows or is made anew
	at   []time.Time      // when each was heard of
}

func (e *ended) add(now time.Time, inc id.Incarnation) {
	run := Run(inc)
	if slices.Contains(e.runs, run) {
		return
	}
	e.runs, e.at = append(e.runs, run), append(e.at, now)
	if len(e.runs) > endedMax {
		e.runs, e.at = e.runs[1:], e.at[1:]
	}
}

// back forgets a run that an authority lists again after all.
func (e *ended) back(inc id.Incarnation) {
	if i := slices.Index(e.runs, Run(inc)); i >= 0 {
		e.runs, e.at = slices.Delete(slices.Clone(e.runs), i, i+1), slices.Delete(e.at, i, i+1)
	}
}

// list returns the runs that ended within endedTTL. It must not be changed.
func (e *ended) list(now time.Time) []id.Incarnation {
	for len(e.at) > 0 && now.Sub(e.at[0]) > endedTTL {
		e.runs, e.at = e.runs[1:], e.at[1:]
	}
	return e.runs
}

// finish notes what a removal says of a run: into is the directory as it is with it. An entry
// at the address of another run is not enough: an authority that just began may only presume
// it, and have missed what ended it.
func (v *view) finish(now time.Time, into map[id.Node]seen, g Removal) {
	m, ok := into[g.Node]
	if g.Reason == Left || g.Reason == Replaced && ok && Run(m.Incarnation) != Run(g.Incarnation) {
		v.ended.add(now, g.Incarnation)
	}
}
