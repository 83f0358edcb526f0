//go:build !unix

package listener

// softLimit is not known: this system counts handles by memory alone.
func softLimit() int { return 0 }

func isDescriptors(error) bool { return false }
