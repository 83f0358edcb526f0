package httpapi

import (
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/Diarkis/diarkis/internal/mars"
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
	Transport  string `json:"transport"` // udp or tcp: the type is a free label
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
	p, err := s.place(r, r.PathValue("type"), req)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.writePlace(w, r, p)
}

// writePlace answers with a place in the shape that the request asks for.
func (s *Server) writePlace(w http.ResponseWriter, r *http.Request, p place) {
	if strings.EqualFold(r.Header.Get("ResponseVersion"), "v1") {
		var a answerV1
		a.add(p)
		s.hand(w, r, a, p)
		return
	}
	s.hand(w, r, answer{
		keys: keysOf(p.ReserveReply), ServerType: p.node.Type, ServerHost: p.host, ServerPort: p.port, Transport: p.node.Role,
		ExpiresIn: int(p.ExpiresIn.Seconds()), Node: mars.Token(p.node.Incarnation),
	}, p)
}

// hand answers with places. They are cancelled when nobody is there to hear of them, as far
// as that can be told.
func (s *Server) hand(w http.ResponseWriter, r *http.Request, v any, ps ...place) {
	err := errLeft
	if !left(r) {
		if err = sendJSON(w, http.StatusOK, v); err == nil {
			err = flush(w)
		}
	}
	if err == nil {
		return
	}
	for _, p := range ps {
		s.cancel(p)
		s.giveBack(p.node)
	}
	if errors.Is(err, errLeft) {
		s.fail(w, err)
	}
}

// flush sends what was written. What can't be flushed was not sent by a network.
func flush(w http.ResponseWriter) error {
	if err := http.NewResponseController(w).Flush(); !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
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
	var got []place
	for _, typ := range []string{"UDP", "TCP"} {
		p, err := s.place(r, typ, req)
		if err != nil {
			firstErr = worse(firstErr, err)
			continue
		}
		req.Credentials = &secure.Credentials{SID: p.SID, Key: p.Key, IV: p.IV, Mac: p.Mac}
		got = append(got, p)
		a.add(p)
	}
	if len(got) == 0 {
		s.fail(w, firstErr)
		return
	}
	s.hand(w, r, a, got...)
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

// add makes p part of the answer.
func (a *answerV1) add(p place) {
	a.keys, a.Node = keysOf(p.ReserveReply), mars.Token(p.node.Incarnation)
	endpoint := net.JoinHostPort(p.host, strconv.Itoa(int(p.port)))
	if p.node.Role == "tcp" {
		a.TCP = endpoint
	} else {
		a.UDP = endpoint
	}
	if a.UDP != "" && a.TCP != "" {
		a.Node = ""
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
