package transport

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// echoer answers every request with its payload, and makes no garbage.
type echoer struct{ buf []byte }

func (e *echoer) Opened(*Batch, *Conn, bool)       {}
func (e *echoer) Silent(*Place, bool)              {}
func (e *echoer) Lost(*Place)                      {}
func (e *echoer) Ended(p *Place, _ wire.CloseCode) {}

func (e *echoer) Handle(b *Batch, c *Conn, m wire.Message, rel reliable.Reliability) {
	m.Kind, m.Status = wire.Response, 1
	e.buf = m.AppendTo(e.buf[:0])
	_ = c.Send(b, e.buf, rel) // a failed echo shows at the client
}

// startFast starts an echo server without limits.
func startFast(t testing.TB, proto string) *rig {
	t.Helper()
	return startHandler(t, proto, func(c *Config) {
		c.Limits = Limits{HelloPerSec: -1, AddressPerSec: -1, PacketsPerSec: -1, BytesPerSec: -1, UnauthenticatedPerSec: -1}
		c.Sockets = 1
		c.IdleTimeout = time.Hour
	}, &echoer{})
}

// pinger echoes without making garbage of its own.
type pinger struct {
	*client
	msg     []byte
	out, in []byte
}

func newPinger(c *client, size int) *pinger {
	return &pinger{client: c, msg: request(cmdEcho, make([]byte, size)), out: make([]byte, 0, 2048), in: make([]byte, 2048)}
}

// post sends one request.
func (p *pinger) post(now time.Time, rel reliable.Reliability) error {
	if err := p.machine.Send(now, p.msg, rel); err != nil {
		return err
	}
	return p.drain(now)
}

func (p *pinger) drain(now time.Time) error {
	for {
		pkt := p.sealer.Begin(p.out[:0])
		head := len(pkt)
		pkt = p.machine.Append(now, p.sealer.NextPN(), pkt, reliable.PacketMin)
		if len(pkt) == head {
			return nil
		}
		if _, err := p.socket.Write(p.sealer.Finish(now, pkt, 0)); err != nil {
			return err
		}
	}
}

// next waits for one packet and returns how many messages it brought.
func (p *pinger) next() (int, error) {
	n, err := p.socket.Read(p.in)
	if err != nil {
		return 0, err
	}
	now := time.Now()
	pn, frames, err := p.opener.Open(now, p.in[:n])
	if err != nil {
		return 0, err
	}
	if err := p.machine.Receive(now, pn, frames, &p.rx); err != nil {
		return 0, err
	}
	return len(p.rx.Messages), nil
}

// echo sends one request and waits for its answer.
func (p *pinger) echo(rel reliable.Reliability) error {
	if err := p.post(time.Now(), rel); err != nil {
		return err
	}
	for {
		if n, err := p.next(); n > 0 || err != nil {
			return err
		}
	}
}

func TestEchoMakesNoGarbage(t *testing.T) {
	for _, rel := range []reliable.Reliability{reliable.Unreliable, reliable.Reliable} {
		t.Run(fmt.Sprint(rel), func(t *testing.T) {
			r := startFast(t, "UDP")
			c := r.join("u")
			_ = c.socket.SetDeadline(time.Now().Add(patience))
			p := newPinger(c, 64)
			// A run is a hundred echoes, so that one is told from 0.01.
			got := testing.AllocsPerRun(20, func() {
				for range 100 {
					if err := p.echo(rel); err != nil {
						t.Fatal(err)
					}
				}
			})
			if got > garbageMax {
				t.Errorf("100 echoes make %v allocations, want at most %d", got, garbageMax)
			}
		})
	}
}

