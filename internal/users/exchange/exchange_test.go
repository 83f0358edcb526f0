package exchange

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// rig is a machine and the messages that wait for their answers.
type rig struct {
	t    *testing.T
	m    *Machine
	now  time.Time
	sent []Message
	out  Output // sums
	open []Fact // in one part
}

func newRig(t *testing.T, peers ...id.Node) *rig {
	r := &rig{t: t, now: simStart}
	r.m = New(Config{Parts: 2, Open: func(part int) []Fact {
		if part == 0 {
			return nil
		}
		return r.open
	}})
	r.members(peers...)
	return r
}

func (r *rig) members(peers ...id.Node) {
	var all []Peer
	for _, n := range peers {
		all = append(all, Peer{Node: n})
	}
	r.step(Members{all})
}

func (r *rig) step(in Input) {
	out := r.m.Step(r.now, in)
	r.sent = append(r.sent, out.Send...)
	r.out.Passes += out.Passes
	r.out.Missed += out.Missed
}

// pass lets time run.
func (r *rig) pass(d time.Duration) {
	for end := r.now.Add(d); r.now.Before(end); {
		r.now = r.now.Add(min(time.Second, end.Sub(r.now)))
		r.step(Tick{})
	}
}

// answer has the messages to these nodes answered, and what is sent upon that, until
// nothing is. It returns what they were told, each in its order.
func (r *rig) answer(a Answered, from ...id.Node) (told []Fact, messages int) {
	for i := 0; i < len(r.sent); {
		m := r.sent[i]
		if !slices.Contains(from, m.To) {
			i++
			continue
		}
		r.sent = slices.Delete(r.sent, i, i+1)
		told, messages = append(told, m.Facts...), messages+1
		a.To, a.Attempt = m.To, m.Attempt
		r.step(a)
		r.pass(pace)
		i = 0
	}
	return told, messages
}

var (
	fine   = Answered{OK: true}
	nobody = Answered{OK: true, Nobody: true}
	failed = Answered{}
)

func factsOf(n int, issued int64) (all []Fact) {
	for i := range n {
		all = append(all, Fact{id.UID(fmt.Sprint("u", i)), Order{Issued: issued + int64(i)}})
	}
	return all
}

// A cold start costs one message a pair of nodes, and idle nodes say nothing.
func TestColdStart(t *testing.T) {
	r := newRig(t, "a", "b", "c")
	r.open = factsOf(10_000, 1)
	if _, n := r.answer(nobody, "a", "b", "c"); n != 3 {
		t.Errorf("%d messages", n)
	}
	if r.pass(time.Hour); len(r.sent) != 0 || r.out.Passes != 0 {
		t.Errorf("%d messages of an idle node, %d passes", len(r.sent), r.out.Passes)
	}
}

// One node that returns to 10,000 users is told them in batches, one at a time, and so is
// everybody when this process stood still; but few at the same time.
func TestExchangeAnew(t *testing.T) {
	r := newRig(t, "a", "b", "c", "d", "e", "f")
	all := []id.Node{"a", "b", "c", "d", "e", "f"}
	r.answer(nobody, all...)
	r.open = factsOf(10_000, 1)
	r.members("a", "b", "c", "d", "e")
	r.members(all...)
	told, n := r.answer(fine, "f")
	if want := 1 + (10_000+FactsMax-1)/FactsMax; n != want || !slices.Equal(told, r.open) {
		t.Errorf("%d facts in %d messages, want %d in %d", len(told), n, len(r.open), want)
	}
	r.now = r.now.Add(pauseMax + time.Millisecond)
	r.step(Tick{})
	if len(r.sent) != 6 {
		t.Fatalf("%d nodes were asked after a pause", len(r.sent))
	}
	for _, m := range r.sent {
		r.step(Answered{To: m.To, Attempt: m.Attempt, OK: true})
	}
	r.sent = nil
	if r.pass(time.Second); len(r.sent) != passesMax {
		t.Errorf("%d nodes are told everything at once", len(r.sent))
	}
	if told, _ := r.answer(fine, all...); len(told) != 6*10_000 {
		t.Errorf("%d facts were told", len(told))
	}
}

