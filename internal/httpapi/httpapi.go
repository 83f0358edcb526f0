// Package httpapi is the public door: a game asks it where a player may connect.
//
// A request names a type of node and a user id. The package picks a node of that
// type from the directory, asks that node over the mesh to keep a place, and only
// then answers with the node's address and the keys for it. A node that is dead,
// full or draining refuses or stays silent, so its address is never handed out.
//
// The answers hold key material: they are sent with Cache-Control: no-store and
// are never logged. What a stranger sends is judged before any node is asked, and costs
// its sender: see request.go for what, access.go for who, address.go and conns.go for
// how much.
package httpapi

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/httpapi/ticket"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/listener"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/telemetry"
	"github.com/Diarkis/diarkis/internal/transport/limit"
)

const (
	// bodyMax is the largest request body, in bytes.
	bodyMax = 64 << 10
	// reserveTimeout is how long one node may take to answer a reservation.
	reserveTimeout = 200 * time.Millisecond
	// reserveTries is how many nodes are asked before the request fails.
	reserveTries = 3
	// drainTimeout bounds how long requests in flight may hold up a stop, unless
	// Config.DrainTimeout does.
	drainTimeout = 3 * time.Second
	// episodeQuiet is how long nothing happens before the log calls it over.
	episodeQuiet = time.Minute
)

// Limits is what one address may do, an IPv4 address or an IPv6 /64, and all together.
// Of a rate and of ConnectionsPerAddress less than zero is no limit.
type Limits struct {
	// Requests for places per second, and at once. Zero means 20 and 100: a home or a
	// café of players who all come back at the same time.
	RequestsPerAddress, RequestsPerAddressBurst int
	// ConnectionsPerAddress may be open. Zero means 512: browsers open six each.
	ConnectionsPerAddress int
	// ConnectionsMax may be open in all. Zero means 10,000, of which each takes a
	// descriptor and some 20 KiB.
	ConnectionsMax int
}

func (l Limits) withDefaults() Limits {
	l.RequestsPerAddress = cmp.Or(l.RequestsPerAddress, 20)
	l.RequestsPerAddressBurst = cmp.Or(l.RequestsPerAddressBurst, 100)
	l.ConnectionsPerAddress = max(0, cmp.Or(l.ConnectionsPerAddress, 512))
	l.ConnectionsMax = cmp.Or(l.ConnectionsMax, 10_000)
	return l
}

// Config configures the API. Log, Registerer and Gatherer must be set.
type Config struct {
	// ClientKey must come with each endpoint request in the header ClientKey.
	// Empty: none is asked for.
	ClientKey string
	// Tickets checks who asks for a place. Nil: whoever asks for a user's place gets it.
	Tickets *ticket.Verifier
	// AllowOrigin are the origins of web pages that may ask, separated by commas, or *.
	// Empty: no CORS.
	AllowOrigin string
	// Timeout bounds the whole answer. Zero means 5 s.
	Timeout time.Duration
	// DrainTimeout bounds how long requests in flight may hold up a stop. Zero means 3 s.
	DrainTimeout time.Duration
	// ExposeDebugAPI adds /debug/….
	ExposeDebugAPI bool
	// ExposeMetrics adds /metrics….
	ExposeMetrics bool
	Limits        Limits
	// ExemptAddresses are not limited by address, nor is loopback.
	ExemptAddresses []netip.Prefix
	// TrustedProxies are believed when they name their client in X-Forwarded-For, and
	// may open any number of connections.
	TrustedProxies []netip.Prefix
	// Choose returns a number in [0, n), for spreading load. Zero value: math/rand. It
	// is called with a lock held.
	Choose func(n int) int
	// MemoryShort says that requests for places have to go elsewhere: they are answered 503.
	// It must not block. Nil means never.
	MemoryShort func() bool

	Log        zerolog.Logger
	Registerer prometheus.Registerer
	Gatherer   prometheus.Gatherer
}

// Cluster is what the API knows of the other nodes.
type Cluster interface {
	// Directory returns the newest snapshot. It must not block.
	Directory() *mars.Directory
	// Current tells whether the directory is the whole truth right now, so that who is
	// not in it is gone. It must not block.
	Current() bool
}

