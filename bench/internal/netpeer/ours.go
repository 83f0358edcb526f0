package netpeer

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/bench/internal/netsim"
	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	// oursAhead is how many such messages the server sends before the client said that
	// it has the first: more than any window of ours.
	oursAhead = 4
	oursVer   = 2
	oursCmd   = 1
)

// Ours is our client and our UDP server, encrypted and reliable. The limits on what
// a client may send are off: they are meant for strangers.
func Ours(ctx context.Context, n netsim.Hosts, o Options) (Link, error) {
	out := &link{}
	s := &oursServer{options: o, opened: make(chan *transport.Conn, 1), room: make(chan struct{}, oursAhead)}
	endpoint, err := s.start(n, out)
	if err != nil {
		return out.failed(err)
	}
	options := client.Options{Dial: n.Client.Dial}
	var c *client.Client
	options.OnPush = func(p client.Push) {
		o.Arrived(p.Payload)
		if o.Size == 0 {
			_ = c.Send(oursVer, oursCmd, nil, client.Reliable) // makes room at the server
		}
	}
	if c, err = client.New(options); err != nil {
		return out.failed(err)
	}
	if err := c.Dial(ctx, endpoint); err != nil {
		return out.failed(err)
	}
	out.onClose(func() error {
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		return c.Close(gone) // without waiting for what is under way
	})
	var conn *transport.Conn
	select {
	case conn = <-s.opened:
	case <-ctx.Done():
		return out.failed(context.Cause(ctx))
	}
	out.send = func(b []byte) error { return c.Send(oursVer, oursCmd, b, client.Reliable) }
	if o.Down {
		out.send = func(b []byte) error { return s.push(conn, c.Done(), b) }
	}
	return out, nil
}

// oursServer is the handler of our server.
type oursServer struct {
	options Options
	opened  chan *transport.Conn
	room    chan struct{} // a token for every message of a bulk transfer under way
}

// start runs a server on the network and reserves the place of a client.
func (s *oursServer) start(n netsim.Hosts, out *link) (client.Endpoint, error) {
	server, err := transport.NewUDP(transport.Config{
		Address: n.Server.Addr().String(), Port: int(s.options.Port),
		Limits: transport.Limits{
			HelloPerSec: -1, AddressPerSec: -1, PacketsPerSec: -1, BytesPerSec: -1, UnauthenticatedPerSec: -1,
			QueueBytes: oursAhead * wire.MessageMax,
		},
	}, s, zerolog.Nop(), prometheus.NewRegistry())
	if err != nil {
		return client.Endpoint{}, err
	}
	var addr netip.AddrPort
	err = n.Server.Do(func() (err error) {
		addr, err = server.Listen()
		return err
	})
	if err != nil {
		return client.Endpoint{}, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	out.onClose(func() error {
		cancel()
		return <-ended
	})
	creds, err := secure.NewCredentials(rand.Reader)
	if err != nil {
		return client.Endpoint{}, err
	}
	if _, err := server.Places().Reserve(transport.Reservation{Credentials: creds, UID: "ann"}); err != nil {
		return client.Endpoint{}, err
	}
	return client.Endpoint{
		SID: creds.SID.Hex(), EncryptionKey: fmt.Sprintf("%x", creds.Key), EncryptionIV: fmt.Sprintf("%x", creds.IV),
		EncryptionMacKey: fmt.Sprintf("%x", creds.Mac), ServerType: "UDP", ServerHost: addr.Addr().String(), ServerPort: addr.Port(),
	}, nil
}

// push sends to the client; in bulk it waits for room.
func (s *oursServer) push(c *transport.Conn, done <-chan struct{}, b []byte) error {
	if s.options.Size == 0 {
		select {
		case s.room <- struct{}{}:
		case <-done:
			return errEnded
		}
	}
	m := wire.Message{Kind: wire.Push, Ver: oursVer, Cmd: oursCmd, Payload: b}
	return c.Send(nil, m.AppendTo(nil), reliable.Reliable)
}

// Opened is of transport.Handler.
func (s *oursServer) Opened(_ *transport.Batch, c *transport.Conn, _ bool) {
	select {
	case s.opened <- c:
	default: // it came back: the figures tell
	}
}

// Handle is of transport.Handler.
func (s *oursServer) Handle(_ *transport.Batch, _ *transport.Conn, m wire.Message, _ reliable.Reliability) {
	switch {
	case !s.options.Down:
		s.options.Arrived(m.Payload)
	case s.options.Size == 0:
		<-s.room // there is one: the client answers what was sent
	}
}

// Lost is of transport.Handler.
func (s *oursServer) Silent(*transport.Place, bool) {}

func (s *oursServer) Lost(*transport.Place) {}

// Ended is of transport.Handler.
func (s *oursServer) Ended(*transport.Place, wire.CloseCode) {}
