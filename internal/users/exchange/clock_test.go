package exchange

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

const years = 365 * 24 * time.Hour

// clockOf is a clock, and by how much its wall clock is ahead.
type clockOf struct {
	Clock
	skew time.Duration
}

func newClockOf(skew time.Duration) *clockOf { return &clockOf{NewClock(simStart), skew} }

func (c *clockOf) issue(now time.Time) int64 { return c.Issue(now, now.Add(c.skew)) }

func (c *clockOf) hear(t *testing.T, now time.Time, from *clockOf) {
	t.Helper()
	if !c.Raise(now, now.Add(c.skew), from.Now(now, now.Add(from.skew))) {
		t.Errorf("a node whose clock is off by %v does not believe one that is off by %v", c.skew, from.skew)
	}
}

func TestClock(t *testing.T) {
	c := newClockOf(0)
	first := c.issue(simStart)
	if again := c.issue(simStart); again <= first {
		t.Error("issued twice at the same time")
	}
	heard := simStart.Add(10 * time.Hour).UnixMicro()
	if !c.Raise(simStart, simStart, heard) || c.issue(simStart) <= heard {
		t.Error("issued earlier than what was heard")
	}
	last := c.Now(simStart, simStart)
	for _, lie := range []int64{-1, math.MinInt64, math.MaxInt64, TrustMax + 1} {
		if c.Raise(simStart, simStart, lie) || c.Now(simStart, simStart) != last {
			t.Errorf("%d was believed", lie)
		}
	}
}

// However far apart the wall clocks of two nodes are, and whether they are corrected later:
// once they have heard of each other, the later of two sids is the newer one.
func TestClocksApart(t *testing.T) {
	for _, skew := range []time.Duration{
		-56 * years, -9000 * time.Hour, -time.Hour, 0, 5 * time.Hour,
		100 * 24 * time.Hour, 181 * 24 * time.Hour, 359 * 24 * time.Hour, 361 * 24 * time.Hour, 9000 * time.Hour, 200 * years,
	} {
		for _, corrected := range []bool{false, true} {
			off, right := newClockOf(skew), newClockOf(0)
			now := simStart
			first := off.issue(now)
			if corrected {
				off.skew = 0
			}
			right.hear(t, now, off)
			off.hear(t, now, right)
			for i := range 4 {
				now = now.Add(time.Second)
				on := []*clockOf{right, off}[i%2]
				next := on.issue(now)
				if next <= first {
					t.Errorf("off by %v, corrected %v: the login %d is older than the one before", skew, corrected, i)
				}
				first = next
			}
		}
	}
}

// A clock that is set, or goes on while the machine is suspended, is followed forward and
// never back, and time goes on after that.
func TestClockFollowsTheWallClock(t *testing.T) {
	c := newClockOf(-56 * years)
	c.issue(simStart)
	c.skew = 0
	if at := c.issue(simStart); at != simStart.UnixMicro() {
		t.Errorf("corrected to %v", time.UnixMicro(at))
	}
	c.skew = time.Hour
	ahead := c.issue(simStart)
	c.skew = 0
	now := simStart.Add(time.Second)
	if got := c.issue(now) - ahead; got != time.Second.Microseconds() {
		t.Errorf("%d µs went by in a second once the clock was set back", got)
	}
}

// What a bug says as far as it is believed at all leaves room to issue what is newer, on
// those who heard it and on those who join later.
func TestClockBesideABug(t *testing.T) {
	for _, lie := range []int64{TrustMax, TrustMax - 1, raiseMax, math.MaxInt64, wallMax} {
		a, joined := newClockOf(0), newClockOf(0)
		now := simStart
		for range 10 {
			a.Raise(now, now, lie)
			now = now.Add(time.Second)
		}
		now = now.Add(10 * 24 * time.Hour)
		for range 25 { // a message each time the bug spoke, or a day went by
			joined.hear(t, now, a)
		}
		last := a.issue(now)
		if next := joined.issue(now.Add(time.Second)); next <= last || next > raiseMax+30*raiseStep {
			t.Errorf("after %d one that joined issues %d, the other issued %d", lie, next, last)
		}
	}
}

func TestWalls(t *testing.T) {
	at := func(d time.Duration) int64 { return simStart.Add(d).UnixMicro() }
	for _, tt := range []struct {
		name   string
		own    time.Duration // by how much the own wall clock is ahead
		peers  map[id.Node]int64
		off    []Wall
		agreed bool
	}{
		{"alone", 0, nil, nil, true},
		{"all agree", 0, map[id.Node]int64{"b": at(20 * time.Second), "c": at(-20 * time.Second)}, nil, true},
		{"one is off", 0, map[id.Node]int64{"b": at(-30 * years), "c": at(0)}, []Wall{{"b", -30 * years}}, true},
		{"this one is off", -30 * years, map[id.Node]int64{"b": at(0), "c": at(0)}, []Wall{{"a", -30 * years}}, true},
		{"two of five", time.Hour, map[id.Node]int64{"b": at(0), "c": at(0), "d": at(0), "e": at(-time.Hour)},
			[]Wall{{"a", time.Hour}, {"e", -time.Hour}}, true},
		{"one against one", 0, map[id.Node]int64{"b": at(time.Hour)}, []Wall{{"b", time.Hour}}, false},
		{"two against two", 0, map[id.Node]int64{"b": at(0), "c": at(time.Hour), "d": at(time.Hour)},
			[]Wall{{"c", time.Hour}, {"d", time.Hour}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wall := simStart.Add(tt.own)
			w := NewWalls("a", simStart, wall)
			for n, v := range tt.peers {
				w.Hear(simStart, n, v)
			}
			later := simStart.Add(time.Hour) // what was heard goes on
			off, agreed := w.Judge(later, wall.Add(time.Hour))
			if agreed != tt.agreed || !slices.Equal(off, tt.off) {
				t.Errorf("off %v, agreed %v", off, agreed)
			}
		})
	}
}

// Who was suspended, or had their clock set, does not judge by what others said before; and
// no number that another node sends is too much.
func TestWallsAnew(t *testing.T) {
	w := NewWalls("a", simStart, simStart)
	w.Hear(simStart, "b", simStart.UnixMicro())
	w.Hear(simStart, "c", simStart.UnixMicro())
	if off, _ := w.Judge(simStart, simStart.Add(time.Hour)); off != nil {
		t.Errorf("after an hour asleep: %v", off)
	}
	w.Hear(simStart, "b", math.MaxInt64)
	w.Hear(simStart, "c", math.MinInt64)
	off, agreed := w.Judge(simStart, simStart.Add(time.Hour))
	if agreed || len(off) != 2 || off[0].Ahead < 200*years || off[1].Ahead > -200*years {
		t.Errorf("off %v, agreed %v", off, agreed)
	}
	w.Keep(nil)
	if off, agreed := w.Judge(simStart, simStart.Add(time.Hour)); off != nil || !agreed {
		t.Errorf("off %v of nodes that have gone", off)
	}
}
