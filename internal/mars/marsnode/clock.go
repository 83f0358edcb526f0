package marsnode

import "time"

// clock is the time the machine lives by. It starts at the wall clock and then
// counts by itself, also while the machine it runs on is suspended: an authority
// that wakes up has to find its lease gone. Nobody setting the wall clock moves it.
type clock struct {
	start time.Time     // by the wall clock, without a monotonic reading
	base  time.Duration // bootTime then
}

func newClock() clock { return clock{time.Now().Round(0), bootTime()} }

// now returns a time without a monotonic reading, so that only this clock counts.
func (c clock) now() time.Time { return c.start.Add(bootTime() - c.base) }

var processStart = time.Now()

// processTime is the monotonic clock, which stands still while the machine is suspended.
func processTime() time.Duration { return time.Since(processStart) }
