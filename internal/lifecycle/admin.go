package lifecycle

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/listener"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

// adminConnections is how many connections the admin listener has at once. They come out
// of the descriptors that are held back from players: scrapes and health checks have
// to work when those have used up theirs. Past it, the one that waits longest for a
// request goes.
const adminConnections = 16

// startAdmin listens for scrapes, probes and profiles.
func (n *Node) startAdmin(s *stack) error {
	l, err := listenTCP(n.cfg.Metrics.Address, n.cfg.Metrics.Port, searchFrom(n.cfg.Metrics.Port))
	if err != nil {
		return fmt.Errorf("listen for metrics on %s:%d: %w", n.cfg.Metrics.Address, n.cfg.Metrics.Port, err)
	}
	n.adminAddr = l.Addr()
	var idle idlers
	l = listener.Wrap(l, listener.Options{
		Name: "admin", Reserved: true, Max: adminConnections, MakeRoom: idle.makeRoom, Log: n.log, Reg: n.reg,
	})
	srv := &http.Server{
		Handler: telemetry.AdminHandler(telemetry.AdminOptions{
			Gatherer: n.reg, Figures: n.figuresHandler(), Live: func() error { return n.beat.Check(5 * time.Second) }, Ready: n.serving, Status: n.status,
			MARS: func(ctx context.Context) (any, error) { return n.marsStatus(ctx) },
		}),
		ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, ConnState: idle.note,
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

// idlers are the connections of an http.Server that wait for a request, their first or
// another. The zero value is ready to use.
type idlers struct {
	mu    sync.Mutex // guards the fields below
	order list.List  // of net.Conn, who waits longest first
	at    map[net.Conn]*list.Element
}

// note is for http.Server.ConnState.
func (i *idlers) note(c net.Conn, s http.ConnState) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.removeLocked(c)
	if s != http.StateNew && s != http.StateIdle {
		return
	}
	if i.at == nil {
		i.at = map[net.Conn]*list.Element{}
	}
	i.at[c] = i.order.PushBack(c)
}

func (i *idlers) removeLocked(c net.Conn) {
	if e := i.at[c]; e != nil {
		i.order.Remove(e)
		delete(i.at, c)
	}
}

// makeRoom closes who waits longest. It returns false when all are being answered.
func (i *idlers) makeRoom() bool {
	i.mu.Lock()
	var c net.Conn
	if e := i.order.Front(); e != nil {
		c = e.Value.(net.Conn)
		i.removeLocked(c)
	}
	i.mu.Unlock()
	return c != nil && c.Close() == nil
}
