package mesh

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestStopIsBounded: handlers that run on and peers that are gone have one time together, or
// a node that stops as it should is late because another vanished.
func TestStopIsBounded(t *testing.T) {
	for _, c := range []struct {
		name  string
		given time.Duration
		want  time.Duration
	}{
		{"as long as it is given", 500 * time.Millisecond, 500 * time.Millisecond},
		{"a second", 0, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &Mesh{cfg: Config{StopTime: c.given}.withDefaults(), quiet: make(chan struct{}, 1)}
				m.ctx, m.cancel = context.WithCancel(context.Background())
				m.running.Store(1) // a handler that does not end
				vanished := &conn{m: m, p: &peer{m: m}, retired: 1}
				vanished.ctx, vanished.cancel = context.WithCancelCause(context.Background())
				m.conns = map[*conn]struct{}{vanished: {}}
				begun := time.Now()
				if err := m.Close(); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begun); took != c.want {
					t.Errorf("the stop took %v, want %v", took, c.want)
				}
			})
		})
	}
}
