package mesh

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// outboxMax is how many bytes may wait for the peer's flow control before
// callers wait with them. One frame may always wait, whatever its size.
const outboxMax = 1 << 20

// frameStream is the part of a QUIC stream a writer needs.
type frameStream interface {
	TryWriteAll(b []byte) error
	Write(b []byte) (int, error)
}

// writer puts whole frames on one stream, from many goroutines. Normally a frame
// goes straight to QUIC, which packs all that came since its last packet into
// the next. While flow control holds the stream back, frames collect in
// pending and run writes them in one piece.
type writer struct {
	stream frameStream
	fail   func(error) // told once, why the stream is broken
	wake   chan struct{}

	mu      sync.Mutex // guards the fields below
	scratch []byte
	pending []byte
	spare   []byte        // the other buffer, while run writes one
	blocked bool          // run has, or is about to have, work
	space   chan struct{} // closed when pending shrinks; nil when nobody waits
	err     error
}

func newWriter(s frameStream, fail func(error)) *writer {
	return &writer{stream: s, fail: fail, wake: make(chan struct{}, 1)}
}

// write hands over one frame. It blocks, until ctx ends or deadline, only while the outbox is full.
func (w *writer) write(ctx context.Context, deadline time.Time, h header, payload []byte) error {
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
	return w.putLocked(h, payload)
}

func (w *writer) fullLocked(payload []byte) bool {
	return w.err == nil && w.blocked && len(w.pending) > 0 && len(w.pending)+headerLen+len(payload) > outboxMax
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
	return w.putLocked(h, payload)
}

func (w *writer) putLocked(h header, payload []byte) error {
	if !w.blocked && testMode == 0 {
		w.scratch = append(h.appendTo(w.scratch[:0]), payload...)
		err := w.stream.TryWriteAll(w.scratch)
		if cap(w.scratch) > 2*InlineMax {
			w.scratch = nil
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, quic.ErrWouldBlock) {
			w.failLocked(err)
			return err
		}
	}
	if !w.blocked {
		w.blocked = true
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	w.pending = append(h.appendTo(w.pending), payload...)
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
		if testMode >= 2 {
			runtime.Gosched()
		}
		w.mu.Lock()
		b := w.pending
		if len(b) == 0 || w.err != nil {
			w.blocked = false
			ok := w.err == nil
			w.mu.Unlock()
			return ok
		}
		w.pending, w.spare = w.spare[:0], nil
		w.releaseLocked()
		w.mu.Unlock()
		var err error
		if testMode == 1 || testMode == 2 {
			err = w.stream.TryWriteAll(b)
		}
		if testMode == 0 || testMode == 3 || errors.Is(err, quic.ErrWouldBlock) {
			_, err = w.stream.Write(b)
		}
		w.mu.Lock()
		if err != nil {
			if w.err == nil {
				w.failLocked(err)
			}
			w.mu.Unlock()
			return false
		}
		if cap(b) <= 2*outboxMax {
			w.spare = b[:0]
		}
		w.mu.Unlock()
	}
}

var testMode = len(os.Getenv("WMODE"))
