package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"strings"

	"github.com/Diarkis/diarkis/internal/httpapi/ticket"
)

// private is what stands before the routes that cost something or tell something: the
// limit by address, then the client key.
func (s *Server) private(h http.HandlerFunc) http.HandlerFunc { return s.limited(s.withKey(h)) }

// places is what stands before every route that hands out places.
func (s *Server) places(h http.HandlerFunc) http.HandlerFunc {
	return s.private(s.withMemory(s.withTicket(h)))
}

// withKey refuses requests without the client key, and those with one where there is none. Hashes are compared, so that
// the time taken tells nothing about the key, its length included.
func (s *Server) withKey(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		sent := r.Header.Get("ClientKey")
		if s.cfg.ClientKey == "" && sent != "" {
			// The nodes have none either, so that the handshake would end in silence.
			s.refused.WithLabelValues("client_key").Inc()
			writeError(w, http.StatusUnauthorized, "this cluster has no client key: send no header ClientKey, and give the client none")
			return
		}
		got := sha256.Sum256([]byte(sent))
		if s.cfg.ClientKey != "" && subtle.ConstantTimeCompare(got[:], s.keyHash[:]) != 1 {
			s.refused.WithLabelValues("client_key").Inc()
			writeError(w, http.StatusUnauthorized, "the header ClientKey is missing or wrong")
			return
		}
		h(w, r)
	}
}

// withTicket refuses requests without a good ticket, where tickets are asked for.
func (s *Server) withTicket(h http.HandlerFunc) http.HandlerFunc {
	if s.cfg.Tickets == nil {
		return h
	}
	return func(w http.ResponseWriter, r *http.Request) {
		text, ok := bearer(r.Header)
		if !ok {
			s.unauthorized(w, "missing", "a ticket is needed: one header Authorization: Bearer …")
			return
		}
		claims, err := s.cfg.Tickets.Verify(text)
		if err != nil {
			reason := "malformed"
			if e, ok := errors.AsType[*ticket.Error](err); ok {
				reason = e.Reason
			}
			s.unauthorized(w, reason, err.Error())
			return
		}
		h(w, r.WithContext(context.WithValue(r.Context(), claimsKey{}, claims)))
	}
}

func (s *Server) unauthorized(w http.ResponseWriter, reason, text string) {
	s.refused.WithLabelValues("ticket_" + reason).Inc()
	s.cfg.Log.Debug().Str("reason", reason).Msg("ticket refused")
	w.Header().Set("WWW-Authenticate", "Bearer")
	writeError(w, http.StatusUnauthorized, text)
}

// bearer returns the ticket of a request: in exactly one header, never from the URL,
// which proxies write into their logs.
func bearer(h http.Header) (string, bool) {
	lines := h["Authorization"]
	if len(lines) != 1 {
		return "", false
	}
	scheme, text, _ := strings.Cut(lines[0], " ")
	text = strings.TrimSpace(text)
	return text, strings.EqualFold(scheme, "Bearer") && text != ""
}
