//go:build !linux

package marsnode

import "time"

// bootTime falls back to the clock every system has.
func bootTime() time.Duration { return processTime() }
