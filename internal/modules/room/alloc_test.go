//go:build !race

// The race detector has sync.Pool forget at random, so allocations are counted without it.

package room

import "testing"

func TestBroadcastThroughTheEngineAllocatesNothing(t *testing.T) {
	broadcast, stop := crowd(t)
	defer stop()
	if avg := testing.AllocsPerRun(200, broadcast); avg >= 0.1 {
		t.Errorf("%v allocations a broadcast to 100", avg)
	}
}
