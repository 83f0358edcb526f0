//go:build !unix

package lifecycle

import "os"

// taskSignals is empty: there are no user signals here.
var taskSignals []os.Signal

func taskSignal(os.Signal) int { return 0 }

func ignoreBrokenPipe() {}
