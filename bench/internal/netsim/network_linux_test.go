package netsim_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/netsim"
	"github.com/Diarkis/diarkis/bench/internal/netsim/netsimtest"
)

// patience is how long tests wait for what should be there much sooner.
const patience = 20 * time.Second

func listen(t *testing.T, h *netsim.Host) *net.UDPConn {
	t.Helper()
	c, err := h.ListenUDP(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}

func addrPort(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// TestDatagramsTakeTheirDelay also tells what the simulation adds to it.
func TestDatagramsTakeTheirDelay(t *testing.T) {
	const delay, count, size = 5 * time.Millisecond, 500, 100
	n := netsimtest.New(t, netsim.Options{Up: netsim.Path{Delay: delay}})
	if n == nil {
		return
	}
	from, to := listen(t, n.Client), listen(t, n.Server)
	start := time.Now()
	go func() {
		b := make([]byte, size)
		for i := range count {
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Millisecond)))
			binary.BigEndian.PutUint64(b, uint64(time.Since(start)))
			if _, err := from.WriteToUDPAddrPort(b, addrPort(to)); err != nil {
				t.Error(err)
			}
		}
	}()
	took := make([]time.Duration, count)
	b := make([]byte, 2*size)
	for i := range took {
		if _, err := to.Read(b); err != nil {
			t.Fatal(err)
		}
		took[i] = time.Since(start) - time.Duration(binary.BigEndian.Uint64(b))
	}
	slices.Sort(took)
	if took[0] < delay {
		t.Errorf("a datagram took %v, less than the delay of %v", took[0], delay)
	}
	s, err := n.Stats()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("added from socket to socket: p50 %v, p99 %v, max %v; by the network alone: p50 <= %v, p99 <= %v",
		took[count/2]-delay, took[count*99/100]-delay, took[count-1]-delay, s.Late.Quantile(0.5), s.Late.Quantile(0.99))
	want := netsim.Count{Packets: count, IP: count * (size + 28), Payload: count * size}
	if got := s.Up[netsim.Flow{netsim.UDP, addrPort(from).Port(), addrPort(to).Port()}]; got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	if s.Overflowed != 0 {
		t.Errorf("%d packets overflowed", s.Overflowed)
	}
}

// TestBurstMeetsOnlyTheSimulatedQueue sends far more at once than a TUN keeps by itself.
func TestBurstMeetsOnlyTheSimulatedQueue(t *testing.T) {
	const count, size = 5000, 972
	n := netsimtest.New(t, netsim.Options{Up: netsim.Path{Rate: 80_000_000, Queue: 100_000}})
	if n == nil {
		return
	}
	from, to := listen(t, n.Client), listen(t, n.Server)
	b := make([]byte, size)
	for range count {
		if _, err := from.WriteToUDPAddrPort(b, addrPort(to)); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(patience)
	for {
		s, err := n.Stats()
		if err != nil {
			t.Fatal(err)
		}
		c := s.Sum(func(f netsim.Flow) bool { return f.Proto == netsim.UDP })
		if s.Overflowed != 0 {
			t.Fatalf("%d packets overflowed", s.Overflowed)
		}
		if c.Packets == count {
			if c.QueueDrops == 0 || c.QueueDrops > count-100 {
				t.Errorf("%d of %d packets were dropped, want some, and at least the 100 that fit kept", c.QueueDrops, count)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("counted %+v, want %d packets", c, count)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestTCPPasses(t *testing.T) {
	const total = 1 << 20
	n := netsimtest.New(t, netsim.Options{Up: netsim.Path{Rate: 1_000_000_000, Queue: 100_000, Loss: netsim.Loss{Rate: 0.02}}, Seed: 1})
	if n == nil {
		return
	}
	var l net.Listener
	err := n.Server.Do(func() (err error) {
		l, err = net.Listen("tcp4", n.Server.Addr().String()+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	go func() {
		c, err := n.Client.Dial(t.Context(), "tcp4", l.Addr().String())
		if err != nil {
			t.Error(err)
			_ = l.Close()
			return
		}
		if _, err := c.Write(make([]byte, total)); err != nil {
			t.Error(err)
		}
		_ = c.Close()
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if got, err := io.Copy(io.Discard, c); got != total || err != nil {
		t.Errorf("received %d bytes, %v, want %d", got, err, total)
	}
	s, err := n.Stats()
	if err != nil {
		t.Fatal(err)
	}
	up := netsim.Sum(s.Up, nil)
	if up.Lost == 0 || up.Payload < total+up.Lost || up.IP < up.Payload+40*up.Packets {
		t.Errorf("counted %+v for %d bytes", up, total)
	}
}
