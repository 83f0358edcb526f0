package room

import (
	"encoding/binary"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/router"
	"github.com/Diarkis/diarkis/internal/status"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users"
)

// addCommands registers what clients may send. What may wait, for another node or
// for a hook, is ordered; the rest runs in the read loop.
func (e *Engine) addCommands(r *router.Router[*users.User]) {
	r.Ordered(Ver, CmdCreate, "room create", func(q *Request) error { return e.onCreate(q, false) })
	r.Ordered(Ver, CmdRandomCreate, "room random create", func(q *Request) error { return e.onCreate(q, true) })
	r.Ordered(Ver, CmdJoin, "room join", e.onJoin)
	r.Ordered(Ver, CmdRandomJoin, "room random join", e.onRandomJoin)
	r.Ordered(Ver, CmdLeave, "room leave", e.onLeave)
	r.Exempt(Ver, CmdLeave)
	r.Builtin(Ver, CmdBroadcast, "room broadcast", e.onBroadcast)
	r.Builtin(Ver, CmdMessage, "room message", e.onMessage)
	r.Builtin(Ver, CmdMemberIDs, "room member ids", e.onMemberIDs)
	r.Builtin(Ver, CmdMemberCount, "room member count", e.onMemberCount)
	r.Builtin(Ver, CmdOwnerID, "room owner id", e.onOwnerID)
	r.Ordered(Ver, CmdOwnerChange, "room owner change", e.onOwnerChange)
	r.Builtin(Ver, CmdSet, "room set property", e.onSet)
	r.Builtin(Ver, CmdGet, "room get property", e.onGet)
	r.Builtin(Ver, CmdIncr, "room increment property", e.onIncr)
	r.Builtin(Ver, CmdReserve, "room reserve", func(q *Request) error { return e.onSeats(q, OpReserve) })
	r.Builtin(Ver, CmdCancel, "room cancel reservation", func(q *Request) error { return e.onSeats(q, OpCancel) })
}

// mayPush refuses a command that makes others receive something when its user's budget
// for that is used up.
func mayPush(q *Request) error {
	if !q.User().MayDeliver(q.Batch()) {
		return status.ErrRate
	}
	return nil
}

// ok answers a request; built-in answers are reliable.
func ok(q *Request, payload []byte) error {
	q.Respond(status.OK, payload, reliable.Reliable)
	return nil
}

func (e *Engine) onCreate(q *Request, random bool) error {
	p := payload{b: q.Payload()}
	s, join := p.options()
	if p.err != nil {
		return p.err
	}
	s = e.limited(s)
	s.Random = random
	if join && e.roomOf(q.User()) != nil {
		return ErrNew
	}
	if err := mayMake(q); err != nil {
		e.metrics.creates.WithLabelValues(refusedRate).Inc()
		return err
	}
	r, err := e.create(s, q.User().ID, !join)
	if err != nil {
		return err
	}
	answer := appendCreated(nil, r.created, r.id)
	if !join {
		e.publish(r)
		return ok(q, answer)
	}
	err = e.enter(r, q.User(), nil, func(b *transport.Batch) { q.RespondIn(b, status.OK, answer, reliable.Reliable) })
	if err != nil {
		_ = e.Delete(r.id, nil) // nobody knows of it
	}
	return err
}

func (e *Engine) onLeave(q *Request) error {
	r, p, err := e.local(q)
	if err != nil {
		return err
	}
	_, err = e.step(q.Batch(), r, input{Op: OpLeave, By: q.User(), User: q.User().ID, Link: q.User(), Message: p.rest()}, nil)
	return err
}

// local reads the room id that starts a payload and finds the room on this node.
func (e *Engine) local(q *Request) (*room, payload, error) {
	p := payload{b: q.Payload()}
	rid := p.room()
	if p.err != nil {
		return nil, p, p.err
	}
	e.mu.RLock()
	r := e.index.rooms[id.Room(rid)] // a conversion inside a lookup costs no allocation
	e.mu.RUnlock()
	if r != nil {
		return r, p, nil
	}
	if _, err := id.ParseRoom(string(rid)); err != nil {
		return nil, p, ErrMissingID
	}
	return nil, p, ErrNotFound
}

func (e *Engine) onBroadcast(q *Request) error {
	r, p, err := e.local(q)
	if err != nil {
		return err
	}
	rel := p.reliability()
	message := p.rest()
	if p.err != nil {
		return p.err
	}
	if err := mayPush(q); err != nil {
		return err
	}
	e.metrics.messages.Inc()
	_, err = e.step(q.Batch(), r, input{Op: OpBroadcast, By: q.User(), User: q.User().ID, Message: message, Rel: rel}, nil)
	return err
}

