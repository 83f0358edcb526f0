package servers

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/dx1"
	"github.com/Diarkis/diarkis/bench/internal/harness"
)

const (
	// silence is how long clients of the silent bench may say nothing.
	silence = time.Hour
	// idleTimeout is how long those of the other may, so that a busy machine can open
	// all of them in time.
	idleTimeout = time.Minute
	// keepAlive is how often these say something: a third of the protocol's default
	// for idleTimeout.
	keepAlive = 10 * time.Second / 3
	// idleBytes is the one message that each client exchanges before it idles.
	idleBytes = 16
)

// connections is how many idle at once.
func connections(e *harness.Env) int {
	if e.Quick {
		return 1000
	}
	return 10_000
}

// settle is how long servers get to calm down: with keep-alives, all have seen some.
func settle(a loadArgs) time.Duration { return 3*time.Second + 2*a.KeepAlive }

// idleWindow is how long CPU time is counted.
func idleWindow(e *harness.Env) time.Duration { return 2 * e.Window() }

// idler opens connections, exchanges a message on each and keeps them idle until
// the parent ends.
type idler func(l *harness.Link, a loadArgs) error

func (f idler) program(l *harness.Link) error {
	var a loadArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	return f(l, a)
}

// idleSide is a server with idle clients. A client that is gone is as silent as one
// that is there; some cost so much that theirs go when they have had their message.
type idleSide struct {
	server server
	load   string
	gone   bool
}

