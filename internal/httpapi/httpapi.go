// Package httpapi is the public door: a game asks it where a player may connect.
//
// A request names a type of node and a user id. The package picks a node of that
// type from the directory, asks that node over the mesh to keep a place, and only
// then answers with the node's address and the keys for it. A node that is dead,
// full or draining refuses or stays silent, so its address is never handed out.
//
// The answers hold key material: they are sent with Cache-Control: no-store and
// are never logged.
package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

const (
	// bodyMax is the largest request body, in bytes.
	bodyMax = 64 << 10
	// reserveTimeout is how long one node may take to answer a reservation.
	reserveTimeout = 200 * time.Millisecond
	// reserveTries is how many nodes are asked before the request fails.
	reserveTries = 3
	// drainTimeout bounds how long requests in flight may hold up a stop.
	drainTimeout = 3 * time.Second
)

// Config configures the API. Log, Registerer and Gatherer must be set.
type Config struct {
	// ClientKey must come with each endpoint request in the header ClientKey.
	// Empty: none is asked for.
	ClientKey string
	// AllowOrigin is answered as Access-Control-Allow-Origin. Empty: no CORS.
	AllowOrigin string
	// Timeout bounds the whole answer. Zero means 5 s.
	Timeout time.Duration
	// ExposeDebugAPI adds /debug/….
	ExposeDebugAPI bool
	// Choose returns a number in [0, n), for spreading load. Zero value: math/rand.
	Choose func(n int) int

	Log        zerolog.Logger
	Registerer prometheus.Registerer
	Gatherer   prometheus.Gatherer
}

// Cluster is what the API knows of the other nodes.
type Cluster interface {
	// Directory returns the newest snapshot. It must not block.
	Directory() *mars.Directory
}

// Mesh carries reservations to the nodes.
type Mesh interface {
	// Request sends payload to node and returns its answer, or an error by the
	// time ctx ends.
	Request(ctx context.Context, node id.Node, cmd uint16, payload []byte) ([]byte, error)
}

// Server is the HTTP role's API. Its methods are safe for concurrent use.
type Server struct {
	// Set by New, then constant.
	cfg     Config
	cluster Cluster
	mesh    Mesh
	serving func() error
	keyHash [sha256.Size]byte
	handler http.Handler
	answers *prometheus.CounterVec
	latency prometheus.Histogram
	tries   *prometheus.CounterVec

	mu    sync.Mutex
	types map[string]bool // types ever seen in the directory
}

// New returns the API. serving returns nil while the node may be sent requests,
// else the reason that /healthcheck gives; it must not block.
func New(cfg Config, c Cluster, m Mesh, serving func() error) *Server {
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Choose == nil {
		cfg.Choose = choose
	}
	auto := promauto.With(cfg.Registerer)
	s := &Server{
		cfg: cfg, cluster: c, mesh: m, serving: serving,
		keyHash: sha256.Sum256([]byte(cfg.ClientKey)),
		types:   map[string]bool{"UDP": true, "TCP": true},
		answers: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "http", Name: "responses_total",
			Help: "Answers of the public API.",
		}, []string{"route", "code"}),
		latency: auto.NewHistogram(prometheus.HistogramOpts{
			Namespace: "diarkis", Subsystem: "http", Name: "endpoint_seconds",
			Help:    "Time to answer an endpoint request, reservation included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		tries: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "http", Name: "reservations_total",
			Help: "Reservations asked of nodes, by outcome.",
		}, []string{"result"}),
	}
	s.handler = s.routes()
	return s
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Serve answers requests on l until ctx ends, then lets those in flight finish.
// It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: s.cfg.Timeout,
		ReadTimeout:       s.cfg.Timeout,
		WriteTimeout:      2 * s.cfg.Timeout,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          quietLog(s.cfg.Log),
	}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		c, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		err := srv.Shutdown(c)
		if errors.Is(err, context.DeadlineExceeded) {
			err = srv.Close()
		}
		stopped <- err
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

// routes builds the table of paths. Methods are checked by the handlers, so that a
// wrong one gets the same JSON error as everything else.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	add := func(pattern, route string, methods []string, h http.HandlerFunc) {
		mux.Handle(pattern, s.counted(route, allow(methods, h)))
	}
	get := []string{http.MethodGet}
	both := []string{http.MethodGet, http.MethodPost}
	add("/endpoint/type/{type}/user/{uid}", "endpoint", both, s.withKey(s.endpoint))
	add("/auth/{uid}", "auth", both, s.withKey(s.auth))
	add("/healthcheck", "healthcheck", get, s.healthcheck)
	add("/metrics", "metrics", get, s.metrics)
	add("/metrics/prometheus/v/3", "metrics", get, s.metrics)
	add("/metrics/json", "metrics_json", get, s.metricsJSON)
	add("/openapi.json", "openapi", get, openAPI)
	if s.cfg.ExposeDebugAPI {
		add("/debug/server/list/type/{type}", "debug_list", get, s.withKey(s.debugList))
		add("/debug/endpoint/type/{type}/user/{uid}/address/{addr}", "debug_endpoint", both, s.withKey(s.debugEndpoint))
	}
	add("/", "unknown", nil, func(w http.ResponseWriter, r *http.Request) {
		writeError(w, http.StatusNotFound, "no such path: see /openapi.json")
	})
	return s.cors(mux)
}

// counted limits the time and the body of a request and counts its answer.
func (s *Server) counted(route string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
		defer cancel()
		rec := &recorder{ResponseWriter: w, code: http.StatusOK}
		r.Body = http.MaxBytesReader(rec, r.Body, bodyMax)
		h.ServeHTTP(rec, r.WithContext(ctx))
		s.answers.WithLabelValues(route, strconv.Itoa(rec.code)).Inc()
	})
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	code int
}

func (r *recorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach the real writer.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// withKey refuses requests without the client key. Hashes are compared, so that
// the time taken tells nothing about the key, its length included.
func (s *Server) withKey(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		got := sha256.Sum256([]byte(r.Header.Get("ClientKey")))
		if s.cfg.ClientKey != "" && subtle.ConstantTimeCompare(got[:], s.keyHash[:]) != 1 {
			writeError(w, http.StatusUnauthorized, "the header ClientKey is missing or wrong")
			return
		}
		h(w, r)
	}
}

// cors answers preflight requests and marks the others, when an origin is allowed.
func (s *Server) cors(h http.Handler) http.Handler {
	if s.cfg.AllowOrigin == "" {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", s.cfg.AllowOrigin)
		w.Header().Set("Vary", "Origin")
		if r.Method == http.MethodOptions {
			w.Header().Set("Access-Control-Allow-Methods", "GET, POST")
			w.Header().Set("Access-Control-Allow-Headers", "ClientKey, ResponseVersion, Content-Type")
			w.Header().Set("Access-Control-Max-Age", "600")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		h.ServeHTTP(w, r)
	})
}
