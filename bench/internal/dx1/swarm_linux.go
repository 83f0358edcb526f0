package dx1

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/swarm"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Swarm is many clients in one goroutine. Client i has the credentials of
// [Credentials](First+i).
type Swarm struct {
	Socket  *swarm.Socket
	Clients []Client
	// First is the number of the first client's credentials.
	First int
	// X25519 adds a key agreement to handshakes.
	X25519 bool

	random *rand.ChaCha8
}

// Dial makes a swarm of n clients, none of them connected.
func Dial(server netip.AddrPort, n int) (*Swarm, error) {
	if n > swarm.ClientsMax {
		return nil, fmt.Errorf("%d clients are more than %d", n, swarm.ClientsMax)
	}
	s, err := swarm.Dial(server)
	if err != nil {
		return nil, err
	}
	return &Swarm{Socket: s, Clients: make([]Client, n), random: rand.NewChaCha8([32]byte{})}, nil
}

// inFlight is how many handshakes run at once.
const inFlight = 64

// handshakeTimeout bounds the wait for any progress.
const handshakeTimeout = 10 * time.Second

// Connect shakes hands for all clients, or until ctx ends, and calls opened for each
// that is connected. It returns how many were. Clients that were connected before
// are forgotten.
func (s *Swarm) Connect(ctx context.Context, opened func(client int)) (int, error) {
	clear(s.Clients)
	next, done, moved := 0, 0, time.Now()
	var running []int
	for ctx.Err() == nil {
		now := time.Now()
		for len(running) < inFlight && next < len(s.Clients) {
			hello, err := s.Clients[next].Hello(now, Credentials(s.First+next), s.X25519, s.random)
			if err != nil {
				return done, err
			}
			s.Socket.Queue(next, append(s.Socket.Room(), hello...))
			running = append(running, next)
			next++
		}
		s.Socket.Flush()
		if len(running) == 0 {
			return done, nil
		}
		n, err := s.step(opened)
		if err != nil {
			return done, err
		}
		now = time.Now()
		if n > 0 {
			moved = now
			done += n
		} else if now.Sub(moved) > handshakeTimeout {
			return done, fmt.Errorf("%d clients got no answer to their handshake", len(running))
		}
		running = s.stillRunning(now, running)
	}
	return done, nil
}

// step takes what came and returns how many handshakes it finished.
func (s *Swarm) step(opened func(client int)) (done int, err error) {
	n, err := s.Socket.Receive(50 * time.Millisecond)
	if err != nil {
		return 0, err
	}
	now := time.Now()
	for i := range n {
		client, pkt := s.Socket.At(i)
		if client >= len(s.Clients) {
			continue
		}
		c := &s.Clients[client]
		if wire.TypeOf(pkt) == wire.PacketData {
			if _, err := c.Take(now, pkt); err != nil {
				return done, err
			}
			continue
		}
		before := c.Open()
		if answer := c.Handshake(now, pkt); answer != nil {
			s.Socket.Queue(client, append(s.Socket.Room(), answer...))
		}
		if c.Open() && !before {
			done++
			opened(client)
		}
	}
	return done, nil
}

// stillRunning drops who is connected and repeats what was not answered in time.
func (s *Swarm) stillRunning(now time.Time, running []int) []int {
	left := running[:0]
	for _, client := range running {
		c := &s.Clients[client]
		if c.Open() {
			continue
		}
		if pkt := c.Again(now); pkt != nil {
			s.Socket.Queue(client, append(s.Socket.Room(), pkt...))
		}
		left = append(left, client)
	}
	return left
}
