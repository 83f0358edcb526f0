package room

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/status"
	"github.com/Diarkis/diarkis/internal/transport"
)

const (
	// askTimeout bounds one question to another node.
	askTimeout = 2 * time.Second
	// newcomerMax is how long a join waits for its node to become known: two heartbeats
	// of a small cluster. The directory is looked at every newcomerPoll.
	newcomerMax  = 2 * time.Second
	newcomerPoll = 50 * time.Millisecond
	// seatMax is how long a seat is held for a user on the way, whatever their node asks.
	seatMax = time.Minute
	// Where a user joined, and how it went, as metric labels.
	here, elsewhere    = "here", "elsewhere"
	succeeded, refused = "ok", "refused"
)

// Actions of mesh.CmdRoomJoinCheck: u8 action ‖ u32 ms ‖ room ‖ user id. The answer
// is empty when the seat is held, else a structured error.
const (
	holdSeat   = 1
	unholdSeat = 2
)

// onJoin joins a room wherever it is.
func (e *Engine) onJoin(q *Request) error {
	p := payload{b: q.Payload()}
	rid := id.Room(p.room())
	message := p.rest()
	if p.err != nil {
		return p.err
	}
	node, err := rid.Node()
	if err != nil {
		return ErrMissingID
	}
	// Who may join may leave, which is never refused: so it is the join that waits.
	if err := mayPush(q); err != nil {
		return e.count(here, err)
	}
	if node != e.self {
		return e.count(elsewhere, e.joinElsewhere(q, rid, node))
	}
	r, err := e.find(rid)
	if err == nil {
		err = e.enter(r, q.User(), message, func(b *transport.Batch) {
			q.RespondIn(b, status.OK, appendCreated(nil, r.created, r.id), reliable.Reliable)
		})
	}
	return e.count(here, err)
}

func (e *Engine) count(where string, err error) error {
	result := succeeded
	if err != nil {
		result = refused
	}
	e.metrics.joins.WithLabelValues(where, result).Inc()
	return err
}

// joinElsewhere has a seat held on the room's node and hands the user over with the
// command pending. That node answers it.
func (e *Engine) joinElsewhere(q *Request, r id.Room, node id.Node) error {
	u := q.User()
	if e.roomOf(u) != nil {
		return ErrIn
	}
	if err := mayMake(q); err != nil {
		return err
	}
	m, ok := e.lookup(node)
	switch {
	case !ok:
		return ErrNode
	case m.Role != e.users.Self().Role:
		return ErrRole
	}
	if err := e.seat(node, holdSeat, r, u.ID); err != nil {
		return err
	}
	return e.handOver(q, r, node)
}

// lookup finds a member of the cluster. Nodes learn of each other with a heartbeat,
// so one that is unknown may have joined just now: it is waited for. A node that the
// directory does not know is never asked, because room ids come from clients and
// would make this node dial any address.
func (e *Engine) lookup(node id.Node) (mars.Member, bool) {
	ctx, cancel := context.WithTimeout(e.ctx, newcomerMax)
	defer cancel()
	for {
		if m, ok := e.users.Directory().Lookup(node); ok {
			return m, true
		}
		select {
		case <-ctx.Done():
			return mars.Member{}, false
		case <-time.After(newcomerPoll):
		}
	}
}

// handOver moves the user of q to node, where a seat in r is held for them.
func (e *Engine) handOver(q *Request, r id.Room, node id.Node) error {
	ctx, cancel := context.WithTimeout(e.ctx, e.users.MoveTTL())
	defer cancel()
	q.Waits()
	if err := e.users.MoveOut(ctx, q.User(), node, q.Message(), q.Reliability()); err != nil {
		// Counted by the users. Who does not follow a MOVE does so whenever they like.
		e.log.Debug().Err(err).Stringer("peer", node).Msg("user not moved")
		if err := e.seat(node, unholdSeat, r, q.User().ID); err != nil {
			e.log.Debug().Err(err).Stringer("peer", node).Msg("held seat not given back") // it expires
		}
		return ErrMoving
	}
	q.Abandon()
	return nil
}

