package transport

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/path"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// zeros is a source of credentials that a fuzzer can reach.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Whatever comes in a datagram, nothing answers more than it got but the holder
// of credentials, and nothing panics.
func FuzzDatagram(f *testing.F) {
	creds, err := secure.NewCredentials(zeros{})
	if err != nil {
		f.Fatal(err)
	}
	hs, err := secure.NewClient(creds, "", secure.ClientOptions{}, zeros{})
	if err != nil {
		f.Fatal(err)
	}
	src := netip.MustParseAddrPort("192.0.2.1:4000")
	f.Add(hs.Hello())
	f.Add(secure.AppendProbe(nil, []byte("probe"), wire.Nonce{1}))
	f.Add(append([]byte{0x40}, make([]byte, 40)...))
	f.Add(append([]byte{0x03, 1}, make([]byte, 120)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := NewUDP(Config{ProbeKey: []byte("probe")}, newRecorder(), zerolog.Nop(), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.places.Reserve(Reservation{Credentials: creds}); err != nil {
			t.Fatal(err)
		}
		r := &udpReader{core: u.core, shard: u.core.shards[0], batch: u.NewBatch()}
		dropped := r.datagram(time.Now(), b, src)
		if (dropped == nil) != (len(r.batch.out) == 1) {
			t.Errorf("dropped as %v with %d answers", dropped, len(r.batch.out))
		}
		if len(r.batch.slab) > len(b) {
			t.Errorf("%d bytes were answered with %d", len(b), len(r.batch.slab))
		}
	})
}

// conversation is a server and a client's keys without sockets: datagrams go in by
// hand, and what would go out is counted by address.
type conversation struct {
	t        *testing.T
	u        *UDP
	r        *udpReader
	now      time.Time
	in, out  map[netip.AddrPort]int
	answered []byte // the last packet that went out
	known    [][]byte
	sealer   *secure.Sealer
}

// at is where datagrams of the good client come from, elsewhere where others do.
var at, elsewhere = netip.MustParseAddrPort("192.0.2.1:4000"), netip.MustParseAddrPort("192.0.2.2:4000")

func newConversation(t *testing.T, creds secure.Credentials) *conversation {
	u, err := NewUDP(Config{Sockets: 1, ProbeKey: []byte("probe"), Limits: Limits{TableSize: 64}}, newRecorder(), zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.places.Reserve(Reservation{Credentials: creds}); err != nil {
		t.Fatal(err)
	}
	v := &conversation{t: t, u: u, now: time.Now(), in: map[netip.AddrPort]int{}, out: map[netip.AddrPort]int{}}
	v.r = &udpReader{core: u.core, shard: u.core.shards[0], batch: u.NewBatch()}
	v.r.batch.reader = true
	hs, err := secure.NewClient(creds, "", secure.ClientOptions{}, zeros{})
	if err != nil {
		t.Fatal(err)
	}
	v.datagram(hs.Hello(), at)
	confirm, err := hs.Challenge(v.answered, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	v.datagram(confirm, at)
	if _, v.sealer, _, err = hs.Accept(v.now, v.answered); err != nil {
		t.Fatal(err)
	}
	v.known = [][]byte{hs.Hello(), confirm, secure.AppendProbe(nil, []byte("probe"), wire.Nonce{1})}
	return v
}

// datagram is one round of the reader.
func (v *conversation) datagram(pkt []byte, src netip.AddrPort) {
	v.in[src] += len(pkt)
	_ = v.r.datagram(v.now, slices.Clone(pkt), src)
	b := v.r.batch
	for i, c := range b.conns {
		b.conns[i] = nil
		for b.collect(c, v.now) {
			v.sent()
		}
	}
	b.conns = b.conns[:0]
	v.sent()
}

func (v *conversation) sent() {
	b := v.r.batch
	for _, o := range b.out {
		v.out[o.Addr] += o.To - o.From
		v.answered = slices.Clone(b.slab[o.From:o.To])
	}
	b.out, b.slab = b.out[:0], b.slab[:0]
}

// pass lets time go by and fires the timers of the connections.
func (v *conversation) pass(d time.Duration) {
	v.now = v.now.Add(d)
	for _, c := range v.u.core.live() {
		c.tick(v.now, v.r.batch)
		if c.batch == v.r.batch {
			v.r.batch.collect(c, v.now)
		}
	}
	v.r.batch.conns = v.r.batch.conns[:0]
	v.sent()
}

// FuzzConversation has a live connection and everything that went over it spoiled
// and sent again, from its client's address and another. Input is three bytes a step:
// which packet and what to do with it, where, and with what.
func FuzzConversation(f *testing.F) {
	creds, err := secure.NewCredentials(zeros{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{0, 0, 0, 1, 20, 1, 2, 0, 0, 3, 9, 3, 4, 0, 9, 0x83, 13, 5})
	f.Add([]byte{5, 3, 0, 5, 5, 1, 0x85, 5, 1, 6, 200, 0, 0x86, 250, 0, 3, 0, 0})
	f.Add([]byte{4, 0x22, 0, 3, 0, 0, 0x83, 0, 0, 6, 10, 0, 3, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		v := newConversation(t, creds)
		for ; len(b) >= 3; b = b[3:] {
			src := at
			if b[0]&0x80 != 0 {
				src = elsewhere
			}
			v.step(b[0]&0x7f, b[1], b[2], src)
			if v.out[elsewhere] > path.Amplification*v.in[elsewhere] { // nobody can answer a challenge there
				t.Fatalf("%d bytes were answered with %d", v.in[elsewhere], v.out[elsewhere])
			}
		}
	})
}

// step sends one packet, or lets time pass.
func (v *conversation) step(what, x, y byte, src netip.AddrPort) {
	seal := func(frames []byte) []byte {
		return v.sealer.Finish(v.now, append(v.sealer.Begin(nil), frames...), 0)
	}
	switch n := len(v.known); what % 7 {
	case 0, 1, 2: // a packet that was sent before, with a byte changed
		pkt := slices.Clone(v.known[int(what)/7%n])
		pkt[int(x)%len(pkt)] ^= y
		v.datagram(pkt, src)
	case 3: // a good one
		v.known = append(v.known, seal(wire.AppendPing(nil, uint64(x))))
		v.datagram(v.known[n], src)
	case 4: // one of two bytes of frames, whatever they are
		v.datagram(seal([]byte{x, y}), src)
	case 5: // a fragment, whole, cut, late or twice
		v.datagram(seal(wire.AppendReliable(nil, x>>4, uint64(x&15), y&1 != 0, y&2 != 0, request(cmdEcho, nil)[:1+y>>3%4])), src)
	case 6:
		v.pass(time.Duration(x) * time.Duration(y) * time.Millisecond)
	}
}