// Nodes that do not answer delay nobody, cost a message in seconds, and nothing is kept for
// them but what the log holds; one that missed more is told everything instead.
func TestDeadNodes(t *testing.T) {
	r := newRig(t, "a", "dead", "deader")
	r.answer(nobody, "a", "dead", "deader")
	told := 0
	r.open = factsOf(10, 1)
	for i := range 3 * logMax {
		r.step(Opened{Facts: []Fact{{id.UID(fmt.Sprint("u", i)), Order{Issued: int64(i)}}}})
		facts, _ := r.answer(nobody, "a")
		told += len(facts)
	}
	if told != 3*logMax || r.m.Waiting() > logMax {
		t.Errorf("the living one was told %d, %d are kept", told, r.m.Waiting())
	}
	if len(r.sent) != 2 {
		t.Errorf("%d messages are under way to those that do not answer", len(r.sent))
	}
	repeats := 0
	for range 60 {
		_, n := r.answer(failed, "dead", "deader")
		repeats += n
		r.pass(time.Second)
	}
	if repeats > 2*25 {
		t.Errorf("%d messages in a minute", repeats)
	}
	r.pass(backoffMax)
	if told, _ := r.answer(fine, "dead"); !slices.Equal(told, r.open) || r.out.Passes != 2 {
		t.Errorf("told %d, %d passes", len(told), r.out.Passes)
	}
	// Who goes without having been told is counted, and nothing is kept for them.
	r.step(Opened{Facts: factsOf(3, 1)})
	r.answer(fine, "a", "dead")
	r.members("a", "dead")
	if r.step(Tick{}); r.out.Missed != 3 || r.m.Waiting() != 0 {
		t.Errorf("missed %d, %d are kept", r.out.Missed, r.m.Waiting())
	}
}

// More opened than the caller could note: everybody is told everything.
func TestMoreOpened(t *testing.T) {
	r := newRig(t, "a")
	r.answer(nobody, "a")
	r.open = factsOf(5, 1)
	r.step(Opened{Facts: factsOf(1, 1), More: true})
	if told, _ := r.answer(fine, "a"); len(told) < 5 || r.out.Passes != 1 {
		t.Errorf("told %d, %d passes", len(told), r.out.Passes)
	}
}

// Somebody who logs in again and again has one fact, of the last.
func TestOneUserHasOneFact(t *testing.T) {
	r := newRig(t, "a")
	r.answer(nobody, "a")
	r.step(Opened{Facts: []Fact{{"other", Order{Issued: 1}}}})
	for i := range int64(2 * logMax) {
		r.step(Opened{Facts: []Fact{{"greedy", Order{Issued: i}}}})
	}
	if r.m.Waiting() != 2 || r.out.Passes != 0 {
		t.Errorf("%d facts are kept, %d passes", r.m.Waiting(), r.out.Passes)
	}
}

// Histories in which something was forgotten once, each found by the simulation.
func TestTraps(t *testing.T) {
	t.Run("opened between a hello and its answer", func(t *testing.T) {
		r := newRig(t, "a")
		want := factsOf(1, 1)
		r.step(Opened{Facts: want}) // somebody may have opened there, after the hello came and before this
		if told, _ := r.answer(nobody, "a"); !slices.Equal(told, want) {
			t.Errorf("told %v", told)
		}
	})
	t.Run("a part of which a message was lost", func(t *testing.T) {
		r := newRig(t, "a")
		r.open = factsOf(2*FactsMax, 1)
		r.step(Answered{To: "a", Attempt: r.sent[0].Attempt, OK: true})
		r.sent = nil
		r.pass(pace)
		r.step(Answered{To: "a", Attempt: r.sent[0].Attempt})
		r.sent = nil
		r.pass(time.Second)
		if told, _ := r.answer(fine, "a"); !slices.Equal(told, r.open) {
			t.Errorf("told %d of %d", len(told), len(r.open))
		}
	})
	t.Run("opened behind a newer one that was moved away", func(t *testing.T) {
		r := newRig(t, "a")
		r.answer(nobody, "a")
		r.step(Opened{Facts: []Fact{{"x", Order{Issued: 1}}}}) // under way, so that the next wait
		r.step(Opened{Facts: []Fact{{"u", Order{Issued: 9}}}})
		r.step(Opened{Facts: []Fact{{"u", Order{Issued: 5}}}})
		if told, _ := r.answer(fine, "a"); !slices.Contains(told, Fact{"u", Order{Issued: 5}}) {
			t.Errorf("told %v", told)
		}
	})
	t.Run("the answer to an earlier life", func(t *testing.T) {
		r := newRig(t, "a")
		late := r.sent[0].Attempt
		r.step(Members{[]Peer{{"a", id.Incarnation{1}}}})
		r.step(Answered{To: "a", Attempt: late, OK: true, Nobody: true})
		r.open = factsOf(3, 1)
		r.sent = r.sent[1:]
		if told, _ := r.answer(fine, "a"); len(told) != 3 {
			t.Errorf("told %v", told)
		}
	})
}
