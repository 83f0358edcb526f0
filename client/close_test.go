package client_test

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// TestCloseInACallback: what was sent arrives, the server is told, nothing is called after
// the callback but the end of calls, and the client ends.
func TestCloseInACallback(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		var got atomic.Int64
		ended := make(chan wire.CloseCode, 1)
		n := start(t, clienttest.Options{
			TCP: tcp,
			Handle: func(c *clienttest.Conn, m wire.Message, _ reliable.Reliability) {
				if m.Cmd == 1 {
					got.Add(1)
				}
			},
			Ended: func(_ *clienttest.Place, code wire.CloseCode) { ended <- code },
		})
		var c *client.Client
		ready, closed := make(chan struct{}), make(chan struct{})
		var after, calls atomic.Int64
		count := func() {
			select {
			case <-closed:
				after.Add(1)
			default:
			}
		}
		c, _ = dial(t, n, client.Options{
			OnPush: func(client.Push) {
				count()
				<-ready
				for range 10 {
					if err := c.Send(2, 1, nil, client.Reliable); err != nil {
						t.Error(err)
					}
				}
				for range 2 {
					if err := c.Close(context.Background()); err != nil {
						t.Error(err)
					}
				}
				if err := c.Send(2, 1, nil, client.Reliable); !errors.Is(err, client.ErrClosed) {
					t.Errorf("send after close: %v", err)
				}
				close(closed)
			},
			OnDisconnect: func(client.Disconnect) { count() },
			OnReconnect:  func(bool) { count() },
		})
		if err := c.Go(2, 2, nil, func(_ client.Response, err error) {
			if calls.Add(1); !errors.Is(err, client.ErrClosed) {
				t.Errorf("call: %v", err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		n.Do(func() {
			for range 5 {
				_ = eachConn(n).Push(2, 1, nil, reliable.Reliable)
			}
		})
		close(ready)
		take(t, "the callback", closed)
		take(t, "the end", c.Done())
		if code := take(t, "CLOSE", ended); code != client.CloseNormal {
			t.Errorf("closed with %v", code)
		}
		if got.Load() != 10 || after.Load() != 0 || calls.Load() != 1 || !errors.Is(c.Err(), client.ErrClosed) {
			t.Errorf("%d of 10 messages arrived, %d callbacks after the one that closed, the call ended %d times, the client by %v",
				got.Load(), after.Load(), calls.Load(), c.Err())
		}
	})
}

// TestCloseBesideACallbackThatBlocks: Close returns soon after its context ended, with the
// server told.
func TestCloseBesideACallbackThatBlocks(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		ended := make(chan wire.CloseCode, 1)
		n := start(t, clienttest.Options{TCP: tcp, Ended: func(_ *clienttest.Place, code wire.CloseCode) { ended <- code }})
		began, release := make(chan struct{}, 9), make(chan struct{})
		c, _ := dial(t, n, client.Options{OnPush: func(client.Push) { began <- struct{}{}; <-release }})
		n.Do(func() {
			for range 3 {
				_ = eachConn(n).Push(2, 1, nil, reliable.Reliable)
			}
		})
		take(t, "the callback", began)
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		guarded(t, "close", func() {
			if err := c.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("close: %v", err)
			}
		})
		if code := take(t, "CLOSE", ended); code != client.CloseNormal {
			t.Errorf("closed with %v", code)
		}
		close(release)
		take(t, "the end", c.Done())
		if len(began) != 0 {
			t.Error("a callback was called after Close returned")
		}
	})
}

