package httpapi_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/httpapi"
	"github.com/Diarkis/diarkis/internal/id"
)

// street is where clients at any address come from.
type street struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newStreet() *street { return &street{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (s *street) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *street) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *street) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 7000} }

// come opens a connection from an address.
func (s *street) come(addr string) net.Conn {
	here, there := net.Pipe()
	s.conns <- from{there, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 1234))}
	return here
}

type from struct {
	net.Conn
	addr net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.addr }

// say sends a whole request and returns the status of its answer, 0 when the
// connection was closed instead.
func say(c net.Conn, path string) int {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		return 0
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return res.StatusCode
}

// open reports whether the server has not closed a connection.
func open(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	n, ok := err.(net.Error)
	return ok && n.Timeout()
}

// served runs the API on a street, with the client's side of every connection closed
// at the end.
func served(t *testing.T, f *fake, l httpapi.Limits, change func(*httpapi.Config), play func(s *street, figure func(...string) float64)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		cfg := httpapi.Config{Log: zerolog.Nop(), Registerer: reg, Gatherer: reg, Limits: l}
		if change != nil {
			change(&cfg)
		}
		s := httpapi.New(cfg, f, f, f.why)
		st := newStreet()
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(ctx, st) }()
		play(st, func(name ...string) float64 { return figure(t, reg, name[0], name[1:]...) })
		began := time.Now()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		f.stopped = time.Since(began)
		time.Sleep(time.Second) // for handlers that were not waited for
	})
}

// figure adds up a metric over its labels, of which some must have the values given.
func figure(t *testing.T, g prometheus.Gatherer, name string, values ...string) (sum float64) {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				if !hasLabels(m, values) {
					continue
				}
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func hasLabels(m *dto.Metric, values []string) bool {
	for _, v := range values {
		if !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == v }) {
			return false
		}
	}
	return true
}

func stranger(i int) string { return fmt.Sprintf("203.0.%d.%d", 113+i/250, 1+i%250) }

// TestSlowStrangersKeepNobodyOut: strangers at many addresses hold all connections there
// may be, each in its own way. A player still gets in, at once.
func TestSlowStrangersKeepNobodyOut(t *testing.T) {
	const most = 40
	for _, c := range []struct{ name, says string }{
		{"that say nothing", ""},
		{"that never end their header", "GET /healthcheck HTTP/1.1\r\nHost: x\r\nX-A: "},
		{"that never end their body", "POST /endpoint/type/UDP/user/a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n{"},
		{"whose body nobody asked for", "POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n{"},
		{"that don't take the answer", "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"that are idle between requests", "idle"},
	} {
		t.Run(c.name, func(t *testing.T) {
			served(t, oneOfEach(), httpapi.Limits{ConnectionsMax: most}, nil, func(s *street, figure func(...string) float64) {
				var strangers []net.Conn
				hold := func(i int) {
					k := s.come(stranger(i))
					strangers = append(strangers, k)
					if c.says == "idle" {
						if code := say(k, "/healthcheck"); code != 200 {
							t.Errorf("stranger %d: %d", i, code)
						}
					} else if _, err := io.WriteString(k, c.says); err != nil {
						t.Errorf("stranger %d: %v", i, err)
					}
				}
				for i := range most {
					hold(i)
					time.Sleep(time.Millisecond)
				}
				time.Sleep(2 * time.Second)
				synctest.Wait()
				for i := range 10 {
					hold(most + i) // they keep coming
					began := time.Now()
					p := s.come("198.51.100.7")
					if code := say(p, "/endpoint/type/UDP/user/ann"); code != 200 || time.Since(began) > time.Second {
						t.Errorf("player %d: %d after %v", i, code, time.Since(began))
					}
					defer p.Close()
				}
				if n := figure("diarkis_listener_connections"); n > most {
					t.Errorf("%v connections are open, want at most %d", n, most)
				}
				if figure("diarkis_http_connections_dropped_total") == 0 {
					t.Error("nothing was counted")
				}
				if open(strangers[0]) {
					t.Error("the oldest stayed")
				}
				for _, k := range strangers {
					_ = k.Close()
				}
			})
		})
	}
}

// TestSlowBodyEnds: a byte a second holds a connection for the time that a whole
// request may take, and no longer.
func TestSlowBodyEnds(t *testing.T) {
	f := oneOfEach()
	served(t, f, httpapi.Limits{}, nil, func(s *street, figure func(...string) float64) {
		k := s.come(stranger(0))
		began := time.Now()
		if _, err := io.WriteString(k, "POST /endpoint/type/UDP/user/a HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				time.Sleep(time.Second)
				if _, err := io.WriteString(k, " "); err != nil {
					return
				}
			}
		}()
		res, err := http.ReadResponse(bufio.NewReader(k), nil)
		if err != nil || res.StatusCode != 400 || time.Since(began) > 6*time.Second {
			t.Errorf("answer %v, %v after %v, want 400 after 5 s", res, err, time.Since(began))
		}
		if _, err := k.Read(make([]byte, 1)); err == nil || time.Since(began) > 20*time.Second {
			t.Errorf("still open after %v: %v", time.Since(began), err)
		}
		_ = k.Close()
		time.Sleep(2 * time.Second) // for the writer to notice
		if len(f.asked) != 0 || figure("diarkis_listener_connections") != 0 {
			t.Errorf("%d nodes were asked, %v connections are open", len(f.asked), figure("diarkis_listener_connections"))
		}
	})
}