// Mesh carries reservations to the nodes.
type Mesh interface {
	// RequestRun sends payload to node and returns its answer, or an error by the time ctx
	// ends: [mesh.ErrOtherRun] when another process than that run answers there.
	RequestRun(ctx context.Context, node id.Node, run id.Incarnation, cmd uint16, payload []byte) ([]byte, error)
}

// Server is the HTTP role's API. Its methods are safe for concurrent use.
type Server struct {
	// Set by New, then constant.
	cfg     Config
	cluster Cluster
	mesh    Mesh
	serving func() error
	keyHash [sha256.Size]byte
	origins origins
	handler http.Handler
	answers *prometheus.CounterVec
	latency prometheus.Histogram
	tries   *prometheus.CounterVec
	refused *prometheus.CounterVec
	dropped *prometheus.CounterVec
	loaded  *prometheus.CounterVec
	short   *telemetry.Episode // nodes that are online refused, or were silent
	proxy   *telemetry.Episode // a proxy is not trusted
	panics  *telemetry.Episode // a handler panicked
	epoch   time.Time          // of the two tables
	buckets *limit.Table       // of requests for places
	// requests are the buckets of requests of any kind.
	requests *limit.Table
	asked    *limit.Table // buckets of questions after nodes
	pulse    pulse
	bodies   bodies
	cancels  *cancels
	watch    *watch
	tokens   atomic.Pointer[tokens]
	indexing sync.Mutex // one index is made at a time

	// Owned by the goroutine of look.
	lookedAt   time.Time
	censusOf   *mars.Directory
	lastCensus map[string]census // of it

	mu     sync.Mutex          // guards the fields below
	seen   *mars.Directory     // the one learnt from last
	types  map[string]typeSeen // types for players
	handed map[id.Node]*handed // places handed out, of members
}

