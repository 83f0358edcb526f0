package users

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	// concurrentMax is how long two sids of one user id may have been open together
	// and still count as opened at the same time, for which order decides.
	concurrentMax = 2 * time.Second

	noticesMax     = 4096 // waiting; one more is dropped and counted
	noticesPerSend = 256
	noticeLayout   = 1
	noticeTimeout  = 2 * time.Second
	noticeParallel = 16 // nodes told at the same time
)

// notice says that a sid of a user id has opened.
type notice struct {
	uid   id.UID
	order order
	to    id.Node // empty for every other node
}

// The notices of one message, see [mesh.CmdUserOpened].
//
//	size      field
//	1         layout, 1
//	then, for each notice:
//	u32 + …   user id
//	8         issued, µs since the Unix epoch
//	16        digest of the sid
func appendNotice(dst []byte, n notice) []byte {
	dst = appendBytes(dst, string(n.uid))
	dst = binary.BigEndian.AppendUint64(dst, uint64(n.order.issued))
	return append(dst, n.order.digest[:]...)
}

func parseNotices(b []byte) ([]notice, error) {
	r := reader{b: b}
	r.layout(noticeLayout)
	var all []notice
	for r.err == nil && len(r.b) > 0 {
		n := notice{uid: id.UID(r.text(id.UIDBytesMax))}
		n.order = order{issued: int64(r.u64()), digest: r.key()}
		if all = append(all, n); len(all) > noticesPerSend {
			r.err = errCodec
		}
	}
	if err := r.end(); err != nil {
		return nil, fmt.Errorf("parse notices: %w", err)
	}
	return all, nil
}

// replaceOlder ends every other sid of u's user id on this node that was issued
// before u's; if a later one is open already, u itself is the older.
func (r *Registry) replaceOlder(u *User) {
	for _, v := range r.users.byUID(u.ID) {
		if v == u {
			continue
		}
		v.mu.Lock()
		isOpen := v.phase == open
		v.mu.Unlock()
		switch {
		case v.order.compare(u.order) < 0:
			r.replace(v)
		case isOpen:
			r.replace(u)
		}
	}
}

// replace ends u because a newer sid of its user id is open.
func (r *Registry) replace(u *User) {
	r.metrics.replaced.Inc()
	u.mu.Lock()
	u.revoked = true // in case its handshake completes right now
	isOpen := u.phase == open
	u.mu.Unlock()
	if isOpen {
		r.end(u, wire.CloseReplaced, "a newer sid of this user is open")
		return
	}
	r.spawn(func() { // not here: Cancel takes the transport's locks
		if r.places.Cancel(u.SID) {
			r.UserEnded(u, wire.CloseReplaced)
		}
	})
}

// notify queues a notice for every other node.
func (r *Registry) notify(u *User) { r.queue(notice{uid: u.ID, order: u.order}) }

func (r *Registry) queue(n notice) {
	select {
	case r.notices <- n:
	default:
		r.metrics.noticesDropped.Inc()
	}
}

// announce sends queued notices until ctx ends, as many at a time as have gathered.
func (r *Registry) announce(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-r.notices:
			r.announceBatch(ctx, n)
		}
	}
}

func (r *Registry) announceBatch(ctx context.Context, n notice) {
	all := []byte{noticeLayout}
	for count := 0; ; count++ {
		if n.to != "" {
			r.tell(ctx, n.to, appendNotice([]byte{noticeLayout}, n))
		} else {
			all = appendNotice(all, n)
		}
		if count+1 < noticesPerSend {
			select {
			case n = <-r.notices:
				continue
			default:
			}
		}
		break
	}
	if len(all) > 1 {
		r.tellAll(ctx, all)
	}
}

// tellAll sends a message to every other node that can have users.
func (r *Registry) tellAll(ctx context.Context, b []byte) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, noticeParallel)
	for _, m := range r.cfg.Directory().Members {
		if m.Node == r.cfg.Self.Node || m.Role != "udp" && m.Role != "tcp" {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			r.tell(ctx, m.Node, b)
		})
	}
	wg.Wait()
}

func (r *Registry) tell(ctx context.Context, to id.Node, b []byte) {
	ctx, cancel := context.WithTimeout(ctx, noticeTimeout)
	defer cancel()
	if err := r.mesh.Send(ctx, to, mesh.CmdUserOpened, b); err != nil {
		r.metrics.noticesFailed.Inc()
		r.log.Debug().Err(err).Stringer("peer", to).Msg("notice of an opened user was not delivered")
	}
}

// handleNotices answers mesh.CmdUserOpened.
func (r *Registry) handleNotices(_ context.Context, from mesh.Peer, payload []byte) ([]byte, error) {
	all, err := parseNotices(payload)
	if err != nil {
		return nil, err
	}
	for _, n := range all {
		for _, u := range r.users.byUID(n.uid) {
			r.judge(u, n, from.Node)
		}
	}
	return nil, nil
}

// judge applies another node's notice to one user of the same user id.
func (r *Registry) judge(u *User, n notice, from id.Node) {
	if u.order.digest == n.order.digest {
		return // the same sid on a node of another transport, or before a move
	}
	u.mu.Lock()
	isOpen, since := u.phase == open, time.Since(u.openedAt)
	u.mu.Unlock()
	older := u.order.compare(n.order) < 0
	switch {
	case older, isOpen && since > concurrentMax:
		r.replace(u)
	case isOpen:
		r.queue(notice{uid: u.ID, order: u.order, to: from})
	}
}
