package wheel

import (
	"math/rand/v2"
	"testing"
	"time"
)

type alarm struct {
	Links[alarm]
	at time.Time
}

func (a *alarm) Timer() *Links[alarm] { return &a.Links }

func TestWheelFiresEachOnceAndNeverEarly(t *testing.T) {
	epoch := time.Unix(1000, 0)
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		w := New[alarm](epoch)
		now := epoch
		armed := map[*alarm]bool{}
		for range 2000 {
			switch rng.IntN(4) {
			case 0, 1:
				a := &alarm{at: now.Add(time.Duration(rng.Int64N(int64(10*time.Minute))) >> rng.IntN(20))}
				w.Arm(a, a.at)
				armed[a] = true
			case 2:
				for a := range armed {
					if rng.IntN(2) == 0 {
						w.Disarm(a)
						delete(armed, a)
					} else {
						a.at = now.Add(time.Duration(rng.Int64N(int64(3 * time.Second))))
						w.Arm(a, a.at)
					}
					break
				}
			case 3:
				now = now.Add(time.Duration(rng.Int64N(int64(2 * time.Second))))
				for _, a := range w.Collect(now, nil) {
					if !armed[a] {
						t.Fatalf("seed %d: fired what was not armed", seed)
					}
					if a.at.After(now) {
						t.Fatalf("seed %d: fired %v early", seed, a.at.Sub(now))
					}
					delete(armed, a)
				}
				for a := range armed {
					if late := now.Sub(a.at); late > Tick {
						t.Fatalf("seed %d: %v late", seed, late)
					}
				}
			}
			if w.count != len(armed) {
				t.Fatalf("seed %d: wheel holds %d, want %d", seed, w.count, len(armed))
			}
		}
	}
}

func TestWheelNextIsNeverLate(t *testing.T) {
	epoch := time.Unix(1000, 0)
	w := New[alarm](epoch)
	if got := w.Next(epoch.Add(time.Second)); !got.Equal(epoch.Add(time.Second)) {
		t.Errorf("next of an empty wheel = %v after the epoch, want the limit", got.Sub(epoch))
	}
	for _, d := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, time.Second, time.Minute, time.Hour} {
		a := &alarm{at: epoch.Add(d)}
		w.Arm(a, a.at)
		now, fired := epoch, false
		w.done = 0
		for range 10_000_000 {
			now = w.Next(now.Add(time.Minute))
			if got := w.Collect(now, nil); len(got) == 1 {
				fired = true
				break
			}
		}
		if late := now.Sub(a.at); !fired || late < 0 || late > 2*Tick {
			t.Errorf("armed at %v: fired %v, %v late", d, fired, late)
		}
	}
}

func BenchmarkWheelRearm(b *testing.B) {
	now := time.Unix(1000, 0)
	w := New[alarm](now)
	a := make([]alarm, 10000)
	i := 0
	for b.Loop() {
		w.Arm(&a[i%len(a)], now.Add(20*time.Millisecond))
		i++
	}
}
