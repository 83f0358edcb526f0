package main

import (
	"maps"
	"slices"

	"github.com/Diarkis/diarkis/bench/internal/harness"
	"github.com/Diarkis/diarkis/bench/internal/netbench"
)

// suite is benches that belong together, and the programs they start.
type suite struct {
	benches  func() []harness.Bench
	programs func() map[string]harness.Program
}

// suites are all there are, in the order in which they run.
var suites = slices.Concat(onLinux, []suite{{netbench.Benches, netbench.Programs}})

func benches(suites []suite) []harness.Bench {
	var all []harness.Bench
	for _, s := range suites {
		all = append(all, s.benches()...)
	}
	return all
}

func programs(suites []suite) map[string]harness.Program {
	all := map[string]harness.Program{}
	for _, s := range suites {
		maps.Copy(all, s.programs())
	}
	return all
}
