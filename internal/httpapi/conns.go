package httpapi

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

	"github.com/prometheus/client_golang/prometheus"

	"github.com/Diarkis/diarkis/internal/transport/limit"
)

// requestGrace is how long a connection may take to say what it wants before it is the
// first to go when there are too many: a request fits a few packets, but a phone whose
// radio has to wake up and whose first packet is lost needs some seconds for them.
const requestGrace = 3 * time.Second

// manyConnections is more than a few players open: an address that has more pays first
// when there are too many connections in all.
const manyConnections = 16

// conns decides which connection goes when there are too many, of one address or in all:
// one that has been waited for longer than requestGrace, the oldest first; else the one
// that has been idle between two requests for longest; else the oldest that is waited
// for. In all, each of these is looked for first among those of the address that has the
// most, if that is many; but no connection that is within its grace goes while one of
// another address is not. A connection for which a place is being made stays. So whoever
// opens connections to keep others out loses them to these others, and a new one always
// gets in unless all are at work.
type conns struct {
	perAddress int // 0: no limit
	spared     func(netip.Addr) bool
	dropped    *prometheus.CounterVec
	malformed  func(code int) // is called for an answer that no handler gave; nil: nobody counts

	mu      sync.Mutex // guards the fields below and those of conn and queues that say so
	closed  bool
	all     queues
	address map[uint64]*queues // by limit.AddressKey
	// byCount are the addresses that have n connections, at n; the last is not empty.
	byCount []map[*queues]struct{}
}

// queues are the connections that may be closed, in the order in which their phase began.
type queues struct {
	n             int // connections of an address, those at work included
	waiting, idle list.List
}

// phase is what a connection does.
type phase uint8

const (
	waiting phase = iota // its request, or its taking of an answer, is waited for
	idle                 // between two requests
	working              // a place is being made for it
	gone
)

// conn is a connection to the API.
type conn struct {
	net.Conn
	conns *conns
	key   uint64
	of    *queues // of its address, nil when that is not limited

	refusals int // owned by the goroutine that serves the connection

	// Guarded by conns.mu.
	phase       phase
	since       time.Time
	asked       bool          // a request came, at any time
	inAll, inOf *list.Element // nil while it can't be closed
}

func newConns(perAddress int, spared func(netip.Addr) bool, dropped *prometheus.CounterVec) *conns {
	return &conns{perAddress: perAddress, spared: spared, dropped: dropped, address: map[uint64]*queues{}}
}

// enter takes in a connection. It returns nil when its address has too many that are
// all at work, or nobody is let in any more.
func (c *conns) enter(nc net.Conn) *conn {
	k := &conn{Conn: nc, conns: c}
	var full *queues
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		if ip := a.AddrPort().Addr().Unmap().WithZone(""); !c.spared(ip) {
			k.key = limit.AddressKey(ip)
			c.mu.Lock()
			k.of = c.address[k.key]
			if k.of == nil {
				k.of = &queues{}
				c.address[k.key] = k.of
			}
			c.countLocked(k.of, 1) // reserves the seat, so that the queues stay while it is made
			if c.perAddress > 0 && k.of.n > c.perAddress {
				full = k.of
			}
			c.mu.Unlock()
		}
	}
	if full != nil && !c.drop(full.victimLocked, "address") {
		c.mu.Lock()
		c.unseatLocked(k)
		c.mu.Unlock()
		c.dropped.WithLabelValues("address").Inc()
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		c.unseatLocked(k)
		return nil
	}
	c.queueLocked(k, waiting)
	return k
}

// makeRoom closes the connection that deserves its room least. It is false when all are
// at work.
func (c *conns) makeRoom() bool { return c.drop(c.victimLocked, "total") }

func (c *conns) drop(victimLocked func() *conn, reason string) bool {
	c.mu.Lock()
	k := victimLocked()
	if k == nil {
		c.mu.Unlock()
		return false
	}
	c.removeLocked(k)
	c.mu.Unlock()
	c.dropped.WithLabelValues(reason).Inc()
	_ = k.Conn.Close() // its goroutine notices
	return true
}

// victimLocked returns who goes first of all, nil when nobody can.
func (c *conns) victimLocked() *conn {
	most := c.mostLocked()
	if most == nil {
		return c.all.victimLocked()
	}
	return cmp.Or(most.overdueLocked(), c.all.overdueLocked(), most.victimLocked(), c.all.victimLocked())
}

// mostLocked returns the address that has the most connections, nil when none has many.
func (c *conns) mostLocked() *queues {
	if len(c.byCount) <= manyConnections+1 {
		return nil
	}
	for q := range c.byCount[len(c.byCount)-1] {
		return q // of several any one
	}
	return nil
}