// seat holds or gives back a seat in a room of another node.
func (e *Engine) seat(node id.Node, action byte, r id.Room, user id.UID) error {
	ctx, cancel := context.WithTimeout(e.ctx, askTimeout)
	defer cancel()
	b := binary.BigEndian.AppendUint32([]byte{action}, uint32((e.users.MoveTTL() + askTimeout).Milliseconds()))
	b = append(append(b, r...), user...)
	answer, err := e.mesh.Request(ctx, node, mesh.CmdRoomJoinCheck, b)
	if err != nil {
		if more, ok := e.unreachable.Line(string(node)); ok {
			e.log.Warn().Err(err).Stringer("peer", node).Int("more", more).Msg("room's node not reached")
		}
		return ErrNode
	}
	if len(answer) == 0 {
		return nil
	}
	return parseRefusal(answer)
}

// parseRefusal reads what refusal wrote: u8 retry ‖ u32 code ‖ text.
func parseRefusal(b []byte) error {
	if len(b) < 5 {
		return ErrNode
	}
	code := status.Code(binary.BigEndian.Uint32(b[1:]))
	return &status.Error{Code: code, Retry: b[0] == 1, Ours: code == status.Internal, Text: string(b[5:])}
}

func refusal(err error) []byte {
	s := status.Of(err)
	retry := byte(0)
	if s.Retry {
		retry = 1
	}
	return s.AppendTo([]byte{retry})
}

// addMeshCommands registers what other nodes may ask.
func (e *Engine) addMeshCommands() {
	e.mesh.Handle(mesh.CmdRoomJoinCheck, func(_ context.Context, from mesh.Peer, b []byte) ([]byte, error) {
		if err := e.onSeat(from.Node, b); err != nil {
			return refusal(err), nil
		}
		return nil, nil
	})
	e.mesh.Handle(mesh.CmdRoomRandom, func(_ context.Context, from mesh.Peer, b []byte) ([]byte, error) {
		return []byte(e.onRandomHold(from.Node, b)), nil
	})
}

// onSeat answers mesh.CmdRoomJoinCheck.
func (e *Engine) onSeat(from id.Node, b []byte) error {
	p := payload{b: b}
	action, ttl, rid := p.u8(), p.u32(), id.Room(p.room())
	user := p.uid(p.rest())
	if p.err != nil {
		return p.err
	}
	r, err := e.find(rid)
	if err != nil {
		return err
	}
	switch action {
	case holdSeat:
		return e.hold(from, r, user, seatTime(ttl))
	case unholdSeat:
		if !e.holds(from, r, user) {
			return nil // another node's: the user is on the way from there by now, or it expired
		}
		_, err = e.step(nil, r, input{Op: OpUnhold, User: user}, nil)
		return err
	}
	return invalid(fmt.Sprintf("unknown seat action %d", action))
}

// seatTime is how long a seat is held that another node asked for.
func seatTime(ms uint32) time.Duration {
	return min(time.Duration(ms)*time.Millisecond, seatMax)
}

// holds reports whether the seat held for user in r is the one that from asked for.
func (e *Engine) holds(from id.Node, r *room, user id.UID) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.index.held[user] == heldSeat{r, from}
}

// hold keeps a seat for a user on the way from another node, who has one on this node at
// most. The machine's own tick frees it when nobody came.
func (e *Engine) hold(from id.Node, r *room, user id.UID, ttl time.Duration) error {
	e.mu.Lock()
	before := e.index.held[user].room
	e.index.held[user] = heldSeat{r, from} // before the step, which may tell the index that it ended
	e.mu.Unlock()
	if before != nil && before != r {
		_, _ = e.step(nil, before, input{Op: OpUnhold, User: user}, nil) // ended: nothing is held there
	}
	_, err := e.step(nil, r, input{Op: OpHold, User: user, Until: time.Now().Add(ttl)}, nil)
	if err != nil {
		e.mu.Lock()
		if e.index.held[user].room == r {
			delete(e.index.held, user)
		}
		e.mu.Unlock()
	}
	return err
}
