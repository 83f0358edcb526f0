package bot

import (
	"math"
	"testing"
	"time"
)

func TestBuckets(t *testing.T) {
	last := -1
	for _, v := range []uint64{0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 1000, 1e6, 1e9, 1e12, math.MaxInt64, math.MaxUint64} {
		i := bucketOf(v)
		if i < last || i >= len(new(histogram).counts) {
			t.Errorf("bucket of %d is %d after %d", v, i, last)
		}
		last = i
		if top := bucketMax(i); top < v || float64(top-v) > float64(v)/subs {
			t.Errorf("bucket of %d ends at %d", v, top)
		}
		if top := bucketMax(i); bucketOf(top) != i || (top < math.MaxUint64 && bucketOf(top+1) != i+1) {
			t.Errorf("bucket %d does not end at %d", i, top)
		}
	}
}

func TestQuantile(t *testing.T) {
	var h histogram
	if h.quantile(0.5) != 0 {
		t.Error("a quantile of nothing")
	}
	for i := range 1000 {
		h.add(time.Duration(i+1) * time.Millisecond)
	}
	for q, want := range map[float64]time.Duration{0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond, 1: time.Second} {
		if got := h.quantile(q); got < want || float64(got) > 1.04*float64(want) {
			t.Errorf("quantile %v = %v, want %v", q, got, want)
		}
	}
	h.add(-time.Second) // a clock that stepped must not panic
}
