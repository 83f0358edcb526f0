package transport

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport/record"
	"github.com/Diarkis/diarkis/internal/wire"
)

// dialFrom opens a connection from one of the many addresses of the loopback
// interface, where the system lets us.
func dialFrom(t testing.TB, network, from string, to fmt.Stringer) net.Conn {
	t.Helper()
	ip := net.ParseIP(from)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: ip}}
	if network == "udp" {
		d.LocalAddr = &net.UDPAddr{IP: ip}
	}
	s, err := d.Dial(network, to.String())
	if err != nil {
		t.Skipf("no socket from %s here: %v", from, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// joinFrom is join from another address.
func (r *rig) joinFrom(from string, uid id.UID) *client {
	r.t.Helper()
	c := r.reserve(uid, nil)
	c.socket = dialFrom(r.t, "tcp", from, r.addr)
	c.records, c.eof = record.NewReader(c.socket), false
	if !c.tryHandshake(false) {
		r.t.Fatalf("no answer to the handshake of %s from %s", uid, from)
	}
	return c
}

// strangersHello is a record with a Hello, of no place here.
func strangersHello() []byte {
	rec := append(make([]byte, record.PrefixBytes), (&wire.Hello{Offer: 3, CID0: wire.CID{1}}).AppendTo(nil)...)
	record.PutLength(rec)
	return rec
}

// dribble sends the bytes one by one until the connection ends, and returns then.
func dribble(s net.Conn, bytes []byte, every time.Duration) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, s)
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-gone:
			return
		case <-tick.C:
			if i < len(bytes) {
				_, _ = s.Write(bytes[i : i+1])
			}
		}
	}
}

func (r *rig) requireNoSlotTaken() {
	r.t.Helper()
	for end := time.Now().Add(patience); r.slotsTaken() > 0; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%d handshake slots are not given back", r.slotsTaken())
		}
	}
}

func (r *rig) slotsTaken() int {
	s := r.srv.(*TCP).slots
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total.len()
}

// Clients that send a byte now and then get no more time than the handshake has, and
// nobody waits for them.
func TestDribbledHandshakesEnd(t *testing.T) {
	const timeout = time.Second
	r := start(t, "TCP", func(c *Config) { c.HandshakeTimeout = timeout; c.Limits.AddressPerSec = -1 }, nil)
	const n = 200
	var wg sync.WaitGroup
	for i := range n {
		s := dialFrom(t, "tcp", fmt.Sprintf("127.0.1.%d", 1+i%10), r.addr)
		wg.Go(func() { dribble(s, strangersHello(), timeout/20) })
	}
	for i := range 10 {
		c := r.join(id.UID(fmt.Sprint("honest", i)))
		c.send(cmdEcho, nil, reliable.Reliable)
		c.pump("answer", func() bool { return len(c.got) == 1 })
	}
	wg.Wait() // until the server hung up on every one of them
	r.requireFigure("packets_dropped_total", string(dropTimeout), n)
	r.requireNoSlotTaken()
}

// One address gets its share of the handshakes and no more, so others get in.
func TestOneAddressCannotTakeAllHandshakes(t *testing.T) {
	r := start(t, "TCP", func(c *Config) {
		c.HandshakeTimeout = time.Minute // they stay as long as we want
		c.Limits.HandshakesMax, c.Limits.HandshakesPerAddress = 24, 16
	}, nil)
	const n = 100
	var sockets []net.Conn
	for range n {
		sockets = append(sockets, dialFrom(t, "tcp", "127.0.1.1", r.addr))
	}
	r.requireFigure("packets_dropped_total", string(dropShare), n-16)
	for i := range 20 {
		c := r.joinFrom(fmt.Sprintf("127.0.2.%d", 1+i), id.UID(fmt.Sprint("honest", i)))
		c.send(cmdEcho, nil, reliable.Reliable)
		c.pump("answer", func() bool { return len(c.got) == 1 })
	}
	if got := r.slotsTaken(); got != 16 {
		t.Errorf("%d handshakes are under way, want the 16 of one address", got)
	}
	r.joinFrom("127.0.1.1", "one of them") // who speaks gets in
	for _, s := range sockets {
		_ = s.Close()
	}
	r.requireNoSlotTaken()
	r.joinFrom("127.0.1.1", "afterwards") // the share is free again
	if got := r.figure("packets_dropped_total", string(dropSlot)); got != 0 {
		t.Errorf("%v connections went for want of a slot: one address took those of the others", got)
	}
}

