package users

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
)

const (
	noticesMax     = 4096 // waiting; one more is dropped and counted
	noticeTimeout  = 2 * time.Second
	noticeParallel = 16 // nodes told at the same time
)

// noticeKey is what waits once: a user who opens sid after sid has one notice, of the
// latest, and fills nobody else's queue.
type noticeKey struct {
	uid id.UID
	to  id.Node
}

// noticeQueue is the notices that wait to be sent.
type noticeQueue struct {
	wake chan struct{} // holds a token while there may be something

	mu     sync.Mutex // guards the fields below
	all    []notice   // oldest first
	places map[noticeKey]int
}

func (q *noticeQueue) init() {
	q.wake, q.places = make(chan struct{}, 1), make(map[noticeKey]int)
}

// add reports false when there is no room for n.
func (q *noticeQueue) add(n notice) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	k := noticeKey{n.uid, n.to}
	if i, ok := q.places[k]; ok {
		if n.order.compare(q.all[i].order) > 0 {
			q.all[i].order = n.order
		}
		return true
	}
	if len(q.all) >= noticesMax {
		return false
	}
	q.places[k] = len(q.all)
	q.all = append(q.all, n)
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return true
}

// take empties the queue.
func (q *noticeQueue) take() []notice {
	q.mu.Lock()
	defer q.mu.Unlock()
	all := q.all
	q.all = nil
	clear(q.places)
	return all
}

// notify queues a notice for one node, or every other.
func (r *Registry) notify(n notice) {
	if !r.notices.add(n) {
		r.metrics.noticesDropped.Inc()
	}
}

// announce sends queued notices until ctx ends, as many at a time as have gathered.
func (r *Registry) announce(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.notices.wake:
			r.tell(ctx, r.notices.take())
		}
	}
}

// tell sends notices to the other nodes that can have users, side by side, because a
// node that can't be reached takes its time to show it.
func (r *Registry) tell(ctx context.Context, all []notice) {
	var toAll []notice
	toOne := make(map[id.Node][]notice)
	for _, n := range all {
		if n.to == "" {
			toAll = append(toAll, n)
		} else {
			toOne[n.to] = append(toOne[n.to], n)
		}
	}
	shared := noticeMessages(nil, toAll)
	var wg sync.WaitGroup
	slots := make(chan struct{}, noticeParallel)
	for _, m := range r.cfg.Directory().Members {
		if m.Node == r.cfg.Self.Node || m.Role != "udp" && m.Role != "tcp" {
			continue
		}
		messages := noticeMessages(slices.Clip(shared), toOne[m.Node])
		if len(messages) == 0 {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			r.tellNode(ctx, m.Node, messages)
		})
	}
	wg.Wait()
}

// noticeMessages appends messages that hold the notices.
func noticeMessages(dst [][]byte, all []notice) [][]byte {
	for part := range slices.Chunk(all, noticesPerSend) {
		b := []byte{noticeLayout}
		for _, n := range part {
			b = appendNotice(b, n)
		}
		dst = append(dst, b)
	}
	return dst
}

// tellNode sends messages one after the other, and none after one that failed.
func (r *Registry) tellNode(ctx context.Context, to id.Node, messages [][]byte) {
	ctx, cancel := context.WithTimeout(ctx, noticeTimeout)
	defer cancel()
	for i, b := range messages {
		if err := r.mesh.Send(ctx, to, mesh.CmdUserOpened, b); err != nil {
			r.metrics.noticesFailed.Add(float64(len(messages) - i))
			r.log.Debug().Err(err).Stringer("peer", to).Msg("notices of opened users were not delivered")
			return
		}
	}
}
