package mesh

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// outboxMax is how many bytes may wait to be written before callers wait with
// them. One frame may always wait, whatever its size.
const outboxMax = 256 << 10

// frameStream is the part of a QUIC stream a writer needs.
type frameStream interface {
	TryWriteAll(b []byte) error
	Write(b []byte) (int, error)
}

// idleBufferMax is the largest buffer, in bytes, that a stream holds on to while nothing is written.
const idleBufferMax = 64 << 10

// urgency says whether a frame may wait for others that are about to come.
type urgency bool

const (
	// batched frames go out together with all that is written by the goroutines
	// that are ready to run now: four times the throughput of a write each.
	batched urgency = false
	// urgent is for a frame that nothing else is likely to follow: it saves the
	// wake-up of the goroutine that writes batches.
	urgent urgency = true
)

// writer puts whole frames on one stream, from many goroutines. They collect in
// pending, and run writes them in one piece. An urgent frame skips that when nothing waits.
type writer struct {
	stream frameStream
	fail   func(error) // told once, why the stream is broken
	wake   chan struct{}

	mu      sync.Mutex // guards the fields below
	scratch []byte
	pending []byte
	spare   []byte        // the other buffer, while run writes one
	busy    bool          // run has, or is about to have, work
	space   chan struct{} // closed when pending shrinks; nil when nobody waits
	err     error
}

func newWriter(s frameStream, fail func(error)) *writer {
	return &writer{stream: s, fail: fail, wake: make(chan struct{}, 1)}
}

// write hands over one frame. It blocks, until ctx ends or deadline, only while the outbox is full.
func (w *writer) write(ctx context.Context, deadline time.Time, u urgency, h header, payload []byte) error {
	w.mu.Lock()
	if w.fullLocked(payload) {
		var cancel context.CancelFunc
		ctx, cancel = withDeadline(ctx, deadline)
		defer cancel()
	}
	for w.fullLocked(payload) {
		if w.space == nil {
			w.space = make(chan struct{})
		}
		space := w.space
		w.mu.Unlock()
		select {
		case <-space:
		case <-ctx.Done():
			return ctx.Err()
		}
		w.mu.Lock()
	}
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	return w.putLocked(u, h, payload)
}

func (w *writer) fullLocked(payload []byte) bool {
	return w.err == nil && len(w.pending) > 0 && len(w.pending)+headerLen+len(payload) > outboxMax
}

// withDeadline adds a deadline to ctx, unless it is zero.
func withDeadline(ctx context.Context, deadline time.Time) (context.Context, context.CancelFunc) {
	if deadline.IsZero() {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline)
}

// tryWrite is write for the goroutine that reads the connection, which must not
// wait for the peer: it exceeds outboxMax instead, by as much as its small
// frames add up to, and a peer that lets them grow past outboxMax twice is cut off.
func (w *writer) tryWrite(h header, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil && len(w.pending) > 2*outboxMax {
		w.failLocked(errors.New("peer does not read"))
	}
	if w.err != nil {
		return w.err
	}
	return w.putLocked(batched, h, payload)
}

func (w *writer) putLocked(u urgency, h header, payload []byte) error {
	if u == urgent && !w.busy {
		w.scratch = append(h.appendTo(w.scratch[:0]), payload...)
		err := w.stream.TryWriteAll(w.scratch)
		if err == nil {
			return nil
		}
		if !errors.Is(err, quic.ErrWouldBlock) {
			w.failLocked(err)
			return err
		}
	}
	w.pending = append(h.appendTo(w.pending), payload...)
	if !w.busy {
		w.busy = true
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

func (w *writer) failLocked(err error) {
	w.err = err
	w.pending, w.spare, w.scratch = nil, nil, nil
	w.releaseLocked()
	w.fail(err)
}

func (w *writer) releaseLocked() {
	if w.space != nil {
		close(w.space)
		w.space = nil
	}
}

// run writes what waits until ctx ends or the stream breaks.
func (w *writer) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			w.mu.Lock()
			if w.err == nil {
				w.failLocked(context.Cause(ctx))
			}
			w.mu.Unlock()
			return
		case <-w.wake:
		}
		if !w.drain() {
			return
		}
	}
}

// drain writes pending until it is empty and tells whether the stream still works.
func (w *writer) drain() bool {
	for {
		// Whoever is ready to run may have frames of his own: let them come first.
		runtime.Gosched()
		w.mu.Lock()
		b := w.pending
		if len(b) == 0 || w.err != nil {
			w.busy = false
			if cap(w.pending) > idleBufferMax {
				w.pending = nil
			}
			if cap(w.spare) > idleBufferMax {
				w.spare = nil
			}
			ok := w.err == nil
			w.mu.Unlock()
			return ok
		}
		w.pending, w.spare = w.spare[:0], nil
		w.releaseLocked()
		w.mu.Unlock()
		_, err := w.stream.Write(b)
		w.mu.Lock()
		if err != nil {
			if w.err == nil {
				w.failLocked(err)
			}
			w.mu.Unlock()
			return false
		}
		if cap(b) <= 4*outboxMax { // else it held a large frame
			w.spare = b[:0]
		}
		w.mu.Unlock()
	}
}
