package client_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// pourer is a node that answers with as many bytes as it is asked for.
type pourer struct{ out []byte }

func (*pourer) Opened(*transport.Batch, *transport.Conn, bool) {}
func (*pourer) Lost(*transport.Place)                          {}
func (*pourer) Ended(*transport.Place, wire.CloseCode)         {}
func (*pourer) Silent(*transport.Place, bool)                  {}

func (p *pourer) Handle(b *transport.Batch, c *transport.Conn, m wire.Message, rel reliable.Reliability) {
	m.Kind, m.Status = wire.Response, 1
	m.Payload = make([]byte, binary.BigEndian.Uint32(m.Payload))
	p.out = m.AppendTo(p.out[:0])
	_ = c.Send(b, p.out, rel) // a failure shows at the client
}

// bulkNode starts a pourer that may have 4 MiB waiting, without rate limits.
func bulkNode(t testing.TB, addr string) *real {
	r := &real{}
	var err error
	cfg := transport.Config{Address: addr}
	cfg.Limits.QueueBytes, cfg.Limits.PacketsPerSec, cfg.Limits.BytesPerSec = 4<<20, -1, -1
	r.srv, err = transport.NewUDP(cfg, &pourer{}, zerolog.Nop(), prometheus.NewRegistry())
	if err == nil {
		r.addr, err = r.srv.Listen()
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.srv.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return r
}

// pour has the node send total bytes in messages of size, at most window of them
// asked for at a time, and returns how long that took and how many bytes a datagram had.
func pour(t testing.TB, r *real, total, size, window int) (took time.Duration, each uint64) {
	got := make(chan int, 1024)
	e, _ := r.reserve(t)
	c, err := client.Dial(context.Background(), e, client.Options{
		OnResponse:   func(m client.Response) { got <- len(m.Payload) },
		OnDisconnect: func(d client.Disconnect) { t.Errorf("disconnect %+v", d); close(got) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer shut(c)
	start := time.Now()
	ask := binary.BigEndian.AppendUint32(nil, uint32(size))
	asked := 0
	request := func() {
		if asked < total {
			asked += size
			if err := c.Send(2, 1, ask, client.Reliable); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range window {
		request()
	}
	for n := 0; n < total; {
		k, ok := <-got
		if !ok {
			t.Fatal("disconnected")
		}
		n += k
		request()
	}
	stats := c.Stats()
	return time.Since(start), stats.BytesReceived / stats.PacketsReceived
}

func TestLongMessages(t *testing.T) {
	r := bulkNode(t, "127.0.0.1")
	const most = 1<<20 - 16 // with the message's header
	took, each := pour(t, r, 8*most, most, 3)
	if took > patience || each <= wire.DatagramBytesMin {
		t.Errorf("8 MiB took %v in datagrams of %d bytes on average", took, each)
	}
}

func BenchmarkBulk(b *testing.B) {
	r := bulkNode(b, netip.IPv4Unspecified().String())
	for b.Loop() {
		const total = 16 << 20
		took, _ := pour(b, r, total, 64<<10, 48)
		b.ReportMetric(total*8/1e6/took.Seconds(), "Mbit/s")
	}
}