// TestCallbackThatEndsItsGoroutine, as a test's Fatal does: the client ends, and nobody
// waits for it.
func TestCallbackThatEndsItsGoroutine(t *testing.T) {
	n := start(t, clienttest.Options{})
	c, _ := dial(t, n, client.Options{OnPush: func(client.Push) { runtime.Goexit() }})
	n.Do(func() { _ = eachConn(n).Push(2, 1, nil, reliable.Reliable) })
	take(t, "the end", c.Done())
	guarded(t, "a request afterwards", func() {
		if _, err := c.Request(context.Background(), 2, 1, nil); !errors.Is(err, client.ErrClosed) {
			t.Errorf("request: %v", err)
		}
	})
	guarded(t, "close afterwards", func() { _ = c.Close(context.Background()) })
}

// TestConnectOnAConnectedClient is refused without touching the connection or asking for a
// place that nobody uses.
func TestConnectOnAConnectedClient(t *testing.T) {
	n := start(t, clienttest.Options{})
	k := newCluster(t, n)
	o, w := watch(k.options())
	c := connect(t, o)
	_, e := reserve(t, n)
	asked := k.asks.Load()
	for _, err := range []error{c.Connect(within(t)), c.Dial(within(t), e)} {
		if !errors.Is(err, client.ErrConnected) {
			t.Errorf("connect again: %v", err)
		}
	}
	if k.asks.Load() != asked {
		t.Error("a place was asked for")
	}
	if _, err := c.Request(within(t), 2, 1, nil); err != nil || len(w.disconnects)+len(w.reconnects) != 0 {
		t.Errorf("the connection did not bear it: %v, %d disconnects", err, len(w.disconnects))
	}
	n.Do(func() {
		if n.Handshakes != 1 {
			t.Errorf("%d handshakes", n.Handshakes)
		}
	})
}

func TestConnectFromManyGoroutines(t *testing.T) {
	n := start(t, clienttest.Options{})
	k := newCluster(t, n)
	c, err := client.New(k.options())
	if err != nil {
		t.Fatal(err)
	}
	defer shut(c)
	var good atomic.Int64
	var many sync.WaitGroup
	for range 8 {
		many.Go(func() {
			switch err := c.Connect(within(t)); {
			case err == nil:
				good.Add(1)
			case !errors.Is(err, client.ErrConnected):
				t.Error(err)
			}
		})
	}
	many.Wait()
	if good.Load() != 1 || k.asks.Load() != 1 {
		t.Errorf("%d connected, %d places asked for", good.Load(), k.asks.Load())
	}
}

// TestCloseDuringConnect ends it at once, and Connect says so.
func TestCloseDuringConnect(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		n := start(t, clienttest.Options{TCP: tcp})
		n.SetDeaf(true) // over TCP nobody takes the connection in
		var c *client.Client
		dialled := make(chan struct{}, 1)
		_, e := reserve(t, n)
		c, err := client.New(client.Options{HandshakeTimeout: 10 * patience, Dial: dialing(func() { dialled <- struct{}{} })})
		if err != nil {
			t.Fatal(err)
		}
		connected := make(chan error, 1)
		if tcp {
			n.LoseAccepts(100)
		}
		go func() { connected <- c.Dial(context.Background(), e) }()
		take(t, "the socket", dialled)
		guarded(t, "close", func() {
			if err := c.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		if err := take(t, "connect", connected); !errors.Is(err, client.ErrClosed) {
			t.Errorf("connect: %v", err)
		}
		take(t, "the end", c.Done())
	})
}

// ghosts is a node that tells who comes and why he ends.
type ghosts struct {
	*clienttest.Node
	opened chan *clienttest.Place
	ended  chan wire.CloseCode
}

func haunted(t *testing.T, tcp bool) *ghosts {
	g := &ghosts{opened: make(chan *clienttest.Place, 99), ended: make(chan wire.CloseCode, 99)}
	g.Node = start(t, clienttest.Options{
		TCP: tcp, Opened: func(c *clienttest.Conn, _ bool) { g.opened <- c.Place },
		Ended: func(_ *clienttest.Place, code wire.CloseCode) { g.ended <- code },
	})
	return g
}

