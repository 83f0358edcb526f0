package users

import (
	"bytes"
	"container/list"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// offerTTLMax bounds how long another node can make this one keep a place: it gives up
// long before, and gets a place that ends sooner than it asked for, which is safe.
const offerTTLMax = 30 * time.Second

// moveIn is a user on the way here, as the new node sees it.
type moveIn struct {
	id    moveID
	user  *User
	from  id.Node
	bytes int // of the state that came along

	// Guarded by moves.
	since time.Time
	age   *list.Element // in the list of its share
}

// handleOffer answers mesh.CmdMoveOffer: it reserves a place under the same sid.
func (r *Registry) handleOffer(_ context.Context, from mesh.Peer, payload []byte) ([]byte, error) {
	o, err := parseMoveOffer(payload)
	if err != nil {
		return nil, err
	}
	if from.Role != r.cfg.Self.Role {
		return nil, fmt.Errorf("take a user: node of role %q can't hand one to role %q", from.Role, r.cfg.Self.Role)
	}
	if !r.raise(o.issued) {
		return nil, errClock
	}
	var state *reliable.State
	if len(o.state) > 0 {
		if state, err = reliable.ParseState(o.state); err != nil {
			return nil, fmt.Errorf("parse move offer: %w", err)
		}
	}
	host, port, err := r.endpoint()
	if err != nil {
		return nil, fmt.Errorf("take a user: %w", err)
	}
	u := &User{
		ID: o.uid, SID: o.creds.SID, registry: r, movedIn: true, phase: incoming,
		order: order{Issued: o.issued, Digest: digestOf(o.creds.SID)},
	}
	u.spendMoved()
	u.moveIn = &moveIn{id: o.id, user: u, from: from.Node, bytes: len(o.state)}
	refused, err := r.admitMoved(u, transport.Reservation{
		Credentials: o.creds, UID: o.uid, Owner: u, State: state, From: from.Node,
		TTL:     min(max(o.ttl, time.Millisecond), offerTTLMax), // zero would mean the transport's own
		Release: func(ctx context.Context) error { return r.takeOver(ctx, u) },
	})
	if err != nil {
		return nil, fmt.Errorf("take a user: %w", err)
	}
	if refused != Accepted {
		r.metrics.moves.WithLabelValues("in", refused.String()).Inc()
	}
	return moveReply{refused: refused, host: host, port: port}.marshal(), nil
}

// releaseTry is how long one question for a user's release may take. An answer that was lost
// is given again, and the client waits.
const releaseTry = time.Second

// takeOver has the old node give up u. The transport calls it at the client's
// first valid Confirm and accepts that only on nil.
func (r *Registry) takeOver(ctx context.Context, u *User) error {
	in := u.moveIn // constant
	b, err := r.askRelease(ctx, in)
	if err != nil {
		return fmt.Errorf("take over user %q from %v: %w", string(u.ID), in.from, err)
	}
	data, released, err := parseMoveData(b)
	if err == nil && !released {
		err = errors.New("the old node keeps the user")
	}
	if err != nil && u.isRevoked() {
		err = transport.ErrReplaced // a notice of the newer sid came here, too
	}
	if err != nil {
		return fmt.Errorf("take over user %q from %v: %w: %w", string(u.ID), in.from, err, transport.ErrRevoked)
	}
	u.takeData(data)
	if err := r.mesh.Send(ctx, in.from, mesh.CmdMoveDone, in.id.marshal()); err != nil {
		r.log.Debug().Err(err).Stringer("peer", in.from).Msg("old node not told that a user has arrived")
	}
	return nil
}

// askRelease asks the old node until it answers or ctx ends.
func (r *Registry) askRelease(ctx context.Context, in *moveIn) (answer []byte, err error) {
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		try, cancel := context.WithTimeout(ctx, releaseTry)
		answer, err = r.mesh.Request(try, in.from, mesh.CmdMoveRelease, in.id.marshal())
		cancel()
		if err == nil {
			return answer, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(min(wait, releaseTry)):
		}
	}
}

// takeData makes u the user that the old node gave up.
func (u *User) takeData(data moveData) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.phase != incoming {
		return // asked twice, or ended meanwhile
	}
	u.setPhaseLocked(arrived)
	u.props.encoded = bytes.Clone(data.props) // the message they are in is far larger
	u.parked = data.parked
	for _, p := range data.parked {
		u.parkedBytes += p.cost()
	}
	u.parking.Store(len(u.parked) > 0)
	// Frozen until the hooks have run, so that nothing that arrives overtakes the
	// commands that came along.
	u.box.frozen = true
	u.box.queue, u.box.ordered = data.commands, len(data.commands)
	for _, t := range data.commands {
		u.box.bytes += len(t.m.Payload)
	}
}

// finishMoveIn runs when the client of a user from another node is here: first
// what waits for the client goes out, then the commands that came along run.
func (r *Registry) finishMoveIn(b *transport.Batch, u *User, link Link) {
	r.metrics.moves.WithLabelValues("in", "ok").Inc()
	for _, f := range r.hooks.movedIn {
		_ = r.guard.Do("moved in hook", func() { f(u) })
	}
	r.moves.dropIn(u.moveIn)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.box.frozen = false
	u.unparkLocked(b, link)
	_ = u.startLocked() // fails when the node stops: then the user ends anyway
}

// handleAbort answers mesh.CmdMoveAbort: 1 when this node has no claim on the user
// and no place for them, 0 when that is not so or not yet.
func (r *Registry) handleAbort(_ context.Context, from mesh.Peer, payload []byte) ([]byte, error) {
	mid, err := parseMoveID(payload)
	if err != nil {
		return nil, err
	}
	in := r.moves.in(mid)
	if in == nil {
		return []byte{moveLayout, 1}, nil
	}
	if in.from != from.Node || !r.giveUp(in, "aborted") {
		return []byte{moveLayout, 0}, nil
	}
	return []byte{moveLayout, 1}, nil
}

// giveUp drops a user on the way here, whom the old node keeps then. It reports false
// when their client is being let in.
func (r *Registry) giveUp(in *moveIn, result string) bool {
	if !r.places.Cancel(in.user.SID) {
		return false
	}
	r.metrics.moves.WithLabelValues("in", result).Inc()
	r.UserEnded(in.user, wire.CloseNormal)
	return true
}
