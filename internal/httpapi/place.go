package httpapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/users"
)

// place is what a node keeps for a user.
type place struct {
	users.ReserveReply
	node  mars.Member // as the directory has it
	host  string      // of its public endpoint, without brackets
	port  uint16
	nonce nonce
}

// endpointOf is where the directory says that players reach a node. What the node says of
// itself in an answer is not asked: an address that players are sent to has one source.
func endpointOf(m mars.Member) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(m.Endpoint)
	if err != nil {
		return "", 0, fmt.Errorf("public endpoint of %v: %w", m.Node, err)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("public endpoint of %v: %w", m.Node, err)
	}
	return host, uint16(n), nil
}

// place finds a node of a type and a place on it: under the keys in req, when there are
// some, else under new ones.
func (s *Server) place(r *http.Request, typ string, req users.ReserveRequest) (place, error) {
	defer atWork(r.Context())()
	if err := s.forType(r, typ); err != nil {
		return place{}, err
	}
	if s.serving() != nil {
		s.watch.refuse("")
		return place{}, unavailable(notServing)
	}
	candidates, err := s.candidates(typ)
	if err != nil {
		return place{}, err
	}
	text, late := "no node of type %s took the user: try again", false
	for range min(reserveTries, len(candidates)) {
		i := s.pick(candidates)
		m := candidates[i]
		candidates = slices.Delete(candidates, i, i+1)
		p, err := s.reserve(r.Context(), m, req)
		if err == nil {
			return p, nil
		}
		s.cfg.Log.Debug().Err(err).Stringer("peer", m.Node).Msg("reservation refused")
		late = late || errors.Is(err, errLate)
		switch p.Refused {
		case users.BadRequest:
			// It would be for every node: the sender is at fault, not the nodes.
			return place{}, badRequest("the node does not take this request")
		case users.Full:
			text = "the nodes of type %s that were asked are full: try again"
		}
		if left(r) {
			return place{}, errLeft
		}
	}
	if late {
		return place{}, &overloadError{overloadLate, "too busy to hear the nodes: try again"}
	}
	err = unavailable(fmt.Sprintf(text, typ))
	s.short.Note(err)
	return place{}, err
}

// notServing is all that players are told when this node hands out nothing: why is for the
// operator, in the log and at /healthcheck, and may name addresses inside the cluster.
const notServing = "this http node hands out no places now: try again, or ask another"

func unavailable(text string) error { return &httpError{http.StatusServiceUnavailable, text} }

// errLate is a reservation without an answer while this node was late itself.
var errLate = errors.New("no answer was read in time, and this node was late itself")

// statusLeft is what proxies call a request whose client hung up. No shortage of nodes.
const statusLeft = 499

// errLeft is for nobody.
var errLeft error = &httpError{statusLeft, "the client hung up before its place was found"}

// left tells whether the client hung up.
func left(r *http.Request) bool { return errors.Is(context.Cause(r.Context()), context.Canceled) }

// reserve asks one node for a place, and only the run of it that the directory names. Whether
// the client still waits makes no difference: one who hangs up must not look like a node that
// fails. A reservation whose answer does not come in time is cancelled.
func (s *Server) reserve(ctx context.Context, m mars.Member, req users.ReserveRequest) (p place, err error) {
	defer func() {
		if err != nil {
			s.giveBack(m)
		}
	}()
	p.node = m
	if p.host, p.port, err = endpointOf(m); err != nil {
		s.failed(m)
		s.tries.WithLabelValues("unreachable").Inc()
		return place{}, err
	}
	due := time.Now().Add(reserveTimeout)
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), due)
	defer cancel()
	_, _ = rand.Read(req.Nonce[:]) // it never fails
	p.nonce = req.Nonce
	p.ReserveReply, err = s.ask(ctx, m, req)
	if err == nil && p.Refused == users.BadRequest {
		// A node of a version without nonces, or of one that reads more into the request.
		req.Nonce, p.nonce = nonce{}, nonce{}
		p.ReserveReply, err = s.ask(ctx, m, req)
	}
	switch {
	case err == nil && p.Refused == users.Accepted:
		s.tries.WithLabelValues("ok").Inc()
		return p, nil
	case err == nil:
		s.tries.WithLabelValues("refused").Inc()
		if p.Refused != users.BadRequest && p.Refused != users.InUse { // those are about the request
			s.failed(m)
		}
		return p, fmt.Errorf("reserve on %v: refused: %v", m.Node, p.Refused)
	case errors.Is(err, mesh.ErrOtherRun):
		s.tries.WithLabelValues("other_run").Inc()
		s.failed(m)
		return p, err
	}
	if mayHaveRun(err) {
		s.cancel(p)
	}
	switch {
	case ctx.Err() == nil:
		s.tries.WithLabelValues("unreachable").Inc()
	case s.pulse.woke(due) || s.pulse.late():
		s.tries.WithLabelValues("late").Inc()
		return p, fmt.Errorf("reserve on %v: %w", m.Node, errLate)
	default:
		s.tries.WithLabelValues("timeout").Inc()
	}
	s.failed(m)
	return p, err
}

// mayHaveRun tells whether a request that failed may have been carried out.
func mayHaveRun(err error) bool {
	_, answered := errors.AsType[*mesh.RemoteError](err)
	return !answered || errors.Is(err, mesh.ErrTimeout)
}

func (s *Server) ask(ctx context.Context, m mars.Member, req users.ReserveRequest) (users.ReserveReply, error) {
	b, err := req.Marshal()
	if err != nil {
		return users.ReserveReply{}, err
	}
	if b, err = s.mesh.RequestRun(ctx, m.Node, m.Incarnation, mesh.CmdReserve, b); err != nil {
		return users.ReserveReply{}, fmt.Errorf("reserve on %v: %w", m.Node, err)
	}
	return users.ParseReserveReply(b)
}

// cancel has the place of nobody cancelled. It does not wait for that.
func (s *Server) cancel(p place) {
	if p.nonce != (nonce{}) {
		s.cancels.add(p.node.Node, p.node.Incarnation, p.nonce)
	}
}

// nonce names a request for a place, see users.ReserveRequest.
type nonce = [16]byte

// candidates returns the nodes of a type that may be handed out. It tells a type
// nobody runs (404), which anybody may ask for, from one whose nodes are all
// away (503), which somebody has to look after.
func (s *Server) candidates(typ string) ([]mars.Member, error) {
	d := s.learn()
	if !s.known(typ) {
		return nil, &httpError{http.StatusNotFound, fmt.Sprintf("no node for players of type %.64q is here", typ)}
	}
	ok := slices.DeleteFunc(slices.Clone(d.Available(typ)), func(m mars.Member) bool { return !forPlayers(m) || m.Endpoint == "" })
	if len(ok) == 0 {
		s.watch.refuse(typ)
		return nil, unavailable("no node of type " + typ + " is online")
	}
	return ok, nil
}

func forPlayers(m mars.Member) bool { return m.Role == "udp" || m.Role == "tcp" }
