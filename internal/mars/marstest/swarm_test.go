package marstest

import (
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
)

// seeds is how many histories a test plays: few, or DIARKIS_SIM_SEEDS.
func seeds(t testing.TB, few uint64) uint64 {
	t.Helper()
	v := os.Getenv("DIARKIS_SIM_SEEDS")
	if v == "" {
		if testing.Short() {
			return max(few/10, 1)
		}
		return few
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("DIARKIS_SIM_SEEDS: %v", err)
	}
	return n
}

// playAll plays n seeds of a scenario on all cores and fails on the first bad one.
func playAll(t *testing.T, s Scenario, n uint64, nodes int) *Report {
	t.Helper()
	var mu sync.Mutex
	var report Report
	var bad *Result
	var next uint64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				mu.Lock()
				seed := next
				next++
				stop := seed >= n || bad != nil
				mu.Unlock()
				if stop {
					return
				}
				r := Play(Draw(s, seed, nodes))
				mu.Lock()
				report.Add(r)
				if r.Violation != nil && (bad == nil || seed < bad.Options.Seed) {
					bad = &r
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if bad != nil {
		t.Fatalf("%s\n%s", s, bad.Report())
	}
	for _, d := range report.Distributions() {
		t.Log(d)
		if d.Exceeds {
			t.Errorf("%s", d)
		}
	}
	return &report
}

// Random faults of every kind, then recovery.
func TestSwarm(t *testing.T) {
	playAll(t, Swarm, seeds(t, 300), 0)
}

// The same seed gives the same history, to the last step: I17.
func TestSameSeedSameHistory(t *testing.T) {
	for _, s := range []Scenario{Swarm, Failover, MassTerm, TrapMerge} {
		for seed := range uint64(8) {
			o := Draw(s, seed, 0)
			a, b := play(o), play(o)
			if a.Hash == b.Hash {
				continue
			}
			o.Trace, o.Heartbeats = Messages, true
			for range 20 {
				a, b = play(o), play(o)
				for i := range min(len(a.History), len(b.History)) {
					if a.History[i] != b.History[i] {
						t.Fatalf("%s, seed %d:\n%s\n%s", s, seed, a.History[i], b.History[i])
					}
				}
			}
			t.Fatalf("%s, seed %d: hashes %x and %x", s, seed, a.Hash, b.Hash)
		}
	}
}
