//go:build unix

package lifecycle

import (
	"os"
	"os/signal"
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

// ignoreBrokenPipe has a write to a log that nobody reads any more fail, instead of
// ending the node and its players with it.
func ignoreBrokenPipe() { signal.Ignore(syscall.SIGPIPE) }
