package transport

import (
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// BenchmarkJunk is what a datagram costs that gets no answer, system calls apart.
func BenchmarkJunk(b *testing.B) {
	creds, err := secure.NewCredentials(zeros{})
	if err != nil {
		b.Fatal(err)
	}
	hs, err := secure.NewClient(creds, "", secure.ClientOptions{}, zeros{})
	if err != nil {
		b.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		pkt  []byte
	}{
		{"unknown type", []byte{0x77, 1, 2, 3}},
		{"unknown connection", append([]byte{0x40}, make([]byte, 60)...)},
		{"hello of no place", flipped(hs.Hello(), 5)},
		{"hello with a bad mac", flipped(hs.Hello(), 250)},
		{"hello over its limit", hs.Hello()},
		{"probe with another key", secure.AppendProbe(nil, []byte("guess"), wire.Nonce{1})},
	} {
		b.Run(tc.name, func(b *testing.B) {
			cfg := Config{ProbeKey: []byte("probe"), Limits: Limits{UnauthenticatedPerSec: -1}}
			u, err := NewUDP(cfg, newRecorder(), zerolog.Nop(), prometheus.NewRegistry())
			if err != nil {
				b.Fatal(err)
			}
			if _, err := u.places.Reserve(Reservation{Credentials: creds}); err != nil {
				b.Fatal(err)
			}
			r := &udpReader{core: u.core, shard: u.core.shards[0], batch: u.NewBatch()}
			src, now := netip.MustParseAddrPort("192.0.2.1:4000"), time.Now()
			b.ReportAllocs()
			for b.Loop() {
				if err := r.datagram(now, tc.pkt, src); err != nil {
					u.m.drop(err)
				}
				r.batch.out, r.batch.slab = r.batch.out[:0], r.batch.slab[:0]
			}
		})
	}
}
