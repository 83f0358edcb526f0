package netbench

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/harness"
	"github.com/Diarkis/diarkis/bench/internal/netsim"
)

// What a game sends, and over what.
const (
	lossRTT      = 50 * time.Millisecond
	lossInterval = time.Second / 60
	lossSize     = 100 // bytes
	lossWarmUp   = 60  // messages
	burstLength  = 40 * time.Millisecond
)

// How many messages are measured.
const (
	lossMessages      = 3600
	lossMessagesQuick = 600
)

func lossBenches() []harness.Bench {
	burst := netsim.Loss{Rate: 0.05, Burst: burstLength}
	return []harness.Bench{
		lossBench("loss/5", netsim.Loss{Rate: 0.05}, "5 % loss", map[string][]harness.Target{
			"p99":  {{Peer: kcpTurbo, Must: 1, Aim: 0.5}},
			"wire": {{Must: 4, Aim: 3}},
		}),
		lossBench("loss/10", netsim.Loss{Rate: 0.1}, "10 % loss", map[string][]harness.Target{
			"p99":  {{Peer: kcpTurbo, Must: 1, Aim: 0.4}},
			"max":  {{Must: 500, Aim: 300}},
			"wire": {{Must: 4.5, Aim: 3.5}},
		}),
		lossBench("loss/burst", burst, "5 % loss in bursts of 40 ms on average", nil),
		lossBench("loss/0", netsim.Loss{}, "no loss", map[string][]harness.Target{
			"wire": {{Must: 1.75, Aim: 1.6}},
		}),
	}
}

// lossSides are who takes part, ours first and the closest rivals before the others.
var lossSides = []string{ours, kcpTurbo, kcpFEC, kcpNormal, enet, quicStream, tcpCubic, quicDatagram, oursDown}

func lossBench(name string, loss netsim.Loss, what string, targets map[string][]harness.Target) harness.Bench {
	b := harness.Bench{
		Name: name,
		About: fmt.Sprintf("reliable messages of 100 bytes, 60 a second from client to server, 50 ms round trip, %s both ways: "+
			"how long each takes from send to delivery, and how many bytes of UDP or TCP payload and of IP packets go both ways for a "+
			"byte delivered. All sides run at once, each on a network "+
			"of its own with the same dice. Ours and QUIC encrypt, the others do not.", what),
		Metrics: []harness.Metric{
			{Name: "p99", Unit: "ms", Better: harness.Lower},
			{Name: "p50", Unit: "ms", Better: harness.Lower},
			{Name: "max", Unit: "ms", Better: harness.Lower},
			{Name: "wire", Unit: "payload bytes/byte", Better: harness.Lower},
			{Name: "wire-ip", Unit: "IP bytes/byte", Better: harness.Lower},
			{Name: "missing", Unit: "% of messages", Better: harness.Lower},
		},
	}
	if loss.Rate == 0 {
		b.Metrics = slices.DeleteFunc(b.Metrics, func(m harness.Metric) bool { return m.Name == "p50" || m.Name == "max" })
	}
	for i := range b.Metrics {
		b.Metrics[i].Targets = targets[b.Metrics[i].Name]
	}
	t := &together{sides: lossSides, start: func(ctx context.Context, e *harness.Env, sides []string, seed uint64) map[string]outcome {
		run := lossRun{loss: loss, seed: seed, warmUp: lossWarmUp, count: lossMessages}
		if e.Quick {
			run.count = lossMessagesQuick
		}
		return run.all(ctx, e, sides)
	}}
	for _, side := range lossSides {
		b.Sides = append(b.Sides, t.side(side))
	}
	return b
}

// lossRun is one round.
type lossRun struct {
	loss          netsim.Loss
	seed          uint64
	warmUp, count int // messages
}

// all runs all sides at once: what they send is little, and so they share whatever
// the machine does meanwhile.
func (r lossRun) all(ctx context.Context, e *harness.Env, sides []string) map[string]outcome {
	out, children := map[string]outcome{}, map[string]*harness.Child{}
	// each does a step for all sides that are still without an outcome.
	each := func(step func(side string, c *harness.Child) error) {
		for _, side := range sides {
			if out[side].err != nil {
				continue
			}
			if err := step(side, children[side]); err != nil {
				out[side] = outcome{err: err}
			}
		}
	}
	each(func(side string, _ *harness.Child) error {
		c, err := r.start(ctx, e, side)
		if err == nil {
			children[side] = c
		}
		return err
	})
	defer func() {
		for _, c := range children {
			c.Stop()
		}
	}()
	each(func(_ string, c *harness.Child) error {
		_, err := hear(c)
		return err
	})
	each(func(_ string, c *harness.Child) error { return c.Send("go") })
	each(func(side string, c *harness.Child) error {
		m, err := hear(c)
		if err != nil {
			return err
		}
		sample, err := lossSample(side, m, r.count)
		out[side] = outcome{sample: sample}
		return err
	})
	return out
}

// start starts the network of one side, with the side on it.
func (r lossRun) start(ctx context.Context, e *harness.Env, side string) (*harness.Child, error) {
	if err := available(side); err != nil {
		return nil, err
	}
	command, err := peerCommand(messageProgram, messageArgs{Side: side, WarmUp: r.warmUp, Count: r.count})
	if side == enet {
		command, err = r.enet(ctx, e)
	}
	if err != nil {
		return nil, err
	}
	delay := netsim.Path{Delay: lossRTT / 2}
	return e.Start(ctx, harness.Both, simProgram, simArgs{
		Network: netsim.Options{Up: delay, Down: delay}, Loss: r.loss, Seed: r.seed, Peer: command,
	})
}

// enet is the command of the peer that is written in C.
func (r lossRun) enet(ctx context.Context, e *harness.Env) ([]string, error) {
	program, err := e.Compile(ctx, "enetloss.c", "apt-get install libenet-dev", "-lenet")
	if err != nil {
		return nil, err
	}
	number := func(v int64) string { return strconv.FormatInt(v, 10) }
	return []string{
		program, netsim.ServerAddr.String(), number(serverPort), number(lossSize), number(int64(lossInterval)),
		number(int64(r.warmUp)), number(int64(r.count)), number(int64(stragglers)),
	}, nil
}

// lossSample makes the figures.
func lossSample(side string, m measured, count int) (harness.Sample, error) {
	if err := m.check(side); err != nil {
		return nil, err
	}
	arrived := len(m.Took)
	if arrived == 0 || arrived < count && side != quicDatagram {
		return nil, fmt.Errorf("%d of %d messages did not arrive", count-arrived, count)
	}
	bytes := float64(arrived * lossSize)
	sample := harness.Sample{
		"p50": quantile(m.Took, 0.5), "p99": quantile(m.Took, 0.99), "max": quantile(m.Took, 1),
		"wire": float64(m.Both.Payload) / bytes, "wire-ip": float64(m.Both.IP) / bytes,
	}
	if side == quicDatagram {
		sample["missing"] = 100 * float64(count-arrived) / float64(count)
	}
	return sample, nil
}
