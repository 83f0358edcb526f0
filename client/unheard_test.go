package client_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/reliable"
)

// muteConn loses what is written while it is cut.
type muteConn struct {
	net.Conn
	cut *atomic.Bool
}

func (c *muteConn) Write(b []byte) (int, error) {
	if c.cut.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// TestDeadWayUp: a router on the way lost half of what it knew of a socket, so that pushes
// come and nothing gets out. Another socket does, before anything is lost.
func TestDeadWayUp(t *testing.T) {
	t.Parallel()
	n := start(t, clienttest.Options{IdleTimeout: time.Minute})
	o, w := watch(newCluster(t, n).options())
	var cut atomic.Bool
	var dials atomic.Int32
	o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		s, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil && dials.Add(1) == 1 {
			s = &muteConn{s, &cut}
		}
		return s, err
	}
	c := connect(t, o)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			n.Do(func() {
				if k := eachConn(n); k != nil {
					_ = k.Push(2, 1, nil, reliable.Unreliable)
				}
			})
		}
	}()
	cut.Store(true)
	if _, err := c.Request(within(t), 2, 1, nil); err != nil {
		t.Error(err)
	}
	close(stop)
	<-stopped
	if s := c.Stats(); s.Rebinds == 0 || s.Resumes+s.Gaps != 0 || len(w.disconnects) != 0 {
		t.Errorf("%+v, %d disconnects", s, len(w.disconnects))
	}
}
