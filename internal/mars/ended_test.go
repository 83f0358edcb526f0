package mars

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// again is the next run at a member's address.
func (m *handMember) again(started int64) *handMember {
	n := *m
	n.Incarnation[5]++
	n.Started, n.seq = started, 0
	return &n
}

// evictedAlive is the member as it goes on after an eviction.
func (m *handMember) evictedAlive() *handMember {
	n := *m
	n.Incarnation = next(m.Incarnation)
	n.Started++
	n.seq = 0
	return &n
}

// TestEnded: a directory names the runs that an authority said are over, and none that may
// be heard again.
func TestEnded(t *testing.T) {
	p := newPair(t)
	at := func() time.Duration { return p.now.Sub(simStart) }
	left, restarted, silent, evicted := newMember(3, "udp", "game"), newMember(4, "udp", "game"), newMember(5, "udp", "game"), newMember(6, "udp", "game")
	all := []*handMember{left, restarted, silent, evicted}
	for _, m := range all {
		ask(t, p.r, at(), m.register(p.r), StatusOK)
	}
	var ended []id.Incarnation
	refresh := func() {
		p.later()
		p.answer(p.ask())
		if d := p.out.Directory; d != nil {
			ended = slices.Clone(d.Ended)
		}
	}
	refresh()
	ask(t, p.r, at(), Leave{Header: left.header(p.r), Namespace: left.Namespace()}, StatusOK)
	ask(t, p.r, at(), restarted.again(9).register(p.r), StatusOK)
	ask(t, p.r, at(), evicted.evictedAlive().register(p.r), StatusOK)
	refresh()
	for range 8 { // silent expires, and so do the others
		p.r.Step(p.now, RegistryTick{})
		refresh()
	}
	want := []id.Incarnation{Run(restarted.Incarnation), Run(left.Incarnation)}
	slices.SortFunc(ended, func(a, b id.Incarnation) int { return -slices.Compare(a[:], b[:]) })
	if !slices.Equal(ended, want) {
		t.Errorf("%v ended, want %v", ended, want)
	}
}

// TestEndedUnderASuccessor: what came back while there was no authority is told of by the
// next one, be it that all of its directory is fetched or only what differs. What that only
// presumes ends nobody: it may have missed that it is over.
func TestEndedUnderASuccessor(t *testing.T) {
	for _, size := range []int{3, 100} {
		for name, presumed := range map[string]bool{"registered": false, "presumed, with a clock that was ahead": true} {
			p := newPair(t)
			m := newMember(3, "udp", "game")
			m.Started = 10
			other := m.again(50)
			for i := range size {
				o := newMember(10+i, "udp", "game")
				ask(t, p.r, p.now.Sub(simStart), o.register(p.r), StatusOK)
			}
			ask(t, p.r, p.now.Sub(simStart), m.register(p.r), StatusOK)
			p.later()
			p.settle()
			p.successor(func(es []Entry) []Entry {
				for i := range es {
					if presumed && es[i].Node == m.Node {
						es[i].Incarnation, es[i].Started = other.Incarnation, other.Started
					}
				}
				return es
			})
			if !presumed {
				ask(t, p.r, p.now.Sub(simStart), other.register(p.r), StatusOK)
			}
			p.later()
			p.settle()
			if got := slices.Contains(p.o.dir.ended.list(p.now), Run(m.Incarnation)); got == presumed {
				t.Errorf("%d members, another run is %s: over is %v", size, name, got)
			}
		}
	}
}

// TestEndedIsBounded: by number and by age, and what was published before stays as it was.
func TestEndedIsBounded(t *testing.T) {
	var e ended
	run := func(i int) (inc id.Incarnation) {
		binary.BigEndian.PutUint32(inc[:], uint32(i+1))
		return inc
	}
	for i := range 10 {
		e.add(simStart, run(i))
		e.add(simStart, run(i))
	}
	published := e.list(simStart)
	e.back(run(3))
	for i := 10; i < 3*endedMax; i++ {
		e.add(simStart.Add(time.Minute), run(i))
	}
	if len(published) != 10 || published[3] != run(3) {
		t.Errorf("%v was changed", published)
	}
	if got := e.list(simStart.Add(endedTTL)); len(got) != endedMax || len(e.at) != endedMax || got[endedMax-1] != run(3*endedMax-1) {
		t.Errorf("%d ended", len(got))
	}
	if got := e.list(simStart.Add(endedTTL + 2*time.Minute)); len(got) != 0 {
		t.Errorf("%d ended long ago", len(got))
	}
}
