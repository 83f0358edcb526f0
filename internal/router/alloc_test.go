//go:build !race

// The race detector has sync.Pool forget at random, so allocations are counted without it.

package router_test

import (
	"testing"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

func TestBuiltinAllocatesNothing(t *testing.T) {
	r, n := echoRouter(), &nobody{}
	m := wire.Message{Cmd: 1, HasID: true, ID: 1, Payload: make([]byte, 64)}
	if avg := testing.AllocsPerRun(1000, func() { r.Serve(nil, n, m, reliable.Unreliable) }); avg >= 0.05 {
		t.Errorf("%v allocations a command", avg)
	}
	n.over = true
	if avg := testing.AllocsPerRun(1000, func() { r.Serve(nil, n, m, reliable.Unreliable) }); avg >= 0.05 {
		t.Errorf("%v allocations a refusal", avg)
	}
}
