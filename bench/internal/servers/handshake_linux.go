package servers

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/dx1"
	"github.com/Diarkis/diarkis/bench/internal/harness"
)

const (
	// handshakePlaces is how many clients our server expects: more than can come.
	handshakePlaces = 300_000
	// handshakeSlots is how many of them use one socket before their addresses are
	// used again.
	handshakeSlots = 2048
	// quicDialers is how many handshakes of QUIC run at once.
	quicDialers = 16
)

// runDX1HandshakeLoad has ever new clients connect and close.
func runDX1HandshakeLoad(l *harness.Link) error {
	var a loadArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	s, err := dx1.Dial(a.Server, handshakeSlots)
	if err != nil {
		return err
	}
	defer s.Socket.Close()
	s.X25519 = a.X25519
	hangUp := func(client int) {
		s.Socket.Queue(client, s.Clients[client].Close(time.Now(), s.Socket.Room()))
	}
	return report(l, a, func(d time.Duration) (done int, err error) {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		for ; ctx.Err() == nil; s.First += handshakeSlots {
			if s.First+handshakeSlots > handshakePlaces {
				return done, errors.New("there are too few places")
			}
			n, err := s.Connect(ctx, hangUp)
			done += n
			if err != nil {
				return done, err
			}
		}
		return done, nil
	})
}

// runQUICHandshakeLoad has connections open and close.
func runQUICHandshakeLoad(l *harness.Link) error {
	var a loadArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	return report(l, a, func(d time.Duration) (int, error) {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		var done atomic.Int64
		failed := make(chan error, quicDialers)
		var wg sync.WaitGroup
		for range quicDialers {
			wg.Go(func() {
				for ctx.Err() == nil {
					c, err := dialQUIC(ctx, a, 0)
					if err == nil {
						done.Add(1)
						err = c.CloseWithError(0, "")
					}
					if err != nil && ctx.Err() == nil {
						failed <- err
						return
					}
				}
			})
		}
		wg.Wait()
		select {
		case err := <-failed:
			return 0, err
		default:
			return int(done.Load()), nil
		}
	})
}

func handshakeSide(name string, s server, load string, x25519 bool) harness.Side {
	return harness.Side{Name: name, Run: func(ctx context.Context, e *harness.Env) (harness.Sample, error) {
		o, err := contest(ctx, e, s, load, loadArgs{X25519: x25519})
		if err != nil {
			return nil, err
		}
		return harness.Sample{"handshakes": o.perCPU(), "busy": o.busy()}, nil
	}}
}

// handshake compares our handshake with QUIC's. In both, a client connects and
// closes.
func handshake(name, about string, x25519 bool, targets ...harness.Target) harness.Bench {
	return harness.Bench{
		Name: name, About: about,
		Metrics: []harness.Metric{
			{Name: "handshakes", Unit: "handshakes/CPU-s", Better: harness.Higher, Targets: targets},
			{Name: "busy", Unit: "CPUs", Aside: true},
		},
		Sides: []harness.Side{
			handshakeSide("ours", ourEcho(handshakePlaces), "load-dx1-handshake", x25519),
			handshakeSide(peerQUIC, server{program: "quic-echo"}, "load-quic-handshake", false),
		},
	}
}

func handshakes() []harness.Bench {
	return []harness.Bench{
		handshake("handshake/x25519", "Clients connect with a key agreement, as QUIC has, and close.", true,
			harness.Target{Peer: peerQUIC, Must: 2, Aim: 3.5}),
		handshake("handshake/plain", "Clients connect with what the HTTP answer gave them alone, and close.", false),
	}
}
