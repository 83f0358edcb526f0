package client_test

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/wire"
)

func TestMain(m *testing.M) {
	// The tests wait most of the time. (-parallel still counts.)
	if err := flag.Set("test.parallel", strconv.Itoa(max(8, 2*runtime.NumCPU()))); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// patience is how long tests wait for what should be there much sooner.
const patience = 20 * time.Second

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// take receives from c or fails the test.
func take[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-within(t).Done():
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

func start(t testing.TB, o clienttest.Options) *clienttest.Node {
	t.Helper()
	n, err := clienttest.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Kill)
	return n
}

// reserve makes a place for user "ann".
func reserve(t testing.TB, n *clienttest.Node) (*clienttest.Place, client.Endpoint) {
	t.Helper()
	p, err := n.Reserve("ann")
	if err != nil {
		t.Fatal(err)
	}
	e, err := client.ParseEndpoint(n.Answer(p))
	if err != nil {
		t.Fatal(err)
	}
	return p, e
}

func dial(t testing.TB, n *clienttest.Node, o client.Options) (*client.Client, *clienttest.Place) {
	t.Helper()
	p, e := reserve(t, n)
	c, err := client.Dial(within(t), e, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(c) })
	return c, p
}

// shut closes c without waiting for anything.
func shut(c *client.Client) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = c.Close(ctx)
}

// cluster is an HTTP role in front of nodes that can change.
type cluster struct {
	url  string
	http *http.Client
	node atomic.Pointer[clienttest.Node]
	asks atomic.Int64
	// refuse makes every answer a 401.
	refuse atomic.Bool
}

func newCluster(t testing.TB, n *clienttest.Node) *cluster {
	t.Helper()
	c := &cluster{}
	c.node.Store(n)
	endpoints := clienttest.Endpoints(func(string) *clienttest.Node { return c.node.Load() })
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.asks.Add(1)
		if c.refuse.Load() {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		endpoints.ServeHTTP(w, r)
	}))
	c.url, c.http = s.URL, s.Client()
	t.Cleanup(func() {
		c.http.CloseIdleConnections()
		s.Close()
	})
	return c
}

func (c *cluster) options() client.Options {
	return client.Options{URL: c.url, UID: "ann", HTTP: c.http, BackoffMax: 100 * time.Millisecond}
}

// air is the network between a client and UDP nodes: it loses datagrams.
type air struct {
	loss atomic.Int64 // in 1/1000
	dark atomic.Bool  // nothing gets through

	mu  sync.Mutex
	rng *rand.Rand
}

func newAir(seed uint64) *air { return &air{rng: rand.New(rand.NewPCG(seed, 1))} }

func (a *air) swallows() bool {
	if a.dark.Load() {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rng.Int64N(1000) < a.loss.Load()
}

func (a *air) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &airConn{c, a}, nil
}

type airConn struct {
	net.Conn
	air *air
}

func (c *airConn) Write(b []byte) (int, error) {
	if c.air.swallows() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *airConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.air.swallows() {
			return n, err
		}
	}
}

// dialing calls f before it opens a socket.
func dialing(f func()) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		f()
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}

// spied tells which packets are written to a socket. Over TCP they are records.
type spied struct {
	net.Conn
	wrote func(wire.PacketType)
}

func (s *spied) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	p := b
	if _, tcp := s.Conn.(*net.TCPConn); tcp && len(b) > 3 {
		p = b[3:]
	}
	s.wrote(wire.TypeOf(p))
	return n, err
}

// CloseWrite is there over TCP.
func (s *spied) CloseWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}
