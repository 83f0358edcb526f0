package httpapi

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"
)

// What this node lacks is not what the game's nodes lack: it is answered 503 as well, for
// a client to try again, but counted by itself, so that whoever floods this node doesn't
// ring the alert that no node takes players.

// Values of the label reason of overloaded_total.
const (
	overloadLate   = "late"   // nodes were asked, but their answers may have waited here
	overloadBodies = "bodies" // the oldest body that was on its way went for a newer one
	overloadMemory = "memory" // Config.MemoryShort
)

// overloadError is an answer of 503 that is the fault of this node alone.
type overloadError struct{ reason, text string }

func (e *overloadError) Error() string { return e.text }

// withMemory refuses requests for places while memory is short, before they cost any, and
// has their connections end.
func (s *Server) withMemory(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.cfg.MemoryShort != nil && s.cfg.MemoryShort() {
			w.Header().Set("Connection", "close")
			s.overloaded(w, &overloadError{overloadMemory, "memory is short: try again"})
			return
		}
		h(w, r)
	}
}

// overloaded answers 503 for the sake of this node.
func (s *Server) overloaded(w http.ResponseWriter, e *overloadError) {
	s.loaded.WithLabelValues(e.reason).Inc()
	s.cfg.Log.Debug().Str("reason", e.reason).Msg("node overloaded")
	if rec, ok := w.(*recorder); ok {
		rec.overloaded = true
	}
	writeError(w, http.StatusServiceUnavailable, e.text)
}

const (
	// pulseInterval is how often the node looks whether it gets to do things in time.
	pulseInterval = 20 * time.Millisecond
	// lateMin is the delay from which on a goroutine counts as late. A node that is well
	// wakes within a few milliseconds, a garbage collection included.
	lateMin = 50 * time.Millisecond
	// lateFor is how long a delay is remembered: for all tries of a reservation.
	lateFor = reserveTries * reserveTimeout
)

// pulse notices that this process gets no CPU: then an answer that did not come in time may
// well have come, and waits to be read. The zero value is ready to use.
type pulse struct {
	lateAt atomic.Int64 // Unix nanoseconds, when the process was late last
}

// run measures until ctx ends, and calls beat each time.
func (p *pulse) run(ctx context.Context, beat func()) {
	t := time.NewTimer(pulseInterval)
	defer t.Stop()
	for due := time.Now().Add(pulseInterval); ; due = time.Now().Add(pulseInterval) {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		p.woke(due)
		beat()
		t.Reset(pulseInterval)
	}
}

// woke notes how late something happened that was due. It returns whether that is late.
func (p *pulse) woke(due time.Time) bool {
	now := time.Now()
	if now.Sub(due) < lateMin {
		return false
	}
	p.lateAt.Store(now.UnixNano())
	return true
}

// late says whether the process was late a moment ago.
func (p *pulse) late() bool {
	return time.Now().UnixNano()-p.lateAt.Load() < int64(lateFor)
}
