// Command marssim plays many histories of a simulated cluster and checks the
// rules of succession in all of them. It exits with 1 when one was broken, after
// saying how to play that history again.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/mars/marstest"
)

func main() {
	ok, err := run(os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "marssim:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// settings are the flags.
type settings struct {
	from, seeds uint64
	nodes       int
	scenario    string
	workers     int
	hours       float64
	json, trace bool
	heartbeats  bool
	most        int
	profile     string
}

func parse(args []string) (s settings, err error) {
	f := flag.NewFlagSet("marssim", flag.ContinueOnError)
	f.Uint64Var(&s.from, "from", 0, "first `seed`")
	f.Uint64Var(&s.seeds, "seeds", 1000, "how many seeds to play")
	f.IntVar(&s.nodes, "nodes", 0, "size of the cluster; 0 draws 3 to 32 for every seed")
	f.StringVar(&s.scenario, "scenario", string(marstest.Swarm), "what to play: swarm, failover, shutdown, vanish, massterm, stable, flap, handback, manual, surge, trap-council, trap-merge, trap-home")
	f.IntVar(&s.workers, "workers", runtime.GOMAXPROCS(0), "histories to play at the same time")
	f.Float64Var(&s.hours, "hours", 24, "length of the scenario stable")
	f.BoolVar(&s.json, "json", false, "end with the results as a JSON object")
	f.BoolVar(&s.trace, "trace", false, "write every history down")
	f.BoolVar(&s.heartbeats, "heartbeats", false, "with trace, heartbeats too")
	f.IntVar(&s.most, "most", 5, "how many violations to write down before the rest is only counted")
	f.StringVar(&s.profile, "cpuprofile", "", "write a CPU profile to `file`")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	if !marstest.Scenario(s.scenario).Valid() {
		return s, fmt.Errorf("unknown scenario %q", s.scenario)
	}
	if s.nodes != 0 && s.nodes < 2 || s.workers < 1 {
		return s, fmt.Errorf("nodes must be 0 or at least 2, workers at least 1")
	}
	return s, nil
}

func run(args []string, w io.Writer) (ok bool, err error) {
	s, err := parse(args)
	if err != nil {
		return false, err
	}
	debug.SetGCPercent(800) // histories are small and make much garbage
	if s.profile != "" {
		f, err := os.Create(s.profile)
		if err != nil {
			return false, err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return false, err
		}
		defer pprof.StopCPUProfile()
	}
	r := play(s, w)
	return r.Broken() == 0, nil
}

// options returns those of a seed.
func (s settings) options(seed uint64) marstest.Options {
	o := marstest.Draw(marstest.Scenario(s.scenario), seed, s.nodes)
	o.Length = time.Duration(s.hours * float64(time.Hour))
	if s.trace {
		o.Trace, o.Heartbeats = marstest.Messages, s.heartbeats
	}
	return o
}

// play plays all seeds and writes down what came of them.
func play(s settings, w io.Writer) *marstest.Report {
	began, cpu := time.Now(), cpuTime()
	seeds := make(chan uint64)
	results := make(chan marstest.Result, s.workers)
	var wg sync.WaitGroup
	for range s.workers {
		wg.Go(func() {
			for seed := range seeds {
				results <- marstest.Play(s.options(seed))
			}
		})
	}
	go func() {
		for seed := s.from; seed < s.from+s.seeds; seed++ {
			seeds <- seed
		}
		close(seeds)
		wg.Wait()
		close(results)
	}()
	var report marstest.Report
	for r := range results {
		report.Add(r)
		if r.Violation != nil && report.Violations <= s.most || s.trace {
			fmt.Fprint(w, r.Report())
		}
	}
	sum(w, s, &report, time.Since(began), cpuTime()-cpu)
	return &report
}

// summary is what --json writes.
type summary struct {
	Scenario     string                  `json:"scenario"`
	From         uint64                  `json:"from"`
	Seeds        int                     `json:"seeds"`
	Violations   int                     `json:"violations"`
	Rules        map[string]int          `json:"rules"`
	First        map[string]uint64       `json:"first_seed"`
	Hours        float64                 `json:"simulated_hours"`
	Steps        uint64                  `json:"steps"`
	Messages     uint64                  `json:"messages"`
	Seconds      float64                 `json:"seconds"`
	HoursPerCore float64                 `json:"simulated_hours_per_core_hour"`
	Figures      []marstest.Distribution `json:"figures"`
}

func sum(w io.Writer, s settings, r *marstest.Report, took, cpu time.Duration) {
	if cpu == 0 { // not known here: as if all cores had been ours
		cpu = took * time.Duration(s.workers)
	}
	out := summary{
		Scenario: s.scenario, From: s.from, Seeds: r.Seeds, Violations: r.Broken(), Rules: r.Rules, First: r.First,
		Hours: r.Simulated.Hours(), Steps: r.Steps, Messages: r.Messages, Seconds: took.Seconds(),
		HoursPerCore: r.Simulated.Seconds() / max(cpu.Seconds(), 1e-9), Figures: r.Distributions(),
	}
	for _, d := range out.Figures {
		fmt.Fprintln(w, d)
	}
	for rule, n := range out.Rules {
		fmt.Fprintf(w, "%s: broken %d times, first by seed %d\n", rule, n, out.First[rule])
	}
	fmt.Fprintf(w, "%.0f simulated hours per core-hour, %d steps in %.1f s\n", out.HoursPerCore, out.Steps, out.Seconds)
	if s.json {
		b, err := json.Marshal(out)
		if err != nil {
			b = []byte(err.Error())
		}
		fmt.Fprintf(w, "%s\n", b)
	}
	fmt.Fprintf(w, "%d seeds, %d violations, %.1f simulated hours\n", out.Seeds, out.Violations, out.Hours)
}
