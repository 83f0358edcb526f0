package mesh

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

const (
	// datagramQueueMax is how many datagrams wait for one peer before the oldest is dropped.
	datagramQueueMax = 256
	// datagramDialTimeout is how long they wait for a connection.
	datagramDialTimeout = 2 * time.Second
	// datagramHeaderLen: the command, u16; the payload follows.
	datagramHeaderLen = 2
)

// datagrams is a bounded queue that drops its oldest. It is guarded by the peer's mutex.
type datagrams struct {
	queue   [][]byte
	head    int
	sending bool
}

// push adds b and tells whether an older one was dropped.
func (d *datagrams) push(b []byte) (dropped bool) {
	if len(d.queue)-d.head >= datagramQueueMax {
		d.queue[d.head] = nil
		d.head++
		dropped = true
	}
	if d.head > datagramQueueMax {
		n := copy(d.queue, d.queue[d.head:])
		clear(d.queue[n:])
		d.queue, d.head = d.queue[:n], 0
	}
	d.queue = append(d.queue, b)
	return dropped
}

func (d *datagrams) pop() []byte {
	if d.head == len(d.queue) {
		d.queue, d.head = nil, 0
		return nil
	}
	b := d.queue[d.head]
	d.queue[d.head] = nil
	d.head++
	return b
}

// SendDatagram sends an unreliable message of at most [DatagramMax] bytes. It
// never blocks: a bounded queue waits for the connection and drops its oldest. The error
// says only that the message can't be sent at all.
func (m *Mesh) SendDatagram(to id.Node, cmd uint16, payload []byte) error {
	if len(payload) > DatagramMax {
		return fmt.Errorf("send datagram %d to %v: %w: %d bytes, a datagram carries %d", cmd, to, ErrTooLarge, len(payload), DatagramMax)
	}
	if err := m.check(cmd, payload); err != nil {
		return fmt.Errorf("send datagram %d to %v: %w", cmd, to, err)
	}
	b := append(binary.BigEndian.AppendUint16(make([]byte, 0, datagramHeaderLen+len(payload)), cmd), payload...)
	m.metrics.sent(kindNameDatagram)
	if to == m.Self().Node {
		m.handleDatagram(m.ctx, m.Self(), b)
		return nil
	}
	p, err := m.peer(to)
	if err != nil {
		return fmt.Errorf("send datagram %d: %w", cmd, err)
	}
	p.mu.Lock()
	dropped := p.datagrams.push(b)
	start := !p.datagrams.sending
	p.datagrams.sending = true
	p.mu.Unlock()
	if dropped {
		m.metrics.datagramsDropped.WithLabelValues("queue_full").Inc()
	}
	if start && !m.spawn(p.sendDatagrams) {
		return fmt.Errorf("send datagram %d to %v: %w", cmd, to, ErrDraining)
	}
	return nil
}

// sendDatagrams sends what is queued and returns once the queue is empty.
func (p *peer) sendDatagrams() {
	var c *conn
	for {
		p.mu.Lock()
		b := p.datagrams.pop()
		p.datagrams.sending = b != nil
		p.mu.Unlock()
		if b == nil {
			return
		}
		if c == nil || c.closing() {
			c, _ = p.connect(p.m.ctx, p.m.cfg.now().Add(datagramDialTimeout))
		}
		if c == nil {
			p.m.metrics.datagramsDropped.WithLabelValues("unreachable").Inc()
			continue
		}
		c.use()
		if err := c.qc.SendDatagram(b); err != nil { // blocks while 32 wait in QUIC
			p.m.metrics.datagramsDropped.WithLabelValues("refused").Inc()
			c = nil
		}
	}
}

func (c *conn) receiveDatagrams() {
	for {
		b, err := c.qc.ReceiveDatagram(c.ctx)
		if err != nil {
			return
		}
		c.use()
		c.m.handleDatagram(c.ctx, c.remote, b)
	}
}

// handleDatagram starts the handler of a datagram, or drops it.
func (m *Mesh) handleDatagram(ctx context.Context, from Peer, b []byte) {
	m.metrics.in.Add(1)
	if len(b) < datagramHeaderLen {
		m.metrics.datagramsDropped.WithLabelValues("malformed").Inc()
		return
	}
	cmd := binary.BigEndian.Uint16(b)
	handler, code := m.admit(from, cmd)
	if code != CodeOK {
		m.metrics.handled(cmd, handler != nil, code)
		reason := "overloaded"
		switch code {
		case CodeUnknownCommand:
			reason = "unknown_command"
		case CodeDraining:
			reason = "draining"
		case CodeForbidden:
			reason = "forbidden"
		}
		m.metrics.datagramsDropped.WithLabelValues(reason).Inc()
		return
	}
	if !m.spawn(func() {
		defer m.release()
		ctx, cancel := context.WithTimeout(ctx, m.cfg.RequestTimeout)
		defer cancel()
		m.invoke(ctx, handler, from, cmd, b[datagramHeaderLen:])
	}) {
		m.release()
	}
}
