package telemetry

import (
	"testing"
	"time"
)

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                         "0s",
		999:                       "999ns",
		59600:                     "59.6us",
		1234 * time.Microsecond:   "1.23ms",
		127400 * time.Microsecond: "127ms",
		9034 * time.Millisecond:   "9.03s",
		-9034 * time.Millisecond:  "-9.03s",
		59949 * time.Millisecond:  "59.9s",
		150600 * time.Millisecond: "2m31s",
		26 * time.Hour:            "26h0m0s",
	} {
		if got := Span(d); got != want {
			t.Errorf("Span(%d) = %q, want %q", d, got, want)
		}
	}
}
