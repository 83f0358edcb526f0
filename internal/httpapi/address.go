package httpapi

import (
	"errors"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/transport/limit"
)

// tableSize is how many addresses the token buckets tell apart: 1 MiB of them. One that
// is forgotten has a full bucket, so that too many addresses make the limit milder.
const tableSize = 1 << 16

// forwarded is the header in which proxies name the client, each adding the address
// it was called from.
const forwarded = "X-Forwarded-For"

// peerOf returns the address at the other end of the connection; it is invalid when
// the connection has none.
func peerOf(r *http.Request) netip.Addr {
	ap, _ := netip.ParseAddrPort(r.RemoteAddr)
	return ap.Addr().Unmap().WithZone("")
}

// clientOf returns the address that a request counts for. Only what a trusted proxy
// says of its own caller is believed: whatever stands before that in the header the
// client may have written itself.
func (s *Server) clientOf(r *http.Request) netip.Addr {
	peer := peerOf(r)
	if !within(s.cfg.TrustedProxies, peer) {
		return peer
	}
	lines := r.Header.Values(forwarded)
	for _, line := range slices.Backward(lines) {
		for line != "" {
			last := line
			if i := strings.LastIndexByte(line, ','); i >= 0 {
				line, last = line[:i], line[i+1:]
			} else {
				line = ""
			}
			a, ok := parseForwarded(strings.TrimSpace(last))
			if !ok {
				return peer
			}
			if within(s.cfg.TrustedProxies, a) {
				continue
			}
			if a.IsLoopback() || a.IsUnspecified() {
				return peer // nobody's client: only the connection itself says who is this machine
			}
			return a
		}
	}
	return peer
}

// parseForwarded reads an address as proxies write it, some of them with a port.
func parseForwarded(text string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	if err != nil {
		ap, err := netip.ParseAddrPort(text)
		if err != nil {
			return netip.Addr{}, false
		}
		a = ap.Addr()
	}
	return a.Unmap(), a.Zone() == ""
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// spared tells whether the limits don't count an address: this machine's own, and those
// the operator named, since a game's backend is one address for all its players.
func (s *Server) spared(a netip.Addr) bool {
	return !a.IsValid() || a.IsLoopback() || within(s.cfg.ExemptAddresses, a)
}

// anyFactor is how many requests of any kind an address has for one for a place: it has
// health checks, preflights and mistakes to make besides, and pays for these as well.
const anyFactor = 5

// bounded lets an address send no more requests of any kind than anyFactor times those
// for places. It stands before everything else. Past it the connection goes too, so that
// the next refusal costs a handshake: a refusal alone is cheaper to ask for than to give.
// Trusted proxies that speak for themselves are free, as their health checks have to get
// through. Questions after nodes are counted apart.
func (s *Server) bounded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asksNode(r) {
			s.boundedNode(w, r, h)
			return
		}
		client := s.clientOf(r)
		if s.spared(client) || len(r.Header[forwarded]) == 0 && within(s.cfg.TrustedProxies, client) {
			h.ServeHTTP(w, r)
			return
		}
		wait := s.requests.Try(int64(time.Since(s.epoch)), limit.AddressKey(client))
		if wait == 0 {
			h.ServeHTTP(w, r)
			return
		}
		s.noticeProxy(r, client)
		s.refused.WithLabelValues("requests").Inc()
		s.answers.WithLabelValues("any", strconv.Itoa(http.StatusTooManyRequests)).Inc()
		if !s.shared(peerOf(r)) {
			w.Header().Set("Connection", "close")
		}
		tooOften(w, wait)
	})
}

// shared tells whether the connections of a peer carry the requests of many clients, none
// of which may have one closed.
func (s *Server) shared(peer netip.Addr) bool {
	return s.spared(peer) || within(s.cfg.TrustedProxies, peer)
}

func tooOften(w http.ResponseWriter, wait time.Duration) {
	w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
	writeError(w, http.StatusTooManyRequests, "too many requests from your address: ask again after Retry-After seconds")
}

// limited lets an address ask no more often than its token bucket allows. It stands
// before the checks of keys and tickets, so that guessing these is bounded too.
func (s *Server) limited(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		client := s.clientOf(r)
		if s.spared(client) {
			if client.IsLoopback() && len(r.Header[forwarded]) > 0 && !within(s.cfg.ExemptAddresses, client) {
				s.proxy.Note(errors.New("a proxy on this machine is not in http.trustedProxies: its clients are not limited by address"))
			}
			h(w, r)
			return
		}
		wait := s.buckets.Try(int64(time.Since(s.epoch)), limit.AddressKey(client))
		if wait == 0 {
			h(w, r)
			return
		}
		s.noticeProxy(r, client)
		s.refused.WithLabelValues("rate").Inc()
		tooOften(w, wait)
	}
}

// noticeProxy warns, once an episode, when a bucket is empty because it is that of a
// proxy, whose clients all share it. Only private and trusted addresses cause the line, so
// that no stranger writes into the log.
func (s *Server) noticeProxy(r *http.Request, client netip.Addr) {
	switch {
	case within(s.cfg.TrustedProxies, client):
		s.proxy.Note(errors.New("a proxy in http.trustedProxies does not name its client in X-Forwarded-For: its clients share one limit"))
	case client.IsPrivate() && len(r.Header[forwarded]) > 0:
		s.proxy.Note(errors.New("a proxy at a private address is not in http.trustedProxies: its clients share one limit"))
	}
}
