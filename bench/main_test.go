package main

import (
	"slices"
	"testing"

	"github.com/Diarkis/diarkis/bench/internal/harness"
)

func TestChoose(t *testing.T) {
	all := []harness.Bench{{Name: "echo/64"}, {Name: "echo/1200"}, {Name: "idle"}, {Name: "fanout/100"}}
	for only, want := range map[string][]string{
		"":            {"echo/64", "echo/1200", "idle", "fanout/100"},
		"echo":        {"echo/64", "echo/1200"},
		"idle,echo/6": {"echo/64", "idle"},
	} {
		got, err := choose(all, only)
		if err != nil {
			t.Errorf("%q: %v", only, err)
		}
		if !slices.EqualFunc(got, want, func(b harness.Bench, n string) bool { return b.Name == n }) {
			t.Errorf("%q chose %v, want %v", only, got, want)
		}
	}
	if _, err := choose(all, "nothing"); err == nil {
		t.Error("a name that nothing starts with was accepted")
	}
}

func TestParse(t *testing.T) {
	for _, args := range [][]string{{"--rounds", "0"}, {"stray"}, {"--nonsense"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
	f, err := parse(nil)
	if err != nil || !f.full() {
		t.Errorf("without flags: %+v, %v, want a full run", f, err)
	}
	if f, _ := parse([]string{"--quick"}); f.full() {
		t.Error("a quick run counts as full")
	}
}

func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, b := range benches(suites) {
		if seen[b.Name] {
			t.Errorf("two benchmarks are called %q", b.Name)
		}
		seen[b.Name] = true
		for _, m := range b.Metrics {
			for _, target := range m.Targets {
				if target.Peer != "" && !slices.ContainsFunc(b.Sides[1:], func(s harness.Side) bool { return s.Name == target.Peer }) {
					t.Errorf("%s/%s has a target against %q, who does not take part", b.Name, m.Name, target.Peer)
				}
			}
		}
	}
}
