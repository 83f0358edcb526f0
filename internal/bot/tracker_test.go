package bot

import "testing"

// step is one thing that happens to a receiver.
type step func(*tracker)

func heard(epoch uint32, seqs ...uint64) step {
	return func(t *tracker) {
		for _, s := range seqs {
			t.heard(1, epoch, s)
		}
	}
}
func joined(epoch uint32) step                 { return func(t *tracker) { t.joined(1, epoch) } }
func gone() step                               { return func(t *tracker) { t.gone(1) } }
func left(epoch uint32, total uint64) step     { return func(t *tracker) { t.left(1, epoch, total) } }
func finished(epoch uint32, total uint64) step { return func(t *tracker) { t.finish(1, epoch, total) } }
func reset() step                              { return func(t *tracker) { t.reset() } }

func TestTracker(t *testing.T) {
	for _, c := range []struct {
		name                        string
		steps                       []step
		lost, duplicated, reordered int64
	}{
		{"all in order", []step{joined(1), heard(1, 0, 1, 2), finished(1, 3)}, 0, 0, 0},
		{"joined in the middle", []step{heard(1, 7, 8, 9), finished(1, 10)}, 0, 0, 0},
		{"a hole", []step{joined(1), heard(1, 0, 2), finished(1, 3)}, 1, 0, 0},
		{"a hole that fills late", []step{joined(1), heard(1, 0, 2, 1), finished(1, 3)}, 0, 0, 1},
		{"a hole that fills twice", []step{joined(1), heard(1, 0, 2, 1, 1), finished(1, 3)}, 0, 1, 1},
		{"twice", []step{joined(1), heard(1, 0, 0, 1, 1), finished(1, 2)}, 0, 2, 0},
		{"the start is missing", []step{joined(1), heard(1, 2), finished(1, 3)}, 2, 0, 0},
		{"the end is missing", []step{joined(1), heard(1, 0), finished(1, 3)}, 2, 0, 0},
		{"the end comes after it was counted", []step{joined(1), heard(1, 0), finished(1, 2), heard(1, 1)}, 0, 0, 1},
		{"nothing after the join push", []step{joined(1), finished(1, 5)}, 5, 0, 0},
		{"never heard at all", []step{finished(1, 5)}, 1, 0, 0},
		{"before the first heard", []step{heard(1, 5, 4, 6), finished(1, 7)}, 0, 0, 1},
		{"sender left, all heard", []step{joined(1), heard(1, 0, 1), left(1, 2)}, 0, 0, 0},
		{"sender left, tail missing", []step{joined(1), heard(1, 0, 1), left(1, 4)}, 2, 0, 0},
		{"sender left before we heard him", []step{left(1, 4)}, 0, 0, 0},
		{"after the leave", []step{joined(1), heard(1, 0), left(1, 1), heard(1, 1)}, 0, 0, 1},
		{"sender disappeared: tail unknown", []step{joined(1), heard(1, 0), gone()}, 0, 0, 0},
		{"hole before the sender disappeared", []step{joined(1), heard(1, 0, 3), gone()}, 2, 0, 0},
		{"unknown sender disappeared", []step{gone()}, 0, 0, 0},
		{"sender came back", []step{joined(1), heard(1, 0, 1), gone(), joined(2), heard(2, 0), finished(2, 1)}, 0, 0, 0},
		{"sender came back unannounced", []step{joined(1), heard(1, 0), heard(2, 0, 1), finished(2, 2)}, 0, 0, 0},
		{"sender came back, start missing", []step{joined(1), heard(1, 0), heard(2, 2), finished(2, 3)}, 2, 0, 0},
		{"sender came back, never heard", []step{joined(1), heard(1, 0), finished(2, 3)}, 3, 0, 0},
		{"from the stay before", []step{joined(1), heard(1, 0), joined(2), heard(1, 1)}, 0, 0, 1},
		{"join push twice", []step{joined(1), joined(1), heard(1, 0), finished(1, 1)}, 0, 0, 1},
		{"join push after the messages", []step{heard(1, 0), joined(1), finished(1, 1)}, 0, 0, 1},
		{"receiver left and came back", []step{joined(1), heard(1, 0, 1), reset(), heard(1, 9), finished(1, 10)}, 0, 0, 0},
		{"hole before the receiver left stays", []step{joined(1), heard(1, 0, 2), reset(), heard(1, 9), finished(1, 10)}, 1, 0, 0},
		{"finished counts once", []step{joined(1), heard(1, 0), finished(1, 3), finished(1, 3)}, 2, 0, 0},
		{"more holes than are remembered", []step{joined(1), heard(1, 10_000), finished(1, 10_001)}, 10_000, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var n tally
			tr := newTracker(&n)
			for _, s := range c.steps {
				s(tr)
			}
			if n.lost.Load() != c.lost || n.duplicated.Load() != c.duplicated || n.reordered.Load() != c.reordered {
				t.Errorf("lost %d duplicated %d reordered %d, want %d %d %d", n.lost.Load(), n.duplicated.Load(),
					n.reordered.Load(), c.lost, c.duplicated, c.reordered)
			}
		})
	}
}

func TestTrackerComplete(t *testing.T) {
	tr := newTracker(new(tally))
	tr.joined(1, 1)
	tr.heard(1, 1, 0)
	tr.heard(1, 1, 2)
	if tr.complete(1, 1, 3) {
		t.Error("complete with a hole")
	}
	tr.heard(1, 1, 1)
	if !tr.complete(1, 1, 3) || tr.complete(1, 1, 4) || tr.complete(1, 2, 3) || tr.complete(2, 1, 0) {
		t.Error("complete is wrong about what was heard")
	}
}

func TestTrackerKeepsSendersApart(t *testing.T) {
	var n tally
	tr := newTracker(&n)
	for seq := range uint64(100) {
		tr.heard(1, 1, seq)
		tr.heard(2, 9, seq+50)
	}
	tr.finish(1, 1, 100)
	tr.finish(2, 9, 150)
	if n.lost.Load()+n.duplicated.Load()+n.reordered.Load() != 0 {
		t.Error("two senders were mixed up")
	}
}
