package netbench

import (
	"context"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/harness"
	"github.com/Diarkis/diarkis/bench/internal/netsim"
)

// The bottleneck: its queue holds what the path carries in one round trip.
const (
	bulkRate  = 100_000_000 // bits/s
	bulkRTT   = 45 * time.Millisecond
	bulkQueue = int(bulkRate / 8 * int64(bulkRTT) / int64(time.Second)) // bytes
)

// How long transfers run, before and while they are measured.
const (
	bulkWarmUp, bulkWarmUpQuick = 3 * time.Second, time.Second
	bulkWindow, bulkWindowQuick = 10 * time.Second, 3 * time.Second
	fairWarmUp, fairWarmUpQuick = 5 * time.Second, 2 * time.Second
	fairWindow, fairWindowQuick = 20 * time.Second, 4 * time.Second
)

// bulkSides are who takes part, the closest rival first.
var bulkSides = []string{ours, tcpBBR, tcpCubic, quicStream, kcpTurbo}

func bulkBenches() []harness.Bench {
	return []harness.Bench{
		bulkBench("bulk/1", 0.01, "1 % loss", map[string][]harness.Target{
			"goodput": {{Peer: tcpBBR, Must: 0.5, Aim: 0.85}},
		}),
		bulkBench("bulk/0", 0, "no loss but at the queue", map[string][]harness.Target{
			"drops": {{Must: 5, Aim: 1}},
		}),
		fairBench("fair/tcp-cubic", tcpCubic),
		fairBench("fair/tcp-bbr", tcpBBR),
	}
}

func bulkBench(name string, loss float64, what string, targets map[string][]harness.Target) harness.Bench {
	b := harness.Bench{
		Name: name,
		About: fmt.Sprintf("a server sends one client as much as it can through 100 Mbit/s with 45 ms round trip, a queue of one "+
			"bandwidth-delay product (%d kB) and %s. Ours sends reliable messages of 1 MiB; drops are packets that found the queue "+
			"full, from the start of the transfer.", bulkQueue/1000, what),
		Metrics: []harness.Metric{
			{Name: "goodput", Unit: "Mbit/s", Better: harness.Higher, Targets: targets["goodput"]},
			{Name: "drops", Unit: "% of packets", Better: harness.Lower, Targets: targets["drops"]},
		},
	}
	for _, side := range bulkSides {
		b.Sides = append(b.Sides, bulkSide(side, loss,
			bulkArgs{[]string{side}, bulkWarmUp, bulkWindow}, bulkArgs{[]string{side}, bulkWarmUpQuick, bulkWindowQuick}))
	}
	return b
}

// fairSides are who has to share with TCP.
var fairSides = []string{ours, tcpCubic, tcpBBR, quicStream}

func fairBench(name, rival string) harness.Bench {
	b := harness.Bench{
		Name: name,
		About: fmt.Sprintf("bulk as in bulk/0 beside one flow of %s through the same queue: the share that each side takes of what "+
			"both get. 50 %% is fair; well below, we starve beside that TCP, well above, it starves beside us.", rival),
		Metrics: []harness.Metric{
			{Name: "share", Unit: "%"},
			{Name: "both", Unit: "Mbit/s"},
		},
	}
	for _, side := range fairSides {
		flows := []string{side, rival}
		b.Sides = append(b.Sides, bulkSide(side, 0,
			bulkArgs{flows, fairWarmUp, fairWindow}, bulkArgs{flows, fairWarmUpQuick, fairWindowQuick}))
	}
	return b
}

// bulkSide runs one side, alone or beside others. The first flow is what is measured.
func bulkSide(name string, loss float64, full, quick bulkArgs) harness.Side {
	var seeds seeds
	return harness.Side{Name: name, Run: func(ctx context.Context, e *harness.Env) (harness.Sample, error) {
		a := full
		if e.Quick {
			a = quick
		}
		for _, f := range a.Flows {
			if err := available(f); err != nil {
				return nil, err
			}
		}
		command, err := peerCommand(bulkProgram, a)
		if err != nil {
			return nil, err
		}
		c, err := e.Start(ctx, harness.Both, simProgram, simArgs{
			Network: bulkNetwork(), Loss: netsim.Loss{Rate: loss}, Seed: seeds.next(), Peer: command,
		})
		if err != nil {
			return nil, err
		}
		defer c.Stop()
		if _, err := hear(c); err != nil {
			return nil, err
		}
		if err := c.Send("go"); err != nil {
			return nil, err
		}
		m, err := hear(c)
		if err != nil {
			return nil, err
		}
		return bulkSample(name, m)
	}}
}

// bulkNetwork is the network of all of them.
func bulkNetwork() netsim.Options {
	p := netsim.Path{Delay: bulkRTT / 2, Rate: bulkRate, Queue: bulkQueue}
	return netsim.Options{Up: p, Down: p}
}

// bulkSample makes the figures: of the first flow, and of it among all.
func bulkSample(side string, m measured) (harness.Sample, error) {
	if err := m.check(side); err != nil {
		return nil, err
	}
	if m.Down.Packets == 0 || len(m.Megabits) == 0 {
		return nil, fmt.Errorf("%s sent nothing", side)
	}
	all := 0.0
	for _, v := range m.Megabits {
		all += v
	}
	sample := harness.Sample{
		"goodput": m.Megabits[0], "both": all, "drops": 100 * float64(m.Down.QueueDrops) / float64(m.Down.Packets),
	}
	if all > 0 {
		sample["share"] = 100 * m.Megabits[0] / all
	}
	return sample, nil
}
