package telemetry

import (
	"strings"
	"time"
)

// Span prints how long something took, for log lines: three digits and a unit, such as
// "9.03s", "127ms" or "2m30s". A person reads it at a glance. It is ASCII, with "us" for
// microseconds, so that no log writes it in quotation marks.
func Span(d time.Duration) string {
	unit := time.Duration(1)
	for v := d.Abs(); v/unit >= 1000 && unit < time.Second; {
		unit *= 10
	}
	if d.Abs() >= time.Minute {
		unit = time.Second
	} else if d.Abs() >= time.Second {
		unit = time.Second / 100
		if d.Abs() >= 10*time.Second {
			unit = time.Second / 10
		}
	}
	return strings.Replace(d.Round(unit).String(), "µs", "us", 1)
}
