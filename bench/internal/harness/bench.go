// Package harness runs a benchmark of ours beside its peers and reports ratios.
//
// A [Bench] has sides: ours and others that do the same job. In every round each
// side runs once, one after the other, and the order flips from round to round, so
// that a machine that gets slower or faster treats all alike. What is reported is
// the median over the rounds of ours divided by the peer's figure of that round.
//
// What is measured runs in a child process: the same program started again, or a C
// program that is compiled first. See [Env.Start], [Env.Compile] and [CPUTime].
package harness

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Bench is one comparison.
type Bench struct {
	// Name is what --only selects, such as "echo/64".
	Name string
	// About is one sentence: what is measured, and how.
	About string
	// Metrics are what comes out, the most important first.
	Metrics []Metric
	// Sides are who is compared: ours first, then the peers, closest rival first.
	Sides []Side
}

// Metric is one figure of a bench.
type Metric struct {
	// Name is the key in a Sample. The result is called "BENCH/NAME".
	Name string
	// Unit is what a value counts, such as "packets/CPU-s".
	Unit string
	// Better says which way is good.
	Better Better
	// Targets are what we want to reach.
	Targets []Target
	// Aside leaves the metric out of the results but where it has a target: it only
	// explains the others, in the progress.
	Aside bool
}

// Better says which values of a metric are good.
type Better int

// The directions. None is for figures that only explain the others.
const (
	None Better = iota
	Higher
	Lower
)

// Target is a figure we want to reach.
type Target struct {
	// Peer is the side that Must and Aim are a ratio to; empty means that they are
	// values of ours.
	Peer string `json:"peer"`
	// Must is the floor, Aim what we hope for, in the metric's direction.
	Must float64 `json:"must"`
	Aim  float64 `json:"aim"`
}

// Side is one contestant.
type Side struct {
	Name string
	// Run measures once. An error that wraps [ErrSkip] leaves the side out, with its
	// text as the reason; any other fails the bench.
	Run func(ctx context.Context, e *Env) (Sample, error)
}

// Sample is what one run of a side measured, by the name of the metric. A metric
// that a side lacks is not compared.
type Sample map[string]float64

// ErrSkip means a side can't run on this machine.
var ErrSkip = errors.New("skipped")

// Skip returns an error that wraps [ErrSkip] and says what is missing.
func Skip(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrSkip, fmt.Sprintf(format, args...))
}

// Env is what a side has to work with.
type Env struct {
	// Quick asks for less of everything: figures are rough, but show that it works.
	Quick bool
	// ProfileDir is where our servers write CPU profiles; empty means they don't.
	ProfileDir string
	// Pin keeps servers on one CPU and load generators off it.
	Pin bool

	self    string // this program
	source  string // the folder of bench/
	temp    string // for what is compiled
	servers cpuSet
	loads   cpuSet
}

// Window is how long a side measures, after WarmUp.
func (e *Env) Window() time.Duration {
	if e.Quick {
		return 500 * time.Millisecond
	}
	return 3 * time.Second
}

// WarmUp is how long a side runs before it measures.
func (e *Env) WarmUp() time.Duration {
	if e.Quick {
		return 200 * time.Millisecond
	}
	return time.Second
}
