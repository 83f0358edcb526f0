package client_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// counted has every socket that is opened announced.
func counted(o client.Options) (client.Options, <-chan string) {
	dials := make(chan string, 1000)
	o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials <- addr
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	return o, dials
}

// TestHangingUpMeansNotNow: a node that has the user frozen hangs up, as one does whose
// slots others take, and it has the state all the time.
func TestHangingUpMeansNotNow(t *testing.T) {
	t.Parallel()
	r := startReal(t, true, transport.Config{})
	o, w := watch(client.Options{})
	o, dials := counted(o)
	c, sid := r.dial(t, o)
	take(t, "answers", ask(t, c, 0, 20))
	if _, err := r.srv.Places().Freeze(within(t), sid); err != nil {
		t.Fatal(err)
	}
	c.Rebind()
	for range 7 { // the first was of the login
		take(t, "another attempt", dials)
	}
	r.srv.Places().Thaw(sid)
	if gap := take(t, "reconnect", w.reconnects); gap {
		t.Error("the state was given up although the node has it")
	}
	take(t, "answers", ask(t, c, 20, 40))
}

// TestHangingUpOfTwoNodes: a move whose other node knows nobody, and a network that changed
// meanwhile. Both hang up.
func TestHangingUpOfTwoNodes(t *testing.T) {
	t.Parallel()
	first, second := startReal(t, true, transport.Config{}), startReal(t, true, transport.Config{})
	o, w := watch(client.Options{})
	o, dials := counted(o)
	dial, sockets := o.Dial, make(chan net.Conn, 1000)
	o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		s, err := dial(ctx, network, addr)
		if err == nil {
			sockets <- s
		}
		return s, err
	}
	c, sid := first.dial(t, o)
	take(t, "answers", ask(t, c, 0, 20))
	if _, err := first.srv.Places().Freeze(within(t), sid); err != nil {
		t.Fatal(err)
	}
	to := wire.Move{Deadline: 500 * time.Millisecond, Host: second.addr.Addr().String(), Port: second.addr.Port()}
	if err := first.srv.Places().Move(sid, to); err != nil {
		t.Fatal(err)
	}
	for take(t, "the move", dials) != second.addr.String() {
	}
	_ = (<-sockets).Close()
	take(t, "disconnect", w.disconnects)
	for asked := map[string]int{}; asked[first.addr.String()] < 4 || asked[second.addr.String()] < 4; {
		asked[take(t, "another attempt", dials)]++
	}
	first.srv.Places().Thaw(sid)
	if gap := take(t, "reconnect", w.reconnects); gap {
		t.Error("the state was given up although a node has it")
	}
}

// TestGoneIsHeardAfterAFailedMove: a move that came to nothing leaves the client as it was,
// and one whose outcome is not known keeps it from nothing either.
func TestGoneIsHeardAfterAFailedMove(t *testing.T) {
	for name, thaws := range map[string]bool{"that is over": true, "that may have gone through": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			idle := time.Minute
			first := start(t, clienttest.Options{Token: "first", IdleTimeout: idle})
			second := start(t, clienttest.Options{Token: "second", IdleTimeout: idle})
			d := newDirectory(t, first)
			o, w := watch(d.options())
			o.ClientKey, o.ResumeFor = "", 10*patience
			c := connect(t, o)
			first.Do(func() { eachConn(first).MoveTo(second, 300*time.Millisecond, false) })
			if thaws {
				if _, err := c.Request(within(t), 2, 1, nil); err != nil {
					t.Fatal(err)
				}
			}
			gone := "first"
			first.Restart("third")
			d.gone.Store(&gone)
			if _, err := c.Request(within(t), 2, 1, nil); !errors.Is(err, client.ErrGap) {
				t.Errorf("a request of before: %v", err)
			}
			if gap := take(t, "reconnect", w.reconnects); !gap {
				t.Error("resumed at a node that is gone")
			}
		})
	}
}