func (s idleSide) run(ctx context.Context, e *harness.Env, a loadArgs) (harness.Sample, error) {
	n := connections(e)
	if files, err := harness.RaiseFiles(); err != nil {
		return nil, err
	} else if files < n+100 {
		return nil, harness.Skip("%d connections need more open files: ulimit -n says %d", n, files)
	}
	srv, err := s.server.start(ctx, e)
	if err != nil {
		return nil, err
	}
	defer srv.Stop()
	a.Server, a.PID, a.Clients, a.Bytes = srv.addr, srv.PID(), n, idleBytes
	gen, err := e.Start(ctx, harness.Loads, s.load, a)
	if err != nil {
		return nil, err
	}
	defer gen.Stop()
	var word string
	if err := gen.Receive(&word); err != nil {
		return nil, err
	}
	if s.gone {
		gen.Stop()
	}
	if err := pause(ctx, settle(a)); err != nil {
		return nil, err
	}
	t, err := measure(srv.PID(), func() (int, error) { return n, pause(ctx, idleWindow(e)) })
	if err != nil {
		return nil, err
	}
	var memory uint64
	if err := srv.Ask(askMemory, &memory); err != nil {
		return nil, err
	}
	return harness.Sample{
		"memory": (float64(memory) - float64(srv.memory)) / float64(n),
		"cpu":    float64(t.CPU.Microseconds()) / t.Wall.Seconds() / float64(n),
	}, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// side names an idleSide; keepAlive is 0 for silent clients.
func (s idleSide) side(name string, keepAlive time.Duration) harness.Side {
	return harness.Side{Name: name, Run: func(ctx context.Context, e *harness.Env) (harness.Sample, error) {
		side := s
		if side.server.program == "ours-echo" {
			side.server.args.Places = connections(e)
		}
		return side.run(ctx, e, loadArgs{KeepAlive: keepAlive})
	}}
}

// idleDX1 has clients of ours idle.
func idleDX1(l *harness.Link, a loadArgs) error {
	s, err := connected(a)
	if err != nil {
		return err
	}
	defer s.Socket.Close()
	if err := exchangeOne(s, a); err != nil {
		return err
	}
	if err := l.Say("idle"); err != nil {
		return err
	}
	if a.KeepAlive == 0 {
		return l.Wait()
	}
	over := make(chan error, 1)
	go func() { over <- l.Wait() }()
	return pingInTurn(s, a.KeepAlive, over)
}

// exchangeOne has each client echo one message and acknowledge the answer.
func exchangeOne(s *dx1.Swarm, a loadArgs) error {
	msg := echoRequest(a.Bytes)
	deadline := time.Now().Add(time.Minute)
	for asked, answered := 0, 0; answered < len(s.Clients); {
		now := time.Now()
		if now.After(deadline) {
			return fmt.Errorf("%d of %d clients got an answer", answered, len(s.Clients))
		}
		for ; asked < len(s.Clients) && asked-answered < 64; asked++ {
			s.Socket.Queue(asked, s.Clients[asked].Message(now, s.Socket.Room(), msg))
		}
		s.Socket.Flush()
		n, err := s.Socket.Receive(patience)
		if err != nil {
			return err
		}
		for i := range n {
			client, pkt := s.Socket.At(i)
			got, err := s.Clients[client].Take(now, pkt)
			if err != nil {
				return err
			}
			if answered += got; got > 0 {
				s.Socket.Queue(client, s.Clients[client].Ack(now, s.Socket.Room()))
			}
		}
	}
	s.Socket.Flush()
	return nil
}

// pingInTurn has each client send a PING once an interval, evenly over it, until
// over says so.
func pingInTurn(s *dx1.Swarm, interval time.Duration, over <-chan error) error {
	start, sent := time.Now(), 0
	for {
		select {
		case err := <-over:
			return err
		default:
		}
		now := time.Now()
		for due := int(now.Sub(start).Seconds() / interval.Seconds() * float64(len(s.Clients))); sent < due; sent++ {
			client := sent % len(s.Clients)
			s.Socket.Queue(client, s.Clients[client].Ping(now, s.Socket.Room()))
		}
		s.Socket.Flush()
		n, err := s.Socket.Receive(time.Millisecond)
		if err != nil {
			return err
		}
		for i := range n {
			client, pkt := s.Socket.At(i)
			if _, err := s.Clients[client].Take(now, pkt); err != nil {
				return err
			}
		}
	}
}

// openIdle opens a.Clients connections, some at once, and has each call once.
func openIdle(a loadArgs, open func() (caller, error)) ([]caller, error) {
	const atOnce = 32
	todo := make(chan struct{}, a.Clients)
	for range a.Clients {
		todo <- struct{}{}
	}
	close(todo)
	var mu sync.Mutex // guards the two below
	var all []caller
	var failed error
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			msg := make([]byte, a.Bytes)
			for range todo {
				c, err := open()
				if err == nil {
					err = c.call(msg)
				}
				mu.Lock()
				if all = append(all, c); failed == nil {
					failed = err
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return all, failed
}

// idleCallers has connections idle that have a goroutine of their own.
func idleCallers(open func(a loadArgs) (caller, error)) idler {
	return func(l *harness.Link, a loadArgs) error {
		all, err := openIdle(a, func() (caller, error) { return open(a) })
		if err != nil {
			return err
		}
		if err := l.Say("idle"); err != nil {
			return err
		}
		err = l.Wait()
		for _, c := range all { // they must live until here
			if s, ok := c.(streamCaller); ok {
				_ = s.ReadWriter.(io.Closer).Close()
			}
		}
		return err
	}
}

var idleTCP = idleCallers(func(a loadArgs) (caller, error) {
	c, err := net.Dial("tcp4", a.Server.String())
	return streamCaller{c}, err
})

var idleQUIC = idleCallers(func(a loadArgs) (caller, error) {
	idle := silence
	if a.KeepAlive > 0 {
		idle = idleTimeout
	}
	c, err := dialQUIC(context.Background(), a, idle)
	if err != nil {
		return nil, err
	}
	s, err := c.OpenStreamSync(context.Background())
	return streamCaller{s}, err
})

// idleKCP opens sessions a few at a time and drops its end once the last
// acknowledgement left, because thousands would keep its CPU too busy to open more.
// KCP has no way to tell that one is gone.
func idleKCP(l *harness.Link, a loadArgs) error {
	const (
		atOnce   = 250
		lastWord = 200 * time.Millisecond
	)
	for left := a.Clients; left > 0; left -= atOnce {
		few := a
		few.Clients = min(left, atOnce)
		all, err := openIdle(few, func() (caller, error) {
			s, err := dialKCP(a)
			return streamCaller{s}, err
		})
		if err != nil {
			return err
		}
		time.Sleep(lastWord)
		for _, c := range all {
			_ = c.(streamCaller).ReadWriter.(io.Closer).Close()
		}
	}
	if err := l.Say("idle"); err != nil {
		return err
	}
	return l.Wait()
}

func idleMetrics(memory, cpu *harness.Target) []harness.Metric {
	m := []harness.Metric{
		{Name: "memory", Unit: "bytes/connection", Better: harness.Lower},
		{Name: "cpu", Unit: "µs/s each", Better: harness.Lower},
	}
	for i, t := range []*harness.Target{memory, cpu} {
		if t != nil {
			m[i].Targets = []harness.Target{*t}
		}
	}
	return m
}

func idleBenches() []harness.Bench {
	ours := func(idle time.Duration) idleSide {
		return idleSide{server: server{program: "ours-echo", args: serverArgs{Idle: idle}}, load: "idle-dx1"}
	}
	quic := func(idle time.Duration) idleSide {
		return idleSide{server: server{program: "quic-echo", args: serverArgs{Idle: idle}}, load: "idle-quic"}
	}
	kcp := idleSide{server: server{program: "kcp-echo"}, load: "idle-kcp", gone: true}
	tcp := idleSide{server: server{program: "tcp-echo"}, load: "idle-tcp"}
	return []harness.Bench{
		{
			Name: "idle/silent",
			About: "10,000 connections (--quick: 1,000) that had one message each and say nothing: heap and stack in use " +
				"after a collection, and CPU time. The others have a goroutine and 2 KiB to read into for each.",
			Metrics: idleMetrics(&harness.Target{Must: 6 << 10, Aim: 3 << 10}, &harness.Target{Must: 2, Aim: 0.2}),
			Sides: []harness.Side{
				ours(silence).side("ours", 0), kcp.side("KCP", 0), quic(silence).side(peerQUIC, 0), tcp.side("TCP", 0),
			},
		},
		{
			Name:    "idle/pinged",
			About:   "The same with a sign of life from each every 3.3 s, as our protocol asks for, and as QUIC can.",
			Metrics: idleMetrics(nil, nil),
			Sides: []harness.Side{
				ours(idleTimeout).side("ours", keepAlive), quic(idleTimeout).side(peerQUIC, keepAlive),
			},
		},
	}
}
