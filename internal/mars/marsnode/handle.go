package marsnode

import (
	"context"
	"errors"
	"fmt"

	"github.com/Diarkis/diarkis/internal/mars"
)

var (
	errEnded = errors.New("membership ended")
	errLease = errors.New("the lease ran out before the answer left")
)

// parse reads a message and makes sure that it is its sender's own.
func (n *Node) parse(from Peer, payload []byte) (mars.Message, label, error) {
	m, err := mars.ParseMessage(payload)
	if pe, ok := errors.AsType[*mars.ProtocolError](err); ok {
		if more, ok := n.refused.Line(from.Node.String()); ok { // it asks again and again
			n.warn().node("peer", from.Node).count("protocol", int(pe.Theirs)).count("more", more).Msg("node of an incompatible mesh protocol refused")
		}
		return nil, labelOther, pe
	}
	if err != nil {
		return nil, labelOther, fmt.Errorf("membership message from %s: %w", from.Node, err)
	}
	name, h := open(m)
	if !from.speaksFor(h) {
		return nil, name, fmt.Errorf("membership message from %s %s in the name of %s %s", from.Node, from.Incarnation, h.From, h.Incarnation)
	}
	if b, ok := m.(mars.Heartbeat); ok && b.Register != nil && b.Register.Role != from.Role {
		return nil, name, fmt.Errorf("registration of %s as %s, which the mesh knows as %s", from.Node, b.Register.Role, from.Role)
	}
	return m, name, nil
}

// answer handles heartbeats and leaves of other nodes, and this node's own.
func (n *Node) answer(ctx context.Context, from Peer, payload []byte) ([]byte, error) {
	m, name, err := n.parse(from, payload)
	if err != nil {
		n.metrics.dropped.WithLabelValues(dropRefused).Inc()
		return nil, err
	}
	n.metrics.message(name, received)
	c := call{message: m, reply: make(chan mars.Message, 1)}
	select {
	case n.inbox <- c:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-n.done:
		return nil, errEnded
	}
	var reply mars.Message
	select {
	case reply = <-c.reply:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-n.done:
		return nil, errEnded
	}
	if reply == nil {
		return nil, mars.ErrMessage
	}
	b := reply.AppendTo(nil)
	// This process may have been paused since the machine made the answer.
	if a, ok := reply.(mars.Ack); ok && a.Live && !n.leaseHolds() {
		return nil, errLease
	}
	return b, nil
}

// leaseHolds tells whether this node may speak as the authority right now.
func (n *Node) leaseHolds() bool { return n.cfg.now().UnixNano() < n.leaseEnd.Load() }

// receive takes one-way messages of other nodes. It runs while the sender's next
// ones wait, so it waits for nothing itself.
func (n *Node) receive(_ context.Context, from Peer, payload []byte) ([]byte, error) {
	m, name, err := n.parse(from, payload)
	if err != nil {
		n.metrics.dropped.WithLabelValues(dropRefused).Inc()
		return nil, err
	}
	n.metrics.message(name, received)
	select {
	case n.arrived <- m:
	default:
		n.metrics.dropped.WithLabelValues(dropInboxFull).Inc()
	}
	return nil, nil
}
