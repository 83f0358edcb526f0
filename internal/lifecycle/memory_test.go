package lifecycle

import (
	"bytes"
	"math"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

func TestMemoryIsShort(t *testing.T) {
	var log bytes.Buffer
	m := newMemory(zerolog.New(&log), prometheus.NewRegistry(), "new users")
	const limit = 1000 << 20
	for i, step := range []struct {
		needed, limit int64
		short         bool
	}{
		{700 << 20, limit, false},
		{790 << 20, limit, false},
		{801 << 20, limit, true},
		{750 << 20, limit, true}, // between the two bounds nothing changes
		{790 << 20, limit, true},
		{699 << 20, limit, false},
		{750 << 20, limit, false},
		{900 << 20, limit, true},
		{900 << 20, math.MaxInt64, false}, // the limit was taken away
		{900 << 20, 0, true},
	} {
		if m.step(step.needed, step.limit); m.Short() != step.short {
			t.Errorf("step %d: needed %d MiB of %d: short = %v, want %v", i, step.needed>>20, step.limit>>20, m.Short(), step.short)
		}
	}
	if n := strings.Count(log.String(), "memory is short"); n != 3 {
		t.Errorf("said %d times that memory is short, want once for each of 3 times that it became so", n)
	}
}

func TestMemoryNeededIsWhatLives(t *testing.T) {
	m := newMemory(zerolog.Nop(), prometheus.NewRegistry(), "new users")
	runtime.GC()
	before := m.neededNow()
	const size = 64 << 20
	held := make([]byte, size)
	for i := 0; i < len(held); i += 4096 {
		held[i] = 1
	}
	runtime.GC()
	if grown := m.neededNow() - before; grown < size*9/10 {
		t.Errorf("needed grew by %d bytes, want about the %d that are held", grown, size)
	}
	runtime.KeepAlive(held)
	held = nil
	runtime.GC() // what is free by now may be kept from the system, but is not needed
	if grown := m.neededNow() - before; grown > size/10 {
		t.Errorf("needed is %d bytes above the start, want little: nothing is held any more", grown)
	}
}

// What was let go while nobody new came is found by itself.
func TestShortMemoryIsLookedAtAgain(t *testing.T) {
	m := newMemory(zerolog.Nop(), prometheus.NewRegistry(), "new users")
	held := make([]byte, 256<<20)
	for i := 0; i < len(held); i += 4096 {
		held[i] = 1
	}
	runtime.GC()
	limit := debug.SetMemoryLimit(m.neededNow() * 10 / 9)
	defer debug.SetMemoryLimit(limit)
	if m.watch(); !m.Short() {
		t.Fatal("memory is not short, though nine tenths of the limit are needed")
	}
	runtime.KeepAlive(held)
	held = nil
	if m.watch(); m.Short() {
		t.Error("memory is short, though nobody needs it any more")
	}
}
