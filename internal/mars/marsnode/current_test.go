package marsnode

import (
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
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

// TestEndedOutlivesTheAuthority: what an authority said of runs that are over is still known
// when it dies, and what its successor says before it has heard of everybody.
func TestEndedOutlivesTheAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		start := func(host int, role string) *process {
			cfg := c.config(host, role)
			cfg.Self.Incarnation[8] = byte(c.runs) // another run, not just the next incarnation of one
			return c.start(cfg)
		}
		m, h := start(1, "mars"), start(2, "http")
		gone, back, silent := start(3, "udp"), start(4, "udp"), start(5, "udp")
		x, y := start(6, "tcp"), start(7, "tcp") // with h a majority of five voters
		pass(20 * time.Second)
		want := func(when string, ps ...*process) {
			t.Helper()
			ended := h.Directory().Ended
			for _, p := range ps {
				if !slices.Contains(ended, mars.Run(p.cfg.Self.Incarnation)) {
					t.Errorf("%s: the run of %s is not over", when, p.cfg.Self.Node)
				}
			}
			if len(ended) != len(ps) {
				t.Errorf("%s: %d runs are over, want %d", when, len(ended), len(ps))
			}
		}
		gone.leaveWithin(time.Second)
		silent.kill()
		pass(20 * time.Second)
		want("one left, one was evicted", gone)
		dead := m
		kill(dead, back)
		again := start(4, "udp")
		m = start(1, "mars")
		pass(2 * time.Second)
		want("without an authority", gone)
		ruler(t, 5*time.Second, h, x, y)
		pass(3 * time.Second)
		want("two came back meanwhile", gone, back, dead)
		if h.Current() {
			t.Error("current under an authority that may not have heard all")
		}
		kill(m, h, again, x, y)
	})
}