// TestBothNodesAreAskedAtOnce: the other node owns the user, only that its Accepts got lost,
// and no handshake at the one before has to fail first.
func TestBothNodesAreAskedAtOnce(t *testing.T) {
	t.Parallel()
	first, second := start(t, clienttest.Options{IdleTimeout: time.Minute}), start(t, clienttest.Options{IdleTimeout: time.Minute})
	o, w := watch(newCluster(t, first).options())
	o, dials := counted(o)
	o.HandshakeTimeout, o.ResumeFor = 10*patience, 10*patience
	c := connect(t, o)
	second.LoseAccepts(1000)
	first.Do(func() { eachConn(first).MoveTo(second, 500*time.Millisecond, true) })
	take(t, "the login", dials)
	take(t, "the move", dials)
	answered := make(chan error, 1)
	if err := c.Go(2, 1, nil, func(_ client.Response, err error) { answered <- err }); err != nil {
		t.Fatal(err)
	}
	take(t, "one node to be asked", dials)
	take(t, "the other to be asked", dials)
	second.LoseAccepts(0)
	if gap := take(t, "reconnect", w.reconnects); gap {
		t.Error("the state was lost")
	}
	if err := take(t, "answer", answered); err != nil {
		t.Error(err)
	}
	if c.Addr() != second.Addr().String() {
		t.Errorf("at %s, not at %v", c.Addr(), second.Addr())
	}
}

func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for ctx := within(t); !ok(); {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

// requireNobody waits until no node has anybody any more.
func requireNobody(t *testing.T, nodes ...*real) {
	t.Helper()
	waitUntil(t, "a ghost to leave", func() bool {
		for _, n := range nodes {
			if _, connected, lost := n.srv.Places().Counts(); connected+lost > 0 {
				return false
			}
		}
		return true
	})
}

// TestCloseInAMove: who leaves before the other node was asked at all leaves no ghost behind.
func TestCloseInAMove(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		first, second := startReal(t, tcp, transport.Config{}), startReal(t, tcp, transport.Config{})
		moving := make(chan struct{})
		var once sync.Once
		o := client.Options{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			slow := false
			if addr == second.addr.String() {
				once.Do(func() { slow = true })
			}
			if slow {
				close(moving)
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}}
		c, sid := first.dial(t, o)
		first.moveTo(t, sid, second, time.Minute, true)
		take(t, "the move", moving)
		shut(c)
		requireNobody(t, first, second)
	})
}

// lateConn tells when the handshake on it is done, and when it is closed.
type lateConn struct {
	net.Conn
	done, closed func()
}

func (c *lateConn) SetDeadline(at time.Time) error {
	if at.IsZero() && c.done != nil {
		c.done()
	}
	return c.Conn.SetDeadline(at)
}

func (c *lateConn) Close() error {
	if c.closed != nil {
		c.closed()
	}
	return c.Conn.Close()
}

// TestCloseAtTheEndOfAMove: the other node let the user in at the moment when nobody wanted
// that any more. (Over TCP the old node closes the old connection as it lets go of the user,
// and the client waits for the move.)
func TestCloseAtTheEndOfAMove(t *testing.T) {
	t.Parallel()
	first, second := startReal(t, false, transport.Config{}), startReal(t, false, transport.Config{})
	letIn, hungUp := make(chan struct{}), make(chan struct{})
	o := client.Options{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		s, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if addr == first.addr.String() {
			return &lateConn{Conn: s, closed: sync.OnceFunc(func() { close(hungUp) })}, nil
		}
		return &lateConn{Conn: s, done: sync.OnceFunc(func() { close(letIn); <-hungUp })}, nil
	}}
	c, sid := first.dial(t, o)
	first.moveTo(t, sid, second, time.Minute, true)
	take(t, "the end of the move", letIn)
	shut(c)
	requireNobody(t, first, second)
}
