package room

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
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
	// randomAsked is how many other nodes a random join asks for a room, and
	// randomTimeout what it waits for each: a node that just died costs no more, and a
	// room of its own is always an answer.
	randomAsked   = 3
	randomTimeout = 500 * time.Millisecond
	// pickedSeat bounds the time between the choice of a room and being in it.
	pickedSeat = 5 * time.Second
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
	if err := e.users.MoveOut(ctx, q.User(), node, q.Message(), q.Reliability()); err != nil {
		e.log.Warn().Err(err).Stringer("peer", node).Msg("user not moved")
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
		e.log.Warn().Err(err).Stringer("peer", node).Msg("room's node not reached")
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
	e.mesh.Handle(mesh.CmdRoomJoinCheck, func(_ context.Context, _ mesh.Peer, b []byte) ([]byte, error) {
		if err := e.onSeat(b); err != nil {
			return refusal(err), nil
		}
		return nil, nil
	})
	e.mesh.Handle(mesh.CmdRoomRandom, func(_ context.Context, _ mesh.Peer, b []byte) ([]byte, error) {
		return []byte(e.onRandomHold(b)), nil
	})
}

// onSeat answers mesh.CmdRoomJoinCheck.
func (e *Engine) onSeat(b []byte) error {
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
		return e.hold(r, user, time.Duration(ttl)*time.Millisecond)
	case unholdSeat:
		_, err = e.step(nil, r, input{Op: OpUnhold, User: user}, nil)
		return err
	}
	return invalid(fmt.Sprintf("unknown seat action %d", action))
}

// hold keeps a seat for a user on the way. The machine's own tick frees it when
// nobody came.
func (e *Engine) hold(r *room, user id.UID, ttl time.Duration) error {
	until := time.Now().Add(ttl)
	if _, err := e.step(nil, r, input{Op: OpHold, User: user, Until: until}, nil); err != nil {
		return err
	}
	e.mu.Lock()
	e.held[user] = r
	e.mu.Unlock()
	time.AfterFunc(ttl+time.Millisecond, func() {
		e.mu.Lock()
		if e.held[user] == r {
			delete(e.held, user)
		}
		e.mu.Unlock()
	})
	return nil
}

// onRandomJoin joins a random room with the same options: here, else on another
// node of this type, else a new one.
func (e *Engine) onRandomJoin(q *Request) error {
	p := payload{b: q.Payload()}
	s, _ := p.options()
	message := p.rest()
	if p.err != nil {
		return p.err
	}
	s.Random = true
	if e.roomOf(q.User()) != nil {
		return ErrIn
	}
	if err := mayPush(q); err != nil {
		return e.count(here, err)
	}
	err := e.enterRandom(q, s, message, false)
	if !errors.Is(err, ErrNotFound) {
		return e.count(here, err)
	}
	if node, r, ok := e.askRandom(s, q.User().ID); ok {
		return e.count(elsewhere, e.handOver(q, r, node))
	}
	return e.count(here, e.enterRandom(q, s, message, true))
}

// enterRandom joins a room of this node, a new one when create is set and there is
// none. Else it returns ErrNotFound then.
func (e *Engine) enterRandom(q *Request, s Settings, message []byte, create bool) error {
	r, how, err := e.pick(s, q.User().ID, create)
	if err != nil {
		return err
	}
	err = e.enter(r, q.User(), message, func(b *transport.Batch) {
		q.RespondIn(b, status.OK, appendCreated([]byte{how}, r.created, r.id), reliable.Reliable)
	})
	if err != nil {
		_, _ = e.step(nil, r, input{Op: OpUnhold, User: q.User().ID}, nil) // nobody comes for it
	}
	return err
}

// The first byte of the answer to a random join.
const (
	randomCreated byte = 0
	randomJoined  byte = 1
)

// pick returns a room in which a seat is held for the user: one with room for
// another member, else a new one if create is set, else ErrNotFound. One user is
// served at a time, so that rooms fill up however many look at once.
func (e *Engine) pick(s Settings, user id.UID, create bool) (r *room, how byte, err error) {
	e.random.Lock()
	defer e.random.Unlock()
	seat := input{Op: OpHold, User: user, Until: time.Now().Add(pickedSeat)}
	for _, r := range e.openRooms(s, user) {
		if _, err := e.step(nil, r, seat, nil); err == nil {
			return r, randomJoined, nil
		}
	}
	if !create {
		return nil, 0, ErrNotFound
	}
	if r, err = e.create(s); err != nil {
		return nil, 0, err
	}
	_, err = e.step(nil, r, seat, nil)
	return r, randomCreated, err
}

// openRooms returns rooms worth trying: the one with a seat held for the user
// first, then a few with a free seat.
func (e *Engine) openRooms(s Settings, user id.UID) []*room {
	const tries = 8
	e.mu.RLock()
	var found []*room
	for r := range e.open[s] {
		if found = append(found, r); len(found) == tries {
			break
		}
	}
	held := e.held[user]
	e.mu.RUnlock()
	if held == nil {
		return found
	}
	held.mu.Lock()
	defer held.mu.Unlock()
	if !held.m.Holds(user) {
		return found
	}
	return append([]*room{held}, found...)
}

// askRandom asks other nodes of this type for a room and has a seat held there.
func (e *Engine) askRandom(s Settings, user id.UID) (id.Node, id.Room, bool) {
	others := e.users.Directory().Available(e.users.Self().Type)
	asked := 0
	for _, i := range rand.Perm(len(others)) {
		m := others[i]
		if m.Node == e.self || m.Role != e.users.Self().Role {
			continue
		}
		if asked++; asked > randomAsked {
			break
		}
		if r, ok := e.askOne(m, s, user); ok {
			return m.Node, r, true
		}
	}
	return "", "", false
}

func (e *Engine) askOne(m mars.Member, s Settings, user id.UID) (id.Room, bool) {
	ctx, cancel := context.WithTimeout(e.ctx, randomTimeout)
	defer cancel()
	b := binary.BigEndian.AppendUint32(nil, uint32((e.users.MoveTTL() + askTimeout).Milliseconds()))
	answer, err := e.mesh.Request(ctx, m.Node, mesh.CmdRoomRandom, append(appendOptions(b, s), user...))
	if err != nil {
		e.log.Debug().Err(err).Stringer("peer", m.Node).Msg("node not asked for a random room")
		return "", false
	}
	r, err := id.ParseRoom(string(answer))
	return r, err == nil
}

// onRandomHold answers mesh.CmdRoomRandom (u32 ms ‖ options ‖ user id) with a room in
// which a seat is held now, or nothing.
func (e *Engine) onRandomHold(b []byte) id.Room {
	p := payload{b: b}
	ttl := p.u32()
	s, _ := p.options()
	user := p.uid(p.rest())
	if p.err != nil {
		return ""
	}
	s.Random = true
	for _, r := range e.openRooms(s, user) {
		if e.hold(r, user, time.Duration(ttl)*time.Millisecond) == nil {
			return r.id
		}
	}
	return ""
}