// A connection in its handshake costs a goroutine and a small buffer.
func TestHalfHandshakesAreSmall(t *testing.T) {
	r := start(t, "TCP", func(c *Config) { c.HandshakeTimeout = time.Minute; c.Limits.HandshakesPerAddress = -1 }, nil)
	const n = 500
	sockets := make([]net.Conn, n)
	half := strangersHello()[:200]
	before := heapNow()
	for i := range sockets {
		s, err := net.Dial("tcp", r.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		sockets[i] = s
		_, _ = s.Write(half)
	}
	for end := time.Now().Add(patience); r.slotsTaken() < n; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d handshakes began", r.slotsTaken(), n)
		}
	}
	each := (heapNow() - before) / n
	t.Logf("%d bytes a half handshake, its test client's socket included", each)
	if each > 16<<10 {
		t.Errorf("half a handshake costs %d bytes, want at most 16 KiB", each)
	}
	for _, s := range sockets {
		_ = s.Close()
	}
	r.requireNoSlotTaken()
	runtime.KeepAlive(sockets)
}

// Half a record opens nothing, so it keeps no connection alive, and its buffer is no
// larger than the record may be.
func TestDribbledRecordsAreIdle(t *testing.T) {
	const idle = 300 * time.Millisecond
	r := start(t, "TCP", func(c *Config) { c.IdleTimeout = idle; c.Limits.AddressPerSec = -1 }, nil)
	const n = 40
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = r.reserve(id.UID(fmt.Sprint("u", i)), nil)
	}
	before := heapNow()
	var wg sync.WaitGroup
	for _, c := range clients {
		c.open(r.addr, false)
		long := make([]byte, r.core.cfg.MaxRecord-100)
		record.PutLength(long)
		_, _ = c.socket.Write(long[:4000])
		wg.Go(func() { dribble(c.socket, long[4000:], idle/10) })
	}
	each := (heapNow() - before) / n
	t.Logf("%d bytes a connection with half a record, its test client included", each)
	if each > 64<<10 {
		t.Errorf("half a record costs %d bytes, want at most 64 KiB", each)
	}
	wg.Wait()
	for end := time.Now().Add(patience); r.figure("connections_closed_total", "idle") < n; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%v of %d connections are over", r.figure("connections_closed_total", "idle"), n)
		}
	}
}

// Clients that stop reading are let go of when their queue is full, or nothing was
// taken for WriteTimeout, and hold no more until then than the protocol lets them.
func TestClientsThatStopReading(t *testing.T) {
	r := start(t, "TCP", func(c *Config) {
		c.WriteTimeout, c.ResumeTTL = 300*time.Millisecond, 100*time.Millisecond
		c.Limits.AddressPerSec = -1
	}, nil)
	const n = 8
	for i := range n {
		r.join(id.UID(fmt.Sprint("u", i))) // and never reads again
	}
	honest := r.join("honest")
	r.h.wait(t, "all opened", func(log []string) bool { return len(log) == n+1 })
	// Odd users get reliable messages, which wait to be acknowledged, even ones others.
	msg := wire.Message{Kind: wire.Push, Ver: 2, Payload: make([]byte, 4000)}.AppendTo(nil)
	before := heapNow()
	var most int64
	for round, open := 0, true; open; round++ {
		open = false
		r.srv.Places().Each(func(p *Place) bool {
			c := p.Conn()
			if c == nil || p.UID() == "honest" {
				return true
			}
			open = true
			for range 50 {
				_ = c.Send(nil, msg, reliable.Reliability(p.UID()[1]&1)) // refused, in the end
			}
			return true
		})
		if round%4 == 3 {
			most = max(most, heapNow()-before)
		}
		if round > 1000 { // 200 MB to each
			t.Fatal("clients that read nothing are not let go of")
		}
	}
	t.Logf("%d KiB at most for each of %d clients that read nothing", most/n>>10, n)
	if most/n > 3<<20 {
		t.Errorf("a client that reads nothing costs %d KiB, want at most 3 MiB", most/n>>10)
	}
	honest.send(cmdEcho, nil, reliable.Reliable)
	honest.pump("answer to who reads", func() bool { return len(honest.got) == 1 })
	for i := range n {
		uid := fmt.Sprint("u", i)
		code := map[int]string{0: "idle", 1: "slow"}[i&1] // a write that takes too long leaves the user time to come back
		r.h.wait(t, uid+" ends", func(log []string) bool { return slices.Contains(log, "ended "+uid+" "+code) })
	}
}
