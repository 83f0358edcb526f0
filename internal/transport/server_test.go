package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Commands of the test handler.
const (
	cmdEcho  = 1 // answered with the same payload
	cmdKeep  = 2 // kept
	cmdClose = 3 // closes the connection with normal
)

// recorder is a Handler that keeps what it is told.
type recorder struct {
	mu     sync.Mutex
	log    []string
	kept   [][]byte
	conn   *Conn
	told   chan struct{} // 1 deep: something was told
	handle func(b *Batch, c *Conn, m wire.Message)
}

func newRecorder() *recorder { return &recorder{told: make(chan struct{}, 1)} }

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	r.log = append(r.log, fmt.Sprintf(format, args...))
	r.mu.Unlock()
	r.ring()
}

func (r *recorder) ring() {
	select {
	case r.told <- struct{}{}:
	default:
	}
}

func (r *recorder) Opened(_ *Batch, c *Conn, resumed bool) {
	r.mu.Lock()
	r.conn = c
	r.mu.Unlock()
	r.add("opened %s resumed=%v", c.Place().UID(), resumed)
}

func (r *recorder) Silent(p *Place, silent bool) {
	if silent {
		r.add("silent %s", p.UID())
	} else {
		r.add("heard %s", p.UID())
	}
}
func (r *recorder) Lost(p *Place) { r.add("lost %s", p.UID()) }

func (r *recorder) Ended(p *Place, code wire.CloseCode) { r.add("ended %s %v", p.UID(), code) }

func (r *recorder) Handle(b *Batch, c *Conn, m wire.Message, rel reliable.Reliability) {
	if r.handle != nil {
		r.handle(b, c, m)
	}
	switch m.Cmd {
	case cmdEcho:
		m.Kind, m.Status = wire.Response, 1
		if err := c.Send(b, m.AppendTo(nil), rel); err != nil {
			r.add("send: %v", err)
		}
	case cmdKeep:
		r.mu.Lock()
		r.kept = append(r.kept, bytes.Clone(m.Payload))
		r.mu.Unlock()
		r.ring()
	case cmdClose:
		_ = c.Send(b, wire.Message{Kind: wire.Push, Cmd: cmdClose}.AppendTo(nil), rel)
		c.Close(wire.CloseNormal, "asked")
	}
}

// wait waits until what was told satisfies done.
func (r *recorder) wait(t testing.TB, what string, done func(log []string) bool) {
	t.Helper()
	late := time.After(patience)
	for {
		r.mu.Lock()
		ok := done(r.log)
		log := append([]string(nil), r.log...)
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-r.told:
		case <-late:
			t.Fatalf("%s: not told; log %q", what, log)
		}
	}
}

// waitLog waits until exactly these things were told.
func (r *recorder) waitLog(t testing.TB, want ...string) {
	t.Helper()
	r.wait(t, fmt.Sprintf("%q", want), func(log []string) bool { return fmt.Sprint(log) == fmt.Sprint(want) })
}

func (r *recorder) last() *Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conn
}

// rig is a running server and its handler.
type rig struct {
	t    testing.TB
	srv  Server
	core *core
	addr netip.AddrPort
	h    *recorder
	reg  *prometheus.Registry
	stop func()
}

var protocols = []string{"UDP", "TCP"}

func start(t testing.TB, proto string, change func(*Config), h *recorder) *rig {
	t.Helper()
	if h == nil {
		h = newRecorder()
	}
	r := startHandler(t, proto, change, h)
	r.h = h
	return r
}

func startHandler(t testing.TB, proto string, change func(*Config), h Handler) *rig {
	t.Helper()
	cfg := Config{Address: "127.0.0.1", ClientKey: "key", Sockets: 3, ProbeKey: []byte("probe")}
	cfg.Limits.PacketsPerSec, cfg.Limits.BytesPerSec = -1, -1
	if change != nil {
		change(&cfg)
	}
	r := &rig{t: t, reg: prometheus.NewRegistry()}
	if proto == "UDP" {
		u, err := NewUDP(cfg, h, zerolog.Nop(), r.reg)
		if err != nil {
			t.Fatal(err)
		}
		r.srv, r.core = u, u.core
	} else {
		s, err := NewTCP(cfg, h, zerolog.Nop(), r.reg)
		if err != nil {
			t.Fatal(err)
		}
		r.srv, r.core = s, s.core
	}
	var err error
	if r.addr, err = r.srv.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.srv.Run(ctx) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(r.stop)
	return r
}

