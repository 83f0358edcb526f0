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
