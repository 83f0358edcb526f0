package marsnode

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootTime counts from the start of the machine, suspended times included. A
// kernel without that clock never has it, so the two are not mixed.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return processTime()
	}
	return time.Duration(ts.Nano())
}
