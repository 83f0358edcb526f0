package users

import (
	"context"
	"hash/maphash"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
)

// An http node that gave up waiting for a place, or took another, says so: else the place
// would stay for nobody until it expires. What it cancels may be on its way still, behind
// a link that stood still, so that cancels are remembered for longer than a request lives.

const (
	// cancelsKept is how long a cancel is remembered. Requests for a place have deadlines of a
	// few seconds, after which the mesh delivers them to nobody.
	cancelsKept = 30 * time.Second
	// cancelsPerAsker bounds what is remembered of one node, and cancelAskersMax of how many:
	// then the oldest goes, of that node, or the node that said nothing for longest.
	cancelsPerAsker = 1024
	cancelAskersMax = 128
)

// nonce names a request for a place, see ReserveRequest.Nonce.
type nonce = [16]byte

// cancels remembers the cancels of each asker.
type cancels struct {
	seed   maphash.Seed
	askers map[id.Node]*askerCancels
}

type askerCancels struct {
	at    map[nonce]time.Time
	order []nonce // keys of at, oldest first
}

func (c *cancels) init() { c.seed, c.askers = maphash.MakeSeed(), make(map[id.Node]*askerCancels) }

// key is what unopened places are found by: never zero, and nobody else's but by a chance
// of 2^-64. Nodes can't aim at each other's, because the seed is this process's own.
func (c *cancels) key(asker id.Node, n nonce) uint64 {
	type request struct {
		asker id.Node
		nonce nonce
	}
	return max(1, maphash.Comparable(c.seed, request{asker, n}))
}

func (c *cancels) has(now time.Time, asker id.Node, n nonce) bool {
	a := c.askers[asker]
	if a == nil {
		return false
	}
	at, ok := a.at[n]
	return ok && now.Sub(at) < cancelsKept
}

// note remembers a cancel and returns how many others it had to forget for that.
func (c *cancels) note(now time.Time, asker id.Node, n nonce) (forgotten int) {
	a := c.askers[asker]
	if a == nil {
		forgotten = c.makeRoom(now)
		a = &askerCancels{at: make(map[nonce]time.Time)}
		c.askers[asker] = a
	}
	for len(a.order) > 0 && now.Sub(a.at[a.order[0]]) >= cancelsKept {
		a.dropOldest()
	}
	if _, again := a.at[n]; again {
		return forgotten // once is long enough, and its place in the order stays
	}
	if len(a.order) >= cancelsPerAsker {
		a.dropOldest()
		forgotten++
	}
	a.at[n] = now
	a.order = append(a.order, n)
	return forgotten
}

func (a *askerCancels) dropOldest() {
	delete(a.at, a.order[0])
	a.order = a.order[1:]
}

// makeRoom drops what no asker needs any more and, when there are too many of them, the one
// that said nothing for longest.
func (c *cancels) makeRoom(now time.Time) (forgotten int) {
	if len(c.askers) < cancelAskersMax {
		return 0
	}
	var oldest id.Node
	var oldestAt time.Time
	for n, a := range c.askers {
		last := a.at[a.order[len(a.order)-1]]
		if now.Sub(last) >= cancelsKept {
			delete(c.askers, n)
		} else if oldest == "" || last.Before(oldestAt) {
			oldest, oldestAt = n, last
		}
	}
	if len(c.askers) >= cancelAskersMax {
		forgotten = len(c.askers[oldest].order)
		delete(c.askers, oldest)
	}
	return forgotten
}

// handleCancelReserve answers mesh.CmdCancelReserve.
func (r *Registry) handleCancelReserve(_ context.Context, from mesh.Peer, payload []byte) ([]byte, error) {
	q, err := ParseCancelRequest(payload)
	if err != nil {
		return nil, err
	}
	return CancelReply{Cancelled: r.cancelReserve(from.Node, q.Nonce)}.Marshal(), nil
}

// cancelReserve gives up the place that asker reserved under n, unless its client is here.
func (r *Registry) cancelReserve(asker id.Node, n nonce) bool {
	w := &r.unopened
	w.mu.Lock()
	defer w.mu.Unlock()
	r.metrics.cancelsForgotten.Add(float64(w.cancels.note(time.Now(), asker, n)))
	p := w.byNonce[w.cancels.key(asker, n)]
	return p != nil && r.cancelLocked(p.user, cancelAsker)
}
