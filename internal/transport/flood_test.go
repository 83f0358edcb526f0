package transport

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport/record"
	"github.com/Diarkis/diarkis/internal/wire"
)

// floodFor is how long the flood lasts: DIARKIS_FLOOD=10s for the full one.
func floodFor(t *testing.T) time.Duration {
	s := os.Getenv("DIARKIS_FLOOD")
	if s == "" {
		return 2 * time.Second
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("DIARKIS_FLOOD: %v", err)
	}
	return d
}

// What the flood consists of.
const (
	floodSources = 128
	floodJunk    = 50_000 // a second
	floodHellos  = 5_000  // a second
	floodTick    = 4 * time.Millisecond
)

// flood is an attacker with many addresses, who also holds the credentials of a place.
type flood struct {
	sockets []net.Conn
	own     secure.Credentials
	hello   []byte // of the own place, good
	confirm []byte // of the own place, accepted before
	sent    atomic.Int64
}

func newFlood(t *testing.T, r *rig) *flood {
	c := r.join("attacker")
	f := &flood{own: c.creds, hello: c.hello, confirm: c.confirm}
	for i := range floodSources {
		f.sockets = append(f.sockets, dialFrom(t, "udp", fmt.Sprintf("127.7.%d.%d", i/16, 1+i%16), r.addr))
	}
	return f
}

// junk is a datagram that means nothing.
func (f *flood) junk(dice *rand.Rand, buf []byte) []byte {
	pkt := buf[:1+dice.IntN(cap(buf)-1)]
	for i := 0; i < min(len(pkt), 24); i++ {
		pkt[i] = byte(dice.Uint32())
	}
	pkt[0] = []byte{0x00, 0x02, 0x04, 0x05, 0x40, 0x41, 0x77}[dice.IntN(7)]
	return pkt
}

// handshake is a packet that looks like one of a handshake.
func (f *flood) handshake(dice *rand.Rand, buf []byte) []byte {
	pkt := append(buf[:0], f.hello...)
	switch dice.IntN(5) {
	case 0: // of no place
		pkt[5] ^= byte(1 + dice.IntN(255))
	case 1: // of a place, not by its user
		pkt[wire.HelloMacOffset] ^= byte(1 + dice.IntN(255))
	case 2: // of a place, by who may: replayed, and charged
	case 3:
		pkt = append(buf[:0], f.confirm...)
	case 4:
		pkt = append(buf[:0], f.confirm...)
		pkt[len(pkt)-1-dice.IntN(100)] ^= 1
	}
	return pkt
}

// run sends at the given rates until ctx ends, or as fast as this machine can.
func (f *flood) run(ctx context.Context, seed uint64) {
	dice := rand.New(rand.NewPCG(seed, 1))
	buf := make([]byte, 0, 1200)
	tick := time.NewTicker(floodTick)
	defer tick.Stop()
	owed := 0.0
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			owed = min(owed+now.Sub(last).Seconds()*(floodJunk+floodHellos), (floodJunk+floodHellos)/10)
			last = now
		}
		for ; owed >= 1 && ctx.Err() == nil; owed-- {
			pkt := []byte(nil)
			if dice.IntN(floodJunk+floodHellos) < floodHellos {
				pkt = f.handshake(dice, buf)
			} else {
				pkt = f.junk(dice, buf)
			}
			_, _ = f.sockets[dice.IntN(len(f.sockets))].Write(pkt) // an ICMP error is no news
			f.sent.Add(1)
		}
	}
}

// honest shakes hands again and again, each time as another user at another address,
// and returns how long each took.
func honest(t *testing.T, r *rig, name string, until func(n int) bool) (took []time.Duration) {
	t.Helper()
	pace := time.NewTicker(10 * time.Millisecond) // what they leave behind is not to hide what the flood does
	defer pace.Stop()
	for n := 0; !until(n); n++ {
		<-pace.C
		c := r.reserve(id.UID(fmt.Sprint(name, n)), nil)
		c.socket = dialFrom(t, "udp", fmt.Sprintf("127.8.%d.%d", n/200%200, 1+n%200), r.addr)
		c.records = record.NewReader(c.socket)
		start := time.Now()
		if !c.tryHandshake(false) {
			t.Fatalf("no answer to handshake %d", n)
		}
		took = append(took, time.Since(start))
		_ = c.socket.Close()
		r.srv.Places().Released(c.creds.SID)
	}
	return took
}

// echoes measures plain datagrams there and back, past our server: what this machine
// has left for anybody.
func echoes(t *testing.T, ctx context.Context) func() []time.Duration {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 64)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buf[:n], from)
		}
	})
	var took []time.Duration
	wg.Go(func() {
		defer func() { _ = server.Close() }()
		buf := make([]byte, 64)
		for ctx.Err() == nil {
			start := time.Now()
			_, _ = client.Write([]byte("x"))
			_ = client.SetReadDeadline(start.Add(time.Second))
			_, _ = client.Read(buf)
			took = append(took, time.Since(start))
			<-time.After(10 * time.Millisecond)
		}
		_ = client.Close()
	})
	return func() []time.Duration { wg.Wait(); return took }
}

// percentile sorts took.
func percentile(took []time.Duration, p float64) time.Duration {
	slices.Sort(took)
	return took[min(int(p*float64(len(took))), len(took)-1)]
}

// While tens of thousands of packets a second come that nobody asked for, those who
// hold credentials get in, and nothing grows.
func TestFlood(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const patient = 500 * time.Millisecond
	r := startHandler(t, "UDP", func(c *Config) { c.Sockets = 0 }, &echoer{})
	f := newFlood(t, r)
	calm := honest(t, r, "calm", func(n int) bool { return n >= 50 })
	base := percentile(calm, 0.99)
	before := heapNow()

	d := floodFor(t)
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	echoed := echoes(t, ctx)
	var wg sync.WaitGroup
	start := time.Now()
	wg.Go(func() { f.run(ctx, 1) })
	took := honest(t, r, "honest", func(n int) bool { return ctx.Err() != nil && n > 0 })
	wg.Wait()
	rate := float64(f.sent.Load()) / time.Since(start).Seconds()
	plain := percentile(echoed(), 0.99)
	grown := heapNow() - before
	kernel := r.figure("packets_dropped_total", string(dropKernel))
	p50, p99 := percentile(took, 0.5), percentile(took, 0.99)
	t.Logf("%v of %.0f packets/s: %d handshakes, p50 %v, p99 %v; without it p99 %v; plain echo during it p99 %v; heap %+d KiB; kernel dropped %v",
		d, rate, len(took), p50, p99, base, plain, grown>>10, kernel)
	if arrived := r.figure("packets_in_total", "") + kernel; arrived < 0.9*float64(f.sent.Load()) {
		t.Errorf("only %v of %d packets arrived", arrived, f.sent.Load())
	}

	if grown > 5<<20 {
		t.Errorf("the heap grew by %d KiB, want at most 5 MiB", grown>>10)
	}
	// On a machine that has nothing left for anybody, ask only that we add little.
	if allowed := max(patient, 20*max(base, plain)); p99 > allowed {
		t.Errorf("p99 of honest handshakes is %v, want at most %v", p99, allowed)
	}
	if n := r.figure("packets_dropped_total", string(dropProcess)); n != 0 {
		t.Errorf("%v handshake packets were over the limit of the process", n)
	}
}