// victimLocked returns who goes first of q, nil when nobody can.
func (q *queues) victimLocked() *conn {
	if k := q.overdueLocked(); k != nil {
		return k
	}
	if e := q.waiting.Front(); e != nil {
		return e.Value.(*conn)
	}
	return nil
}

// overdueLocked returns who goes first of those that are not within their grace, nil when
// there is none.
func (q *queues) overdueLocked() *conn {
	if e := q.waiting.Front(); e != nil && time.Since(e.Value.(*conn).since) > requestGrace {
		return e.Value.(*conn)
	}
	if e := q.idle.Front(); e != nil {
		return e.Value.(*conn)
	}
	return nil
}

// set notes what a connection does from now on.
func (k *conn) set(p phase) {
	k.conns.mu.Lock()
	defer k.conns.mu.Unlock()
	if k.phase == gone {
		return
	}
	k.conns.unqueueLocked(k)
	k.conns.queueLocked(k, p)
}

// setAsked notes that a request came.
func (k *conn) setAsked() {
	k.conns.mu.Lock()
	k.asked = true
	k.conns.mu.Unlock()
	k.set(waiting)
}

// shut closes the connections without a request, and lets nobody in any more: the http.Server,
// which is about to shut down, would answer none of them and wait for them all the same, for 5 s.
func (c *conns) shut() {
	var closing []*conn
	c.mu.Lock()
	c.closed = true
	for e := c.all.waiting.Front(); e != nil; e = e.Next() {
		if k := e.Value.(*conn); !k.asked {
			closing = append(closing, k)
		}
	}
	c.mu.Unlock()
	for _, k := range closing {
		_ = k.Close()
	}
}

func (c *conns) queueLocked(k *conn, p phase) {
	k.phase, k.since = p, time.Now()
	if p == working {
		return
	}
	k.inAll = c.all.of(p).PushBack(k)
	if k.of != nil {
		k.inOf = k.of.of(p).PushBack(k)
	}
}

func (c *conns) unqueueLocked(k *conn) {
	if k.inAll == nil {
		return
	}
	c.all.of(k.phase).Remove(k.inAll)
	if k.of != nil {
		k.of.of(k.phase).Remove(k.inOf)
	}
	k.inAll, k.inOf = nil, nil
}

func (q *queues) of(p phase) *list.List {
	if p == idle {
		return &q.idle
	}
	return &q.waiting
}

func (c *conns) removeLocked(k *conn) {
	if k.phase == gone {
		return
	}
	c.unqueueLocked(k)
	k.phase = gone
	c.unseatLocked(k)
}

func (c *conns) unseatLocked(k *conn) {
	if k.of == nil {
		return
	}
	if c.countLocked(k.of, -1); k.of.n == 0 {
		delete(c.address, k.key)
	}
}

// countLocked adds d, which is 1 or -1, to the connections of an address.
func (c *conns) countLocked(q *queues, d int) {
	if q.n > 0 {
		delete(c.byCount[q.n], q)
	}
	q.n += d
	for len(c.byCount) <= q.n {
		c.byCount = append(c.byCount, map[*queues]struct{}{})
	}
	if q.n > 0 {
		c.byCount[q.n][q] = struct{}{}
	}
	for len(c.byCount) > 0 && len(c.byCount[len(c.byCount)-1]) == 0 {
		c.byCount = c.byCount[:len(c.byCount)-1]
	}
}

// Close closes the connection and gives its room back.
func (k *conn) Close() error {
	k.conns.mu.Lock()
	k.conns.removeLocked(k)
	k.conns.mu.Unlock()
	return k.Conn.Close()
}

// CloseWrite ends this side of a TCP connection, for an answer that the other side has
// still to read. The http.Server calls it.
func (k *conn) CloseWrite() error {
	if c, ok := k.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// state is the http.Server's hook.
func (c *conns) state(nc net.Conn, s http.ConnState) {
	k, ok := nc.(*conn)
	if !ok {
		return
	}
	switch s {
	case http.StateActive: // the header is whole
		k.setAsked()
	case http.StateIdle:
		k.set(idle)
	}
}

type connKey struct{}

// withConn is the http.Server's hook that lets working find the connection.
func withConn(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, nc)
}

// atWork keeps the connection of a request until the returned function is called.
func atWork(ctx context.Context) (done func()) {
	k, ok := ctx.Value(connKey{}).(*conn)
	if !ok {
		return func() {}
	}
	k.set(working)
	return func() { k.set(waiting) }
}

// gate is a listener whose connections conns knows.
type gate struct {
	net.Listener
	conns *conns
}

// Accept waits for a connection that may stay.
func (g gate) Accept() (net.Conn, error) {
	for {
		nc, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if k := g.conns.enter(nc); k != nil {
			return k, nil
		}
		_ = nc.Close()
	}
}
