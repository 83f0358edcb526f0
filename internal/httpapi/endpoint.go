package httpapi

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/users"
)

// keys are the four values both shapes of the answer share, 32 hex digits each.
type keys struct {
	SID string `json:"sid"`
	Key string `json:"encryptionKey"`
	IV  string `json:"encryptionIV"`
	MAC string `json:"encryptionMacKey"`
}

// answer is the endpoint answer.
type answer struct {
	keys
	ServerType string `json:"serverType"`
	ServerHost string `json:"serverHost"`
	ServerPort uint16 `json:"serverPort"`
	ExpiresIn  int    `json:"expiresIn"` // seconds until the place is given away
	Node       string `json:"node"`      // token of the node's run, for /node/{token}
}

// answerV1 is the older shape, asked for with ResponseVersion: v1 or by /auth.
type answerV1 struct {
	keys
	UDP string `json:"UDP,omitempty"`
	TCP string `json:"TCP,omitempty"`
	// Node is the token of the node's run. It is left out when the places are on two of them,
	// each of which tells its own when the client comes.
	Node string `json:"node,omitempty"`
}

// httpError is an error with the status and the text that the client gets.
type httpError struct {
	code int
	text string
}

func (e *httpError) Error() string { return e.text }

func (s *Server) fail(w http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*overloadError](err); ok {
		s.overloaded(w, e)
		return
	}
	if e, ok := errors.AsType[*httpError](err); ok {
		writeError(w, e.code, e.text)
		return
	}
	writeError(w, http.StatusInternalServerError, "internal error")
}

// endpoint answers /endpoint/type/{type}/user/{uid}.
func (s *Server) endpoint(w http.ResponseWriter, r *http.Request) {
	defer s.timed()()
	req, err := s.reserveRequest(w, r)
	if err != nil {
		s.fail(w, err)
		return
	}
	m, rep, err := s.place(r, r.PathValue("type"), req)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.writePlace(w, r, m, rep)
}

// writePlace answers with a place in the shape that the request asks for.
func (s *Server) writePlace(w http.ResponseWriter, r *http.Request, m mars.Member, rep users.ReserveReply) {
	if strings.EqualFold(r.Header.Get("ResponseVersion"), "v1") {
		a := answerV1{keys: keysOf(rep)}
		a.set(m, rep)
		writeJSON(w, http.StatusOK, a)
		return
	}
	writeJSON(w, http.StatusOK, answer{
		keys: keysOf(rep), ServerType: m.Type, ServerHost: rep.Host, ServerPort: rep.Port,
		ExpiresIn: int(rep.ExpiresIn.Seconds()), Node: mars.Token(m.Incarnation),
	})
}

// auth answers /auth/{uid}: one set of keys that is good on a UDP and on a TCP
// node, as far as there are both.
func (s *Server) auth(w http.ResponseWriter, r *http.Request) {
	defer s.timed()()
	req, err := s.reserveRequest(w, r)
	if err != nil {
		s.fail(w, err)
		return
	}
	var a answerV1
	var firstErr error
	for _, typ := range []string{"UDP", "TCP"} {
		m, rep, err := s.place(r, typ, req)
		if err != nil {
			firstErr = worse(firstErr, err)
			continue
		}
		req.Credentials = &secure.Credentials{SID: rep.SID, Key: rep.Key, IV: rep.IV, Mac: rep.Mac}
		a.keys = keysOf(rep)
		a.set(m, rep)
	}
	if a.UDP != "" && a.TCP != "" {
		a.Node = ""
	}
	if req.Credentials == nil {
		s.fail(w, firstErr)
		return
	}
	writeJSON(w, http.StatusOK, a)
}

// worse returns the one of two errors that is worth an answer: a shortage of nodes, then
// one of this node, which both pass, before what can't succeed.
func worse(a, b error) error {
	rank := func(err error) int {
		if _, ok := errors.AsType[*overloadError](err); ok {
			return 1
		}
		if e, ok := errors.AsType[*httpError](err); ok && e.code == http.StatusServiceUnavailable {
			return 2
		}
		return 0
	}
	if a == nil || rank(b) > rank(a) {
		return b
	}
	return a
}

func (a *answerV1) set(m mars.Member, r users.ReserveReply) {
	a.Node = mars.Token(m.Incarnation)
	endpoint := net.JoinHostPort(r.Host, strconv.Itoa(int(r.Port)))
	if r.Role == "tcp" {
		a.TCP = endpoint
	} else {
		a.UDP = endpoint
	}
}

func keysOf(r users.ReserveReply) keys {
	return keys{
		SID: r.SID.Hex(), Key: hex.EncodeToString(r.Key[:]),
		IV: hex.EncodeToString(r.IV[:]), MAC: hex.EncodeToString(r.Mac[:]),
	}
}

// timed starts the latency clock; the returned function stops it.
func (s *Server) timed() func() {
	t := prometheus.NewTimer(s.latency)
	return func() { t.ObserveDuration() }
}

