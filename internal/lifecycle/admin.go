package lifecycle

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/listener"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

const (
	// adminConnections is how many connections the admin listener has at once. They come
	// out of the descriptors that are held back from players: scrapes and health checks
	// have to work when those have used up theirs.
	adminConnections = 16
	// adminReadTimeout is how long a request may take to come. No route takes a body.
	adminReadTimeout = 5 * time.Second
	// adminWriteTimeout is how long an answer may take to be made and taken. Profiles have
	// the seconds that they are asked for on top.
	adminWriteTimeout = 10 * time.Second
)

// startAdmin listens for scrapes, probes and profiles.
func (n *Node) startAdmin(ctx context.Context, s *stack) error {
	address, err := n.adminAddress(ctx)
	if err != nil {
		return err
	}
	port, search := n.cfg.Metrics.Port, searchFrom(n.cfg.Metrics.Port)
	l, err := listenTCP(address, port, search)
	if err != nil {
		return listenError(n.cfg, "metrics", address, port, search, err)
	}
	n.adminAddr = l.Addr()
	n.portMoved(zerolog.InfoLevel, "metrics", port, l.Addr().(*net.TCPAddr).Port)
	var open guests
	l = listener.Wrap(l, listener.Options{
		Name: "admin", Reserved: true, Max: adminConnections, MakeRoom: open.makeRoom, Log: n.log, Reg: n.reg,
	})
	srv := &http.Server{
		Handler: telemetry.AdminHandler(telemetry.AdminOptions{
			Gatherer: n.reg, Figures: n.figuresHandler(), Live: func() error { return n.beat.Check(5 * time.Second) }, Ready: n.serving, Status: n.status,
			MARS: func(ctx context.Context) (any, error) { return n.marsStatus(ctx) },
		}),
		ReadTimeout: adminReadTimeout, WriteTimeout: adminWriteTimeout, IdleTimeout: time.Minute, ConnState: open.note,
		ErrorLog: telemetry.HTTPErrorLog(n.log.With().Str("listener", "admin").Logger()),
	}
	s.start("admin listener", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
		defer stop()
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return nil
}

// adminAddress is where the admin listener listens.
func (n *Node) adminAddress(ctx context.Context) (netip.Addr, error) {
	return hostAddr(ctx, n.cfg, "metrics.address", cmp.Or(n.cfg.Metrics.Address, netip.IPv4Unspecified().String()))
}

// guests are the connections of an http.Server, of which one goes when there are too many:
// who waits longest to say something, first or again, else whose request began first. A
// scrape takes less time than it takes to get to the end of that line. The zero value is
// ready to use.
type guests struct {
	mu            sync.Mutex // guards the fields below
	waiting, busy list.List  // of net.Conn, the longest first
	at            map[net.Conn]seat
}

// seat is where a connection stands.
type seat struct {
	in *list.List
	e  *list.Element
}

// note is for http.Server.ConnState.
func (g *guests) note(c net.Conn, s http.ConnState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removeLocked(c)
	in := &g.waiting
	switch s {
	case http.StateNew, http.StateIdle:
	case http.StateActive:
		in = &g.busy
	default:
		return
	}
	if g.at == nil {
		g.at = map[net.Conn]seat{}
	}
	g.at[c] = seat{in, in.PushBack(c)}
}

func (g *guests) removeLocked(c net.Conn) {
	if s, ok := g.at[c]; ok {
		s.in.Remove(s.e)
		delete(g.at, c)
	}
}

// makeRoom closes who goes first. It returns false when there is nobody.
func (g *guests) makeRoom() bool {
	g.mu.Lock()
	e := g.waiting.Front()
	if e == nil {
		e = g.busy.Front()
	}
	if e == nil {
		g.mu.Unlock()
		return false
	}
	c := e.Value.(net.Conn)
	g.removeLocked(c)
	g.mu.Unlock()
	_ = c.Close() // its goroutine notices
	return true
}
