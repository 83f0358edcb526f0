package users

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/users/exchange"
	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	noticeLayout    = 2
	oldNoticeLayout = 1 // of nodes that say everything once
)

// errClock means that what a node says was issued at a time no clock shows.
var errClock = errors.New("issued at a time that no clock shows")

// notices is a message with [mesh.CmdUserOpened], and the answer to it.
//
//	size      field
//	1         layout, 2
//	8         the sender's clock, µs, see [exchange.Clock]
//	1         answer only: 1 when nobody has a place on that node, else 0
//	8         answer only: the sender's wall clock, µs since the Unix epoch, see [exchange.Walls]
//	then, for each of at most 256 sids that opened; in the answer those that are newer
//	than what was told:
//	u32 + …   user id
//	8         issued, µs
//	16        digest of the sid
//
// In layout 1 there is no clock, and no answer.
type notices struct {
	clock  int64
	nobody bool
	wall   int64
	facts  []exchange.Fact
}

// part says which of both messages is meant.
type part bool

const (
	told     part = false
	answered part = true
)

func (n notices) marshal(p part) []byte {
	dst := binary.BigEndian.AppendUint64([]byte{noticeLayout}, uint64(n.clock))
	if p == answered {
		nobody := byte(0)
		if n.nobody {
			nobody = 1
		}
		dst = binary.BigEndian.AppendUint64(append(dst, nobody), uint64(n.wall))
	}
	return appendFacts(dst, n.facts)
}

// marshalOld is for nodes that know layout 1 only.
func (n notices) marshalOld() []byte { return appendFacts([]byte{oldNoticeLayout}, n.facts) }

func appendFacts(dst []byte, all []exchange.Fact) []byte {
	for _, f := range all {
		dst = appendBytes(dst, string(f.UID))
		dst = binary.BigEndian.AppendUint64(dst, uint64(f.Order.Issued))
		dst = append(dst, f.Order.Digest[:]...)
	}
	return dst
}

// parseNotices also tells whether it was the old layout.
func parseNotices(b []byte, p part) (n notices, old bool, err error) {
	r := reader{b: b}
	if old = p == told && len(b) > 0 && b[0] == oldNoticeLayout; old {
		r.layout(oldNoticeLayout)
	} else {
		r.layout(noticeLayout)
		n.clock = int64(r.u64())
	}
	if p == answered {
		v := r.u8()
		if n.nobody = v == 1; v > 1 {
			r.err = errCodec
		}
		n.wall = int64(r.u64())
	}
	for r.err == nil && len(r.b) > 0 {
		f := exchange.Fact{UID: id.UID(r.text(id.UIDBytesMax))}
		f.Order = order{Issued: int64(r.u64()), Digest: r.key()}
		if n.facts = append(n.facts, f); len(n.facts) > exchange.FactsMax {
			r.err = errCodec
		}
	}
	if err := r.end(); err != nil {
		return notices{}, old, fmt.Errorf("parse notices: %w", err)
	}
	return n, old, nil
}

// replaceOlder ends every other sid of u's user id on this node that was issued
// before u's, and has the other nodes told; if a later one is open already, u itself
// is the older.
func (r *Registry) replaceOlder(u *User) {
	var losers []*User
	lost := false
	for _, v := range r.users.byUID(nil, u.ID) {
		switch {
		case v == u:
		case v.order.Compare(u.order) < 0:
			losers = append(losers, v)
		case v.isOpen.Load():
			losers, lost = append(losers, u), true
		}
	}
	r.replace(losers)
	if !lost {
		r.notify(u)
	}
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
	n, old, err := parseNotices(payload, told)
	if err != nil {
		return nil, err
	}
	newer, err := r.hear(from.Node, n)
	if err != nil {
		return nil, err
	}
	if old { // it reads no answer: who is newer is told once more, like one who has just opened
		for _, u := range newer {
			r.notify(u)
		}
		return nil, nil
	}
	reply := notices{clock: r.now(), nobody: r.count.Load() == 0, wall: r.cfg.Wall().UnixMicro()}
	for _, u := range newer {
		reply.facts = append(reply.facts, exchange.Fact{UID: u.ID, Order: u.order})
	}
	return reply.marshal(answered), nil
}

// hear ends whom another node knows newer sids of, and returns those that are newer than
// what it knows. It takes all or, when a time in it is no clock's, nothing.
func (r *Registry) hear(from id.Node, n notices) (newer []*User, err error) {
	latest := n.clock
	for _, f := range n.facts {
		latest = max(latest, f.Order.Issued)
	}
	if !r.raise(latest) {
		if more, ok := r.noClock.Line(string(from)); ok {
			r.log.Warn().Stringer("peer", from).Int("more", more).Msg("another node sent times that no clock shows, its notices of opened users were refused")
		}
		return nil, errClock
	}
	var here, losers []*User
	for _, f := range n.facts {
		here = r.users.byUID(here[:0], f.UID)
		var best *User
		for _, u := range here {
			switch exchange.Judge(u.order, u.isOpen.Load(), f.Order) {
			case exchange.Lose:
				losers = append(losers, u)
			case exchange.Newer:
				if best == nil || best.order.Compare(u.order) < 0 {
					best = u
				}
			}
		}
		if best != nil {
			newer = append(newer, best)
		}
	}
	r.replace(losers)
	return newer, nil
}

// now is the time by the clock that sids are issued by.
func (r *Registry) now() int64 {
	r.randMu.Lock()
	defer r.randMu.Unlock()
	return r.clock.Now(time.Now(), r.cfg.Wall())
}

// raise takes another node's time over; false for what no clock shows.
func (r *Registry) raise(heard int64) bool {
	r.randMu.Lock()
	defer r.randMu.Unlock()
	return r.clock.Raise(time.Now(), r.cfg.Wall(), heard)
}
