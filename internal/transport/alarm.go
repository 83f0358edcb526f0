package transport

import (
	"context"
	"math"
	"sync/atomic"
	"time"
)

// alarm runs a function whenever it is due, in a goroutine that others can wake.
type alarm struct {
	epoch  time.Time     // constant
	poke   chan struct{} // constant
	asleep atomic.Int64  // when the goroutine wakes by itself, in nanoseconds since the epoch
}

func newAlarm(epoch time.Time) alarm { return alarm{epoch: epoch, poke: make(chan struct{}, 1)} }

// run calls f until ctx ends: now, at the time that f returned, and when woken.
func (a *alarm) run(ctx context.Context, f func(now time.Time) (next time.Time)) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-a.poke:
		}
		a.asleep.Store(math.MaxInt64) // until we know: whoever has something due wakes us again
		next := f(time.Now())
		a.asleep.Store(int64(next.Sub(a.epoch)))
		timer.Reset(time.Until(next))
	}
}

// wakeBy makes f run no later than at.
func (a *alarm) wakeBy(at time.Time) {
	if int64(at.Sub(a.epoch)) < a.asleep.Load() {
		a.wake()
	}
}

// wake makes f run soon.
func (a *alarm) wake() {
	select {
	case a.poke <- struct{}{}:
	default: // it will run anyway
	}
}
