package netbench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/harness"
	"github.com/Diarkis/diarkis/bench/internal/netsim"
)

// TestMain is also what the benches start: "serve NAME ARGS".
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := harness.Serve(Programs(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func env(t *testing.T) *harness.Env {
	t.Helper()
	e, err := harness.NewEnv(harness.Options{Quick: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// TestEverySideDelivers runs all sides of the loss benches for a moment.
func TestEverySideDelivers(t *testing.T) {
	run := lossRun{loss: netsim.Loss{Rate: 0.02}, seed: 1, warmUp: 5, count: 40}
	outcomes := run.all(t.Context(), env(t), lossSides)
	if len(outcomes) != len(lossSides) {
		t.Errorf("%d sides took part, want %d", len(outcomes), len(lossSides))
	}
	for side, o := range outcomes {
		if errors.Is(o.err, harness.ErrSkip) {
			t.Logf("%s: %v", side, o.err)
			continue
		}
		if o.err != nil {
			t.Errorf("%s: %v", side, o.err)
			continue
		}
		s, ms := o.sample, float64(lossRTT/2)/float64(time.Millisecond)
		if s["p50"] < ms || s["p99"] < s["p50"] || s["max"] < s["p99"] || s["wire"] < 1 || s["wire-ip"] < s["wire"] {
			t.Errorf("%s: %v can't be", side, s)
		}
	}
}

// TestTwoFlowsShare transfers two flows through one bottleneck.
func TestTwoFlowsShare(t *testing.T) {
	if err := available(tcpCubic); err != nil {
		t.Skip(err)
	}
	a := bulkArgs{Flows: []string{quicStream, tcpCubic}, WarmUp: 300 * time.Millisecond, Window: 700 * time.Millisecond}
	s, err := bulkSide(quicStream, 0, bulkArgs{}, a).Run(t.Context(), env(t))
	if errors.Is(err, harness.ErrSkip) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if s["goodput"] <= 0 || s["both"] <= s["goodput"] || s["share"] <= 0 || s["share"] >= 100 || s["drops"] >= 100 {
		t.Errorf("measured %v", s)
	}
}

func TestLossSample(t *testing.T) {
	m := measured{
		told: told{Took: []time.Duration{25 * time.Millisecond, 75 * time.Millisecond}},
		Both: netsim.Count{Payload: 400, IP: 600},
	}
	s, err := lossSample(ours, m, 2)
	if err != nil || s["wire"] != 2 || s["wire-ip"] != 3 || s["p50"] != 25 || s["max"] != 75 {
		t.Errorf("sample %v, %v", s, err)
	}
	if _, err := lossSample(ours, m, 3); err == nil {
		t.Error("a reliable message did not arrive, and nobody minds")
	}
	s, err = lossSample(quicDatagram, m, 4)
	if err != nil || s["missing"] != 50 {
		t.Errorf("sample %v, %v, want half of the datagrams missing", s, err)
	}
	m.Overflowed = 1
	if _, err := lossSample(ours, m, 2); err == nil {
		t.Error("a packet was lost outside the simulation, and nobody minds")
	}
}

func TestBulkSample(t *testing.T) {
	m := measured{told: told{Megabits: []float64{30, 60}}, Down: netsim.Count{Packets: 200, QueueDrops: 3}}
	s, err := bulkSample(ours, m)
	if err != nil || s["goodput"] != 30 || s["both"] != 90 || s["drops"] != 1.5 || int(s["share"]) != 33 {
		t.Errorf("sample %v, %v", s, err)
	}
	if _, err := bulkSample(ours, measured{told: told{Megabits: []float64{0}}}); err == nil {
		t.Error("nothing was sent, and nobody minds")
	}
}

// TestTogether asks for sides as a harness does: each once a round, in changing order,
// and no more once it failed.
func TestTogether(t *testing.T) {
	var runs [][]string
	broken := errors.New("broken")
	together := &together{sides: []string{"a", "b", "c"}, start: func(_ context.Context, _ *harness.Env, sides []string, seed uint64) map[string]outcome {
		runs = append(runs, sides)
		out := map[string]outcome{}
		for _, s := range sides {
			out[s] = outcome{sample: harness.Sample{"seed": float64(seed)}}
		}
		out["b"] = outcome{err: broken}
		return out
	}}
	ask := func(side string, seed float64) {
		t.Helper()
		s, err := together.side(side).Run(t.Context(), nil)
		if side == "b" && !errors.Is(err, broken) {
			t.Errorf("b: %v, want %v", err, broken)
		}
		if side != "b" && (err != nil || s["seed"] != seed) {
			t.Errorf("%s: %v, %v, want seed %v", side, s, err, seed)
		}
	}
	for _, side := range []string{"a", "b", "c"} {
		ask(side, 1)
	}
	ask("c", 2)
	ask("a", 2)
	if fmt.Sprint(runs) != "[[a b c] [a c]]" {
		t.Errorf("ran %v", runs)
	}
}
