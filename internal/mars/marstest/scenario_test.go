package marstest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The figures that were promised, over fewer seeds than marssim plays.
func TestScenarios(t *testing.T) {
	for s, few := range map[Scenario]uint64{
		Failover: 150, Shutdown: 150, Vanish: 150, MassTerm: 150, HandBack: 60, Manual: 60, Surge: 150, Flap: 6,
	} {
		t.Run(string(s), func(t *testing.T) { playAll(t, s, seeds(t, few), 0) })
	}
}

// The traps in which other designs were caught.
func TestTraps(t *testing.T) {
	for _, s := range []Scenario{TrapCouncil, TrapMerge, TrapHome} {
		t.Run(string(s), func(t *testing.T) { playAll(t, s, seeds(t, 150), 0) })
	}
}

// An hour without faults but with loss: no change of any epoch. The command plays 24.
func TestStable(t *testing.T) {
	for seed := range uint64(3) {
		o := Draw(Stable, seed, 5)
		o.Length = time.Hour
		if r := Play(o); r.Violation != nil {
			t.Fatal(r.Report())
		}
	}
}

var update = flag.Bool("update", false, "rewrite testdata; read the diff")

// golden are the histories in testdata: a change of behaviour shows in their diff.
var golden = map[string]Options{
	"failover":  {Seed: 1, Scenario: Failover, Nodes: 5},
	"shutdown":  {Seed: 1, Scenario: Shutdown, Nodes: 5},
	"vanish":    {Seed: 2, Scenario: Vanish, Nodes: 7},
	"massterm":  {Seed: 3, Scenario: MassTerm, Nodes: 7},
	"hand-back": {Seed: 1, Scenario: HandBack, Nodes: 4},
	"surge":     {Seed: 1, Scenario: Surge, Nodes: 9},
	"manual":    {Seed: 1, Scenario: Manual, Nodes: 5, Recovery: 1},
	"merge":     {Seed: 1, Scenario: TrapMerge, Nodes: 6, Seeds: 2},
	"home":      {Seed: 2, Scenario: TrapHome, Nodes: 4, Seeds: 1},
	"swarm":     {Seed: 5, Scenario: Swarm, Nodes: 5, Seeds: 1, Drift: 0.02, Codec: true},
}

func TestGolden(t *testing.T) {
	for name, o := range golden {
		t.Run(name, func(t *testing.T) {
			o.Trace = Events
			r := Play(o)
			if r.Violation != nil {
				t.Fatal(r.Report())
			}
			got := strings.Join(r.History, "\n") + "\n"
			file := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("history differs, run with -update and read the diff:\n%s", firstDifference(got, string(want)))
			}
		})
	}
}

// firstDifference shows where two histories part.
func firstDifference(got, want string) string {
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return strings.Join(a[max(0, i-5):i], "\n") + "\n- " + b[i] + "\n+ " + a[i]
		}
	}
	return "one is longer"
}
