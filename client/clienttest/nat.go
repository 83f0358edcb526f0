package clienttest

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// NAT is a router between clients and nodes on UDP that forgets its mappings when it
// is told to: the node then sees the same client at another port, which the client
// doesn't know of, and what the node sends to the old one is lost. The zero value is
// ready to use and safe for concurrent use.
type NAT struct {
	mu    sync.Mutex // guards the field below
	conns map[*natConn]bool
}

// Dial is for client.Options.
func (n *NAT) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	out, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := &natConn{nat: n, out: out}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conns == nil {
		n.conns = make(map[*natConn]bool)
	}
	n.conns[c] = true
	return c, nil
}

// Rebind gives every socket another address.
func (n *NAT) Rebind() error {
	n.mu.Lock()
	all := make([]*natConn, 0, len(n.conns))
	for c := range n.conns {
		all = append(all, c)
	}
	n.mu.Unlock()
	var errs []error
	for _, c := range all {
		errs = append(errs, c.rebind())
	}
	return errors.Join(errs...)
}

// natConn is one socket of a client.
type natConn struct {
	nat *NAT

	mu       sync.Mutex // guards the fields below
	out      net.Conn
	deadline time.Time // of Read
	closed   bool
}

func (c *natConn) current() net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out
}

func (c *natConn) rebind() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	out, err := net.Dial(c.out.RemoteAddr().Network(), c.out.RemoteAddr().String())
	if err != nil {
		return err
	}
	err = errors.Join(out.SetReadDeadline(c.deadline), c.out.Close())
	c.out = out
	return err
}

// do calls f with the socket, and again when it was replaced meanwhile.
func (c *natConn) do(f func(net.Conn) (int, error)) (int, error) {
	for {
		out := c.current()
		n, err := f(out)
		if !errors.Is(err, net.ErrClosed) || out == c.current() {
			return n, err
		}
	}
}

func (c *natConn) Read(b []byte) (int, error) {
	return c.do(func(out net.Conn) (int, error) { return out.Read(b) })
}

func (c *natConn) Write(b []byte) (int, error) {
	return c.do(func(out net.Conn) (int, error) { return out.Write(b) })
}

func (c *natConn) Close() error {
	c.nat.mu.Lock()
	delete(c.nat.conns, c)
	c.nat.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return c.out.Close()
}

func (c *natConn) LocalAddr() net.Addr  { return c.current().LocalAddr() }
func (c *natConn) RemoteAddr() net.Addr { return c.current().RemoteAddr() }

func (c *natConn) SetDeadline(t time.Time) error      { return c.SetReadDeadline(t) } // writes don't wait
func (c *natConn) SetWriteDeadline(t time.Time) error { return nil }

func (c *natConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return c.out.SetReadDeadline(t)
}
