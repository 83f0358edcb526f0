package dx1

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// mirror answers requests the way they came, and tells who ended and how.
type mirror struct{ ended chan wire.CloseCode }

func (m mirror) Opened(*transport.Batch, *transport.Conn, bool) {}
func (m mirror) Silent(*transport.Place, bool)                  {}
func (m mirror) Lost(*transport.Place)                          {}
func (m mirror) Ended(_ *transport.Place, code wire.CloseCode)  { m.ended <- code }
func (m mirror) Handle(b *transport.Batch, c *transport.Conn, msg wire.Message, _ reliable.Reliability) {
	msg.Kind, msg.Status = wire.Response, 1
	_ = c.Send(b, msg.AppendTo(nil), reliable.Reliability(msg.Cmd))
}

// start starts a server with n places.
func start(t *testing.T, n int) (netip.AddrPort, mirror) {
	t.Helper()
	m := mirror{make(chan wire.CloseCode, n)}
	cfg := transport.Config{Address: "127.0.0.1", Limits: transport.Limits{AddressPerSec: -1, PacketsPerSec: -1, BytesPerSec: -1}}
	srv, err := transport.NewUDP(cfg, m, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	addr, err := srv.Listen()
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		r := transport.Reservation{Credentials: Credentials(i), UID: id.UID(fmt.Sprint(i))}
		if _, err := srv.Places().Reserve(r); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return addr, m
}

// collect takes packets until enough messages came, and returns the last of each
// client.
func collect(t *testing.T, s *Swarm, enough int) map[int]string {
	t.Helper()
	got := map[int]string{}
	for messages := 0; messages < enough; {
		n, err := s.Socket.Receive(10 * time.Second)
		if n == 0 || err != nil {
			t.Fatalf("%d of %d messages came: %v", messages, enough, err)
		}
		for i := range n {
			client, pkt := s.Socket.At(i)
			k, err := s.Clients[client].Take(time.Now(), pkt)
			if err != nil {
				t.Fatal(err)
			}
			if messages += k; k > 0 {
				m, err := wire.ParseMessage(s.Clients[client].Last)
				if err != nil {
					t.Fatal(err)
				}
				got[client] = string(m.Payload)
			}
		}
	}
	return got
}

func TestSwarmSpeaksTheProtocol(t *testing.T) {
	const n = 100
	for _, x25519 := range []bool{false, true} {
		t.Run(fmt.Sprintf("x25519=%v", x25519), func(t *testing.T) {
			addr, m := start(t, n)
			s, err := Dial(addr, n)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Socket.Close()
			s.X25519 = x25519
			opened := 0
			if done, err := s.Connect(t.Context(), func(int) { opened++ }); err != nil || done != n || opened != n {
				t.Fatalf("connected %d, told of %d, want %d: %v", done, opened, n, err)
			}
			for _, rel := range []reliable.Reliability{reliable.Unreliable, reliable.Reliable} {
				for client := range n {
					msg := wire.Message{Kind: wire.Request, Cmd: uint16(rel), Payload: fmt.Append(nil, client)}.AppendTo(nil)
					s.Socket.Queue(client, s.Clients[client].Message(time.Now(), s.Socket.Room(), msg))
				}
				s.Socket.Flush()
				for client, payload := range collect(t, s, n) {
					if payload != fmt.Sprint(client) {
						t.Errorf("client %d got %q", client, payload)
					}
				}
			}
			for client := range n {
				s.Socket.Queue(client, s.Clients[client].Close(time.Now(), s.Socket.Room()))
			}
			s.Socket.Flush()
			for range n {
				select {
				case code := <-m.ended:
					if code != wire.CloseNormal {
						t.Errorf("ended with %v", code)
					}
				case <-time.After(10 * time.Second):
					t.Fatal("not all places ended")
				}
			}
		})
	}
}

func TestEverySecondPacketIsOwed(t *testing.T) {
	addr, _ := start(t, 1)
	s, err := Dial(addr, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Socket.Close()
	if _, err := s.Connect(t.Context(), func(int) {}); err != nil {
		t.Fatal(err)
	}
	c := &s.Clients[0]
	msg := wire.Message{Kind: wire.Request}.AppendTo(nil)
	for i := range 4 {
		if c.Owes() {
			s.Socket.Queue(0, c.Ack(time.Now(), s.Socket.Room()))
		}
		// Two requests in a packet would be answered in one: they leave one by one.
		s.Socket.Queue(0, c.sealer.Finish(time.Now(), wire.AppendMessage(c.sealer.Begin(s.Socket.Room()), msg), 0))
		s.Socket.Flush()
		collect(t, s, 1)
		if got, want := c.Owes(), i%2 == 1; got != want {
			t.Errorf("after %d packets: owes %v, want %v", i+1, got, want)
		}
	}
}

// A server leaves out one packet number in a thousand, about, and closes who acknowledges it.
func TestNumbersThatDidNotComeAreNotAcknowledged(t *testing.T) {
	addr, _ := start(t, 1)
	s, err := Dial(addr, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Socket.Close()
	if _, err := s.Connect(t.Context(), func(int) {}); err != nil {
		t.Fatal(err)
	}
	c := &s.Clients[0]
	msg := wire.Message{Kind: wire.Request}.AppendTo(nil)
	for range 10_000 {
		if c.Owes() {
			s.Socket.Queue(0, c.Ack(time.Now(), s.Socket.Room()))
		}
		s.Socket.Queue(0, c.sealer.Finish(time.Now(), wire.AppendMessage(c.sealer.Begin(s.Socket.Room()), msg), 0))
		s.Socket.Flush()
		collect(t, s, 1) // fails when the server closes
	}
}