func heapNow() int64 {
	runtime.GC()
	runtime.GC() // sync.Pool keeps things for one more
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

func TestReservedPlaceIsSmall(t *testing.T) {
	r := startFast(t, "UDP")
	const n = 20_000
	reservations := make([]Reservation, n)
	for i := range reservations {
		reservations[i] = Reservation{Credentials: newCredentials(t), UID: "u"}
	}
	before := heapNow()
	for _, q := range reservations {
		if _, err := r.srv.Places().Reserve(q); err != nil {
			t.Fatal(err)
		}
	}
	each := (heapNow() - before) / n
	t.Logf("%d bytes a place", each)
	if each > 320 {
		t.Errorf("a reserved place costs %d bytes, want at most 320", each)
	}
	runtime.KeepAlive(reservations)
}

// idleConns opens n connections that exchange one message each and then idle, and
// returns what each costs the server: the clients are let go of.
func idleConns(t testing.TB, proto string, n int) int64 {
	r := startFast(t, proto)
	sockets := make([]*client, n)
	for i := range sockets {
		sockets[i] = r.reserve(id.UID(fmt.Sprint("u", i)), nil)
		if proto == "UDP" { // on TCP a socket is one at the server too
			sockets[i].dial(r.addr)
		}
	}
	before := heapNow()
	for _, c := range sockets {
		if proto != "UDP" {
			c.dial(r.addr)
		}
		if !c.tryHandshake(false) {
			t.Fatal("no answer to the handshake")
		}
		c.send(cmdEcho, []byte("x"), reliable.Reliable)
		c.pump("answer", func() bool { return len(c.got) == 1 })
	}
	for i, c := range sockets {
		c.pump("acknowledged", func() bool { return !r.core.places.Get(c.creds.SID).Conn().busy() })
		sockets[i] = &client{socket: c.socket}
	}
	later, batch := time.Now().Add(time.Minute), r.srv.NewBatch()
	for _, c := range r.core.live() { // what the first PING after a while does
		c.tick(later, batch)
		c.mu.Lock()
		c.trimLocked(later)
		c.mu.Unlock()
	}
	each := (heapNow() - before) / int64(n)
	runtime.KeepAlive(sockets)
	return each
}

// busy says that reliable messages are still under way.
func (c *Conn) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.machine.Unacked()
}

func TestIdleConnIsSmall(t *testing.T) {
	each := idleConns(t, "UDP", 300)
	t.Logf("%d bytes a connection", each)
	if each > 4096 {
		t.Errorf("an idle connection costs %d bytes, want at most 4096", each)
	}
}

func BenchmarkIdleConn(b *testing.B) {
	for _, proto := range protocols {
		b.Run(proto, func(b *testing.B) {
			for b.Loop() {
				b.ReportMetric(float64(idleConns(b, proto, 1000)), "B/conn")
			}
		})
	}
}

func BenchmarkUDPEcho(b *testing.B) {
	for _, size := range []int{64, 1100} {
		for _, window := range []int{1, 64} {
			b.Run(fmt.Sprintf("size=%d/window=%d", size, window), func(b *testing.B) {
				r := startFast(b, "UDP")
				p := newPinger(r.join("u"), size)
				_ = p.socket.SetDeadline(time.Now().Add(time.Minute))
				b.ReportAllocs()
				open, answered := 0, 0
				for b.Loop() { // once a message: a packet may bring several
					for ; open < window; open++ {
						if err := p.post(time.Now(), reliable.Unreliable); err != nil {
							b.Fatal(err)
						}
					}
					for answered == 0 {
						n, err := p.next()
						if err != nil {
							b.Fatal(err)
						}
						answered += n
					}
					answered--
					open--
				}
			})
		}
	}
}

func BenchmarkHandshake(b *testing.B) {
	for _, x := range []bool{false, true} {
		b.Run(fmt.Sprintf("x25519=%v", x), func(b *testing.B) {
			r := startFast(b, "UDP")
			c := r.reserve("u", nil)
			c.options.X25519 = x
			c.dial(r.addr)
			for b.Loop() {
				if !c.tryHandshake(false) {
					b.Fatal("no answer")
				}
			}
		})
	}
}

// BenchmarkUDPCrowd is an echo for each of many connections, one in flight on each.
func BenchmarkUDPCrowd(b *testing.B) {
	const conns = 128
	for _, rel := range []reliable.Reliability{reliable.Unreliable, reliable.Reliable} {
		b.Run(fmt.Sprint("rel=", rel), func(b *testing.B) {
			r := startFast(b, "UDP")
			all := make([]*pinger, conns)
			for i := range all {
				c := r.join(id.UID(fmt.Sprint("u", i)))
				_ = c.socket.SetDeadline(time.Now().Add(time.Hour))
				all[i] = newPinger(c, 64)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += conns {
				for _, p := range all {
					if err := p.post(time.Now(), rel); err != nil {
						b.Fatal(err)
					}
				}
				for _, p := range all {
					for got := 0; got == 0; {
						n, err := p.next()
						if err != nil {
							b.Fatal(err)
						}
						got = n
					}
				}
			}
		})
	}
}
