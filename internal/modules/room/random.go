package room

import (
	"context"
	"encoding/binary"
	"errors"
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
	// randomAsked is how many other nodes a random join asks for a room, and
	// randomTimeout what it waits for each: a node that just died costs no more, and a
	// room of its own is always an answer.
	randomAsked   = 3
	randomTimeout = 500 * time.Millisecond
	// pickedSeat bounds the time between the choice of a room and being in it.
	pickedSeat = 5 * time.Second
	// triesMax is how many rooms may fill up under its eyes.
	triesMax = 64
)

// The first byte of the answer to a random join.
const (
	randomCreated byte = 0
	randomJoined  byte = 1
)

// onRandomJoin joins a random room with the same options: one in which somebody is,
// here or on another node of this type; else one here of the user's own that is empty, or
// of others; else a new one.
func (e *Engine) onRandomJoin(q *Request) error {
	p := payload{b: q.Payload()}
	s, _ := p.options()
	message := p.rest()
	if p.err != nil {
		return p.err
	}
	s = e.limited(s)
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
	if err := mayMake(q); err != nil {
		return e.count(here, err)
	}
	if node, r, ok := e.askRandom(s, q.User().ID); ok {
		return e.count(elsewhere, e.handOver(q, r, node))
	}
	return e.count(here, e.enterRandom(q, s, message, true))
}

// enterRandom joins a room of this node in which somebody is. With settle it joins one of
// the others as well, or a new one; else it returns ErrNotFound when there is none.
func (e *Engine) enterRandom(q *Request, s Settings, message []byte, settle bool) error {
	r, how, err := e.pick(s, q.User().ID, settle)
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

// pick returns a room in which a seat is held for the user, as enterRandom says. One user
// is served at a time, so that rooms fill up however many look at once.
func (e *Engine) pick(s Settings, user id.UID, settle bool) (r *room, how byte, err error) {
	e.random.Lock()
	defer e.random.Unlock()
	seat := input{Op: OpHold, User: user, Until: time.Now().Add(pickedSeat)}
	take := func(r *room) error { _, err := e.step(nil, r, seat, nil); return err }
	if r := e.heldFor(user, s); r != nil && take(r) == nil {
		return r, randomJoined, nil
	}
	least := alive
	if settle {
		least = 0
	}
	if r := e.findRandom(s, user, least, take); r != nil {
		return r, randomJoined, nil
	}
	if !settle {
		return nil, 0, ErrNotFound
	}
	if r, err = e.create(s, user, false); err != nil {
		return nil, 0, err
	}
	return r, randomCreated, take(r)
}

// heldFor returns the random room in which a seat is held for a user who was moved here.
func (e *Engine) heldFor(user id.UID, s Settings) *room {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if r := e.index.held[user].room; r != nil && r.settings == s {
		return r
	}
	return nil
}

// findRandom returns the best random room that take accepts, nil when there is none of that
// appeal.
func (e *Engine) findRandom(s Settings, user id.UID, least int, take func(*room) error) *room {
	e.lookWhoIsHere()
	for range triesMax {
		e.mu.Lock()
		r := e.index.best(s, user, least)
		e.mu.Unlock()
		if r == nil || take(r) == nil {
			return r
		}
		// Full or ended meanwhile: then it is not listed any more and the next one is found.
	}
	return nil
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
// which somebody is and a seat is held now, or nothing.
func (e *Engine) onRandomHold(from id.Node, b []byte) id.Room {
	p := payload{b: b}
	ttl := p.u32()
	s, _ := p.options()
	user := p.uid(p.rest())
	if p.err != nil {
		return ""
	}
	s = e.limited(s)
	s.Random = true
	r := e.findRandom(s, user, alive, func(r *room) error { return e.hold(from, r, user, seatTime(ttl)) })
	if r == nil {
		return ""
	}
	return r.id
}
