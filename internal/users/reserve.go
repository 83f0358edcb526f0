package users

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport"
)

// handleReserve answers mesh.CmdReserve.
func (r *Registry) handleReserve(_ context.Context, from mesh.Peer, payload []byte) ([]byte, error) {
	q, err := ParseReserveRequest(payload)
	if err != nil {
		return r.refuse(BadRequest).Marshal(), nil
	}
	reply, err := r.reserve(from.Node, q)
	if err != nil {
		return nil, err
	}
	return reply.Marshal(), nil
}

// Reserve makes a place for a user, or says in the reply why there is none. An
// error is this node's own fault.
func (r *Registry) Reserve(q ReserveRequest) (ReserveReply, error) {
	return r.reserve(r.cfg.Self.Node, q)
}

func (r *Registry) reserve(asker id.Node, q ReserveRequest) (ReserveReply, error) {
	if q.Type != "" && q.Type != r.cfg.Self.Type {
		return r.refuse(WrongType), nil
	}
	host, port, err := r.endpoint()
	if err != nil {
		return ReserveReply{}, fmt.Errorf("reserve: %w", err)
	}
	c, at, err := r.issue(q.Credentials)
	if err != nil {
		return ReserveReply{}, fmt.Errorf("reserve: %w", err)
	}
	u := &User{ID: q.UID, SID: c.SID, registry: r, order: order{Issued: at, Digest: digestOf(c.SID)}}
	u.props.encoded = bytes.Clone(q.Props) // the request they came in may be far larger
	refusal, ttl, err := r.admit(u, c, asker, q.Nonce)
	if err != nil {
		return ReserveReply{}, fmt.Errorf("reserve: %w", err)
	}
	if refusal != Accepted {
		return r.refuse(refusal), nil
	}
	r.metrics.reservations.WithLabelValues(Accepted.String()).Inc()
	return ReserveReply{
		SID: c.SID, Key: c.Key, IV: c.IV, Mac: c.Mac,
		Role: r.cfg.Self.Role, Host: host, Port: port, ExpiresIn: ttl,
	}, nil
}

func (r *Registry) refuse(why Refusal) ReserveReply {
	r.metrics.reservations.WithLabelValues(why.String()).Inc()
	return ReserveReply{Refused: why}
}

// mayTake says whether the node takes anybody at all.
func (r *Registry) mayTake() Refusal {
	switch mars.State(r.state.Load()) {
	case mars.Online:
		return Accepted
	case mars.Taken:
		return Taken
	}
	return Draining
}

// admit makes a place for a user whom nobody has seen yet, and says how long it waits
// for them. Others who were not seen either go, when they have to.
func (r *Registry) admit(u *User, c secure.Credentials, asker id.Node, n nonce) (Refusal, time.Duration, error) {
	if why := r.mayTake(); why != Accepted {
		return why, 0, nil
	}
	if r.cfg.MemoryShort() {
		return Memory, 0, nil
	}
	w := &r.unopened
	w.mu.Lock()
	defer w.mu.Unlock()
	var key uint64
	if n != (nonce{}) {
		key = w.cancels.key(asker, n)
		if w.cancels.has(time.Now(), asker, n) {
			return Cancelled, 0, nil
		}
	}
	if r.users.bySID(u.SID) != nil || key != 0 && w.byNonce[key] != nil {
		return InUse, 0, nil // before anybody has gone for it
	}
	r.makeWayLocked(u)
	ttl := r.cfg.reserveTTL(w.all.n + 1)
	refusal, err := r.enterLocked(u, transport.Reservation{Credentials: c, UID: u.ID, Owner: u, TTL: ttl})
	if refusal == Accepted && err == nil {
		w.addLocked(u, key)
	}
	return refusal, ttl, err
}

// admitMoved makes a place for a user of another node. Strangers who hold places are
// in nobody's way here. While memory is short, only who can't stay is taken.
func (r *Registry) admitMoved(u *User, res transport.Reservation) (Refusal, error) {
	if why := r.mayTake(); why != Accepted {
		return why, nil
	}
	if r.cfg.MemoryShort() && !r.leaves(u.moveIn.from) {
		return Memory, nil
	}
	if why := r.addArrival(u.moveIn); why != Accepted {
		return why, nil
	}
	r.unopened.mu.Lock()
	defer r.unopened.mu.Unlock()
	refusal, err := r.enterLocked(u, res)
	if refusal != Accepted || err != nil {
		r.moves.dropIn(u.moveIn)
	}
	return refusal, err
}

// leaves reports whether a node is about to end, and its users with it.
func (r *Registry) leaves(n id.Node) bool {
	m, ok := r.cfg.Directory().Lookup(n)
	return ok && m.State == mars.Offline
}

// enterLocked enters u into the tables and reserves the place, or does neither.
func (r *Registry) enterLocked(u *User, res transport.Reservation) (Refusal, error) {
	if !r.users.add(u) {
		return InUse, nil
	}
	r.count.Add(1)
	if !r.fitLocked() {
		r.drop(u)
		return Full, nil
	}
	_, err := r.places.Reserve(res)
	if err == nil {
		return Accepted, nil
	}
	r.drop(u)
	switch {
	case errors.Is(err, transport.ErrPlacesFull):
		return Full, nil
	case errors.Is(err, transport.ErrPlaceExists):
		return InUse, nil
	}
	return Accepted, err
}

// drop takes u out of the tables and reports whether it was in them.
func (r *Registry) drop(u *User) bool {
	if !r.users.remove(u) {
		return false
	}
	r.count.Add(-1)
	return true
}

// issue makes credentials, unless they are given, and says when.
func (r *Registry) issue(given *secure.Credentials) (c secure.Credentials, at int64, err error) {
	r.randMu.Lock()
	defer r.randMu.Unlock()
	if given != nil {
		c = *given
	} else if c, err = secure.NewCredentials(r.cfg.Rand); err != nil {
		return c, 0, err
	}
	return c, r.clock.Issue(time.Now(), r.cfg.Wall()), nil
}

// endpoint is where clients reach this node.
func (r *Registry) endpoint() (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(r.cfg.Endpoint())
	if err != nil {
		return "", 0, fmt.Errorf("public endpoint: %w", err)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("public endpoint: %w", err)
	}
	return host, uint16(n), nil
}
