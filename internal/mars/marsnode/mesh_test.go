package marsnode

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// network is an in-memory mesh. Requests and messages to a node that is not on it
// wait until their deadline, as those to a dead host do.
type network struct {
	mu    sync.Mutex
	ports map[id.Node]*port
}

type port struct {
	net      *network
	peer     Peer
	mu       sync.Mutex
	up       bool
	handlers map[uint16]HandlerFunc
	requests int
	waiting  int // one-way messages under way
	kept     []id.Node

	waitingMax int
}

func newNetwork() *network { return &network{ports: make(map[id.Node]*port)} }

// join puts a process on the network, in place of the last at its address.
func (w *network) join(p Peer) *port {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := &port{net: w, peer: p, up: true, handlers: make(map[uint16]HandlerFunc)}
	w.ports[p.Node] = x
	return x
}

func (p *port) cut(up bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up = up
}

func (p *port) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

func (p *port) handler(cmd uint16) HandlerFunc {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.up {
		return nil
	}
	return p.handlers[cmd]
}

func (p *port) Handle(cmd uint16, h HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handlers[cmd] = h
}

func (p *port) Keep(nodes ...id.Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept = nodes
}

var errDown = errors.New("unreachable")

func (p *port) Request(ctx context.Context, to id.Node, cmd uint16, payload []byte) ([]byte, error) {
	p.mu.Lock()
	p.requests++
	p.mu.Unlock()
	return p.carry(ctx, to, cmd, payload)
}

func (p *port) Send(ctx context.Context, to id.Node, cmd uint16, payload []byte) error {
	p.mu.Lock()
	p.waiting++
	p.waitingMax = max(p.waitingMax, p.waiting)
	p.mu.Unlock()
	_, err := p.carry(ctx, to, cmd, payload)
	p.mu.Lock()
	p.waiting--
	p.mu.Unlock()
	if errors.Is(err, errDown) {
		return err
	}
	return nil // what its handler says is not told to the sender
}

// carry brings a message to the handler of another node, a millisecond away.
func (p *port) carry(ctx context.Context, to id.Node, cmd uint16, payload []byte) ([]byte, error) {
	p.mu.Lock()
	up := p.up
	p.mu.Unlock()
	p.net.mu.Lock()
	q := p.net.ports[to]
	p.net.mu.Unlock()
	var h HandlerFunc
	if up && q != nil {
		h = q.handler(cmd)
	}
	if h == nil {
		<-ctx.Done()
		return nil, fmt.Errorf("%w: %w", errDown, ctx.Err())
	}
	select {
	case <-time.After(time.Millisecond): // one way
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", errDown, ctx.Err())
	}
	return h(ctx, p.peer, append([]byte(nil), payload...))
}
