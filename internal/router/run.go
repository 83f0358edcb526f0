package router

import (
	"errors"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/guard"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/status"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

var errPanic = &status.Error{Code: status.Internal, Ours: true, Text: "internal error"}

// builtin runs a built-in and answers for it unless it did or keeps the request.
func (r *Router[U]) builtin(q *Request[U], e *entry[U]) {
	if q.owned { // in the read loop nothing may wait, and a timer a packet costs too much
		q.watch = r.watch(e.name)
		defer q.watch.Stop()
	}
	err := r.call(q, e)
	if errors.Is(err, guard.ErrPanic) {
		err = errPanic
	}
	switch {
	case err != nil:
		if !q.isAnswered() {
			q.Fail(err)
		}
	case q.kept || q.isAnswered():
	case q.msg.HasID:
		q.Respond(status.OK, nil, reliable.Reliable)
	}
}

// call runs the handler of a built-in. It is a method, not a closure, because a
// closure would cost an allocation a packet.
func (r *Router[U]) call(q *Request[U], e *entry[U]) (err error) {
	defer r.guard.Recover(e.name, &err)
	return e.builtin(q)
}

// step is one handler's turn in a chain: it ends when the handler has returned
// and next was called, whichever comes last.
type step struct {
	mu       sync.Mutex
	called   bool // next was called
	returned bool // the handler returned, or panicked
	err      error
}

// next notes the outcome and reports whether the chain goes on from here, because
// the handler has returned already. Only the first call counts.
func (s *step) next(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.called {
		return false
	}
	s.called, s.err = true, err
	return s.returned
}

// leave notes that the handler returned and reports whether it called next.
func (s *step) leave() (called bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.returned = true
	return s.called, s.err
}

// chain runs handlers until one returns before it called next, which continues
// the chain on the user's executor, or all are done.
func (r *Router[U]) chain(q *Request[U], chain []Handler[U]) {
	for i, h := range chain {
		s := new(step)
		next := func(err error) {
			if s.next(err) {
				r.goOn(q, chain[i+1:], err)
			}
		}
		watch := r.watch(q.name)
		err := r.guard.Do(q.name, func() { h(q, next) })
		watch.Stop()
		if err != nil {
			s.next(errPanic) // whatever the handler left behind can't go on
			r.finish(q, errPanic)
			return
		}
		called, err := s.leave()
		if !called {
			q.owe()
			return
		}
		if err != nil {
			r.finish(q, err)
			return
		}
	}
	r.finish(q, nil)
}

// goOn continues a chain whose handler called next after it returned.
func (r *Router[U]) goOn(q *Request[U], rest []Handler[U], err error) {
	if err == nil {
		if err = q.user.Do(func() { r.chain(q, rest) }); err == nil {
			return
		}
	}
	r.finish(q, err)
}

// finish answers unless a handler did.
func (r *Router[U]) finish(q *Request[U], err error) {
	switch {
	case q.isAnswered():
	case err != nil:
		q.Fail(err)
	case q.msg.HasID:
		q.Respond(status.OK, nil, reliable.Reliable)
	default:
		q.Abandon() // nobody asked
	}
}

// watch names a handler in the log when it runs for too long; Stop ends the watch.
func (r *Router[U]) watch(name string) *time.Timer {
	return time.AfterFunc(r.cfg.Slow, func() {
		r.metrics.slow.Inc()
		if more, ok := r.slow.Line(name); ok {
			r.log.Warn().Str("handler", name).Str("after", telemetry.Span(r.cfg.Slow)).Int("more", more).Msg("handler ran for too long")
		}
	})
}
