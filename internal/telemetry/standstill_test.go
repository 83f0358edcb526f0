package telemetry

import (
	"testing"
	"time"
)

func TestStandstill(t *testing.T) {
	var s Standstill
	start := time.Unix(0, 0)
	steps := []struct {
		at, gap, recent time.Duration
	}{
		{0, 0, 0},
		{500 * time.Millisecond, 0, 0},
		{2 * time.Second, 0, 0}, // slow, but running
		{11 * time.Second, 9 * time.Second, 9 * time.Second}, // stood still
		{11 * time.Second, 0, 9 * time.Second},               // said once
		{10 * time.Second, 0, 9 * time.Second},               // two goroutines read the clock in either order
		{12 * time.Second, 0, 9 * time.Second},
		{13500 * time.Millisecond, 0, 9 * time.Second},
		{15 * time.Second, 0, 9 * time.Second},
		{16500 * time.Millisecond, 0, 0}, // long ago
		{30 * time.Second, 13500 * time.Millisecond, 13500 * time.Millisecond},
	}
	for _, st := range steps {
		now := start.Add(st.at)
		if gap := s.Awake(now); gap != st.gap {
			t.Errorf("at %v: stood still for %v, want %v", st.at, gap, st.gap)
		}
		if r := s.Recent(now); r != st.recent {
			t.Errorf("at %v: recently for %v, want %v", st.at, r, st.recent)
		}
	}
}