// reserve makes a place for uid and a client that knows its credentials.
func (r *rig) reserve(uid id.UID, change func(*Reservation)) *client {
	r.t.Helper()
	q := Reservation{Credentials: newCredentials(r.t), UID: uid}
	if change != nil {
		change(&q)
	}
	if _, err := r.srv.Places().Reserve(q); err != nil {
		r.t.Fatal(err)
	}
	return newClient(r.t, r.srv.Protocol(), q.Credentials)
}

// join reserves and connects.
func (r *rig) join(uid id.UID) *client {
	r.t.Helper()
	c := r.reserve(uid, nil)
	c.open(r.addr, false)
	return c
}

// figure returns a counter or gauge by its name and one label beside protocol.
func (r *rig) figure(name, label string) float64 {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "diarkis_transport_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			ok := label == ""
			for _, l := range m.GetLabel() {
				ok = ok || l.GetValue() == label
			}
			if ok {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

// requireFigure waits until a figure reaches a value.
func (r *rig) requireFigure(name, label string, want float64) {
	r.t.Helper()
	for end := time.Now().Add(patience); r.figure(name, label) < want; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%s{%s} = %v, want %v", name, label, r.figure(name, label), want)
		}
	}
}

func TestEcho(t *testing.T) {
	for _, proto := range protocols {
		for _, o := range []secure.ClientOptions{
			{Offer: secure.OfferOf(secure.ChaCha20Poly1305)}, {Offer: secure.OfferOf(secure.AES128GCM)}, {X25519: true},
		} {
			t.Run(fmt.Sprintf("%s %v", proto, o), func(t *testing.T) {
				r := start(t, proto, nil, nil)
				c := r.reserve("u", nil)
				o.Stream = proto == "TCP"
				c.options = o
				c.open(r.addr, false, request(cmdEcho, []byte("early")))
				c.pump("answer to early data", func() bool { return len(c.got) == 1 })
				c.send(cmdEcho, []byte("may be lost"), reliable.Unreliable)
				c.pump("unreliable answer", func() bool { return len(c.got) == 2 })
				big := bytes.Repeat([]byte("0123456789abcdef"), (1<<20-64)/16)
				c.send(cmdEcho, big, reliable.Reliable)
				c.pump("1 MiB answer", func() bool { return len(c.got) == 3 })
				if !bytes.Equal(c.got[2].Payload, big) || string(c.got[0].Payload) != "early" {
					t.Error("payload changed on the way")
				}
				if c.accept.IdleTimeout != 10*time.Second || c.accept.Draining || c.accept.Resumed ||
					time.Since(c.accept.ServerTime).Abs() > patience {
					t.Errorf("Accept = %+v", c.accept)
				}
				if n := r.srv.Connected(); n != 1 {
					t.Errorf("connected = %d, want 1", n)
				}
				if got := r.figure("handshakes_total", "opened"); got != 1 {
					t.Errorf("handshakes opened = %v, want 1", got)
				}
				stopped := make(chan struct{})
				go func() { defer close(stopped); r.stop() }()
				c.requireClose(wire.CloseShutdown)
				_ = c.socket.Close()
				<-stopped
				r.h.waitLog(t, "opened u resumed=false", "ended u shutdown")
			})
		}
	}
}

func TestLossLosesNothingReliable(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.reserve("u", nil)
	rng := rand.New(rand.NewPCG(1, 2))
	c.lose = func(bool) bool { return rng.IntN(10) == 0 }
	c.open(r.addr, false)
	const n = 100
	for i := range n {
		c.send(cmdEcho, counter(i), reliable.Reliable)
		c.pumpFor(2*time.Millisecond, func() bool { return false })
	}
	c.pump("all answers", func() bool { return len(c.got) == n })
	for i, m := range c.got {
		if !bytes.Equal(m.Payload, counter(i)) {
			t.Fatalf("answer %d is %x", i, m.Payload)
		}
	}
	r.requireFigure("retransmissions_total", "", 1)
}