// TestNewcomersDoNotPushEachOtherOut: while strangers hold all connections idle and
// more come, who has just come and not yet sent a request is not the first to go.
func TestNewcomersDoNotPushEachOtherOut(t *testing.T) {
	served(t, oneOfEach(), httpapi.Limits{ConnectionsMax: 20}, nil, func(s *street, _ func(...string) float64) {
		var all []net.Conn
		for i := range 20 {
			k := s.come(stranger(i))
			all = append(all, k)
			say(k, "/healthcheck")
		}
		player := s.come("198.51.100.7")
		for i := range 15 {
			all = append(all, s.come(stranger(20+i)))
		}
		if code := say(player, "/endpoint/type/UDP/user/ann"); code != 200 {
			t.Errorf("the player got %d", code)
		}
		for _, k := range append(all, player) {
			_ = k.Close()
		}
	})
}

// TestConnectionsOfOneAddress: an address has its share, and past it pays itself: its own
// oldest connection goes, and nobody else's.
func TestConnectionsOfOneAddress(t *testing.T) {
	limits := httpapi.Limits{ConnectionsPerAddress: 5}
	change := func(c *httpapi.Config) {
		c.ExemptAddresses, c.TrustedProxies = prefixes("198.51.100.0/24"), prefixes("10.0.0.0/8")
	}
	served(t, oneOfEach(), limits, change, func(s *street, figure func(...string) float64) {
		other := s.come("203.0.113.200")
		var mine []net.Conn
		for i := range 12 {
			// Two addresses of a /64 are one.
			mine = append(mine, s.come(fmt.Sprintf("2001:db8::%x", i+1)))
		}
		synctest.Wait()
		left := 0
		for i, k := range mine {
			if open(k) {
				left++
				if i < 7 {
					t.Errorf("connection %d is older than one that went", i)
				}
			}
		}
		if left != 5 || !open(other) {
			t.Errorf("%d of 12 are open, and the bystander's: %v", left, open(other))
		}
		// What is closed gives its share back.
		for i := range 20 {
			k := s.come("192.0.2.50")
			if code := say(k, "/healthcheck"); code != 200 {
				t.Errorf("connection %d after another: %d", i, code)
			}
			_ = k.Close()
			synctest.Wait()
		}
		if n := figure("diarkis_http_connections_dropped_total"); n != 7 {
			t.Errorf("%v were counted", n)
		}
		for _, free := range []string{"127.0.0.1", "::1", "198.51.100.7", "10.1.1.1", "::ffff:10.1.1.1"} {
			var many []net.Conn
			for range 12 {
				many = append(many, s.come(free))
			}
			synctest.Wait()
			for _, k := range many {
				if !open(k) {
					t.Errorf("%s has a share", free)
				}
				_ = k.Close()
			}
		}
		for _, k := range append(mine, other) {
			_ = k.Close()
		}
	})
}

// TestAtWorkStays: a connection whose place is being made is not closed for a newcomer,
// which is turned away when all are.
func TestAtWorkStays(t *testing.T) {
	f := oneOfEach()
	f.dead = map[id.Node]bool{"10.0.0.1:8000": true}
	served(t, f, httpapi.Limits{ConnectionsMax: 4, ConnectionsPerAddress: 2}, nil, func(s *street, _ func(...string) float64) {
		var wg sync.WaitGroup
		for i := range 4 {
			k := s.come(stranger(i / 2))
			wg.Go(func() {
				if code := say(k, "/endpoint/type/UDP/user/ann"); code != 503 {
					t.Errorf("connection %d: %d, want its own answer", i, code)
				}
				_ = k.Close()
			})
		}
		synctest.Wait() // all wait for the node
		for _, addr := range []string{stranger(0), "198.51.100.7"} {
			k := s.come(addr)
			synctest.Wait()
			if open(k) {
				t.Errorf("%s got in though all are at work", addr)
			}
			_ = k.Close()
		}
		wg.Wait()
	})
}

