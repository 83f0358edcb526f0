// Package listener accepts connections through a shortage.
//
// A process that has no descriptor left can't accept, and can't do anything else that
// takes one either: open a file, answer a health check, be scraped. So a [Listener]
// counts its connections against the [Descriptors] of the process, of which some are
// held back for what is not a client. When they are used up, it asks its owner to
// end a connection that deserves it less than the newcomer, and closes the newcomer
// otherwise. When the system itself refuses to accept, it tries again, at least once a
// second, for as long as the listener is open.
//
// Neither is the end of a server, so Accept returns an error only when the listener
// was closed. Each shortage is one warning, one line when it is over, and a counter.
package listener

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/shortage"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

// Options configures a Listener. Name, Log and Reg must be set.
type Options struct {
	// Name tells listeners of one process apart, in metrics and in the log.
	Name string
	// Descriptors is what connections are counted against. Nil means those of the process.
	Descriptors *Descriptors
	// Reserved connections are not counted against Descriptors: they may use what is
	// held back. They need a Max.
	Reserved bool
	// Max is how many connections may be open at once. Zero means as many as there
	// are descriptors for.
	Max int
	// MakeRoom is called from Accept when there is no room for one more connection. It
	// closes an open one and returns true, or returns false: then the new one is
	// closed. It may take as long as a close does. Nil means false.
	MakeRoom func() bool

	Log zerolog.Logger
	Reg prometheus.Registerer
}

// Why connections are not accepted: values of the label reason.
const (
	reasonAccept      = "accept"      // the system refused to, it was tried again
	reasonDescriptors = "descriptors" // those for connections were used up
	reasonConnections = "connections" // Options.Max of them were open
)

// episodeQuiet is how long nothing fails before a shortage is over.
const episodeQuiet = 30 * time.Second

// Listener is a net.Listener that outlives a shortage. Accept is for one goroutine, the
// other methods for any.
type Listener struct {
	// Set by Wrap, then constant.
	net.Listener
	o        Options
	refused  *prometheus.CounterVec
	open     prometheus.Gauge
	episode  *telemetry.Episode
	closed   chan struct{}
	closing  sync.Once
	closeErr error // written by closing

	pause shortage.Pause // owned by Accept

	mu    sync.Mutex // guards the field below
	conns int
}

// Wrap has l accept as o says.
func Wrap(l net.Listener, o Options) *Listener {
	if o.Descriptors == nil {
		o.Descriptors = Process()
	}
	only := prometheus.Labels{"listener": o.Name}
	log := o.Log.With().Str("listener", o.Name).Logger()
	refused := telemetry.Register(o.Reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "diarkis", Subsystem: "listener", Name: "not_accepted_total",
		Help: "Connections that were closed for want of room, and failures to accept one.",
	}, []string{"listener", "reason"})).MustCurryWith(only)
	for _, reason := range []string{reasonAccept, reasonDescriptors, reasonConnections} {
		refused.WithLabelValues(reason) // there from the start: an alert sees the first event only beside a 0
	}
	return &Listener{
		Listener: l, o: o, closed: make(chan struct{}), refused: refused,
		open: telemetry.Register(o.Reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "diarkis", Subsystem: "listener", Name: "connections",
			Help: "Connections that were accepted and are open.",
		}, []string{"listener"})).With(only),
		episode: telemetry.NewEpisode(log, episodeQuiet, "connections not accepted", "connections accepted again"),
	}
}

// Accept waits for a connection, which is a [*Conn]. Its error wraps net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		switch {
		case err == nil:
			l.pause.Reset()
			if conn := l.admit(c); conn != nil {
				return conn, nil
			}
		case l.isClosed() || errors.Is(err, net.ErrClosed):
			return nil, fmt.Errorf("accept connection of %s: %w", l.o.Name, net.ErrClosed)
		default:
			l.fail(reasonAccept, err)
			// Only a shortage of descriptors ends when a connection is closed.
			if isDescriptors(err) && l.o.MakeRoom != nil && l.o.MakeRoom() {
				l.pause.Reset()
			}
			l.pause.Wait(l.closed)
		}
	}
}

// admit returns the connection when there is room for it, else closes it.
func (l *Listener) admit(c net.Conn) *Conn {
	reason := l.enter()
	if reason != "" && l.o.MakeRoom != nil && l.o.MakeRoom() {
		reason = l.enter()
	}
	if reason != "" {
		l.fail(reason, fmt.Errorf("no room for another connection: %s used up", reason))
		_ = c.Close()
		return nil
	}
	l.open.Inc()
	return &Conn{Conn: c, l: l}
}

// enter counts one more connection, or returns why there is no room for it.
func (l *Listener) enter() (reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.o.Max > 0 && l.conns >= l.o.Max {
		return reasonConnections
	}
	if !l.o.Reserved && !l.o.Descriptors.take() {
		return reasonDescriptors
	}
	l.conns++
	return ""
}

func (l *Listener) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns--
	l.open.Dec()
	if !l.o.Reserved {
		l.o.Descriptors.giveBack()
	}
}

func (l *Listener) fail(reason string, err error) {
	l.refused.WithLabelValues(reason).Inc()
	l.episode.Note(err)
}

func (l *Listener) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

// Close ends the listener. Its connections stay open.
func (l *Listener) Close() error {
	l.closing.Do(func() {
		close(l.closed)
		l.closeErr = l.Listener.Close()
		l.episode.End()
	})
	return l.closeErr
}

// Conn is a connection that gives its room back when it is closed.
type Conn struct {
	net.Conn
	l    *Listener
	once sync.Once
}

// CloseWrite ends this side of the connection, where that is possible: its other side reads
// the end of the stream and can still send.
func (c *Conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return fmt.Errorf("close one side: %w", errors.ErrUnsupported)
}

// Close closes the connection. What it took can be used when Close returns.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.l.leave)
	return err
}
