package client_test

import (
	"testing"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

func BenchmarkSend(b *testing.B) {
	n := start(b, clienttest.Options{Handle: func(*clienttest.Conn, wire.Message, reliable.Reliability) {}})
	c, _ := dial(b, n, client.Options{})
	payload := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Send(2, 1, payload, client.Unreliable); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	n := start(b, clienttest.Options{})
	c, _ := dial(b, n, client.Options{})
	payload := make([]byte, 64)
	ctx := within(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Request(ctx, 2, 1, payload); err != nil {
			b.Fatal(err)
		}
	}
}
