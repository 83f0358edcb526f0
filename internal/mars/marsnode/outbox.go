package marsnode

import (
	"context"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

const (
	// sendTimeout is how long a one-way message may wait for a connection. What
	// takes longer is stale: the machine repeats what matters.
	sendTimeout = time.Second
	// underWayMax is how many one-way messages wait at a time, underWayPeerMax how
	// many of them for one node, so that nodes which are gone do not take the place
	// of those that vote.
	underWayMax     = 2048
	underWayPeerMax = 8
)

// outbox sends one-way messages, each on a goroutine of its own, and holds nobody up.
type outbox struct {
	mesh Mesh
	cmd  uint16
	wg   sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	total  int
	byPeer map[id.Node]int
}

// send starts sending and tells whether there was room for the message; one
// without is dropped. failed is called when it could not be handed to the mesh.
func (o *outbox) send(ctx context.Context, to id.Node, payload []byte, failed func(error)) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.total >= underWayMax || o.byPeer[to] >= underWayPeerMax {
		return false
	}
	o.total++
	o.byPeer[to]++
	o.wg.Go(func() {
		defer o.done(to)
		ctx, cancel := context.WithTimeout(ctx, sendTimeout)
		defer cancel()
		if err := o.mesh.Send(ctx, to, o.cmd, payload); err != nil {
			failed(err)
		}
	})
	return true
}

func (o *outbox) done(to id.Node) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.total--
	if o.byPeer[to]--; o.byPeer[to] == 0 {
		delete(o.byPeer, to)
	}
}
