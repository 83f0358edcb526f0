package mesh

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"
)

// localQueueMax is how many one-way messages to itself a node holds per class before Send waits.
const localQueueMax = 1024

type message struct {
	cmd     uint16
	payload []byte
}

// local delivers what a node sends to itself, without the network but by the
// same rules: own copy of the payload, deadline, order of one-way messages.
type local struct {
	m      *Mesh
	queues [classes]chan message
	start  [classes]sync.Once
}

func (l *local) init(m *Mesh) {
	l.m = m
	for i := range l.queues {
		l.queues[i] = make(chan message, localQueueMax)
	}
}

func (l *local) request(ctx context.Context, deadline time.Time, cmd uint16, payload []byte) ([]byte, error) {
	ctx, cancel := withDeadline(ctx, deadline)
	m := l.m
	m.metrics.in.Add(1)
	handler, code := m.admit(m.self, cmd)
	if code != CodeOK {
		m.metrics.handled(cmd, handler != nil, code)
		cancel()
		return nil, &RemoteError{Code: code, Text: codeErrors[code].Error()}
	}
	done := make(chan result, 1)
	payload = bytes.Clone(payload)
	if !m.spawn(func() {
		defer m.release()
		defer cancel()
		answer, code, text := m.invoke(ctx, handler, m.self, cmd, payload)
		if len(answer) > BodyMax {
			answer, code, text = nil, CodeTooLarge, "answer is too large"
		}
		if code != CodeOK {
			done <- result{err: &RemoteError{Code: code, Text: text}}
			return
		}
		done <- result{payload: bytes.Clone(answer)}
	}) {
		m.release()
		cancel()
		return nil, ErrDraining
	}
	select {
	case r := <-done:
		return r.payload, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done: // the handler's end is what ended ctx
		return r.payload, r.err
	default:
		return nil, contextError(ctx)
	}
}

func (l *local) send(ctx context.Context, deadline time.Time, cmd uint16, payload []byte) error {
	class := classOf(cmd)
	ok := true
	l.start[class].Do(func() { ok = l.m.spawn(func() { l.deliver(class) }) })
	if !ok {
		return ErrDraining
	}
	msg := message{cmd, bytes.Clone(payload)}
	select {
	case l.queues[class] <- msg:
		return nil
	default:
	}
	ctx, cancel := withDeadline(ctx, deadline)
	defer cancel()
	select {
	case l.queues[class] <- msg:
		return nil
	case <-ctx.Done():
		return contextError(ctx)
	case <-l.m.ctx.Done():
		return ErrDraining
	}
}

func (l *local) deliver(class class) {
	for {
		select {
		case msg := <-l.queues[class]:
			l.m.handleOneWay(l.m.ctx, l.m.self, msg.cmd, msg.payload)
		case <-l.m.ctx.Done():
			return
		}
	}
}

// contextError is the package's error for a context that ended.
func contextError(ctx context.Context) error {
	if ctx.Err() == context.DeadlineExceeded {
		return ErrTimeout
	}
	return fmt.Errorf("%w", context.Cause(ctx))
}
