package users

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	// concurrentMax is how long two sids of one user id may have been open together
	// and still count as opened at the same time, for which order decides.
	concurrentMax = 2 * time.Second

	noticesPerSend = 256 // in one message
	noticeLayout   = 1
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
	var losers []*User
	for _, v := range r.users.byUID(nil, u.ID) {
		switch {
		case v == u:
		case v.order.compare(u.order) < 0:
			losers = append(losers, v)
		case v.isOpen.Load():
			losers = append(losers, u)
		}
	}
	r.replace(losers)
}

// replace ends users because newer sids of their user ids are open: as one task, not
// in the caller, who may be a read loop, and however many there are.
func (r *Registry) replace(losers []*User) {
	losers = slices.DeleteFunc(losers, func(u *User) bool { return !u.revoke() })
	if len(losers) == 0 {
		return
	}
	r.metrics.replaced.Add(float64(len(losers)))
	r.enders.do(func() {
		for _, u := range losers {
			r.endReplaced(u)
		}
	})
}

// revoke notes that u has lost to a newer sid, in case its handshake completes right
// now. It reports false when that is known.
func (u *User) revoke() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	known := u.revoked
	u.revoked = true
	return !known
}

// isRevoked reports whether u has lost to a newer sid.
func (u *User) isRevoked() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.revoked
}

func (r *Registry) endReplaced(u *User) {
	if u.isOpen.Load() {
		r.places.End(u.SID, wire.CloseReplaced, "a newer sid of this user is open")
		return
	}
	r.unopened.mu.Lock()
	defer r.unopened.mu.Unlock()
	if u.unopened != nil {
		r.cancelLocked(u, cancelReplaced)
	} else if r.places.Replaced(u.SID) { // on the way from another node
		r.forget(u, wire.CloseReplaced)
	}
}

// handleNotices answers mesh.CmdUserOpened.
func (r *Registry) handleNotices(_ context.Context, from mesh.Peer, payload []byte) ([]byte, error) {
	all, err := parseNotices(payload)
	if err != nil {
		return nil, err
	}
	var here, losers []*User
	for _, n := range all {
		here = r.users.byUID(here[:0], n.uid)
		for _, u := range here {
			if r.loses(u, n, from.Node) {
				losers = append(losers, u)
			}
		}
	}
	r.replace(losers)
	return nil, nil
}

// loses applies another node's notice to one user of the same user id: true when
// that user has to go. When it is the other, that one's node hears of it.
func (r *Registry) loses(u *User, n notice, from id.Node) bool {
	if u.order.digest == n.order.digest {
		return false // the same sid on a node of another transport, or before a move
	}
	u.mu.Lock()
	isOpen, since := u.phase == open, time.Since(u.openedAt)
	u.mu.Unlock()
	older := u.order.compare(n.order) < 0
	switch {
	case older, isOpen && since > concurrentMax:
		return true
	case isOpen:
		r.notify(notice{uid: u.ID, order: u.order, to: from})
	}
	return false
}
