package servers

import (
	"context"
	"fmt"
	"sync"

	"github.com/Diarkis/diarkis/bench/internal/harness"
)

// The peers that targets are against.
const (
	peerC    = "C sendmmsg"
	peerQUIC = "quic-go"
)

const (
	// clients is how many connections an echo bench has, each with one message under way.
	clients = 128
	// fullBytes is the payload of a message of ours that fills a datagram of 1200 bytes
	// up to what an acknowledgement may need.
	fullBytes = 1140
)

var cEcho = server{source: "echo.c", mode: "echo"}

// ourEcho is our echo server with a place for each client.
func ourEcho(n int) server { return server{program: "ours-echo", args: serverArgs{Places: n}} }

// echoMetrics are what an echo bench measures.
func echoMetrics(targets ...harness.Target) []harness.Metric {
	return []harness.Metric{
		{Name: "packets", Unit: "packets/CPU-s", Better: harness.Higher, Targets: targets},
		{Name: "allocs", Unit: "allocations/packet", Better: harness.Lower, Aside: true, Targets: []harness.Target{{Must: 0.01, Aim: 0.001}}},
		{Name: "busy", Unit: "CPUs", Aside: true},
		{Name: "rate", Unit: "packets/s", Aside: true},
	}
}

// sample is an outcome as the metrics of echoMetrics.
func (o outcome) sample(goServer bool) harness.Sample {
	s := harness.Sample{"packets": o.perCPU(), "busy": o.busy(), "rate": o.perSecond()}
	if goServer {
		s["allocs"] = o.allocs
	}
	return s
}

// echoSide is a server and what loads it.
func echoSide(name string, s server, load string, a loadArgs) harness.Side {
	a.Clients = clients
	return harness.Side{Name: name, Run: func(ctx context.Context, e *harness.Env) (harness.Sample, error) {
		o, err := contest(ctx, e, s, load, a)
		if err != nil {
			return nil, err
		}
		return o.sample(s.program != ""), nil
	}}
}

// echoSides are all that can echo. Peers with a protocol carry the payload that ours
// does; the one without sends datagrams of plainBytes.
func echoSides(bytes, plainBytes int) []harness.Side {
	a := loadArgs{Bytes: bytes}
	turbo, datagrams := a, a
	turbo.Turbo, datagrams.Datagrams = true, true
	return []harness.Side{
		echoSide("ours", ourEcho(clients), "load-dx1", a),
		echoSide(peerC, cEcho, "load-plain", loadArgs{Bytes: plainBytes}),
		echoSide("ENet", server{source: enetSource, mode: "serve"}, loadENet, a),
		echoSide("KCP", server{program: "kcp-echo"}, "load-kcp", a),
		echoSide("KCP turbo", server{program: "kcp-echo", args: serverArgs{Turbo: true}}, "load-kcp", turbo),
		echoSide("quic-go stream", server{program: "quic-echo"}, "load-quic", a),
		echoSide("quic-go datagrams", server{program: "quic-echo", args: serverArgs{Datagrams: true}}, "load-quic", datagrams),
		echoSide("TCP", server{program: "tcp-echo"}, "load-tcp", a),
	}
}

func echo64() harness.Bench {
	return harness.Bench{
		Name: "echo/64",
		About: "Echo of a 64-byte payload, sealed, through our whole transport; 128 clients, one message under way each. " +
			"C is plain datagrams of 64 bytes, 64 a system call.",
		Metrics: echoMetrics(harness.Target{Peer: peerC, Must: 0.70, Aim: 0.90}),
		Sides:   echoSides(64, 64),
	}
}

func echo1200() harness.Bench {
	return harness.Bench{
		Name: "echo/1200",
		About: fmt.Sprintf("The same with full datagrams: a payload of %d bytes, which makes packets of ours almost 1200; C sends 1200.",
			fullBytes),
		Metrics: echoMetrics(harness.Target{Peer: peerC, Must: 0.60, Aim: 0.75}),
		Sides:   echoSides(fullBytes, 1200),
	}
}

// paceWanted is how many packets a second the paced bench sends.
const paceWanted = 60_000

// pacer finds a pace that this machine can keep, once for all sides.
type pacer struct {
	once sync.Once
	pace int
	err  error
}

// find starts at paceWanted and goes down until our server answers enough.
func (p *pacer) find(ctx context.Context, e *harness.Env) error {
	p.once.Do(func() {
		for p.pace = paceWanted; p.pace >= paceWanted/8; p.pace = p.pace * 3 / 4 {
			var o outcome
			if o, p.err = p.run(ctx, e, ourEcho(clients), "load-dx1"); p.err != nil || p.kept(o) {
				return
			}
		}
		p.err = fmt.Errorf("this machine keeps no pace of %d packets a second", p.pace)
	})
	return p.err
}

// kept says that the server answered almost all that it was to be asked.
func (p *pacer) kept(o outcome) bool { return o.perSecond() > 0.98*float64(p.pace) }

func (p *pacer) run(ctx context.Context, e *harness.Env, s server, load string) (outcome, error) {
	return contest(ctx, e, s, load, loadArgs{Clients: clients, Bytes: 64, Pace: p.pace})
}

// side tries a few times when the machine was too busy to keep the pace.
func (p *pacer) side(name string, s server, load string) harness.Side {
	const tries = 3
	return harness.Side{Name: name, Run: func(ctx context.Context, e *harness.Env) (harness.Sample, error) {
		if err := p.find(ctx, e); err != nil {
			return nil, err
		}
		var o outcome
		for range tries {
			var err error
			if o, err = p.run(ctx, e, s, load); err != nil {
				return nil, err
			}
			if p.kept(o) {
				break
			}
		}
		return o.sample(s.program != ""), nil
	}}
}

func echoPaced() harness.Bench {
	p := &pacer{}
	metrics := echoMetrics(harness.Target{Peer: peerC, Must: 0.60, Aim: 0.75})
	metrics[len(metrics)-1].Aside = false // the pace that was kept belongs into the results
	return harness.Bench{
		Name: "echo/64/paced",
		About: fmt.Sprintf("The same with 64 bytes at %d packets a second, evenly spaced, or what this machine can keep: packets/s tells.",
			paceWanted),
		Metrics: metrics,
		Sides: []harness.Side{
			p.side("ours", ourEcho(clients), "load-dx1"),
			p.side(peerC, cEcho, "load-plain"),
		},
	}
}
