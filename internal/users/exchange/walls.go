package exchange

import (
	"cmp"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// wallsApart is how far apart two wall clocks may be that agree: an answer is some seconds
// on its way at most.
const wallsApart = time.Minute

// Walls compares the wall clocks of the nodes, for the log: the order of sids does not
// depend on them, the certificates and tickets do. It is not safe for concurrent use.
type Walls struct {
	self  id.Node
	start time.Time // of a monotonic clock
	heard map[id.Node]int64
	own   int64
}

// Wall is a node whose wall clock is not that of the majority.
type Wall struct {
	Node  id.Node
	Ahead time.Duration // negative when it is behind
}

// NewWalls makes one for the node self, which has heard of nobody.
func NewWalls(self id.Node, now, wall time.Time) *Walls {
	return &Walls{self: self, start: now, heard: make(map[id.Node]int64), own: wall.UnixMicro()}
}

// Hear notes that the wall clock of n showed wall, in µs, at now by the monotonic clock.
func (w *Walls) Hear(now time.Time, n id.Node, wall int64) { w.heard[n] = w.sinceStart(now, wall) }

// sinceStart is by how much a wall clock is ahead of the time since start, which stays the
// same until the clock is set.
func (w *Walls) sinceStart(now time.Time, wall int64) int64 {
	return min(max(wall, -wallMax), wallMax) - now.Sub(w.start).Microseconds()
}

// Keep forgets all but these.
func (w *Walls) Keep(peers []Peer) {
	old := w.heard
	w.heard = make(map[id.Node]int64, len(peers))
	for _, p := range peers {
		if v, ok := old[p.Node]; ok {
			w.heard[p.Node] = v
		}
	}
}

// Judge returns the nodes whose clocks differ from the one that more than half of all nodes
// agree on, this one included, sorted by node. When no such majority agrees, nobody knows
// whose clock is right: agreed is false, and the nodes are those that differ from this one.
func (w *Walls) Judge(now, wall time.Time) (off []Wall, agreed bool) {
	own := w.sinceStart(now, wall.UnixMicro())
	if moved := own - w.own; max(moved, -moved) > wallsApart.Microseconds()/2 {
		clear(w.heard) // this clock was set, or this machine suspended: then they have gone on
	}
	w.own = own
	all := []int64{own}
	for _, v := range w.heard {
		all = append(all, v)
	}
	slices.Sort(all)
	first, n := mostWithin(all, wallsApart.Microseconds())
	right := own
	if agreed = 2*n > len(all); agreed {
		right = all[first+n/2]
	}
	add := func(n id.Node, v int64) {
		const longest = int64(1<<63-1) / 1000 // µs in a Duration
		if d := time.Duration(min(max(v-right, -longest), longest)) * time.Microsecond; d.Abs() > wallsApart {
			off = append(off, Wall{n, d})
		}
	}
	add(w.self, own)
	for n, v := range w.heard {
		add(n, v)
	}
	slices.SortFunc(off, func(a, b Wall) int { return cmp.Compare(a.Node, b.Node) })
	return off, agreed
}

// mostWithin finds the most of sorted that lie within reach of each other.
func mostWithin(sorted []int64, reach int64) (first, n int) {
	from := 0
	for i, v := range sorted {
		for v-sorted[from] > reach {
			from++
		}
		if i-from+1 > n {
			first, n = from, i-from+1
		}
	}
	return first, n
}
