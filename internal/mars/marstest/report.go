package marstest

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Report sums many results up. Add is not safe for concurrent use.
type Report struct {
	Seeds      int
	Violations int
	Simulated  time.Duration
	Steps      uint64
	Messages   uint64
	Rules      map[string]int    // violations by rule
	First      map[string]uint64 // a seed for each
	figures    map[string][]time.Duration
	worst      map[string]uint64 // the seed of the longest
}

// Add counts a result.
func (r *Report) Add(x Result) {
	if r.Rules == nil {
		r.Rules, r.First, r.figures = make(map[string]int), make(map[string]uint64), make(map[string][]time.Duration)
		r.worst = make(map[string]uint64)
	}
	r.Seeds++
	r.Simulated += x.Simulated
	r.Steps += x.Steps
	r.Messages += x.Messages
	for _, f := range x.Figures {
		if v := r.figures[f.Name]; len(v) == 0 || f.Value > slices.Max(v) {
			r.worst[f.Name] = x.Options.Seed
		}
		r.figures[f.Name] = append(r.figures[f.Name], f.Value)
	}
	if v := x.Violation; v != nil {
		r.Violations++
		r.Rules[v.Rule]++
		if s, ok := r.First[v.Rule]; !ok || x.Options.Seed < s {
			r.First[v.Rule] = x.Options.Seed
		}
	}
}

// Distribution describes one figure over all seeds, in milliseconds.
type Distribution struct {
	Name    string  `json:"name"`
	Count   int     `json:"count"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
	Max     float64 `json:"max_ms"`
	Worst   uint64  `json:"max_seed"`
	Limit   float64 `json:"limit_ms"` // of P99, 0 for none
	Exceeds bool    `json:"exceeds"`
}

// enough is how many values a percentile needs to be held to its limit: of fewer,
// the worst one is all it would be.
const enough = 100

// Distributions returns the figures, by name.
func (r *Report) Distributions() []Distribution {
	var ds []Distribution
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	for _, name := range slices.Sorted(maps.Keys(r.figures)) {
		v := r.figures[name]
		slices.Sort(v)
		p99 := v[(len(v)-1)*99/100]
		limit := limits[name]
		ds = append(ds, Distribution{
			Name: name, Count: len(v), P50: ms(v[len(v)/2]), P99: ms(p99), Max: ms(v[len(v)-1]), Worst: r.worst[name],
			Limit: ms(limit), Exceeds: limit > 0 && len(v) >= enough && p99 > limit,
		})
	}
	return ds
}

// Broken is how many rules were broken: the violations of single histories, and
// the figures whose distribution is not as promised.
func (r *Report) Broken() int {
	n := r.Violations
	for _, d := range r.Distributions() {
		if d.Exceeds {
			n++
		}
	}
	return n
}

func (d Distribution) String() string {
	s := fmt.Sprintf("%s: %d times, p50 %.0f ms, p99 %.0f ms, max %.0f ms with seed %d", d.Name, d.Count, d.P50, d.P99, d.Max, d.Worst)
	if d.Exceeds {
		s += fmt.Sprintf(", p99 exceeds %.0f ms", d.Limit)
	}
	return s
}