func (e *Engine) onMessage(q *Request) error {
	r, p, err := e.local(q)
	if err != nil {
		return err
	}
	rel := p.reliability()
	to := p.uids(int(p.u16()))
	message := p.rest()
	if p.err != nil {
		return p.err
	}
	if err := mayPush(q); err != nil {
		return err
	}
	e.metrics.messages.Inc()
	_, err = e.step(q.Batch(), r, input{Op: OpMessage, By: q.User(), User: q.User().ID, To: to, Message: message, Rel: rel}, nil)
	return err
}

// read answers a question about a room from its machine, under the room's lock.
func (e *Engine) read(q *Request, f func(m *Machine[*users.User], p *payload) ([]byte, error)) error {
	r, p, err := e.local(q)
	if err != nil {
		return err
	}
	answer, err := func() ([]byte, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return f(r.m, &p)
	}()
	if err != nil {
		return err
	}
	return ok(q, answer)
}

// mayAnswer refuses a question whose answer is long when its user's budget for that is
// used up. What others put into a room is long for who asks, so they pay.
func mayAnswer(q *Request, size int) error {
	if !q.User().ChargeAnswer(q.Batch(), size) {
		return status.ErrRate
	}
	return nil
}

func (e *Engine) onMemberIDs(q *Request) error {
	return e.read(q, func(m *Machine[*users.User], _ *payload) (answer []byte, err error) {
		size := 0
		for _, member := range m.Members() {
			size += 4 + len(member.User)
		}
		if err := mayAnswer(q, size); err != nil {
			return nil, err
		}
		answer = make([]byte, 0, size)
		for _, member := range m.Members() {
			answer = appendSized(answer, member.User)
		}
		return answer, nil
	})
}

func (e *Engine) onMemberCount(q *Request) error {
	return e.read(q, func(m *Machine[*users.User], _ *payload) ([]byte, error) {
		b := binary.BigEndian.AppendUint16(nil, uint16(len(m.Members())))
		return binary.BigEndian.AppendUint16(b, uint16(m.Settings().MembersMax)), nil
	})
}

func (e *Engine) onOwnerID(q *Request) error {
	return e.read(q, func(m *Machine[*users.User], _ *payload) ([]byte, error) {
		if m.Owner() == "" {
			return nil, ErrNoOwner
		}
		return []byte(m.Owner()), nil
	})
}

func (e *Engine) onGet(q *Request) error {
	return e.read(q, func(m *Machine[*users.User], p *payload) ([]byte, error) {
		found := m.Properties([]string{string(p.rest())})
		if len(found) == 0 {
			return nil, ErrNoProperty
		}
		if err := mayAnswer(q, found[0].Value.size()); err != nil {
			return nil, err
		}
		return found[0].Value.AppendTo(nil), nil
	})
}

func (e *Engine) onOwnerChange(q *Request) error {
	r, p, err := e.local(q)
	if err != nil {
		return err
	}
	to := p.uid(p.rest())
	if p.err != nil {
		return p.err
	}
	if err := mayPush(q); err != nil {
		return err
	}
	_, err = e.step(q.Batch(), r, input{Op: OpOwner, By: q.User(), User: q.User().ID, To: []id.UID{to}}, nil)
	return err
}

func (e *Engine) onSet(q *Request) error {
	r, p, err := e.local(q)
	if err != nil {
		return err
	}
	name := p.name()
	value := p.rest()
	if p.err != nil {
		return p.err
	}
	props := []Property{{name, Value{Bytes: value}}}
	_, err = e.step(q.Batch(), r, input{Op: OpSet, User: q.User().ID, Props: props}, nil)
	return err
}

func (e *Engine) onIncr(q *Request) error {
	r, p, err := e.local(q)
	if err != nil {
		return err
	}
	name := p.name()
	delta := p.take(8)
	p.end()
	if p.err != nil {
		return p.err
	}
	sum, err := e.step(q.Batch(), r, input{
		Op: OpIncr, User: q.User().ID, Key: name, Delta: int64(binary.BigEndian.Uint64(delta)),
	}, nil)
	if err != nil {
		return err
	}
	return ok(q, binary.BigEndian.AppendUint64(nil, uint64(sum)))
}

func (e *Engine) onSeats(q *Request, op Op) error {
	r, p, err := e.local(q)
	if err != nil {
		return err
	}
	who := p.uids(-1)
	if p.err != nil {
		return p.err
	}
	_, err = e.step(q.Batch(), r, input{Op: op, User: q.User().ID, To: who}, nil)
	return err
}
