package users

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport"
)

// handleReserve answers mesh.CmdReserve.
func (r *Registry) handleReserve(_ context.Context, _ mesh.Peer, payload []byte) ([]byte, error) {
	q, err := ParseReserveRequest(payload)
	if err != nil {
		return r.refuse(BadRequest).Marshal(), nil
	}
	reply, err := r.Reserve(q)
	if err != nil {
		return nil, err
	}
	return reply.Marshal(), nil
}

// Reserve makes a place for a user, or says in the reply why there is none. An
// error is this node's own fault.
func (r *Registry) Reserve(q ReserveRequest) (ReserveReply, error) {
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
	u := &User{ID: q.UID, SID: c.SID, registry: r, order: order{at, digestOf(c.SID)}}
	u.props.encoded = bytes.Clone(q.Props) // the request they came in may be far larger
	refusal, err := r.admit(u, transport.Reservation{Credentials: c, UID: q.UID, Owner: u, TTL: r.cfg.ReserveTTL})
	if err != nil {
		return ReserveReply{}, fmt.Errorf("reserve: %w", err)
	}
	if refusal != Accepted {
		return r.refuse(refusal), nil
	}
	r.metrics.reservations.WithLabelValues(Accepted.String()).Inc()
	return ReserveReply{
		SID: c.SID, Key: c.Key, IV: c.IV, Mac: c.Mac,
		Role: r.cfg.Self.Role, Host: host, Port: port, ExpiresIn: r.cfg.ReserveTTL,
	}, nil
}

func (r *Registry) refuse(why Refusal) ReserveReply {
	r.metrics.reservations.WithLabelValues(why.String()).Inc()
	return ReserveReply{Refused: why}
}

// admit enters u into the tables and reserves the place, or does neither.
func (r *Registry) admit(u *User, res transport.Reservation) (Refusal, error) {
	switch mars.State(r.state.Load()) {
	case mars.Online:
	case mars.Taken:
		return Taken, nil
	default:
		return Draining, nil
	}
	if r.count.Add(1) > int64(r.cfg.UsersMax) {
		r.count.Add(-1)
		return Full, nil
	}
	if !r.users.add(u) {
		r.count.Add(-1)
		return InUse, nil
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

// issue makes credentials, unless they are given, and says when, in µs: later than
// every time before, even when the clock steps back.
func (r *Registry) issue(given *secure.Credentials) (c secure.Credentials, at int64, err error) {
	r.randMu.Lock()
	defer r.randMu.Unlock()
	if given != nil {
		c = *given
	} else if c, err = secure.NewCredentials(r.cfg.Rand); err != nil {
		return c, 0, err
	}
	r.issued = max(r.issued+1, time.Now().UnixMicro())
	return c, r.issued, nil
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
