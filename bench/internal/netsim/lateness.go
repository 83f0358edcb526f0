package netsim

import (
	"math/bits"
	"time"
)

// Lateness is a histogram of how late packets were delivered: what the simulation
// adds to the delay it was asked for. Bucket i counts up to 2^i µs.
type Lateness [24]uint64

func (l *Lateness) add(d time.Duration) {
	i := bits.Len64(uint64(max(0, d-1) / time.Microsecond))
	l[min(i, len(l)-1)]++
}

// Quantile returns a bound that a share q of the packets kept, good to a factor of 2.
func (l *Lateness) Quantile(q float64) time.Duration {
	var total, seen uint64
	for _, n := range l {
		total += n
	}
	for i, n := range l {
		if seen += n; n > 0 && float64(seen) >= q*float64(total) {
			return time.Microsecond << i
		}
	}
	return 0
}
