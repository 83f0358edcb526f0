package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Status is what /status answers and `health-check` reads. It holds no secret
// and nothing about users.
type Status struct {
	Role  string `json:"role"`
	PID   int    `json:"pid"`
	State string `json:"state"` // online, offline or taken
	// Draining is true once the process has begun to stop.
	Draining bool `json:"draining"`
	// Joined is true once the registry accepted this node, also while the
	// authority is away.
	Joined bool `json:"joined"`
	// Authority is live, stale (known, without an answer at the moment) or unknown.
	Authority string `json:"authority"`
	// AuthorityAgeMS is how long ago the authority was last heard, in milliseconds: it is
	// live for a while after it died. -1 where that is not known, 0 on the authority itself.
	AuthorityAgeMS int64 `json:"authority_age_ms"`
	// Reason is one line about the two above.
	Reason string `json:"reason"`
	// TickAgeMS is how long ago the main loop turned, in milliseconds; -1 before it began.
	TickAgeMS int64 `json:"tick_age_ms"`
}

// Values of Status.Authority.
const (
	AuthorityLive    = "live"
	AuthorityStale   = "stale"
	AuthorityUnknown = "unknown"
)

// Heartbeat tells whether a loop still turns. The zero value has never beaten.
// Its methods are safe for concurrent use.
type Heartbeat struct{ last atomic.Pointer[time.Time] }

// Beat says that the loop turned just now.
func (h *Heartbeat) Beat() {
	now := time.Now()
	h.last.Store(&now)
}

// Age returns how long ago the last Beat was; ok is false before the first.
func (h *Heartbeat) Age() (age time.Duration, ok bool) {
	last := h.last.Load()
	if last == nil {
		return 0, false
	}
	return time.Since(*last), true
}

// Check returns an error when the last Beat is more than max ago or there was none.
func (h *Heartbeat) Check(max time.Duration) error {
	switch age, ok := h.Age(); {
	case !ok:
		return errors.New("main loop has not started")
	case age > max:
		return fmt.Errorf("main loop last turned %v ago", age.Round(time.Millisecond))
	}
	return nil
}

// AgeMS returns the age as Status.TickAgeMS has it.
func (h *Heartbeat) AgeMS() int64 {
	age, ok := h.Age()
	if !ok {
		return -1
	}
	return age.Milliseconds()
}

// AdminOptions is what [AdminHandler] shows. Its functions are called by request
// goroutines, several at a time, and must answer at once.
type AdminOptions struct {
	Gatherer prometheus.Gatherer // nil: /metrics is not there
	// Figures answers /metrics and every path below it instead of Gatherer, for a node that
	// has more to tell than its own. Nil: Gatherer does.
	Figures http.Handler
	Live    func() error  // nil or a nil error: alive
	Ready   func() error  // nil or a nil error: ready for traffic
	Status  func() Status // nil: /status is not there
	// MARS is what /mars answers as JSON and `diarkisd mars status` reads; it may
	// wait until its context ends. Nil: /mars is not there.
	MARS func(context.Context) (any, error)
}

// AdminHandler serves /livez and /readyz (200 "ok", or 503 and the reason),
// /metrics, /status, /mars, and /debug/pprof/ when both ends of the connection are
// on loopback, whatever address the listener has. Profiles lift the server's ReadTimeout,
// and its WriteTimeout by the seconds they are asked for. No route takes a body: a request
// that announces one is refused and its connection closed.
func AdminHandler(o AdminOptions) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", verdict(o.Live))
	mux.HandleFunc("GET /readyz", verdict(o.Ready))
	switch {
	case o.Figures != nil:
		mux.Handle("GET /metrics", o.Figures)
		mux.Handle("GET /metrics/", o.Figures)
	case o.Gatherer != nil:
		mux.Handle("GET /metrics", promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	}
	if o.Status != nil {
		mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
			answerJSON(w, o.Status())
		})
	}
	if o.MARS != nil {
		mux.HandleFunc("GET /mars", func(w http.ResponseWriter, r *http.Request) {
			v, err := o.MARS(r.Context())
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			answerJSON(w, v)
		})
	}
	mux.Handle("GET /debug/pprof/", onLoopback(pprof.Index))
	mux.Handle("GET /debug/pprof/cmdline", onLoopback(pprof.Cmdline))
	mux.Handle("GET /debug/pprof/profile", onLoopback(pprof.Profile))
	mux.Handle("GET /debug/pprof/symbol", onLoopback(pprof.Symbol))
	mux.Handle("GET /debug/pprof/trace", onLoopback(pprof.Trace))
	return withoutBody(mux)
}

// withoutBody refuses requests that announce a body. The server would wait for what
// is left of one before it lets the connection go.
func withoutBody(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength == 0 {
			h.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Connection", "close")
		http.Error(w, "no request here has a body", http.StatusRequestEntityTooLarge)
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) // nothing of it is waited for
	})
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v) // the client went away
}

func verdict(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		text := "ok"
		if check != nil {
			if err := check(); err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				text = strings.ReplaceAll(err.Error(), "\n", "; ")
			}
		}
		_, _ = w.Write([]byte(text + "\n")) // the client went away
	}
}

// onLoopback hides a handler from everyone but this machine. The Host is checked
// too: a page in a browser here must not reach it through a name of its own.
func onLoopback(h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		if local == nil || !isLoopback(local.String()) || !isLoopback(r.RemoteAddr) || !isLoopback(r.Host) {
			http.NotFound(w, r)
			return
		}
		// ReadTimeout would end the request's context, and the profile with it.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		h(w, r)
	})
}

// isLoopback tells whether a host, with or without a port, is this machine.
func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback() || host == "localhost"
}
