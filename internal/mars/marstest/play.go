package marstest

import (
	"fmt"
	"strings"
	"time"
)

// Result is what came of a history.
type Result struct {
	Options   Options
	Violation *Violation // nil: every rule held
	History   []string   // what was written down; of a violation, the newest lines
	Simulated time.Duration
	Steps     uint64
	Messages  uint64
	Hash      uint64
	Figures   []Figure
}

// historyMax is how many lines of a bad history are kept.
const historyMax = 400

// Play plays the history of these options. A bad one is played again, to be
// written down; the second time must break the same rule.
func Play(o Options) Result {
	r := play(o)
	if r.Violation == nil || o.Trace != Silent {
		return r
	}
	o.Trace = Messages
	again := play(o)
	if again.Violation == nil || *again.Violation != *r.Violation && r.Violation.Rule != "panic" {
		r.History = []string{"played again, the history was another one: I17 is broken as well"}
		return r
	}
	again.History = again.History[max(0, len(again.History)-historyMax):]
	return again
}

func play(o Options) Result {
	if o.Scenario == "" {
		o.Scenario = Swarm
	}
	c := New(o)
	figures := scenarios[o.Scenario](c)
	r := Result{
		Options: c.opt, Violation: c.violation, Simulated: time.Duration(c.now),
		Steps: c.steps, Messages: c.load.messages, Hash: c.Hash(),
	}
	r.History = c.log.lines
	if c.violation == nil {
		r.Figures = figures
	}
	return r
}

// Replay is the command that plays the history of a result again.
func (r Result) Replay() string {
	return fmt.Sprintf("go run ./internal/mars/marstest/marssim --scenario %s --from %d --seeds 1 --nodes %d --trace",
		r.Options.Scenario, r.Options.Seed, r.Options.Nodes)
}

// Report is what was written down, and how to see a bad history again.
func (r Result) Report() string {
	var b strings.Builder
	for _, l := range r.History {
		b.WriteString(l + "\n")
	}
	if r.Violation != nil {
		fmt.Fprintf(&b, "seed %d: %v\noptions %+v\nreplay with %s\n", r.Options.Seed, r.Violation, r.Options, r.Replay())
	}
	return b.String()
}
