package mesh

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// connectTries is how often a call looks for a connection that takes it: one may
// retire between being found and being used.
const connectTries = 4

// Stats counts messages since the mesh was made.
type Stats struct {
	In, Out uint64 // messages received and sent, answers not counted
	Retries uint64 // shares of a SendMany that were sent again around a dead relay
}

// Stats returns what was counted so far.
func (m *Mesh) Stats() Stats {
	return Stats{m.metrics.in.Load(), m.metrics.out.Load(), m.metrics.retries.Load()}
}

// Self returns this node as others see it. It is empty before Listen.
func (m *Mesh) Self() Peer { return m.self }

// Handle registers the handler of cmd, at any time. It panics when cmd has one already.
func (m *Mesh) Handle(cmd uint16, h Handler) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.handlers[cmd] != nil {
		panic(fmt.Sprintf("mesh: command %d has two handlers", cmd))
	}
	// Replaced, never changed: handler reads without a lock.
	next := maps.Clone(m.handlers)
	next[cmd] = h
	m.handlers = next
	m.lookup.Store(&next)
}

// Handles tells whether cmd has a handler.
func (m *Mesh) Handles(cmd uint16) bool { return m.handler(cmd) != nil }

func (m *Mesh) handler(cmd uint16) Handler {
	handlers := m.lookup.Load()
	if handlers == nil {
		return nil
	}
	return (*handlers)[cmd]
}

// Peer returns who is connected at a node's address now.
func (m *Mesh) Peer(node id.Node) (Peer, bool) {
	if node == m.self.Node {
		return m.self, true
	}
	m.mu.RLock()
	p := m.peers[node]
	m.mu.RUnlock()
	if p == nil {
		return Peer{}, false
	}
	c := p.conn.Load()
	if c == nil {
		return Peer{}, false
	}
	return c.remote, true
}

// Keep names the nodes whose connections are not closed for being idle. It
// replaces what was named before and dials nobody.
func (m *Mesh) Keep(nodes ...id.Node) {
	keep := make(map[id.Node]bool, len(nodes))
	for _, n := range nodes {
		keep[n] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep = keep
}

// deadline is when a call ends: with its context, or after RequestTimeout when that has no deadline.
func (m *Mesh) deadline(ctx context.Context, now time.Time) time.Time {
	if d, ok := ctx.Deadline(); ok {
		return d
	}
	return now.Add(m.cfg.RequestTimeout)
}

// Request asks the node at to and waits for the answer, for at most
// Config.RequestTimeout when ctx has no deadline. The deadline and the end of ctx
// reach the handler. The error is one of the package's, a [*RemoteError] when
// the handler returned one, or ctx's cause when it was canceled. Nothing is retried:
// after [ErrUnreachable] or [ErrTimeout] the handler may have run.
func (m *Mesh) Request(ctx context.Context, to id.Node, cmd uint16, payload []byte) ([]byte, error) {
	return m.RequestRun(ctx, to, id.Incarnation{}, cmd, payload)
}

// RequestRun is Request for who acts on what a directory says: it asks only the run of
// a process that is meant, and returns [ErrOtherRun], nothing having been sent, when
// another one is at that address now. A zero run is any.
func (m *Mesh) RequestRun(ctx context.Context, to id.Node, run id.Incarnation, cmd uint16, payload []byte) ([]byte, error) {
	start := m.cfg.now()
	m.metrics.sent(kindNameRequest)
	answer, err := m.request(ctx, m.deadline(ctx, start), to, run, cmd, payload)
	m.metrics.request(cmd, m.cfg.now().Sub(start), err)
	if err != nil {
		return nil, fmt.Errorf("request %d to %v: %w", cmd, to, err)
	}
	return answer, nil
}

// otherRun tells whether the process at the other end is not the one that is meant.
func otherRun(want, got id.Incarnation) bool {
	return want != id.Incarnation{} && want.Run() != got.Run()
}

func (m *Mesh) request(ctx context.Context, deadline time.Time, to id.Node, run id.Incarnation, cmd uint16, payload []byte) ([]byte, error) {
	if err := m.check(cmd, payload); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	if to == m.self.Node {
		if otherRun(run, m.self.Incarnation) {
			return nil, ErrOtherRun
		}
		return m.local.request(ctx, deadline, cmd, payload)
	}
	p, err := m.peer(to)
	if err != nil {
		return nil, err
	}
	for range connectTries {
		c, err := p.connect(ctx, deadline)
		if err != nil {
			return nil, err
		}
		if otherRun(run, c.remote.Incarnation) {
			return nil, ErrOtherRun
		}
		answer, sent, err := c.request(ctx, deadline, cmd, payload)
		if sent {
			return answer, err
		}
		p.forget(c)
	}
	return nil, fmt.Errorf("%w: connections kept ending", ErrUnreachable)
}

func (m *Mesh) check(cmd uint16, payload []byte) error {
	switch {
	case len(payload) > bodyMax(cmd):
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(payload), bodyMax(cmd))
	case m.stopping.Load():
		return fmt.Errorf("%w: this one", ErrDraining)
	case m.transport == nil:
		return fmt.Errorf("%w: this node does not listen yet", ErrUnreachable)
	}
	return nil
}

// Send hands over a one-way message. Messages of one goroutine to one node are
// handled there in order, ours and the application's each. It blocks, until
// ctx ends, only while the peer can't keep up or is being dialed. A nil error means that the
// message is under way: those a link loses are counted and logged.
func (m *Mesh) Send(ctx context.Context, to id.Node, cmd uint16, payload []byte) error {
	m.metrics.sent(kindNameOneWay)
	if err := m.send(ctx, m.deadline(ctx, m.cfg.now()), to, cmd, payload); err != nil {
		return fmt.Errorf("send %d to %v: %w", cmd, to, err)
	}
	return nil
}

func (m *Mesh) send(ctx context.Context, deadline time.Time, to id.Node, cmd uint16, payload []byte) error {
	if err := m.check(cmd, payload); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	if to == m.self.Node {
		return m.local.send(ctx, deadline, cmd, payload)
	}
	p, err := m.peer(to)
	if err != nil {
		return err
	}
	for range connectTries {
		c, err := p.connect(ctx, deadline)
		if err != nil {
			return err
		}
		if err := p.switchOneWay(ctx, deadline, c, classOf(cmd)); err != nil {
			return err
		}
		if sent, err := c.sendOneWay(ctx, deadline, cmd, payload); sent {
			return err
		}
		p.forget(c)
	}
	return fmt.Errorf("%w: connections kept ending", ErrUnreachable)
}

// switchOneWay waits, when the last one-way message went over another
// connection, until the peer has handled what is there: order spans connections.
func (p *peer) switchOneWay(ctx context.Context, deadline time.Time, c *conn, class class) error {
	if p.last[class].Load() == c {
		return nil
	}
	ctx, cancel := withDeadline(ctx, deadline)
	defer cancel()
	for {
		last := p.last[class].Load()
		if last == c {
			return nil
		}
		if last != nil {
			if idle := last.oneWayIdle(class); idle != nil {
				select {
				case <-idle:
				case <-ctx.Done():
					return contextError(ctx)
				}
				continue
			}
		}
		if p.last[class].CompareAndSwap(last, c) {
			return nil
		}
	}
}

// errorCode is the code under which a relay reports why a call of its own failed.
func errorCode(err error) Code {
	if e, ok := errors.AsType[*RemoteError](err); ok {
		return e.Code
	}
	for code, known := range codeErrors {
		if errors.Is(err, known) {
			return code
		}
	}
	return CodeUnreachable
}
