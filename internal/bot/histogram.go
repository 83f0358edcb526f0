package bot

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	subBits = 5 // 32 steps per power of two: at most 3 % off
	subs    = 1 << subBits
)

// histogram counts durations in buckets of fixed relative width, from 1 ns to years.
// Its methods are safe for concurrent use.
type histogram struct {
	counts [(64 - subBits + 1) * subs]atomic.Uint64
}

// bucketOf returns the bucket of v. Up to subs every value has its own.
func bucketOf(v uint64) int {
	if v < subs {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return (shift+1)<<subBits + int(v>>shift) - subs
}

// bucketMax returns the largest value in bucket i.
func bucketMax(i int) uint64 {
	if i < subs {
		return uint64(i)
	}
	shift := i>>subBits - 1
	return uint64(i&(subs-1)+subs+1)<<shift - 1
}

func (h *histogram) add(d time.Duration) {
	h.counts[bucketOf(uint64(max(d, 0)))].Add(1)
}

// reset forgets all. What is added meanwhile may be forgotten too.
func (h *histogram) reset() {
	for i := range h.counts {
		h.counts[i].Store(0)
	}
}

// quantile returns the duration that a share q of all does not exceed, zero when
// there is none.
func (h *histogram) quantile(q float64) time.Duration {
	var total uint64
	for i := range h.counts {
		total += h.counts[i].Load()
	}
	if total == 0 {
		return 0
	}
	rank := uint64(q * float64(total))
	var seen uint64
	for i := range h.counts {
		if seen += h.counts[i].Load(); seen > rank || seen == total {
			return time.Duration(bucketMax(i))
		}
	}
	return 0
}
