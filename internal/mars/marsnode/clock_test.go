package marsnode

import (
	"strings"
	"testing"
	"time"
)

func TestClock(t *testing.T) {
	before := time.Now()
	c := newClock()
	first := c.now()
	if first.Before(before.Round(0)) || first.Sub(before.Round(0)) > time.Minute {
		t.Errorf("the clock starts at %v, the wall clock says %v", first, before)
	}
	if s := first.String(); strings.Contains(s, "m=") {
		t.Errorf("%s has a monotonic reading, which stands still in a suspended machine", s)
	}
	<-time.After(2 * time.Millisecond)
	if d := c.now().Sub(first); d < 2*time.Millisecond || d > time.Minute {
		t.Errorf("after 2 ms the clock had moved by %v", d)
	}
}

// A step back of the wall clock, which newClock read only once, is not noticed.
func TestClockIgnoresTheWallClock(t *testing.T) {
	c := newClock()
	c.start = c.start.Add(-time.Hour) // as if the wall clock had been wrong
	if d := time.Since(c.now()); d < 59*time.Minute || d > 61*time.Minute {
		t.Errorf("the clock is %v behind, want the hour it started with", d)
	}
	if processTime() <= 0 || bootTime() <= 0 {
		t.Error("a clock that counts from the past is not positive")
	}
}
