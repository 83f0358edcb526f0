//go:build unix

package lifecycle

import (
	"os"
	"syscall"
)

// taskSignals make the process run the task in its task file.
var taskSignals = []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2}

// taskSignal returns 1 or 2 for SIGUSR1 and SIGUSR2, else 0.
func taskSignal(s os.Signal) int {
	switch s {
	case syscall.SIGUSR1:
		return 1
	case syscall.SIGUSR2:
		return 2
	}
	return 0
}
