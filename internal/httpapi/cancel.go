package httpapi

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/users"
)

const (
	// cancelsMax is how many places of one node wait to be cancelled. Beyond that the oldest
	// is left to expire.
	cancelsMax = 1024
	// cancelFor is how long cancelling one is worth it: a place that nobody opens expires
	// after a minute by default.
	cancelFor = time.Minute
	// cancelTimeout is how long one try may take.
	cancelTimeout = time.Second
	// The pause between two tries, which doubles.
	cancelPauseMin = 250 * time.Millisecond
	cancelPauseMax = 5 * time.Second
	// cancelDrain is how long a stop waits for those that are left on nodes that answer.
	cancelDrain = 250 * time.Millisecond
)

// Values of the label result of cancels_total.
const (
	cancelDone    = "done"      // nobody has the place any more
	cancelMoot    = "moot"      // there was none, or its client came
	cancelGone    = "other_run" // the node was restarted, its places with it
	cancelRefused = "refused"   // the node does not know the command
	cancelExpired = "expired"   // no answer in cancelFor: by now the place has expired
	cancelDropped = "dropped"   // over cancelsMax, or this node ended
)

// cancels takes back places that nobody was told of: their answer came late, or the client
// went away. Each node has a goroutine while it has some, so that one that is silent holds up
// nobody else's, and no request waits for it.
type cancels struct {
	mesh   Mesh
	log    zerolog.Logger
	result *prometheus.CounterVec

	mu    sync.Mutex // guards the fields below
	ctx   context.Context
	stop  context.CancelFunc
	nodes map[id.Node]*cancelQueue
	idle  *sync.Cond // a node has none left, or is silent
	wg    sync.WaitGroup
}

// cancelQueue is what is to be cancelled on one node, oldest first.
type cancelQueue struct {
	list    []cancel
	working bool
	silent  bool // the node did not answer the last try
}

type cancel struct {
	run   id.Incarnation
	nonce nonce
	until time.Time
}

func newCancels(m Mesh, log zerolog.Logger, result *prometheus.CounterVec) *cancels {
	c := &cancels{mesh: m, log: log, result: result, nodes: map[id.Node]*cancelQueue{}}
	c.idle = sync.NewCond(&c.mu)
	return c
}

// add cancels what was asked of a run of a node under a nonce. It waits for nothing.
func (c *cancels) add(node id.Node, run id.Incarnation, n nonce) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.nodes[node]
	if q == nil {
		q = &cancelQueue{}
		c.nodes[node] = q
	}
	if len(q.list) >= cancelsMax {
		q.list = q.list[1:]
		c.result.WithLabelValues(cancelDropped).Inc()
	}
	q.list = append(q.list, cancel{run, n, time.Now().Add(cancelFor)})
	c.workLocked(node, q)
}

// start begins to cancel what was added and will be.
func (c *cancels) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ctx, c.stop = context.WithCancel(context.Background())
	for n, q := range c.nodes {
		c.workLocked(n, q)
	}
}

func (c *cancels) workLocked(node id.Node, q *cancelQueue) {
	if c.ctx == nil || c.ctx.Err() != nil || q.working {
		return
	}
	q.working = true
	c.wg.Go(func() { c.work(c.ctx, node, q) })
}

// finish waits a moment for what is left, then ends all of it.
func (c *cancels) finish() {
	giveUp := time.AfterFunc(cancelDrain, func() {
		c.stop()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.idle.Broadcast()
	})
	c.mu.Lock()
	for c.pendingLocked() && c.ctx.Err() == nil {
		c.idle.Wait()
	}
	c.mu.Unlock()
	giveUp.Stop()
	c.stop()
	c.wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, q := range c.nodes {
		c.result.WithLabelValues(cancelDropped).Add(float64(len(q.list)))
	}
	clear(c.nodes)
}

// pendingLocked tells whether a node that answers has some left.
func (c *cancels) pendingLocked() bool {
	for _, q := range c.nodes {
		if !q.silent {
			return true
		}
	}
	return false
}

// work cancels what q holds until nothing is left or ctx ends.
func (c *cancels) work(ctx context.Context, node id.Node, q *cancelQueue) {
	pause := cancelPauseMin
	for ctx.Err() == nil {
		k, ok := c.first(node, q)
		if !ok {
			return
		}
		result := c.try(ctx, node, k)
		c.answered(q, result != "")
		if result == "" && time.Now().Before(k.until) {
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, cancelPauseMax)
			continue
		}
		if result == "" {
			result = cancelExpired
		} else {
			pause = cancelPauseMin
		}
		c.finished(q, k, result)
	}
}

// first returns the oldest of q. When there is none, the caller is to return.
func (c *cancels) first(node id.Node, q *cancelQueue) (cancel, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(q.list) == 0 {
		delete(c.nodes, node)
		c.idle.Broadcast()
		return cancel{}, false
	}
	return q.list[0], true
}

func (c *cancels) answered(q *cancelQueue, yes bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if q.silent = !yes; q.silent {
		c.idle.Broadcast()
	}
}

func (c *cancels) finished(q *cancelQueue, k cancel, result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(q.list) > 0 && q.list[0] == k { // else it went for a newer one, and was counted
		q.list = q.list[1:]
		c.result.WithLabelValues(result).Inc()
	}
}

// try asks once. The result is empty when it is to be tried again.
func (c *cancels) try(ctx context.Context, node id.Node, k cancel) string {
	ctx, end := context.WithTimeout(ctx, cancelTimeout)
	defer end()
	b, err := c.mesh.RequestRun(ctx, node, k.run, mesh.CmdCancelReserve, users.CancelRequest{Nonce: k.nonce}.Marshal())
	if err == nil {
		var rep users.CancelReply
		if rep, err = users.ParseCancelReply(b); err == nil {
			if rep.Cancelled {
				return cancelDone
			}
			return cancelMoot
		}
	}
	c.log.Debug().Err(err).Stringer("peer", node).Msg("reservation not cancelled")
	_, answered := errors.AsType[*mesh.RemoteError](err)
	switch {
	case errors.Is(err, mesh.ErrOtherRun):
		return cancelGone
	case answered && !errors.Is(err, mesh.ErrTimeout) && !errors.Is(err, mesh.ErrOverloaded) && !errors.Is(err, mesh.ErrDraining):
		return cancelRefused
	}
	return ""
}
