package mesh

import (
	"bufio"
	"context"
	"fmt"
	"time"
)

// oneWay is the outgoing stream of one class on one connection. The fields are
// guarded by the connection's mutex; out is set once by openOneWay.
type oneWay struct {
	out         *writer
	opening     chan struct{} // closed when out is set or opening it failed
	sent, acked uint64
	idle        chan struct{} // closed when everything is acked; nil when nobody waits
}

func (o *oneWay) unacked() uint64 { return o.sent - o.acked }

func (o *oneWay) releaseLocked() {
	if o.idle != nil {
		close(o.idle)
		o.idle = nil
	}
}

// endLocked ends the stream with its connection and returns how many messages are unconfirmed.
func (o *oneWay) endLocked() uint64 {
	lost := o.unacked()
	o.acked = o.sent
	o.releaseLocked()
	return lost
}

// sendOneWay hands a message to the class's stream. sent is false when the
// connection starts nothing new, so that another may be tried.
func (c *conn) sendOneWay(ctx context.Context, deadline time.Time, cmd uint16, payload []byte) (sent bool, err error) {
	class := classOf(cmd)
	c.mu.Lock()
	if c.ended || c.retired != 0 {
		c.mu.Unlock()
		return false, errRetired
	}
	o := &c.oneWay[class]
	o.sent++
	out := o.out
	c.mu.Unlock()
	c.use()
	c.ask()
	if out == nil {
		out, err = c.openOneWay(ctx, deadline, class)
	}
	if err == nil {
		err = out.write(ctx, deadline, batched, header{size: uint32(len(payload)), kind: kindOneWay, cmd: cmd}, payload)
	}
	if err != nil {
		c.mu.Lock()
		if !c.ended {
			o.sent--
		}
		c.mu.Unlock()
		c.settle()
		return true, c.explain(ctx, deadline, err)
	}
	return true, nil
}

// openOneWay opens the stream of a class; of several callers one does and the others wait.
func (c *conn) openOneWay(ctx context.Context, deadline time.Time, class class) (*writer, error) {
	ctx, cancel := withDeadline(ctx, deadline)
	defer cancel()
	o := &c.oneWay[class]
	for {
		c.mu.Lock()
		if o.out != nil {
			c.mu.Unlock()
			return o.out, nil
		}
		opening := o.opening
		if opening == nil {
			o.opening = make(chan struct{})
			c.mu.Unlock()
			return c.openStream(ctx, class)
		}
		c.mu.Unlock()
		select {
		case <-opening:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.ctx.Done():
			return nil, context.Cause(c.ctx)
		}
	}
}

func (c *conn) openStream(ctx context.Context, class class) (*writer, error) {
	o := &c.oneWay[class]
	stream, err := c.qc.OpenUniStreamSync(ctx)
	if err == nil {
		_, err = stream.Write([]byte{streamOneWay + byte(class)})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	close(o.opening)
	o.opening = nil
	if err == nil && c.ended {
		err = context.Cause(c.ctx)
	}
	if err != nil {
		return nil, err
	}
	out := newWriter(stream, c.cancel)
	c.wg.Go(func() { out.run(c.ctx) })
	o.out = out
	return out, nil
}

// acked handles the peer's count of handled one-way messages.
func (c *conn) acked(h header) error {
	if h.arg >= classes {
		return fmt.Errorf("%w: ack of class %d", errFrame, h.arg)
	}
	c.mu.Lock()
	o := &c.oneWay[h.arg]
	if c.ended {
		c.mu.Unlock()
		return nil
	}
	if h.id > o.sent || h.id < o.acked {
		c.mu.Unlock()
		return fmt.Errorf("%w: ack of %d one-way messages", errFrame, h.id)
	}
	o.acked = h.id
	if o.unacked() == 0 {
		o.releaseLocked()
	} else {
		c.ask()
	}
	c.mu.Unlock()
	c.settle()
	return nil
}

// oneWayIdle returns a channel that is closed once the peer has handled all
// one-way messages of a class, or nil when it has already.
func (c *conn) oneWayIdle(class class) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := &c.oneWay[class]
	if c.ended || o.unacked() == 0 {
		return nil
	}
	if o.idle == nil {
		o.idle = make(chan struct{})
	}
	return o.idle
}

// ackEvery is how many one-way messages are handled between acks while more wait.
const ackEvery = 256

// receiveOneWay handles the messages of one class in the order they were sent.
// While a handler runs nothing is read, so a slow one holds the sender back.
func (c *conn) receiveOneWay(r *bufio.Reader, class class) error {
	// A former connection's last handler may still run.
	c.p.order[class].Lock()
	defer c.p.order[class].Unlock()
	var count, acked uint64
	for {
		h, payload, err := readFrame(r, BodyMax)
		if err != nil {
			return err
		}
		if h.kind != kindOneWay || classOf(h.cmd) != class {
			return fmt.Errorf("%w: kind %d of command %d on a one-way stream", errFrame, h.kind, h.cmd)
		}
		c.heard()
		c.use()
		c.m.handleOneWay(c.ctx, c.remote, h.cmd, payload)
		count++
		if r.Buffered() < headerLen || count-acked >= ackEvery {
			acked = count
			if err := c.out.tryWrite(header{kind: kindAck, id: count, arg: uint32(class)}, nil); err != nil {
				return err
			}
		}
	}
}

// handleOneWay runs the handler of a message that has no answer.
func (m *Mesh) handleOneWay(ctx context.Context, from Peer, cmd uint16, payload []byte) {
	m.metrics.in.Add(1)
	handler := m.handler(cmd)
	if !m.permit(from, cmd) {
		m.metrics.handled(cmd, handler != nil, CodeForbidden)
		return
	}
	if handler == nil {
		m.metrics.handled(cmd, false, CodeUnknownCommand)
		m.log.Debug().Stringer("peer", from.Node).Uint16("command", cmd).Msg("unknown one-way mesh command")
		return
	}
	if _, code, text := m.invoke(ctx, handler, from, cmd, payload); code != CodeOK {
		m.log.Debug().Stringer("peer", from.Node).Uint16("command", cmd).Str("error", text).Msg("one-way mesh handler returned an error")
	}
}
