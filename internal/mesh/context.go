package mesh

import (
	"context"
	"sync"
	"time"
)

// request is a request being handled for the peer, and the context its handler
// gets. It ends with the deadline that came with the request, when the caller
// gives up, when the handler has returned, or with the connection. Most handlers
// never wait for it, so the timer and the channel are made when Done is first asked for.
type request struct {
	context.Context // the connection's
	deadline        time.Time

	mu    sync.Mutex // guards the fields below
	err   error      // why it ended, nil before
	done  chan struct{}
	timer *time.Timer
	leave func() bool // stops listening to the connection's context
}

// Deadline is when the caller stops waiting.
func (r *request) Deadline() (time.Time, bool) { return r.deadline, !r.deadline.IsZero() }

// Done is closed when the request has ended.
func (r *request) Done() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done != nil {
		return r.done
	}
	err := r.errLocked()
	r.done = make(chan struct{})
	if err != nil {
		close(r.done)
		return r.done
	}
	if !r.deadline.IsZero() {
		r.timer = time.AfterFunc(time.Until(r.deadline), func() { r.end(context.DeadlineExceeded) })
	}
	r.leave = context.AfterFunc(r.Context, func() { r.end(context.Canceled) })
	return r.done
}

// Err says why the request has ended, nil before.
func (r *request) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.errLocked()
}

func (r *request) errLocked() error {
	switch {
	case r.err != nil || r.done != nil:
		// Once Done is out, only what closes it ends the request, so that the two agree.
		// Before that nobody watches, and looking is enough.
	case r.Context.Err() != nil:
		r.err = context.Canceled
	case !r.deadline.IsZero() && !time.Now().Before(r.deadline):
		r.err = context.DeadlineExceeded
	}
	return r.err
}

// end ends the request. Only the first call counts.
func (r *request) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	r.err = err
	if r.done == nil {
		return
	}
	close(r.done)
	if r.timer != nil {
		r.timer.Stop()
	}
	if r.leave != nil {
		r.leave()
	}
}
