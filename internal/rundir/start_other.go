//go:build !linux

package rundir

// canTellStart says that processStart knows nothing here: the lock alone tells whether
// a node runs.
const canTellStart = false

func processStart(int) string { return "" }

// Stopped tells whether a process is stopped; here that is not known.
func Stopped(int) bool { return false }
