package transport

import (
	"errors"
	"testing"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// The longest unreliable messages are those that docs/protocol.md tells, and they arrive.
func TestLongestUnreliableMessage(t *testing.T) {
	for _, tc := range []struct {
		proto   string
		in, out int // from the client, and from the server
	}{
		{"UDP", 1168, 1176},
		{"TCP", 7965, 7973},
	} {
		t.Run(tc.proto, func(t *testing.T) {
			r := start(t, tc.proto, nil, nil)
			c := r.join("u")
			r.h.waitLog(t, "opened u resumed=false")
			const header = 4
			msg := func(n int) []byte { return request(cmdKeep, make([]byte, n-header)) }
			if err := r.h.last().Send(nil, msg(tc.out), reliable.Unreliable); err != nil {
				t.Fatal(err)
			}
			c.pump("the longest", func() bool { return len(c.got) == 1 })
			if err := r.h.last().Send(nil, msg(tc.out+1), reliable.Unreliable); !errors.Is(err, reliable.ErrTooLarge) {
				t.Errorf("one byte more: %v", err)
			}
			room := wire.DatagramBytesMin
			if tc.proto == "TCP" {
				room = int(c.accept.MaxDatagram) - 3
			}
			pkt := wire.AppendMessage(c.sealer.Begin(nil), msg(tc.in))
			pkt = c.sealer.Finish(c.accept.ServerTime, pkt, 0)
			if len(pkt) != room {
				t.Errorf("a packet with %d bytes of message has %d, want %d", tc.in, len(pkt), room)
			}
			c.write(pkt)
			r.h.wait(t, "the longest of a client", func([]string) bool { return len(r.h.kept) == 1 })
		})
	}
}

// Over TCP a fragment may be as long as a record holds beside it.
func TestLongestFragmentOnTCP(t *testing.T) {
	r := start(t, "TCP", nil, nil)
	c := r.join("u")
	long := request(cmdKeep, make([]byte, int(c.accept.MaxDatagram)-3-c.sealer.Overhead()-6-4))
	pkt := wire.AppendReliable(c.sealer.Begin(nil), 0, 0, true, true, long)
	pkt = c.sealer.Finish(c.accept.ServerTime, pkt, 0)
	if len(pkt)+3 != int(c.accept.MaxDatagram) {
		t.Errorf("a record of %d bytes, want the longest", len(pkt)+3)
	}
	c.write(pkt)
	r.h.wait(t, "the longest fragment", func([]string) bool { return len(r.h.kept) == 1 })
}
