//go:build !unix

package lifecycle

import "time"

// processCPU is unknown here: nodes are then chosen by their users alone.
func processCPU() time.Duration { return 0 }