func TestTakeover(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, nil, nil)
			old := r.join("u")
			again := newClient(t, proto, old.creds)
			again.open(r.addr, false)
			old.requireClose(wire.CloseReplaced)
			again.send(cmdEcho, []byte("x"), reliable.Reliable)
			again.pump("answer on the new connection", func() bool { return len(again.got) == 1 })
			r.h.waitLog(t, "opened u resumed=false", "opened u resumed=false")
			if n := r.srv.Connected(); n != 1 {
				t.Errorf("connected = %d, want 1", n)
			}
		})
	}
}

// Every message has to be handled once and in order although the client vanishes
// and comes back in the middle, with the old connection still alive or not.
func TestResume(t *testing.T) {
	for _, proto := range protocols {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s lost=%v", proto, lost), func(t *testing.T) {
				r := start(t, proto, func(c *Config) { c.IdleTimeout = 300 * time.Millisecond }, nil)
				c := r.join("u")
				for i := range 20 {
					c.send(cmdEcho, counter(i), reliable.Reliable)
				}
				c.pump("some answers", func() bool { return len(c.got) >= 5 })
				for i := range 20 {
					c.send(cmdEcho, counter(20+i), reliable.Reliable) // not flushed: nobody hears
				}
				want := []string{"opened u resumed=false", "opened u resumed=true"}
				if lost {
					want = []string{want[0], "lost u", want[1]}
					if proto == "TCP" {
						_ = c.socket.Close()
					}
					r.h.wait(t, "lost", func(log []string) bool { return len(log) == 2 })
				}
				c.open(r.addr, true)
				if !c.accept.Resumed {
					t.Fatal("not resumed")
				}
				for i := range 20 {
					c.send(cmdEcho, counter(40+i), reliable.Reliable)
				}
				c.pump("all answers", func() bool { return len(c.got) == 60 })
				for i, m := range c.got {
					if !bytes.Equal(m.Payload, counter(i)) {
						t.Fatalf("answer %d is %x", i, m.Payload)
					}
				}
				r.h.waitLog(t, want...)
			})
		}
	}
}

func TestLostPlaceEnds(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, func(c *Config) {
				c.IdleTimeout, c.ResumeTTL = 100*time.Millisecond, 100*time.Millisecond
			}, nil)
			c := r.join("u")
			c.requireClose(wire.CloseIdle)
			r.h.waitLog(t, "opened u resumed=false", "lost u", "ended u idle")
			if r.srv.Places().Get(c.creds.SID) != nil {
				t.Error("place is still there")
			}
		})
	}
}

func TestReservationExpiresAndCancels(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.reserve("slow", func(q *Reservation) { q.TTL = 20 * time.Millisecond })
	r.h.waitLog(t, "ended slow idle")
	ps := r.srv.Places()
	if ps.Get(c.creds.SID) != nil {
		t.Error("expired place is still there")
	}
	c = r.reserve("gone", nil)
	if _, err := ps.Reserve(Reservation{Credentials: c.creds}); !errors.Is(err, ErrPlaceExists) {
		t.Errorf("second reservation = %v, want ErrPlaceExists", err)
	}
	if !ps.Cancel(c.creds.SID) || ps.Cancel(c.creds.SID) {
		t.Error("Cancel must be true once")
	}
	c = r.join("here")
	if ps.Cancel(c.creds.SID) {
		t.Error("cancelled a place that was opened")
	}
	if reserved, connected, lost := ps.Counts(); reserved != 0 || connected != 1 || lost != 0 {
		t.Errorf("Counts = %d, %d, %d", reserved, connected, lost)
	}
	if !ps.End(c.creds.SID, wire.CloseKicked, "out") || ps.End(c.creds.SID, wire.CloseKicked, "out") {
		t.Error("End must be true once")
	}
	c.requireClose(wire.CloseKicked)
	r.h.waitLog(t, "ended slow idle", "opened here resumed=false", "ended here kicked")
}

func TestPlacesAreBounded(t *testing.T) {
	r := start(t, "UDP", func(c *Config) { c.PlacesMax = 2 }, nil)
	r.reserve("a", nil)
	r.reserve("b", nil)
	if _, err := r.srv.Places().Reserve(Reservation{Credentials: newCredentials(t)}); !errors.Is(err, ErrPlacesFull) {
		t.Errorf("third reservation = %v, want ErrPlacesFull", err)
	}
}

