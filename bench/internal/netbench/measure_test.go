package netbench

import (
	"slices"
	"testing"
	"time"
)

func stamped(number int, at time.Duration) []byte {
	b := make([]byte, lossSize)
	stamp(b, number, at)
	return b
}

func TestRecorder(t *testing.T) {
	start := time.Now().Add(-time.Minute) // nothing measured below is under 58 s
	r := newRecorder(start, 10, 12)
	r.arrived(stamped(9, time.Second))  // to warm up
	r.arrived(stamped(12, time.Second)) // never sent
	r.arrived([]byte("short"))
	if got := r.sorted(); len(got) != 0 {
		t.Errorf("%v took their time before any that counts arrived", got)
	}
	r.arrived(stamped(11, time.Second))
	r.arrived(stamped(11, 2*time.Second)) // a copy
	if got := r.sorted(); len(got) != 1 || got[0] < 59*time.Second {
		t.Errorf("took %v, want one of 59 s and some", got)
	}
	select {
	case <-r.done:
		t.Error("done before all arrived")
	default:
	}
	r.arrived(stamped(10, 2*time.Second))
	<-r.done
	if got := r.sorted(); len(got) != 2 || !slices.IsSorted(got) || got[0] > got[1]-900*time.Millisecond {
		t.Errorf("took %v, want 58 s and 59 s and some", got)
	}
}

func TestQuantile(t *testing.T) {
	var took []time.Duration
	for i := range 3600 {
		took = append(took, time.Duration(i+1)*time.Millisecond)
	}
	for q, want := range map[float64]float64{0: 1, 0.5: 1800, 0.99: 3564, 1: 3600} {
		if got := quantile(took, q); got != want {
			t.Errorf("quantile %v is %v ms, want %v", q, got, want)
		}
	}
	if got := quantile(took[:1], 0.99); got != 1 {
		t.Errorf("p99 of one is %v ms, want 1", got)
	}
}

func TestMeter(t *testing.T) {
	var m meter
	now := time.Now()
	m.add(now, 1000) // before the span
	m.begin(now.Add(time.Second))
	m.add(now, 1000) // and so is this
	if got := m.megabits(); got != 0 {
		t.Errorf("%v Mbit/s before anything arrived", got)
	}
	for i := range 5 { // the first says when, the others how much
		m.add(now.Add(time.Duration(2+i)*time.Second), 125_000)
	}
	if got := m.megabits(); got != 1 {
		t.Errorf("%v Mbit/s, want 1", got)
	}
}