// TestWhoHangsUpIsNoFailure: a client that goes away while its place is made must not look
// like a node that fails, which is an alert.
func TestWhoHangsUpIsNoFailure(t *testing.T) {
	f := oneOfEach()
	f.slow = 50 * time.Millisecond
	served(t, f, httpapi.Limits{}, nil, func(s *street, figure func(...string) float64) {
		k := s.come(stranger(0))
		if _, err := io.WriteString(k, "GET /endpoint/type/UDP/user/ann HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the node is being asked
		_ = k.Close()
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(f.asked); n != 1 {
			t.Errorf("%d nodes were asked", n)
		}
		if figure("diarkis_http_responses_total", "503") != 0 || figure("diarkis_http_reservations_total", "ok") != 1 {
			t.Error("it was counted as a failure of the node")
		}
	})
}

// TestSlowClientsBeforeIdleOnes: a phone that needs seconds for its request keeps its connection
// while there is one that asks for nothing, of its own address or of others.
func TestSlowClientsBeforeIdleOnes(t *testing.T) {
	for _, c := range []struct {
		name            string
		limits          httpapi.Limits
		idle, slow, new func(i int) string
	}{
		{"in all", httpapi.Limits{ConnectionsMax: 50}, stranger, func(int) string { return "198.51.100.7" }, func(int) string { return "198.51.100.8" }},
		{"of one address", httpapi.Limits{ConnectionsPerAddress: 50}, always, always, always},
	} {
		t.Run(c.name, func(t *testing.T) {
			served(t, oneOfEach(), c.limits, nil, func(s *street, figure func(...string) float64) {
				var all []net.Conn
				for i := range 50 {
					k := s.come(c.idle(i))
					if code := say(k, "/"); code != 404 {
						t.Fatalf("stranger %d: %d", i, code)
					}
					all = append(all, k)
				}
				for i := range 10 {
					phone := s.come(c.slow(i))
					time.Sleep(2500 * time.Millisecond)
					all = append(all, s.come(c.new(i)))
					synctest.Wait() // room has been made for it
					if code := say(phone, "/endpoint/type/UDP/user/ann"); code != 200 {
						t.Errorf("phone %d: %d", i, code)
					}
					all = append(all, phone)
				}
				for _, k := range all {
					_ = k.Close()
				}
			})
		})
	}
}

func always(int) string { return "203.0.113.1" }

// TestWhoHasMostPaysFirst: when there are too many connections in all, those of the address
// that has the most go, idle or silent, and not a bystander's that is older.
func TestWhoHasMostPaysFirst(t *testing.T) {
	for _, idle := range []bool{true, false} {
		served(t, oneOfEach(), httpapi.Limits{ConnectionsMax: 60}, nil, func(s *street, _ func(...string) float64) {
			come := func(from string) net.Conn {
				k := s.come(from)
				if idle {
					say(k, "/healthcheck")
				}
				time.Sleep(time.Millisecond)
				return k
			}
			var all, bystanders []net.Conn
			for i := range 20 {
				bystanders = append(bystanders, come(stranger(i)))
			}
			for range 40 {
				all = append(all, come("198.51.100.1"))
			}
			for i := range 20 {
				all = append(all, come(stranger(100+i)))
			}
			synctest.Wait()
			for i, k := range bystanders {
				if !open(k) {
					t.Errorf("idle %v: bystander %d was closed", idle, i)
				}
			}
			for i, k := range all[:40] {
				if open(k) != (i >= 20) {
					t.Errorf("idle %v: connection %d of the address that has most: open %v", idle, i, open(k))
				}
			}
			for _, k := range append(all, bystanders...) {
				_ = k.Close()
			}
		})
	}
}

// TestTooLargeIsHeard: the answer to a body that is too large ends the stream at once, on TCP,
// so that a client that still sends gets to read it.
func TestTooLargeIsHeard(t *testing.T) {
	reg := prometheus.NewRegistry()
	f := oneOfEach()
	s := httpapi.New(httpapi.Config{Log: zerolog.Nop(), Registerer: reg, Gatherer: reg}, f, f, func() error { return nil })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, finOnly{l}) }()
	defer func() { cancel(); <-ended }()
	k, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if _, err := io.WriteString(k, "POST /endpoint/type/UDP/user/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = k.SetReadDeadline(time.Now().Add(20 * time.Second))
	b, err := io.ReadAll(k)
	if err != nil || !bytes.HasPrefix(b, []byte("HTTP/1.1 413")) {
		t.Errorf("%.60q, %v, want 413 and the end of the stream", b, err)
	}
}

// finOnly accepts connections that tell their end by CloseWrite alone: Close leaves the
// other side waiting.
type finOnly struct{ net.Listener }

func (f finOnly) Accept() (net.Conn, error) {
	c, err := f.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return silentClose{c.(*net.TCPConn)}, nil
}

type silentClose struct{ *net.TCPConn }

func (c silentClose) Close() error { return nil }
