package marsnode

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestCurrent: who is not in a current directory is gone, so it must not be taken for
// current by a node that has just come, lost its authority, follows one that has just
// begun, or stood still.
func TestCurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, u := c.role(1, "mars"), c.role(3, "udp")
		pass(30 * time.Second)
		var still atomic.Int64 // how long the http node's process stood still
		cfg := c.config(2, "http")
		cfg.now = func() time.Time { return time.Now().Add(time.Duration(still.Load())).Round(0) }
		h := c.start(cfg)
		want := func(current bool, when string) {
			t.Helper()
			if got := h.Current(); got != current {
				t.Errorf("%s: current is %v", when, got)
			}
		}
		want(false, "before it joined")
		pass(3 * time.Second)
		h.want("mars=online http=online udp=online")
		want(false, "just joined")
		pass(10 * time.Second)
		want(true, "long joined")
		u.kill()
		pass(8 * time.Second)
		h.want("mars=online http=online")
		want(true, "after another died")

		still.Store(int64(5 * time.Second))
		want(false, "right after it stood still")
		pass(2 * time.Second)
		want(true, "a heartbeat later")

		m.kill()
		pass(2 * time.Second)
		pass(2 * time.Second)
		want(false, "without an authority")
		m = c.role(1, "mars")
		for !h.Directory().Live {
			pass(100 * time.Millisecond)
		}
		want(false, "under an authority that may not have heard all")
		pass(16 * time.Second)
		want(true, "under one that has")
		if err := h.Leave(t.Context()); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		want(false, "after it left")
		h.kill()
		m.kill()
	})
}