// TestLoginGivenUpLeavesNoGhost: whoever stops waiting when the node has let the user in
// takes him out again, also when the Accept was lost.
func TestLoginGivenUpLeavesNoGhost(t *testing.T) {
	leaves := func(t *testing.T, g *ghosts) {
		t.Helper()
		if code := take(t, "CLOSE", g.ended); code != client.CloseNormal {
			t.Errorf("closed with %v", code)
		}
	}
	t.Run("cancelled", func(t *testing.T) {
		transports(t, func(t *testing.T, tcp bool) {
			g := haunted(t, tcp)
			_, e := reserve(t, g.Node)
			ctx, cancel := context.WithCancel(within(t))
			c, err := client.New(client.Options{Dial: cancelling(cancel)})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Dial(ctx, e); !errors.Is(err, context.Canceled) {
				t.Errorf("dial: %v", err)
			}
			leaves(t, g)
			if err := c.Close(within(t)); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("timed out", func(t *testing.T) {
		g := haunted(t, false)
		g.LoseAccepts(3)
		_, e := reserve(t, g.Node)
		_, err := client.Dial(within(t), e, client.Options{HandshakeTimeout: 400 * time.Millisecond})
		if !errors.Is(err, client.ErrHandshakeTimeout) {
			t.Errorf("dial: %v", err)
		}
		leaves(t, g)
	})
	t.Run("closed", func(t *testing.T) {
		g := haunted(t, false)
		g.LoseAccepts(2)
		_, e := reserve(t, g.Node)
		c, err := client.New(client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		connected := make(chan error, 1)
		go func() { connected <- c.Dial(context.Background(), e) }()
		take(t, "the login", g.opened)
		guarded(t, "close", func() {
			if err := c.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		leaves(t, g)
		if err := take(t, "connect", connected); !errors.Is(err, client.ErrClosed) {
			t.Errorf("connect: %v", err)
		}
	})
	t.Run("closed while resuming", func(t *testing.T) {
		g := haunted(t, false)
		_, e := reserve(t, g.Node)
		o, w := watch(client.Options{})
		c, err := client.Dial(within(t), e, o)
		if err != nil {
			t.Fatal(err)
		}
		place := take(t, "the login", g.opened)
		g.LoseAccepts(2)
		g.Do(func() { place.Conn.Mute() })
		take(t, "the second login", g.opened)
		guarded(t, "close", func() { _ = c.Close(context.Background()) })
		leaves(t, g)
		if len(w.reconnects) != 0 {
			t.Error("the game was told of a connection")
		}
	})
}

// cancelling opens sockets that cancel as soon as a Confirm was written.
func cancelling(cancel func()) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &spied{Conn: conn, wrote: func(p wire.PacketType) {
			if p == wire.PacketConfirm {
				cancel()
			}
		}}, nil
	}
}

// TestPlaceTakenAgain: a login that was given up, and is being undone, does not take the
// one with it that the same program makes next at the same place.
func TestPlaceTakenAgain(t *testing.T) {
	g := haunted(t, false)
	for i := range 20 {
		_, e := reserve(t, g.Node)
		ctx, cancel := context.WithCancel(within(t))
		_, err := client.Dial(ctx, e, client.Options{Dial: cancelling(cancel)})
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		var c *client.Client
		for c == nil { // a Confirm of the same millisecond is none
			c, err = client.Dial(within(t), e, client.Options{HandshakeTimeout: 300 * time.Millisecond})
			if _, ended := errors.AsType[*client.CloseError](err); ended {
				break // the goodbye had left already
			}
			if err != nil && !errors.Is(err, client.ErrHandshakeTimeout) {
				t.Fatal(err)
			}
		}
		if c == nil {
			continue
		}
		if _, err := c.Request(within(t), 2, 1, nil); err != nil {
			t.Errorf("login %d: %v", i, err)
		}
		shut(c)
	}
}

// TestReenterTellsWhyNot instead of ending the client.
func TestReenterTellsWhyNot(t *testing.T) {
	n := start(t, clienttest.Options{})
	for want, change := range map[error]func(*client.Options){
		client.ErrNoReconnect: func(o *client.Options) { o.NoReconnect = true },
		client.ErrNoURL:       func(o *client.Options) { o.URL = "" },
	} {
		o := newCluster(t, n).options()
		change(&o)
		c, _ := dial(t, n, o)
		if err := c.Reenter(); !errors.Is(err, want) {
			t.Errorf("reenter: %v, want %v", err, want)
		}
		if _, err := c.Request(within(t), 2, 1, nil); err != nil {
			t.Errorf("the client did not bear it: %v", err)
		}
		shut(c)
		if err := c.Reenter(); !errors.Is(err, client.ErrClosed) {
			t.Errorf("reenter after close: %v", err)
		}
	}
	c, err := client.New(newCluster(t, n).options())
	if err != nil {
		t.Fatal(err)
	}
	defer shut(c)
	if err := c.Reenter(); !errors.Is(err, client.ErrNotConnected) {
		t.Errorf("reenter before connect: %v", err)
	}
	if err := c.Connect(within(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Request(within(t), 2, 1, nil); err != nil || c.Stats().Gaps != 0 {
		t.Errorf("request: %v, stats %+v", err, c.Stats())
	}
}

// TestReenterWhileResuming gives the lost connection up.
func TestReenterWhileResuming(t *testing.T) {
	first := start(t, clienttest.Options{IdleTimeout: 300 * time.Millisecond})
	k := newCluster(t, first)
	o, w := watch(k.options())
	c := connect(t, o)
	first.SetDeaf(true)
	take(t, "disconnect", w.disconnects)
	k.node.Store(start(t, clienttest.Options{}))
	if err := c.Reenter(); err != nil {
		t.Error(err)
	}
	if gap := take(t, "reconnect", w.reconnects); !gap || c.Addr() != k.node.Load().Addr().String() {
		t.Errorf("at %s", c.Addr())
	}
}

// TestWhatWaitsWithoutAConnectionIsBounded, and the sender hears it.
func TestWhatWaitsWithoutAConnectionIsBounded(t *testing.T) {
	n := start(t, clienttest.Options{IdleTimeout: 300 * time.Millisecond})
	o, w := watch(newCluster(t, n).options())
	c := connect(t, o)
	n.SetDeaf(true)
	take(t, "disconnect", w.disconnects)
	for _, size := range []int{10, 10_000} {
		sent := 0
		for ; sent < 5000; sent++ {
			if err := c.Send(2, 1, make([]byte, size), client.Reliable); err != nil {
				if !errors.Is(err, client.ErrSlow) {
					t.Errorf("%v", err)
				}
				break
			}
		}
		if sent > 1100 {
			t.Errorf("%d messages of %d bytes wait", sent, size)
		}
	}
	for range 5000 { // the oldest of these go
		if err := c.Send(2, 1, make([]byte, 1000), client.Unreliable); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	for range client.RequestsMax + 1 {
		if err = c.Go(2, 1, nil, nil); err != nil {
			break
		}
	}
	if !errors.Is(err, client.ErrSlow) && !errors.Is(err, client.ErrBusy) {
		t.Errorf("requests without bounds: %v", err)
	}
}

// TestNothingRunsAfterClose, not even what undoes a login that nobody answers any more.
func TestNothingRunsAfterClose(t *testing.T) {
	g := haunted(t, false)
	g.LoseAccepts(1000)
	_, e := reserve(t, g.Node)
	before := goleak.IgnoreCurrent()
	c, err := client.New(client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	connected := make(chan error, 1)
	go func() { connected <- c.Dial(context.Background(), e) }()
	take(t, "the login", g.opened)
	shut(c)
	if err := take(t, "connect", connected); !errors.Is(err, client.ErrClosed) {
		t.Errorf("connect: %v", err)
	}
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}
