package httpapi

import (
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/transport/limit"
)

// nodePath is where clients ask for the node that does not answer them.
const nodePath = "/node/"

// token is what names a run of a node: [mars.Token] in bytes.
type token [16]byte

func parseToken(s string) (t token, ok bool) {
	if len(s) != hex.EncodedLen(len(t)) {
		return token{}, false
	}
	_, err := hex.Decode(t[:], []byte(s))
	return t, err == nil
}

// tokens is an index of one directory. It never changes.
type tokens struct {
	of     *mars.Directory
	states map[token]mars.State
	names  map[id.Incarnation]token // by mars.Run, so that each is hashed once
	ended  map[token]bool           // the directory's Ended
}

// index returns the tokens of the newest directory. It is made anew at most once for each,
// and only when somebody asks.
func (s *Server) index() *tokens {
	d := s.cluster.Directory()
	last := s.tokens.Load()
	if last != nil && last.of == d {
		return last
	}
	s.indexing.Lock()
	defer s.indexing.Unlock()
	if last = s.tokens.Load(); last != nil && last.of == d {
		return last
	}
	n := len(d.Members) + len(d.Ended)
	x := &tokens{of: d, states: make(map[token]mars.State, len(d.Members)), names: make(map[id.Incarnation]token, n)}
	for _, m := range d.Members {
		x.states[x.name(last, mars.Run(m.Incarnation))] = m.State
	}
	if len(d.Ended) > 0 {
		x.ended = make(map[token]bool, len(d.Ended))
	}
	for _, run := range d.Ended {
		x.ended[x.name(last, run)] = true
	}
	s.tokens.Store(x)
	return x
}

// name returns the token of a run, which the index before this one most often knows.
func (x *tokens) name(last *tokens, run id.Incarnation) token {
	t, ok := token{}, false
	if last != nil {
		t, ok = last.names[run]
	}
	if !ok {
		t, _ = parseToken(mars.Token(run))
	}
	x.names[run] = t
	return t
}

// node answers whether a run of a node is still there: clients whose node falls silent ask,
// and *gone* makes them go elsewhere. That is said only by who can know it: of any run while
// the directory is current, else of those of which an authority had said that they are over
// for good. One that was evicted may live, and only have lost the way to the authority: its
// players must not be told to leave it while nobody can say that it is back.
func (s *Server) node(w http.ResponseWriter, r *http.Request) {
	t, ok := parseToken(r.PathValue("token"))
	if !ok {
		writeError(w, http.StatusNotFound, "no such node: a token is 32 hex digits")
		return
	}
	current := s.cluster.Current() // before the directory that it speaks of
	x := s.index()
	if _, listed := x.states[t]; !current && (listed || !x.ended[t]) {
		writeError(w, http.StatusServiceUnavailable, "this node can't know: it has not joined, or not heard of all others yet")
		return
	}
	state := "gone"
	switch x.states[t] {
	case mars.Online, mars.Taken:
		state = "online"
	case mars.Offline:
		state = "offline"
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "public, max-age=1")
	_, _ = w.Write([]byte(`{"state":"` + state + "\"}\n")) // the peer is gone when this fails
}

// nodeFactor is how many questions after a node an address may ask for one request for a
// place. When a node dies all its clients behind one carrier's NAT ask every 2 s: the usual
// limit is meant for 2,000 of them at a time. An answer costs what a refusal does, so the
// limit only bounds what one address takes of this node's CPU.
const nodeFactor = 50

// asksNode tells whether a request is a question after a node that makes sense. Those have
// buckets of their own: they use up nobody's requests for places, nor the other way round.
func asksNode(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodOptions {
		return false
	}
	text, ok := strings.CutPrefix(r.URL.Path, nodePath)
	if !ok {
		return false
	}
	_, ok = parseToken(text)
	return ok
}

// boundedNode lets an address ask after nodes no more often than nodeFactor says. A
// connection stays: who waits for its node has to ask again, and a handshake costs this node
// more than the question. One that goes on in spite of refusals is no such client.
func (s *Server) boundedNode(w http.ResponseWriter, r *http.Request, h http.Handler) {
	client := s.clientOf(r)
	wait := time.Duration(0)
	if !s.spared(client) {
		wait = s.asked.Try(int64(time.Since(s.epoch)), limit.AddressKey(client))
	}
	if wait == 0 {
		h.ServeHTTP(w, r)
		return
	}
	s.noticeProxy(r, client)
	s.refused.WithLabelValues("node").Inc()
	s.answers.WithLabelValues("node", strconv.Itoa(http.StatusTooManyRequests)).Inc()
	if k, ok := r.Context().Value(connKey{}).(*conn); ok && !s.shared(peerOf(r)) {
		if k.refusals++; k.refusals > refusalsMax {
			w.Header().Set("Connection", "close")
		}
	}
	tooOften(w, wait)
}
