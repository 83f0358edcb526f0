package marstest

import (
	"math/rand/v2"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// Options says what history to play. The zero value, with a seed, is a quiet
// network of hosts with perfect clocks; [Draw] fills it as the seed says.
type Options struct {
	Seed     uint64
	Scenario Scenario
	// Nodes is how many places there are, home included. Zero means 5.
	Nodes int
	// Length is for how long the scenario stable lasts. Zero means 24 hours.
	Length time.Duration
	Link   Link
	// Drift is how much faster or slower than the truth a clock runs at most, 0.05
	// for 5 %. Unless it is 0, clocks also differ by up to 10 s.
	Drift float64
	// PerHost is how many places share a host. Zero means 1.
	PerHost int
	// Versions is into how many namespaces the nodes but home fall. Zero means 1.
	Versions int
	// Seeds is how many places besides home everybody is told to look at.
	Seeds int
	// Vanishing makes home's name resolve only while home is up.
	Vanishing bool
	// Mute makes places where nothing runs swallow requests, as a host that is gone.
	Mute bool
	// Codec sends every message through its encoding.
	Codec    bool
	Recovery mars.Recovery
	// Operator lets somebody ask for transfers and recoveries.
	Operator bool
	// Trace is what to write down, Heartbeats included if they are wanted with Messages.
	Trace      Trace
	Heartbeats bool
}

func (o Options) withDefaults() Options {
	if o.Nodes == 0 {
		o.Nodes = 5
	}
	if o.Length == 0 {
		o.Length = 24 * time.Hour
	}
	if o.PerHost == 0 {
		o.PerHost = 1
	}
	if o.Versions == 0 {
		o.Versions = 1
	}
	return o
}

// The cluster sizes that Draw draws.
const (
	nodesMin = 3
	nodesMax = 32
)

// Draw returns the options of a seed. Zero nodes lets it draw 3 to 32.
func Draw(s Scenario, seed uint64, nodes int) Options {
	rnd := rand.New(rand.NewPCG(seed, 2))
	o := Options{Seed: seed, Scenario: s, Nodes: nodes}
	drawn := nodesMin + rnd.IntN(nodesMax-nodesMin+1) // whether or not it is wanted, or the rest would be another
	if o.Nodes == 0 {
		o.Nodes = drawn
	}
	chance := func(p float64) bool { return rnd.Float64() < p }
	if chance(0.2) {
		o.Link.Min, o.Link.Max = 20*time.Millisecond, 80*time.Millisecond
	}
	if chance(0.6) {
		o.Drift = 0.05 * rnd.Float64()
	}
	o.Mute = chance(0.5)
	o.Vanishing = chance(0.5)
	o.Seeds = []int{0, 1, 3}[rnd.IntN(3)]
	if s == Stable || s == Flap {
		o.Link.Loss = 0.02
		return o
	}
	if s == Manual {
		o.Recovery = mars.RecoveryManual
	}
	o.Codec = chance(1.0 / 8)
	if chance(0.2) {
		o.PerHost = 2 + rnd.IntN(3)
	}
	if chance(0.1) {
		o.Versions = 2
	}
	if s != Swarm {
		o.Link.Loss = 0.02 * rnd.Float64()
		return o
	}
	if chance(0.6) {
		o.Link.Loss = 0.05 * rnd.Float64()
	}
	if chance(0.5) {
		o.Link.Late = 0.05
	}
	if chance(0.4) {
		o.Link.Duplicate = 0.1 * rnd.Float64()
	}
	o.Operator = chance(0.1)
	return o
}
