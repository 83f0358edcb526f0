package client

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// RequestsMax is how many requests may wait for their answers at once.
const RequestsMax = 4096

// call is a request that waits for its answer.
type call struct {
	ver  uint8
	cmd  uint16
	done func(Response, error)
}

// Request sends a command reliably and waits for the answer, whose payload belongs
// to the caller. It returns a [*StatusError] with the response when the status isn't
// [StatusOK], [ErrNotConnected], [ErrGap], [ErrClosed], [ErrBusy], [ErrTooLarge],
// [ErrSlow], or ctx's cause: the command may still be carried out then, unless ctx had
// ended before the call. From a callback, during which no answer can come, it returns
// [ErrInCallback] and sends nothing: use [Client.Go] there.
func (c *Client) Request(ctx context.Context, ver uint8, cmd uint16, payload []byte) (Response, error) {
	type result struct {
		r   Response
		err error
	}
	ctx = orBackground(ctx)
	switch {
	case ctx.Err() != nil:
		return Response{}, fmt.Errorf("request %d.%d: %w", ver, cmd, context.Cause(ctx))
	case c.inside():
		return Response{}, fmt.Errorf("request %d.%d: %w", ver, cmd, ErrInCallback)
	}
	answered := make(chan result, 1)
	id, err := c.start(ver, cmd, payload, func(r Response, err error) {
		r.Payload = bytes.Clone(r.Payload)
		answered <- result{r, err}
	})
	if err != nil {
		return Response{}, fmt.Errorf("request %d.%d: %w", ver, cmd, err)
	}
	var a result
	select {
	case a = <-answered:
	case <-c.done:
		a.err = ErrClosed // unless it was answered: a callback may have ended the client's goroutine
		select {
		case a = <-answered:
		default:
		}
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.calls, id)
		c.mu.Unlock()
		a.err = context.Cause(ctx)
	}
	if _, named := a.err.(*StatusError); a.err != nil && !named {
		a.err = fmt.Errorf("request %d.%d: %w", ver, cmd, a.err)
	}
	return a.r, a.err
}

// Go sends a command reliably and returns. Unless it returns an error, done is called
// exactly once, from the client's goroutine like the callbacks of [Options], with
// what [Client.Request] would have returned; the payload is lent. Nil does without.
func (c *Client) Go(ver uint8, cmd uint16, payload []byte, done func(Response, error)) error {
	if done == nil {
		done = func(Response, error) {}
	}
	if _, err := c.start(ver, cmd, payload, done); err != nil {
		return fmt.Errorf("request %d.%d: %w", ver, cmd, err)
	}
	return nil
}

// Send sends a command that needs no answer. It copies the payload and does not
// wait: while a lost connection is being resumed messages queue, reliable ones up to
// [ErrSlow], unreliable ones by dropping the oldest. It returns [ErrNotConnected],
// [ErrClosed], [ErrTooLarge] or [ErrSlow].
func (c *Client) Send(ver uint8, cmd uint16, payload []byte, rel Reliability) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.sendLocked(wire.Message{Kind: wire.Request, Ver: ver, Cmd: cmd, Payload: payload}, rel)
	if err != nil {
		return fmt.Errorf("send %d.%d: %w", ver, cmd, err)
	}
	c.pushOutLocked()
	return nil
}

func (c *Client) start(ver uint8, cmd uint16, payload []byte, done func(Response, error)) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.calls) >= RequestsMax {
		return 0, ErrBusy
	}
	c.lastCall++
	id := c.lastCall
	m := wire.Message{Kind: wire.Request, Ver: ver, Cmd: cmd, HasID: true, ID: id, Payload: payload}
	if err := c.sendLocked(m, Reliable); err != nil {
		return 0, err
	}
	c.calls[id] = call{ver, cmd, done}
	c.pushOutLocked()
	return id, nil
}

// messageBytesKept is how much of the encoder's scratch is kept for the next message.
const messageBytesKept = 4 << 10

// sendLocked queues a message.
func (c *Client) sendLocked(m wire.Message, rel Reliability) error {
	switch {
	case c.phase == phaseEnded || c.closing:
		return c.endErrorLocked()
	case c.phase != phaseUp && c.phase != phaseDown:
		return ErrNotConnected
	}
	b := m.AppendTo(c.message[:0])
	if cap(b) <= messageBytesKept {
		c.message = b
	}
	return c.machine.Send(time.Now(), b, rel)
}

// pushOutLocked sends what is queued, and makes the reader wake up in time for the rest.
func (c *Client) pushOutLocked() {
	l := c.link
	if l == nil || c.dispatching || c.move != nil {
		return
	}
	now := time.Now()
	c.flushLocked(l, now)
	c.armLocked(l, now)
}

// answer ends the call with this id. Responses nobody waits for are dropped: the
// caller gave up, or asked on a connection before a gap.
func (c *Client) answer(id uint64, r Response) {
	c.mu.Lock()
	w, ok := c.calls[id]
	if !ok || w.ver != r.Ver || w.cmd != r.Cmd {
		c.mu.Unlock()
		return
	}
	delete(c.calls, id)
	c.mu.Unlock()
	if r.Status != StatusOK {
		w.done(r, statusError(r))
		return
	}
	w.done(r, nil)
}

// failCalls ends all calls with err.
func (c *Client) failCalls(err error) {
	c.mu.Lock()
	calls := c.calls
	c.calls = make(map[uint64]call)
	c.mu.Unlock()
	c.calling.Add(1)
	defer c.calling.Add(-1)
	for _, w := range calls {
		w.done(Response{}, err)
	}
}