// New returns the API. serving returns nil while the node may be sent requests,
// else the reason that /healthcheck gives; it must not block.
func New(cfg Config, c Cluster, m Mesh, serving func() error) *Server {
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	cfg.DrainTimeout = cmp.Or(cfg.DrainTimeout, drainTimeout)
	if cfg.Choose == nil {
		cfg.Choose = choose
	}
	cfg.Limits = cfg.Limits.withDefaults()
	auto := promauto.With(cfg.Registerer)
	rate := limit.NewRate(cfg.Limits.RequestsPerAddress, cfg.Limits.RequestsPerAddressBurst)
	anyRate := limit.NewRate(anyFactor*cfg.Limits.RequestsPerAddress, anyFactor*cfg.Limits.RequestsPerAddressBurst)
	nodeRate := limit.NewRate(nodeFactor*cfg.Limits.RequestsPerAddress, nodeFactor*cfg.Limits.RequestsPerAddressBurst)
	s := &Server{
		cfg: cfg, cluster: c, mesh: m, serving: serving,
		keyHash: sha256.Sum256([]byte(cfg.ClientKey)), origins: parseOrigins(cfg.AllowOrigin),
		types: map[string]typeSeen{}, handed: map[id.Node]*handed{},
		epoch: time.Now(), buckets: limit.NewTable(rate, tableSize), requests: limit.NewTable(anyRate, tableSize), asked: limit.NewTable(nodeRate, tableSize),
		short:  telemetry.NewEpisode(cfg.Log, episodeQuiet, "nodes gave no place", "nodes give places again, or nobody asks"),
		proxy:  telemetry.NewEpisode(cfg.Log, episodeQuiet, "proxy not trusted", "no requests through a proxy that is not trusted any more"),
		panics: telemetry.NewEpisode(cfg.Log, episodeQuiet, "handler panicked", "handlers panic no more, or nobody asks"),
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
		refused: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "http", Name: "refused_total",
			Help: "Requests that were refused because of who asked: requests, rate, node, client_key, ticket_….",
		}, []string{"reason"}),
		loaded: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "http", Name: "overloaded_total",
			Help: "Requests for places that were answered 503 because this node itself was short of something.",
		}, []string{"reason"}),
		dropped: auto.NewCounterVec(prometheus.CounterOpts{
			Namespace: "diarkis", Subsystem: "http", Name: "connections_dropped_total",
			Help: "Connections closed because there were too many, of one address or in total.",
		}, []string{"reason"}),
	}
	s.answers.WithLabelValues("endpoint", "503") // there from the start: an alert sees the first only beside a 0
	s.cancels = newCancels(m, cfg.Log, auto.NewCounterVec(prometheus.CounterOpts{
		Namespace: "diarkis", Subsystem: "http", Name: "cancels_total",
		Help: "Places that nobody was told of and that were taken back, by outcome.",
	}, []string{"result"}))
	s.watch = newWatch(cfg.Log)
	s.handler = s.routes()
	return s
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Serve answers requests on l until ctx ends, then lets those in flight finish. Who has opened
// a connection and asked nothing yet is not waited for. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	defer s.short.End()
	defer s.proxy.End()
	defer s.panics.End()
	free := func(a netip.Addr) bool { return s.spared(a) || within(s.cfg.TrustedProxies, a) }
	c := newConns(s.cfg.Limits.ConnectionsPerAddress, free, s.dropped)
	c.malformed = func(code int) { s.answers.WithLabelValues("malformed", strconv.Itoa(code)).Inc() }
	l = gate{listener.Wrap(l, listener.Options{
		Name: "http", Max: s.cfg.Limits.ConnectionsMax, MakeRoom: c.makeRoom, Log: s.cfg.Log, Reg: s.cfg.Registerer,
	}), c}
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: s.cfg.Timeout,
		ReadTimeout:       s.cfg.Timeout,
		WriteTimeout:      2 * s.cfg.Timeout,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          telemetry.HTTPErrorLog(s.cfg.Log.With().Str("listener", "http").Logger()),
		// OPTIONS * is answered like everything else that is no path.
		DisableGeneralOptionsHandler: true,
		ConnState:                    c.state,
		ConnContext:                  withConn,
	}
	s.cancels.start()
	defer s.cancels.finish()
	stopped := make(chan error, 1)
	go func() {
		s.pulse.run(ctx, s.look)
		stopped <- s.shutDown(srv, c)
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

// shutDown lets requests in flight finish, for as long as DrainTimeout.
func (s *Server) shutDown(srv *http.Server, c *conns) error {
	c.shut()
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout)
	defer cancel()
	err := srv.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	return err
}

// counted limits the time and the body of a request and counts its answer.
func (s *Server) counted(route string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
		defer cancel()
		rec := &recorder{ResponseWriter: w, code: http.StatusOK}
		// A copy: by the body of its own request the http.Server knows what is left unread.
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, bodyMax)
		if k, ok := r.Context().Value(connKey{}).(*conn); ok && !s.shared(peerOf(r)) {
			rec.refusals = &k.refusals
		}
		s.shielded(h, rec, r)
		if rec.overloaded {
			route = "overloaded"
		}
		s.answers.WithLabelValues(route, strconv.Itoa(rec.code)).Inc()
	})
}

// shielded answers 500 when a handler panics, which is our own bug: net/http would close the
// connection without a word and log in its own format.
func (s *Server) shielded(h http.Handler, rec *recorder, r *http.Request) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		s.panics.Note(fmt.Errorf("%v: %s", v, debug.Stack()))
		if !rec.wrote {
			writeError(rec, http.StatusInternalServerError, "internal error")
		}
	}()
	h.ServeHTTP(rec, r)
}

// refusalsMax is how many requests of a connection may be wrong before it is closed: a
// client that errs mends itself, or pays for the next mistake with a handshake.
const refusalsMax = 8

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	code       int
	wrote      bool // a status
	overloaded bool // the status is the fault of this node alone
	refusals   *int // of the connection, nil where they are not counted
}

func (r *recorder) WriteHeader(code int) {
	r.code, r.wrote = code, true
	if r.refusals != nil && code >= 400 && code < 500 {
		if *r.refusals++; *r.refusals > refusalsMax {
			r.Header().Set("Connection", "close")
		}
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.wrote = true
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the real writer.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