func TestClientCloses(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, nil, nil)
			c := r.join("u")
			pkt := wire.Close{Code: wire.CloseNormal}.AppendTo(c.sealer.Begin(nil))
			c.write(c.sealer.Finish(time.Now(), pkt, 0))
			r.h.waitLog(t, "opened u resumed=false", "ended u normal")
		})
	}
}

// A connection that ended without a CLOSE is not counted as one that ended with it.
func TestEndsWithoutCloseAreCountedAsWhatTheyAre(t *testing.T) {
	for _, proto := range protocols {
		r := start(t, proto, nil, nil)
		r.srv.Places().Released(r.join("u").creds.SID)
		r.requireFigure("connections_closed_total", "moved", 1)
		if proto == "TCP" {
			_ = r.join("v").socket.Close()
			r.requireFigure("connections_closed_total", "lost", 1)
		}
		if n := r.figure("connections_closed_total", "normal") + r.figure("connections_closed_total", "idle"); n != 0 {
			t.Errorf("%s: %v counted as closed with normal or idle", proto, n)
		}
	}
}

func TestHandlerCloses(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, nil, nil)
			c := r.join("u")
			c.send(cmdClose, nil, reliable.Reliable)
			c.send(cmdKeep, nil, reliable.Reliable)
			c.requireClose(wire.CloseNormal)
			if len(c.got) != 1 {
				t.Errorf("%d messages before the CLOSE, want the one sent before it", len(c.got))
			}
			r.h.waitLog(t, "opened u resumed=false", "ended u normal")
			if err := r.h.last().Send(nil, request(1, nil), reliable.Reliable); !errors.Is(err, ErrClosed) {
				t.Errorf("Send on a closed connection = %v, want ErrClosed", err)
			}
			if len(r.h.kept) != 0 {
				t.Error("a message behind the close was handled")
			}
		})
	}
}

func TestOfflineAndDrain(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, nil, nil)
			c := r.join("u")
			r.srv.SetState(StateOffline)
			r.srv.Offline(wire.OfflineShutdown)
			c.pump("offline", func() bool { return c.away == wire.OfflineShutdown })
			late := r.join("v")
			if !late.accept.Draining {
				t.Error("Accept of a draining node does not say so")
			}
		})
	}
}

func TestProbe(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, nil, nil)
			r.srv.SetState(StateTaken)
			nonce := wire.Nonce{1, 2, 3}
			c := newClient(t, proto, secure.Credentials{})
			c.dial(r.addr)
			reply := c.exchange(secure.AppendProbe(nil, []byte("probe"), nonce), wire.PacketProbeReply)
			if st, ok := secure.CheckProbeReply([]byte("probe"), reply, nonce); !ok || st != wire.ProbeTaken {
				t.Errorf("reply = %v, %v; want taken", st, ok)
			}
			c.dial(r.addr)
			c.write(secure.AppendProbe(nil, []byte("guess"), nonce))
			r.requireFigure("packets_dropped_total", "probe", 1)
		})
	}
}

func TestSendIntervalCollects(t *testing.T) {
	r := start(t, "UDP", func(c *Config) { c.SendInterval = 50 * time.Millisecond }, nil)
	c := r.join("u")
	r.h.waitLog(t, "opened u resumed=false")
	before := r.figure("packets_out_total", "")
	for i := range 50 {
		if err := r.h.last().Send(nil, request(1, counter(i)), reliable.Unreliable); err != nil {
			t.Fatal(err)
		}
	}
	c.pump("all messages", func() bool { return len(c.got) == 50 })
	if n := r.figure("packets_out_total", "") - before; n > 10 {
		t.Errorf("50 messages went out in %v packets", n)
	}
	c.send(cmdEcho, nil, reliable.Reliable)
	c.pump("answer", func() bool { return len(c.got) == 51 })
}

// A client on TCP that sends too much at once is read slowly, and all of it is read.
func TestTCPReadsWhatWaited(t *testing.T) {
	r := start(t, "TCP", func(c *Config) { c.Limits.PacketsPerSec, c.Limits.PacketsBurst = 20, 4 }, nil)
	c := r.join("u")
	for i := range 12 {
		c.send(cmdKeep, counter(i), reliable.Reliable)
		c.flush() // a record each
	}
	// From here on the client says nothing: only what was read already is left.
	r.h.wait(t, "12 messages", func([]string) bool { return len(r.h.kept) == 12 })
}
