// Bench measures the servers of this project beside others that do the same job,
// on this machine and in one run. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/harness"
)

type flags struct {
	list, quick, json, write, pin bool
	only, profile                 string
	rounds                        int
}

func main() {
	err := run(os.Args[1:])
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) > 0 && args[0] == "serve" { // how a bench starts what it measures
		return harness.Serve(programs(suites), args[1:])
	}
	f, err := parse(args)
	if err != nil {
		return err
	}
	selected, err := choose(benches(suites), f.only)
	if err != nil {
		return err
	}
	if f.list {
		for _, b := range selected {
			fmt.Printf("%-20s %s\n", b.Name, b.About)
		}
		return nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return measure(ctx, f, selected)
}

func parse(args []string) (flags, error) {
	var f flags
	set := flag.NewFlagSet("bench", flag.ContinueOnError)
	set.BoolVar(&f.list, "list", false, "say what there is and end")
	set.StringVar(&f.only, "only", "", "run benchmarks whose names start with one of these `names`, separated by commas")
	set.BoolVar(&f.quick, "quick", false, "measure less of everything: rough figures that show it works")
	set.IntVar(&f.rounds, "rounds", 5, "run every side so many `times`")
	set.BoolVar(&f.json, "json", false, "print one JSON object a result")
	set.BoolVar(&f.write, "write", false, "write the tables into docs/benchmarks.md, as a full run does anyway")
	set.BoolVar(&f.pin, "pin", true, "keep servers on one CPU and load generators on the others")
	set.StringVar(&f.profile, "profile", "", "have our servers write CPU profiles into a `folder`")
	if err := set.Parse(args); err != nil {
		return f, err
	}
	if set.NArg() > 0 {
		return f, fmt.Errorf("unexpected %q", set.Args())
	}
	if f.rounds < 1 {
		return f, fmt.Errorf("%d rounds measure nothing", f.rounds)
	}
	return f, nil
}

// choose returns the benches whose names start with one of the prefixes in only.
func choose(all []harness.Bench, only string) ([]harness.Bench, error) {
	if only == "" {
		return all, nil
	}
	var out []harness.Bench
	prefixes := strings.Split(only, ",")
	for _, b := range all {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(b.Name, p) }) {
			out = append(out, b)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no benchmark is called %q: see --list", only)
	}
	return out, nil
}

// full says that the run is worth keeping.
func (f flags) full() bool { return f.only == "" && !f.quick && f.rounds >= 5 && f.profile == "" }

func measure(ctx context.Context, f flags, selected []harness.Bench) error {
	env, err := harness.NewEnv(harness.Options{Quick: f.quick, Pin: f.pin, ProfileDir: f.profile})
	if err != nil {
		return err
	}
	defer env.Close()
	if _, err := harness.RaiseFiles(); err != nil {
		return err
	}
	var results []harness.Result
	var notes []harness.Note
	progress := func(line string) { fmt.Fprintln(os.Stderr, line) }
	for _, b := range selected {
		rs, ns, err := harness.Run(ctx, env, b, f.rounds, progress)
		if err != nil {
			return err
		}
		results, notes = append(results, rs...), append(notes, ns...)
		if f.json {
			if err := harness.WriteJSON(os.Stdout, rs); err != nil {
				return err
			}
		}
	}
	if !f.json {
		if err := harness.WriteText(os.Stdout, results, notes); err != nil {
			return err
		}
	}
	if f.write || f.full() {
		if err := env.WriteDocs(time.Now(), results, notes); err != nil {
			return err
		}
	}
	return failures(notes)
}

// failures joins what went wrong; a side that this machine can't run did not.
func failures(notes []harness.Note) error {
	var errs []error
	for _, n := range notes {
		if !n.Skipped() {
			errs = append(errs, errors.New(n.String()))
		}
	}
	return errors.Join(errs...)
}
