// Package servers compares what a server costs: echoes, broadcasts, handshakes and
// idle connections, of ours and of others.
//
// A side is two child processes, a server and a load generator, on CPUs of their
// own. The generator tells what the server did and how much CPU time the system
// counted for it meanwhile.
package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/harness"
)

// ready is the first thing a server says.
type ready struct {
	Addr   string `json:"addr"`
	Memory uint64 `json:"memory"` // bytes in use before there was any client
}

// question is what a server of ours, or of a peer in Go, is asked.
type question string

const (
	askAllocs question = "allocs" // how many allocations it has made
	askMemory question = "memory" // how many bytes it uses after a collection
)

// serve says where the server is and what memory it used at first, then answers
// questions until the parent ends.
func serve(l *harness.Link, addr fmt.Stringer, memory uint64) error {
	if err := l.Say(ready{addr.String(), memory}); err != nil {
		return err
	}
	for {
		var q question
		if err := l.Hear(&q); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := l.Say(answer(q)); err != nil {
			return err
		}
	}
}

func answer(q question) uint64 {
	var m runtime.MemStats
	if q == askMemory {
		runtime.GC()
		runtime.GC() // a sync.Pool keeps things for one more
	}
	runtime.ReadMemStats(&m)
	if q == askMemory {
		return m.HeapAlloc + m.StackInuse
	}
	return m.Mallocs
}

// loadArgs are the arguments of every load generator.
type loadArgs struct {
	Server  netip.AddrPort
	PID     int // of the server
	Clients int
	Bytes   int // of a message
	Pace    int // packets a second; 0: as fast as answers come
	WarmUp  time.Duration
	Window  time.Duration

	X25519    bool          // in handshakes of ours
	Acks      bool          // members acknowledge, as ours do
	Burst     int           // broadcasts at a time
	KeepAlive time.Duration // between two signs of life; 0: silent
	Turbo     bool          // KCP's fastest setting
	Datagrams bool          // QUIC: no stream
}

// serverArgs are the arguments of every server in Go.
type serverArgs struct {
	Places    int           // ours: reserved, for the clients of dx1.Credentials
	Idle      time.Duration // ours and QUIC: how long a client may be silent
	Turbo     bool
	Datagrams bool
}

// tally is what a load generator measured.
type tally struct {
	Done int           // packets, deliveries or handshakes
	CPU  time.Duration // of the server
	Wall time.Duration
}

// perCPU is how much the server did in a second of its CPU time.
func (t tally) perCPU() float64 { return float64(t.Done) / t.CPU.Seconds() }

// busy is how much of one CPU the server used.
func (t tally) busy() float64 { return t.CPU.Seconds() / t.Wall.Seconds() }

func (t tally) perSecond() float64 { return float64(t.Done) / t.Wall.Seconds() }

// measure runs work while the CPU time of a process is counted.
func measure(pid int, work func() (done int, err error)) (tally, error) {
	before, err := harness.CPUTime(pid)
	if err != nil {
		return tally{}, err
	}
	start := time.Now()
	done, err := work()
	if err != nil {
		return tally{}, err
	}
	wall := time.Since(start)
	after, err := harness.CPUTime(pid)
	return tally{Done: done, CPU: after - before, Wall: wall}, err
}

// report is the usual life of a load generator: it warms up, says so, waits for the
// word, measures and tells.
func report(l *harness.Link, a loadArgs, run func(time.Duration) (done int, err error)) error {
	if _, err := run(a.WarmUp); err != nil {
		return err
	}
	if err := l.Say("warm"); err != nil {
		return err
	}
	var word string
	if err := l.Hear(&word); err != nil {
		return err
	}
	t, err := measure(a.PID, func() (int, error) { return run(a.Window) })
	if err != nil {
		return err
	}
	if err := l.Say(t); err != nil {
		return err
	}
	return l.Wait()
}

// server is a way to start what is measured.
type server struct {
	program string // of this binary, with
	args    serverArgs

	source string // or in bench/c, with
	mode   string
}

// running is a server that was started.
type running struct {
	*harness.Child
	addr   netip.AddrPort
	memory uint64
}

func (s server) start(ctx context.Context, e *harness.Env) (running, error) {
	child, err := s.launch(ctx, e)
	if err != nil {
		return running{}, err
	}
	var r ready
	if err = child.Receive(&r); err == nil {
		var addr netip.AddrPort
		if addr, err = netip.ParseAddrPort(r.Addr); err == nil {
			return running{child, addr, r.Memory}, nil
		}
	}
	child.Stop()
	return running{}, err
}

func (s server) launch(ctx context.Context, e *harness.Env) (*harness.Child, error) {
	if s.program != "" {
		return e.Start(ctx, harness.Serves, s.program, s.args)
	}
	path, err := compiled(ctx, e, s.source)
	if err != nil {
		return nil, err
	}
	return e.StartCommand(ctx, harness.Serves, path, s.mode)
}

// compiled compiles one of the C programs.
func compiled(ctx context.Context, e *harness.Env, source string) (string, error) {
	if source == enetSource {
		return e.Compile(ctx, source, "apt-get install gcc libc6-dev libenet-dev", "-lenet", "-lpthread")
	}
	return e.Compile(ctx, source, "apt-get install gcc libc6-dev", "-lpthread")
}

// outcome is what one run of a side measured.
type outcome struct {
	tally
	allocs float64 // of the server, each time something was done; ours only
}

// contest runs a server and a load generator once.
func contest(ctx context.Context, e *harness.Env, s server, load string, a loadArgs) (outcome, error) {
	srv, err := s.start(ctx, e)
	if err != nil {
		return outcome{}, err
	}
	defer srv.Stop()
	a.Server, a.PID, a.WarmUp, a.Window = srv.addr, srv.PID(), e.WarmUp(), e.Window()
	gen, err := startLoad(ctx, e, load, a)
	if err != nil {
		return outcome{}, err
	}
	defer gen.Stop()
	var word string
	if err := gen.Receive(&word); err != nil {
		return outcome{}, err
	}
	var before, after uint64
	if s.program != "" {
		if err := srv.Ask(askAllocs, &before); err != nil {
			return outcome{}, err
		}
	}
	var o outcome
	if err := gen.Ask("go", &o.tally); err != nil {
		return outcome{}, err
	}
	if o.Done == 0 {
		return outcome{}, errors.New("nothing came back")
	}
	if s.program != "" {
		if err := srv.Ask(askAllocs, &after); err != nil {
			return outcome{}, err
		}
		o.allocs = float64(after-before) / float64(o.Done)
	}
	return o, nil
}

// startLoad starts a load generator: a program of this binary, or of bench/c.
func startLoad(ctx context.Context, e *harness.Env, load string, a loadArgs) (*harness.Child, error) {
	if load != loadENet {
		return e.Start(ctx, harness.Loads, load, a)
	}
	path, err := compiled(ctx, e, enetSource)
	if err != nil {
		return nil, err
	}
	return e.StartCommand(ctx, harness.Loads, path, enetArgs(a)...)
}
