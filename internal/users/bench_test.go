package users

import (
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/transport"
)

// BenchmarkReserve is a stranger's request on a node whose share of unopened places is
// full, so that each cancels the oldest.
func BenchmarkReserve(b *testing.B) {
	reg := prometheus.NewRegistry()
	r, err := New(Config{
		Self:      mars.Instance{Node: "127.0.0.1:1", Role: "udp", Type: "UDP"},
		Directory: func() *mars.Directory { return mars.NewDirectory(1) },
		Endpoint:  func() string { return "192.0.2.7:7100" },
	}, &fakeMesh{newNetwork(), "127.0.0.1:1"}, zerolog.Nop(), reg)
	if err != nil {
		b.Fatal(err)
	}
	srv, err := transport.NewUDP(transport.Config{Address: "127.0.0.1"}, r, zerolog.Nop(), reg)
	if err != nil {
		b.Fatal(err)
	}
	r.Bind(srv)
	r.SetState(mars.Online)
	uids := make([]id.UID, 100_000)
	for i := range uids {
		uids[i] = id.UID(fmt.Sprint("stranger", i))
	}
	before, i := heapAlloc(), 0
	reserve := func() {
		if p, err := r.Reserve(ReserveRequest{UID: uids[i%len(uids)]}); err != nil || p.Refused != Accepted {
			b.Fatal(p.Refused, err)
		}
		i++
	}
	for range r.cfg.ReservationsMax {
		reserve()
	}
	each := float64(heapAlloc()-before) / float64(r.cfg.ReservationsMax)
	b.ReportAllocs()
	for b.Loop() {
		reserve()
	}
	b.ReportMetric(each, "B/place")
}
