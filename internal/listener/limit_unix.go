//go:build unix

package listener

import (
	"errors"
	"math"
	"syscall"
)

// softLimit is RLIMIT_NOFILE, as the runtime raised it at the start.
func softLimit() int {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil || uint64(r.Cur) > math.MaxInt32 {
		return 0
	}
	return int(r.Cur)
}

// isDescriptors says that the process, or the system, has no descriptor left.
func isDescriptors(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}
