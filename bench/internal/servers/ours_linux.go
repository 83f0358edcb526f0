package servers

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/bench/internal/dx1"
	"github.com/Diarkis/diarkis/bench/internal/harness"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// echoer answers every request with its payload, and makes no garbage.
type echoer struct{ buf []byte }

func (e *echoer) Opened(*transport.Batch, *transport.Conn, bool) {}
func (e *echoer) Silent(*transport.Place, bool)                  {}
func (e *echoer) Lost(*transport.Place)                          {}
func (e *echoer) Ended(*transport.Place, wire.CloseCode)         {}

func (e *echoer) Handle(b *transport.Batch, c *transport.Conn, m wire.Message, rel reliable.Reliability) {
	m.Kind, m.Status = wire.Response, 1
	e.buf = m.AppendTo(e.buf[:0])
	_ = c.Send(b, e.buf, rel) // a lost echo shows at the client
}

// transportConfig lifts the limits that keep one client from asking so much.
func transportConfig(a serverArgs) transport.Config {
	const unlimited = -1
	return transport.Config{
		Address: "127.0.0.1", IdleTimeout: a.Idle, ReserveTTL: time.Hour, PlacesMax: max(a.Places, 1),
		Limits: transport.Limits{
			UnauthenticatedPerSec: unlimited, HelloPerSec: unlimited, AddressPerSec: unlimited,
			PacketsPerSec: unlimited, BytesPerSec: unlimited,
		},
	}
}

// runOurEcho is our UDP server with an echo for a handler.
func runOurEcho(l *harness.Link) error {
	var a serverArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	srv, err := transport.NewUDP(transportConfig(a), &echoer{}, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	addr, err := srv.Listen()
	if err != nil {
		return err
	}
	before := answer(askMemory)
	for i := range a.Places {
		if _, err := srv.Places().Reserve(transport.Reservation{Credentials: dx1.Credentials(i), UID: uid(i)}); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	err = serve(l, addr, before)
	cancel()
	if err != nil {
		return err
	}
	return <-done
}

func uid(i int) id.UID { return id.UID(fmt.Sprint("user", i)) }

// connected makes clients of our echo server and connects them.
func connected(a loadArgs) (*dx1.Swarm, error) {
	s, err := dx1.Dial(a.Server, a.Clients)
	if err != nil {
		return nil, err
	}
	s.X25519 = a.X25519
	if _, err := s.Connect(context.Background(), func(int) {}); err != nil {
		return nil, fmt.Errorf("connect %d clients: %w", a.Clients, err)
	}
	return s, nil
}
