package client_test

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/transport"
)

// clientAddr is where a node believes a client to be.
func (r *real) clientAddr(sid id.SID) (a netip.AddrPort) {
	if p := r.srv.Places().Get(sid); p != nil && p.Conn() != nil {
		a = p.Conn().RemoteAddr()
	}
	return a
}

// requireUnnoticed checks that the game was told nothing.
func (w *watched) requireUnnoticed(t *testing.T) {
	t.Helper()
	if len(w.reconnects)+len(w.disconnects)+len(w.moves) != 0 {
		t.Errorf("the game noticed: %d disconnects, %d reconnects, %d moves", len(w.disconnects), len(w.reconnects), len(w.moves))
	}
}

func TestRebind(t *testing.T) {
	r := startReal(t, false, transport.Config{})
	o, w := watch(client.Options{})
	c, sid := r.dial(t, o)
	take(t, "answers", ask(t, c, 0, 20))
	before := r.clientAddr(sid)
	first := ask(t, c, 20, 120)
	c.Rebind()
	take(t, "answers over two sockets", first)
	take(t, "answers over the second", ask(t, c, 120, 200))
	if after := r.clientAddr(sid); after == before {
		t.Errorf("the node finds the client at %v still", after)
	}
	if s := c.Stats(); s.Rebinds != 1 || s.Resumes != 0 {
		t.Errorf("stats %+v", s)
	}
	w.requireUnnoticed(t)
}

func TestRebindOfTCPResumes(t *testing.T) {
	r := startReal(t, true, transport.Config{})
	o, w := watch(client.Options{})
	c, _ := r.dial(t, o)
	done := ask(t, c, 0, 100)
	c.Rebind()
	if gap := take(t, "reconnect", w.reconnects); gap {
		t.Error("the state was lost")
	}
	take(t, "answers", done)
}

func TestRebindWithoutAConnection(t *testing.T) {
	c, err := client.New(client.Options{URL: "http://127.0.0.1:1", UID: "ann"})
	if err != nil {
		t.Fatal(err)
	}
	c.Rebind()
	shut(c)
	c.Rebind()
}

func TestNATForgets(t *testing.T) {
	r := startReal(t, false, transport.Config{})
	var nat clienttest.NAT
	o, w := watch(client.Options{Dial: nat.Dial})
	c, sid := r.dial(t, o)
	at := uint32(0)
	for range 3 {
		done := ask(t, c, at, at+100)
		before := r.clientAddr(sid)
		if err := nat.Rebind(); err != nil {
			t.Fatal(err)
		}
		take(t, "answers", done)
		take(t, "answers", ask(t, c, at+100, at+120))
		at += 120
		if after := r.clientAddr(sid); after == before {
			t.Errorf("the node finds the client at %v still", after)
		}
	}
	w.requireUnnoticed(t)
}

// wires are sockets that can be cut one by one.
type wires struct {
	cut  atomic.Int64 // sockets opened before this one are dead
	fail error        // what writing to a dead one says; nil swallows
	n    atomic.Int64
	deny atomic.Int64 // how many tries to open one fail from now on
}

func (w *wires) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if w.deny.Add(-1) >= 0 {
		return nil, syscall.ENETUNREACH
	}
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &cutConn{c, w, w.n.Add(1)}, nil
}

// cutAll kills the sockets there are.
func (w *wires) cutAll() { w.cut.Store(w.n.Load()) }

type cutConn struct {
	net.Conn
	w *wires
	n int64
}

func (c *cutConn) dead() bool { return c.n <= c.w.cut.Load() }

func (c *cutConn) Write(b []byte) (int, error) {
	switch {
	case !c.dead():
		return c.Conn.Write(b)
	case c.w.fail != nil:
		return 0, &net.OpError{Op: "write", Err: c.w.fail}
	}
	return len(b), nil
}

func (c *cutConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.dead() {
			return n, err
		}
	}
}

func TestDeadSocketIsReplaced(t *testing.T) {
	for _, q := range []struct {
		what string
		fail error
		deny int64
	}{
		{"silent", nil, 0},
		{"unroutable", syscall.ENETUNREACH, 0},
		{"unroutable for a while", syscall.EADDRNOTAVAIL, 2},
	} {
		t.Run(q.what, func(t *testing.T) {
			t.Parallel()
			r := startReal(t, false, transport.Config{IdleTimeout: 30 * time.Second})
			wires := &wires{fail: q.fail}
			o, w := watch(client.Options{Dial: wires.dial})
			c, _ := r.dial(t, o)
			take(t, "answers", ask(t, c, 0, 20))
			wires.deny.Store(q.deny)
			wires.cutAll()
			began := time.Now()
			take(t, "answers", ask(t, c, 20, 60))
			t.Logf("answered after %v", time.Since(began))
			if s := c.Stats(); s.Rebinds != 1 || s.Resumes != 0 {
				t.Errorf("stats %+v", s)
			}
			w.requireUnnoticed(t)
		})
	}
}

// A client that no socket helps comes back by a handshake.
func TestSocketsThatDoNotHelp(t *testing.T) {
	t.Parallel()
	a := newAir(3)
	r := startReal(t, false, transport.Config{IdleTimeout: time.Minute})
	o, w := watch(client.Options{Dial: a.dial})
	c, _ := r.dial(t, o)
	take(t, "answers", ask(t, c, 0, 20))
	a.dark.Store(true)
	done := ask(t, c, 20, 60)
	began := time.Now()
	if d := take(t, "disconnect", w.disconnects); d.Final || d.Code != client.CloseIdle {
		t.Errorf("disconnect %+v", d)
	}
	t.Logf("gave the sockets up after %v", time.Since(began))
	a.dark.Store(false)
	if gap := take(t, "reconnect", w.reconnects); gap {
		t.Error("the state was lost")
	}
	take(t, "answers", done)
	if s := c.Stats(); s.Rebinds == 0 {
		t.Errorf("stats %+v", s)
	}
}
