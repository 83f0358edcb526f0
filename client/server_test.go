package client_test

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// real is a node's transport, as it is deployed, that echoes.
type real struct {
	srv  transport.Server
	addr netip.AddrPort
	tcp  bool
}

func (*real) Opened(*transport.Batch, *transport.Conn, bool) {}
func (*real) Lost(*transport.Place)                          {}
func (*real) Ended(*transport.Place, wire.CloseCode)         {}
func (*real) Silent(*transport.Place, bool)                  {}

// Handle echoes in the order of the numbers that come, see counter.
func (*real) Handle(b *transport.Batch, c *transport.Conn, m wire.Message, rel reliable.Reliability) {
	if n := c.Place().Owner().(*uint32); binary.BigEndian.Uint32(m.Payload) == *n {
		*n++
		m.Status = 1
	} else {
		m.Status = 4
	}
	m.Kind = wire.Response
	_ = c.Send(b, m.AppendTo(nil), rel)
}

func startReal(t *testing.T, tcp bool, cfg transport.Config) *real {
	t.Helper()
	r := &real{tcp: tcp}
	cfg.Address = "127.0.0.1"
	var err error
	if tcp {
		r.srv, err = transport.NewTCP(cfg, r, zerolog.Nop(), prometheus.NewRegistry())
	} else {
		r.srv, err = transport.NewUDP(cfg, r, zerolog.Nop(), prometheus.NewRegistry())
	}
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

// reserve makes a place whose owner counts the requests.
func (r *real) reserve(t testing.TB) (client.Endpoint, id.SID) {
	t.Helper()
	creds, err := secure.NewCredentials(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.srv.Places().Reserve(transport.Reservation{Credentials: creds, UID: "ann", Owner: new(uint32)}); err != nil {
		t.Fatal(err)
	}
	return client.Endpoint{
		SID: creds.SID.Hex(), EncryptionKey: fmt.Sprintf("%x", creds.Key[:]), EncryptionIV: fmt.Sprintf("%x", creds.IV[:]),
		EncryptionMacKey: fmt.Sprintf("%x", creds.Mac[:]), ServerType: strings.ToUpper(r.srv.Protocol()),
		ServerHost: r.addr.Addr().String(), ServerPort: r.addr.Port(),
	}, creds.SID
}

func (r *real) dial(t *testing.T, o client.Options) (*client.Client, id.SID) {
	t.Helper()
	e, sid := r.reserve(t)
	c, err := client.Dial(within(t), e, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(c) })
	return c, sid
}

// moveTo carries a user to another node as internal/users does.
func (r *real) moveTo(t *testing.T, sid id.SID, to *real, deadline time.Duration, arrives bool) {
	t.Helper()
	places := r.srv.Places()
	state, err := places.Freeze(within(t), sid)
	if err != nil {
		t.Fatal(err)
	}
	p := places.Get(sid)
	release := func(context.Context) error {
		if !arrives {
			return fmt.Errorf("not yours: %w", transport.ErrRevoked)
		}
		places.Released(sid)
		return nil
	}
	_, err = to.srv.Places().Reserve(transport.Reservation{
		Credentials: p.Credentials(), UID: p.UID(), Owner: p.Owner(), State: state, Release: release,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := places.Move(sid, wire.Move{Deadline: deadline, Host: to.addr.Addr().String(), Port: to.addr.Port()}); err != nil {
		t.Fatal(err)
	}
}

func TestRealServerAtItsLimits(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		r := startReal(t, tcp, transport.Config{})
		c, _ := r.dial(t, client.Options{OnDisconnect: func(d client.Disconnect) { t.Errorf("disconnect %+v", d) }})
		for from := uint32(0); from < 1500; from += 500 {
			take(t, "answers", ask(t, c, from, from+500))
		}
		if err := c.Close(within(t)); err != nil {
			t.Error(err)
		}
	})
}

func TestRealServerMoves(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		nodes := [2]*real{startReal(t, tcp, transport.Config{}), startReal(t, tcp, transport.Config{})}
		o, w := watch(client.Options{})
		c, sid := nodes[0].dial(t, o)
		at := uint32(0)
		for i := range 4 {
			done := ask(t, c, at, at+100)
			at += 100
			nodes[i%2].moveTo(t, sid, nodes[(i+1)%2], 10*time.Second, true)
			if addr := take(t, "move", w.moves); addr != nodes[(i+1)%2].addr.String() {
				t.Errorf("moved to %s", addr)
			}
			take(t, "answers", done)
		}
		if len(w.reconnects)+len(w.disconnects) != 0 {
			t.Error("a move cost a connection")
		}
	})
}

func TestRealServerTakesTheUserBack(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		first, second := startReal(t, tcp, transport.Config{}), startReal(t, tcp, transport.Config{})
		o, w := watch(client.Options{})
		c, sid := first.dial(t, o)
		take(t, "answers", ask(t, c, 0, 20))
		first.moveTo(t, sid, second, 300*time.Millisecond, false)
		done := ask(t, c, 20, 60)
		first.srv.Places().Thaw(sid)
		take(t, "answers", done)
		if c.Addr() != first.addr.String() || len(w.reconnects)+len(w.disconnects)+len(w.moves) != 0 {
			t.Errorf("at %s after a move from %s to %s that was given up, %d reconnects, %d disconnects, %d moves",
				c.Addr(), first.addr, second.addr, len(w.reconnects), len(w.disconnects), len(w.moves))
		}
	})
}

func TestRealServerResumes(t *testing.T) {
	a := newAir(2)
	r := startReal(t, false, transport.Config{IdleTimeout: 300 * time.Millisecond})
	o, w := watch(client.Options{Dial: a.dial, HandshakeTimeout: 250 * time.Millisecond})
	c, _ := r.dial(t, o)
	take(t, "answers", ask(t, c, 0, 20))
	a.dark.Store(true)
	done := ask(t, c, 20, 60)
	take(t, "disconnect", w.disconnects)
	a.dark.Store(false)
	if gap := take(t, "reconnect", w.reconnects); gap {
		t.Error("the state was lost")
	}
	take(t, "answers", done)
}
