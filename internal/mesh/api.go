package mesh

import (
	"context"
	"sync"

	"github.com/Diarkis/diarkis/internal/id"
)

// Mesh is one node's end of the mesh. Its methods are safe for concurrent use.
type Mesh struct {
	cfg      Config
	mu       sync.Mutex
	handlers map[uint16]Handler
}

// Stats counts messages since the start.
type Stats struct{ In, Out, Retries uint64 }

// New checks cfg and prepares the identity.
func New(cfg Config) (*Mesh, error) { return &Mesh{cfg: cfg, handlers: map[uint16]Handler{}}, nil }

// Listen binds the socket.
func (m *Mesh) Listen() (id.Node, error) { return "", ErrConfig }

// Run serves until ctx ends.
func (m *Mesh) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Close stops the mesh.
func (m *Mesh) Close() error { return nil }

// Self returns this node as others see it, once it listens.
func (m *Mesh) Self() Peer { return Peer{} }

// Handle registers the handler of cmd.
func (m *Mesh) Handle(cmd uint16, h Handler) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.handlers[cmd] = h
}

// Handles tells whether cmd has a handler.
func (m *Mesh) Handles(cmd uint16) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.handlers[cmd] != nil
}

// Request asks the node at to and waits for the answer.
func (m *Mesh) Request(ctx context.Context, to id.Node, cmd uint16, payload []byte) ([]byte, error) {
	return nil, ErrUnreachable
}

// Send hands over a one-way message.
func (m *Mesh) Send(ctx context.Context, to id.Node, cmd uint16, payload []byte) error {
	return ErrUnreachable
}

// SendDatagram sends an unreliable message. It never blocks.
func (m *Mesh) SendDatagram(to id.Node, cmd uint16, payload []byte) error { return ErrUnreachable }

// SendMany delivers to many nodes through a relay tree.
func (m *Mesh) SendMany(ctx context.Context, to []id.Node, cmd uint16, payload []byte, limit int) map[id.Node]error {
	return nil
}

// USendMany is SendMany over datagrams.
func (m *Mesh) USendMany(to []id.Node, cmd uint16, payload []byte, limit int) error { return nil }

// Keep names the nodes whose connections are never closed for idling.
func (m *Mesh) Keep(nodes ...id.Node) {}

// Peer returns who is connected at node now.
func (m *Mesh) Peer(node id.Node) (Peer, bool) { return Peer{}, false }

// Drain refuses requests from now on.
func (m *Mesh) Drain() {}

// Stats returns what was counted so far.
func (m *Mesh) Stats() Stats { return Stats{} }
