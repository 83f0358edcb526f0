package httpapi

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

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
}

// answerV1 is the older shape, asked for with ResponseVersion: v1 or by /auth.
type answerV1 struct {
	keys
	UDP string `json:"UDP,omitempty"`
	TCP string `json:"TCP,omitempty"`
}

// httpError is an error with the status and the text that the client gets.
type httpError struct {
	code int
	text string
}

func (e *httpError) Error() string { return e.text }

func fail(w http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*httpError](err); ok {
		writeError(w, e.code, e.text)
		return
	}
	writeError(w, http.StatusInternalServerError, "internal error")
}

// endpoint answers /endpoint/type/{type}/user/{uid}.
func (s *Server) endpoint(w http.ResponseWriter, r *http.Request) {
	defer s.timed()()
	m, rep, err := s.place(r, r.PathValue("type"), nil)
	if err != nil {
		fail(w, err)
		return
	}
	s.writePlace(w, r, m, rep)
}

// writePlace answers with a place in the shape that the request asks for.
func (s *Server) writePlace(w http.ResponseWriter, r *http.Request, m mars.Member, rep users.ReserveReply) {
	if strings.EqualFold(r.Header.Get("ResponseVersion"), "v1") {
		a := answerV1{keys: keysOf(rep)}
		a.set(rep)
		writeJSON(w, http.StatusOK, a)
		return
	}
	writeJSON(w, http.StatusOK, answer{
		keys: keysOf(rep), ServerType: m.Type, ServerHost: rep.Host, ServerPort: rep.Port,
		ExpiresIn: int(rep.ExpiresIn.Seconds()),
	})
}

// auth answers /auth/{uid}: one set of keys that is good on a UDP and on a TCP
// node, as far as there are both.
func (s *Server) auth(w http.ResponseWriter, r *http.Request) {
	defer s.timed()()
	var a answerV1
	var first *secure.Credentials
	var lastErr error
	for _, typ := range []string{"UDP", "TCP"} {
		_, rep, err := s.place(r, typ, first)
		if err != nil {
			lastErr = err
			continue
		}
		first = &secure.Credentials{SID: rep.SID, Key: rep.Key, IV: rep.IV, Mac: rep.Mac}
		a.keys = keysOf(rep)
		a.set(rep)
	}
	if first == nil {
		fail(w, lastErr)
		return
	}
	writeJSON(w, http.StatusOK, a)
}

func (a *answerV1) set(r users.ReserveReply) {
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

// place finds a node of a type and a place on it. Credentials are given to make the
// place under keys that exist already, else the node makes new ones.
func (s *Server) place(r *http.Request, typ string, c *secure.Credentials) (mars.Member, users.ReserveReply, error) {
	req, err := reserveRequest(r, c)
	if err != nil {
		return mars.Member{}, users.ReserveReply{}, err
	}
	if err := s.serving(); err != nil {
		return mars.Member{}, users.ReserveReply{}, &httpError{http.StatusServiceUnavailable, err.Error()}
	}
	candidates, err := s.candidates(typ)
	if err != nil {
		return mars.Member{}, users.ReserveReply{}, err
	}
	for range min(reserveTries, len(candidates)) {
		i := s.pick(candidates)
		m := candidates[i]
		candidates = slices.Delete(candidates, i, i+1)
		rep, err := s.reserve(r.Context(), m.Node, req)
		if err == nil {
			return m, rep, nil
		}
		s.cfg.Log.Debug().Err(err).Stringer("peer", m.Node).Msg("reservation refused")
	}
	return mars.Member{}, users.ReserveReply{}, &httpError{http.StatusServiceUnavailable, "no node of type " + typ + " took the user: try again"}
}

// reserve asks one node for a place.
func (s *Server) reserve(ctx context.Context, node id.Node, req users.ReserveRequest) (users.ReserveReply, error) {
	ctx, cancel := context.WithTimeout(ctx, reserveTimeout)
	defer cancel()
	rep, err := s.ask(ctx, node, req)
	switch {
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
// nobody ever ran (404) from one whose nodes are all away (503).
func (s *Server) candidates(typ string) ([]mars.Member, error) {
	d := s.cluster.Directory()
	s.mu.Lock()
	if len(d.ByType(typ)) > 0 {
		s.types[typ] = true
	}
	known := s.types[typ]
	s.mu.Unlock()
	if !known {
		return nil, &httpError{http.StatusNotFound, fmt.Sprintf("no node of type %q has joined", typ)}
	}
	ok := slices.DeleteFunc(slices.Clone(d.Available(typ)), func(m mars.Member) bool {
		return m.Role != "udp" && m.Role != "tcp" // a place is for players
	})
	if len(ok) == 0 {
		return nil, &httpError{http.StatusServiceUnavailable, "no node of type " + typ + " is online"}
	}
	return ok, nil
}

// pick takes two candidates at random and returns the less loaded. That spreads
// load almost as well as asking all, and unlike "the least loaded" it doesn't send
// everyone to the same node until the next heartbeat (Mitzenmacher 2001).
func (s *Server) pick(c []mars.Member) int {
	i := s.cfg.Choose(len(c))
	if len(c) == 1 {
		return i
	}
	j := s.cfg.Choose(len(c) - 1)
	if j >= i {
		j++
	}
	if c[j].Users < c[i].Users || (c[j].Users == c[i].Users && c[j].Load < c[i].Load) {
		return j
	}
	return i
}

// reserveRequest reads the user id and the initial properties of a request.
func reserveRequest(r *http.Request, c *secure.Credentials) (users.ReserveRequest, error) {
	uid, err := id.ParseUID(r.PathValue("uid"))
	if err != nil {
		return users.ReserveRequest{}, &httpError{http.StatusBadRequest, err.Error()}
	}
	props, err := properties(r)
	if err != nil {
		return users.ReserveRequest{}, err
	}
	encoded, err := users.EncodeProps(props)
	if err != nil {
		return users.ReserveRequest{}, &httpError{http.StatusBadRequest, err.Error()}
	}
	return users.ReserveRequest{UID: uid, Props: encoded, Credentials: c}, nil
}

// properties reads the initial properties from the body: a JSON object or a form.
func properties(r *http.Request) (map[string]any, error) {
	if r.Method != http.MethodPost {
		return nil, nil
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, &httpError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is over %d bytes", bodyMax)}
		}
		return nil, &httpError{http.StatusBadRequest, "the body ended early"}
	}
	if len(b) == 0 {
		return nil, nil
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if kind == "application/x-www-form-urlencoded" {
		return formProperties(string(b))
	}
	var props map[string]any
	if err := json.Unmarshal(b, &props); err != nil {
		return nil, &httpError{http.StatusBadRequest, "the body is not a JSON object: " + err.Error()}
	}
	return props, nil
}

// formProperties reads a form body; of a key given twice the first value counts.
func formProperties(body string) (map[string]any, error) {
	v, err := url.ParseQuery(body)
	if err != nil {
		return nil, &httpError{http.StatusBadRequest, "the body is not a form: " + err.Error()}
	}
	props := make(map[string]any, len(v))
	for k := range v {
		props[k] = v.Get(k)
	}
	return props, nil
}
