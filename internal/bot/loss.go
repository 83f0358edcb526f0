package bot

import (
	"context"
	"math/rand/v2"
	"net"
	"strings"
)

// lossyDialer dials sockets that lose a share of all datagrams, 0 to 1, each way: what
// a bad network does, where there is none. TCP connections lose nothing.
func lossyDialer(share float64) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil || !strings.HasPrefix(network, "udp") {
			return c, err
		}
		return &lossyConn{c, share}, nil
	}
}

type lossyConn struct {
	net.Conn
	share float64
}

func (c *lossyConn) lose() bool { return rand.Float64() < c.share }

func (c *lossyConn) Write(b []byte) (int, error) {
	if c.lose() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *lossyConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.lose() {
			return n, err
		}
	}
}
