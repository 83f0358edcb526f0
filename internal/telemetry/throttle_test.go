package telemetry_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/telemetry"
)

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var throttle telemetry.Throttle
		lines := 0
		note := func(kind string) (more int) {
			more, ok := throttle.Line(kind)
			if ok {
				lines++
			}
			return more
		}
		for range 1000 {
			note("disk")
		}
		note("network")
		if lines != 2 {
			t.Errorf("%d lines, want one a kind", lines)
		}
		<-time.After(telemetry.LineEvery)
		if more := note("disk"); more != 999 || lines != 3 {
			t.Errorf("%d more, %d lines", more, lines)
		}
		for i := range 10_000 {
			note(fmt.Sprint("kind ", i))
		}
		if lines > 3+257 {
			t.Errorf("%d lines of 10,000 kinds", lines)
		}
	})
}
