package datagram

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"
)

func listen(t *testing.T, hostPort string, n int, steer ...Steer) Group {
	t.Helper()
	g, err := Listen(hostPort, n, steer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

func peer(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// TestBatchesArriveWhole sends runs that may go as one piece, and packets that may not.
func TestBatchesArriveWhole(t *testing.T) {
	for _, q := range []struct{ host, peer string }{
		{"127.0.0.1:0", "127.0.0.1"}, {"[::1]:0", "::1"}, {":0", "127.0.0.1"}, {":0", "::1"},
	} {
		t.Run(q.host+" to "+q.peer, func(t *testing.T) {
			g := listen(t, q.host, 1)
			at := netip.AddrPortFrom(netip.MustParseAddr(q.peer), g.Addr().Port())
			a, b := peer(t, at), peer(t, at)
			w := NewWriter(g[0])
			var slab []byte
			var packets []Packet
			want := map[*net.UDPConn][][]byte{}
			add := func(to *net.UDPConn, size int) {
				p := bytes.Repeat([]byte{byte(len(packets) + 1)}, size)
				want[to] = append(want[to], p)
				packets = append(packets, Packet{len(slab), len(slab) + size, to.LocalAddr().(*net.UDPAddr).AddrPort()})
				slab = append(slab, p...)
			}
			for range 100 { // more than one piece holds
				add(a, 1200)
			}
			add(a, 50)
			add(a, 50)
			add(b, 50)
			add(a, 51)
			add(b, 1452)
			add(b, 1)
			if refused := w.Write(slab, packets); refused != 0 {
				t.Fatalf("%d refused", refused)
			}
			buf := make([]byte, 2000)
			for c, all := range want {
				for i, p := range all {
					n, err := c.Read(buf)
					if err != nil || !bytes.Equal(buf[:n], p) {
						t.Fatalf("datagram %d = %d bytes of %v, %v; want %d of %d", i, n, buf[0], err, len(p), p[0])
					}
				}
			}
		})
	}
}

func TestRefusedPacketsAreSkipped(t *testing.T) {
	g := listen(t, "127.0.0.1:0", 1)
	a := peer(t, g.Addr())
	to := a.LocalAddr().(*net.UDPAddr).AddrPort()
	nowhere := netip.AddrPortFrom(to.Addr(), 0) // nothing can be sent to port 0
	slab := []byte("abcdef")
	packets := []Packet{{0, 1, to}, {1, 2, nowhere}, {2, 3, nowhere}, {3, 4, to}, {4, 6, to}}
	if refused := NewWriter(g[0]).Write(slab, packets); refused != 2 {
		t.Errorf("%d refused, want 2", refused)
	}
	buf := make([]byte, 10)
	for _, want := range []string{"a", "d", "ef"} {
		if n, err := a.Read(buf); err != nil || string(buf[:n]) != want {
			t.Errorf("read %q, %v; want %q", buf[:n], err, want)
		}
	}
}

// TestSteering sends from many addresses, and expects each datagram at the socket its
// content names.
func TestSteering(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("one socket only on this system")
	}
	const n = 4
	g := listen(t, "127.0.0.1:0", n, Steer{0x40, 0xfe, 1}, Steer{0x01, 0xff, 4})
	if len(g) != n {
		t.Fatalf("%d sockets, want %d", len(g), n)
	}
	want := make([]int, n)
	for i := range 200 {
		c := peer(t, g.Addr())
		p := []byte{0x40 | byte(i&1), byte(i), 0, 0, 0}
		switch i % 5 {
		case 3:
			p = []byte{0x01, 0, 0, 0, byte(i)}
		case 4:
			p = []byte{0x05, 1, 1, 1, byte(i)} // no rule
		}
		switch {
		case i%5 == 4:
			want[0]++
		default:
			want[i%n]++
		}
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
	}
	for i, s := range g {
		r := NewReader(s, 100)
		for got := 0; got < want[i]; {
			k, err := r.Read()
			if err != nil {
				t.Fatal(err)
			}
			for j := range k {
				p, _ := r.At(j)
				at := 1
				switch p[0] {
				case 0x05:
					p[1] = 0
				case 0x01:
					at = 4
				}
				if int(p[at])%n != i {
					t.Errorf("socket %d got % x", i, p)
				}
			}
			got += k
		}
	}
}

// TestPortIsOurs makes sure that sockets that share a port share it with no other server.
func TestPortIsOurs(t *testing.T) {
	g := listen(t, "127.0.0.1:0", 3)
	for _, n := range []int{1, 3} {
		if other, err := Listen(g.Addr().String(), n, nil); err == nil {
			_ = other.Close()
			t.Errorf("a second server of %d sockets got the port", n)
		}
	}
}

func TestInterrupt(t *testing.T) {
	g := listen(t, "127.0.0.1:0", 1)
	done := make(chan error)
	go func() {
		n, err := NewReader(g[0], 100).Read()
		if n != 0 {
			err = fmt.Errorf("%d datagrams", n)
		}
		done <- err
	}()
	g[0].Interrupt()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func BenchmarkWriter(b *testing.B) {
	for _, c := range []struct {
		name  string
		peers int
	}{{"one peer", 1}, {"64 peers", 64}} {
		b.Run(c.name, func(b *testing.B) {
			g, err := Listen("127.0.0.1:0", 1, nil)
			if err != nil {
				b.Fatal(err)
			}
			defer g.Close()
			sinks := make([]netip.AddrPort, c.peers)
			for i := range sinks {
				s, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				sinks[i] = s.LocalAddr().(*net.UDPAddr).AddrPort()
			}
			w, slab := NewWriter(g[0]), make([]byte, 1200*64)
			var packets []Packet
			for i := range 64 {
				packets = append(packets, Packet{i * 1200, (i + 1) * 1200, sinks[i%c.peers]})
			}
			b.ReportAllocs()
			for b.Loop() {
				w.Write(slab, packets)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/packet")
		})
	}
}

// TestInterruptUnderLoad: a reader that never finds its socket empty has to end too.
func TestInterruptUnderLoad(t *testing.T) {
	g := listen(t, "127.0.0.1:0", 1)
	var senders sync.WaitGroup
	defer senders.Wait()
	stop := make(chan struct{})
	defer close(stop)
	for range 2 {
		c := peer(t, g.Addr())
		senders.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = c.Write([]byte("load"))
				}
			}
		})
	}
	r := NewReader(g[0], 100)
	for range 2000 { // by then it is busy
		if n, err := r.Read(); n == 0 || err != nil {
			t.Fatalf("read %d, %v", n, err)
		}
	}
	g[0].Interrupt()
	for range 10 {
		if n, err := r.Read(); n == 0 && err == nil {
			return
		}
	}
	t.Error("goes on reading after Interrupt")
}
