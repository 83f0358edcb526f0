package mesh

import (
	"bufio"
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
)

// BenchmarkRequest64 is 100-byte requests with 64 in flight between two nodes.
func BenchmarkRequest64(b *testing.B) { benchmarkRequest(b, 64) }

// BenchmarkRequest1 is the same with one in flight: the round trip.
func BenchmarkRequest1(b *testing.B) { benchmarkRequest(b, 1) }

func benchmarkRequest(b *testing.B, inFlight int) {
	server := start(b, testConfig(b), map[uint16]Handler{cmdEcho: echo})
	client := start(b, testConfig(b), nil)
	payload := bytes.Repeat([]byte{1}, 100)
	ctx := b.Context()
	to := server.Self().Node
	if _, err := client.Request(ctx, to, cmdEcho, payload); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range inFlight {
		n := b.N / inFlight
		if i < b.N%inFlight {
			n++
		}
		wg.Go(func() {
			for range n {
				if _, err := client.Request(ctx, to, cmdEcho, payload); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
}

// BenchmarkSend is 100-byte one-way messages from one goroutine, until all are handled.
func BenchmarkSend(b *testing.B) {
	done := make(chan struct{})
	left := b.N
	server := start(b, testConfig(b), map[uint16]Handler{cmdEcho: func(context.Context, Peer, []byte) ([]byte, error) {
		if left--; left == 0 {
			close(done)
		}
		return nil, nil
	}})
	client := start(b, testConfig(b), map[uint16]Handler{})
	payload := bytes.Repeat([]byte{1}, 100)
	b.ReportAllocs()
	b.ResetTimer()
	ctx := b.Context()
	for range b.N {
		if err := client.Send(ctx, server.Self().Node, cmdEcho, payload); err != nil {
			b.Fatal(err)
		}
	}
	<-done
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

// BenchmarkBareStream1 and BenchmarkBareStream64 are what the stream below
// costs: callers share one bare QUIC stream to a server that echoes bytes, without
// handlers, deadlines or metrics. They are the limit for BenchmarkRequest.
func BenchmarkBareStream1(b *testing.B)  { benchmarkBare(b, 1) }
func BenchmarkBareStream64(b *testing.B) { benchmarkBare(b, 64) }

func benchmarkBare(b *testing.B, inFlight int) {
	server, client := start(b, testConfig(b), nil), start(b, testConfig(b), nil)
	listener := bareListener(b, server)
	qc, err := client.transport.Dial(b.Context(), listener.Addr(), client.clientTLS, client.quicConfig)
	if err != nil {
		b.Fatal(err)
	}
	defer qc.CloseWithError(closeNormal, "")
	s, err := qc.OpenStreamSync(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	w := newWriter(s, func(error) {})
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(b.Context())
	wg.Go(func() { w.run(ctx) })
	answers := make([]chan []byte, inFlight)
	for i := range answers {
		answers[i] = make(chan []byte, 1)
	}
	wg.Go(func() {
		in := bufio.NewReaderSize(s, InlineMax)
		for {
			h, payload, err := readFrame(in, InlineMax)
			if err != nil {
				return
			}
			answers[h.id] <- payload
		}
	})
	b.ReportAllocs()
	b.ResetTimer()
	var callers sync.WaitGroup
	for i := range inFlight {
		callers.Go(func() {
			payload := bytes.Repeat([]byte{1}, 100)
			for range b.N / inFlight {
				_ = w.write(ctx, time.Time{}, urgency(inFlight == 1), header{size: 100, kind: kindRequest, id: uint64(i)}, payload)
				<-answers[i]
			}
		})
	}
	callers.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
	cancel()
	_ = qc.CloseWithError(closeNormal, "")
	wg.Wait()
}

// bareListener echoes whatever comes on the first stream of each connection.
func bareListener(b *testing.B, m *Mesh) *quic.Listener {
	l, err := quic.ListenAddr("127.0.0.1:0", m.serverTLS, m.quicConfig)
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			qc, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			wg.Go(func() {
				s, err := qc.AcceptStream(context.Background())
				if err != nil {
					return
				}
				buf := make([]byte, 64<<10)
				for {
					n, err := s.Read(buf)
					if err != nil {
						return
					}
					if _, err := s.Write(buf[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	b.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return l
}