// place finds a node of a type and a place on it: under the keys in req, when there are
// some, else under new ones.
func (s *Server) place(r *http.Request, typ string, req users.ReserveRequest) (mars.Member, users.ReserveReply, error) {
	defer atWork(r.Context())()
	none := func(err error) (mars.Member, users.ReserveReply, error) {
		return mars.Member{}, users.ReserveReply{}, err
	}
	if err := s.forType(r, typ); err != nil {
		return none(err)
	}
	if err := s.serving(); err != nil {
		return none(unavailable(err.Error()))
	}
	candidates, err := s.candidates(typ)
	if err != nil {
		return none(err)
	}
	text, late := "no node of type %s took the user: try again", false
	for range min(reserveTries, len(candidates)) {
		i := s.pick(candidates)
		m := candidates[i]
		candidates = slices.Delete(candidates, i, i+1)
		rep, err := s.reserve(r.Context(), m.Node, req)
		if err == nil {
			return m, rep, nil
		}
		s.cfg.Log.Debug().Err(err).Stringer("peer", m.Node).Msg("reservation refused")
		late = late || errors.Is(err, errLate)
		switch rep.Refused {
		case users.BadRequest:
			// It would be for every node: the sender is at fault, not the nodes.
			return none(badRequest("the node does not take this request"))
		case users.Full:
			text = "the nodes of type %s that were asked are full: try again"
		}
	}
	if late {
		return none(&overloadError{overloadLate, "too busy to hear the nodes: try again"})
	}
	err = unavailable(fmt.Sprintf(text, typ))
	s.short.Note(err)
	return none(err)
}

func unavailable(text string) error { return &httpError{http.StatusServiceUnavailable, text} }

// errLate is a reservation without an answer while this node was late itself.
var errLate = errors.New("no answer was read in time, and this node was late itself")

// reserve asks one node for a place. Whether the client still waits makes no difference:
// one who hangs up must not look like a node that fails.
func (s *Server) reserve(ctx context.Context, node id.Node, req users.ReserveRequest) (users.ReserveReply, error) {
	due := time.Now().Add(reserveTimeout)
	ctx, cancel := context.WithDeadline(context.WithoutCancel(ctx), due)
	defer cancel()
	rep, err := s.ask(ctx, node, req)
	switch {
	case err != nil && ctx.Err() != nil && (s.pulse.woke(due) || s.pulse.late()):
		err = fmt.Errorf("reserve on %v: %w", node, errLate)
		s.tries.WithLabelValues("late").Inc()
	case err == nil && rep.Refused != users.Accepted:
		err = fmt.Errorf("reserve on %v: refused: %v", node, rep.Refused)
		s.tries.WithLabelValues("refused").Inc()
	case err == nil:
		s.tries.WithLabelValues("ok").Inc()
	case ctx.Err() != nil:
		s.tries.WithLabelValues("timeout").Inc()
	default:
		s.tries.WithLabelValues("unreachable").Inc()
	}
	return rep, err
}

func (s *Server) ask(ctx context.Context, node id.Node, req users.ReserveRequest) (users.ReserveReply, error) {
	b, err := req.Marshal()
	if err != nil {
		return users.ReserveReply{}, err
	}
	if b, err = s.mesh.Request(ctx, node, mesh.CmdReserve, b); err != nil {
		return users.ReserveReply{}, fmt.Errorf("reserve on %v: %w", node, err)
	}
	return users.ParseReserveReply(b)
}

// candidates returns the nodes of a type that may be handed out. It tells a type
// nobody runs (404), which anybody may ask for, from one whose nodes are all
// away (503), which somebody has to look after.
func (s *Server) candidates(typ string) ([]mars.Member, error) {
	d := s.learn()
	if !s.known(typ) {
		return nil, &httpError{http.StatusNotFound, fmt.Sprintf("no node for players of type %.64q is here", typ)}
	}
	ok := slices.DeleteFunc(slices.Clone(d.Available(typ)), func(m mars.Member) bool { return !forPlayers(m) })
	if len(ok) == 0 {
		err := unavailable("no node of type " + typ + " is online")
		s.short.Note(err)
		return nil, err
	}
	return ok, nil
}

func forPlayers(m mars.Member) bool { return m.Role == "udp" || m.Role == "tcp" }

// handed counts the places handed out on a node since its last heartbeat, which does
// not know of them.
type handed struct {
	seq   uint64 // of the heartbeat
	users int    // that it told
	n     int
}

// pick takes two candidates at random and returns the less loaded. That spreads
// load almost as well as asking all, and unlike "the least loaded" it doesn't send
// everyone to the same node until the next heartbeat (Mitzenmacher 2001). With our own
// hand-outs counted a burst on two nodes goes half and half.
func (s *Server) pick(c []mars.Member) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.cfg.Choose(len(c))
	if len(c) > 1 {
		j := s.cfg.Choose(len(c) - 1)
		if j >= i {
			j++
		}
		a, b := s.usersLocked(c[i]), s.usersLocked(c[j])
		if b < a || (b == a && c[j].Load < c[i].Load) {
			i = j
		}
	}
	h := s.handed[c[i].Node]
	if h.seq != c[i].Seq || h.users != c[i].Users {
		h = handed{seq: c[i].Seq, users: c[i].Users}
	}
	h.n++
	if len(s.handed) > handedMax {
		clear(s.handed) // of nodes that are long gone
	}
	s.handed[c[i].Node] = h
	return i
}

// handedMax bounds what is remembered of hand-outs, above the nodes of any cluster.
const handedMax = 10_000

func (s *Server) usersLocked(m mars.Member) int {
	if h := s.handed[m.Node]; h.seq == m.Seq && h.users == m.Users {
		return m.Users + h.n
	}
	return m.Users
}
