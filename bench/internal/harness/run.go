package harness

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// Result compares ours with one peer in one metric. Without a peer it is a figure
// of ours alone.
type Result struct {
	Name   string  `json:"name"` // "BENCH/METRIC"
	Ours   float64 `json:"ours"` // median over the rounds
	Peer   string  `json:"peer"`
	Value  float64 `json:"peer_value"` // median over the rounds
	Ratio  float64 `json:"ratio"`      // median over the rounds of ours / peer; 0 when the peer's was always 0
	Unit   string  `json:"unit"`
	Rounds int     `json:"rounds"`

	RatioMin float64 `json:"ratio_min"`
	RatioMax float64 `json:"ratio_max"`
	Better   Better  `json:"better"`
	Target   *Target `json:"target,omitempty"`
}

// Note is a side that did not run, at least in one round, and why.
type Note struct {
	Bench, Side string
	Err         error
}

func (n Note) String() string { return fmt.Sprintf("%s: %s: %v", n.Bench, n.Side, n.Err) }

// Skipped says that the side can't run on this machine, which is no failure.
func (n Note) Skipped() bool { return errors.Is(n.Err, ErrSkip) }

// history is what the sides of a bench measured, by round; nil for a round in which a
// side failed.
type history map[string][]Sample

// Run runs the rounds of one bench. Progress gets a line for each run of a side.
func Run(ctx context.Context, e *Env, b Bench, rounds int, progress func(string)) ([]Result, []Note, error) {
	samples, failed := history{}, map[string]error{}
	for round := range rounds {
		for _, s := range order(b.Sides, round) {
			if errors.Is(failed[s.Name], ErrSkip) {
				continue
			}
			sample, err := s.Run(ctx, e)
			if ctx.Err() != nil {
				return nil, nil, context.Cause(ctx)
			}
			samples[s.Name] = append(samples[s.Name], sample) // nil keeps the round's place
			if err != nil {
				failed[s.Name] = err
				progress(fmt.Sprintf("%s  %s: %v", b.Name, s.Name, err))
				continue
			}
			progress(fmt.Sprintf("%s  round %d/%d  %s: %s", b.Name, round+1, rounds, s.Name, b.show(sample)))
		}
	}
	var notes []Note
	for _, s := range b.Sides {
		if err := failed[s.Name]; err != nil {
			notes = append(notes, Note{b.Name, s.Name, err})
		}
	}
	return b.results(samples), notes, nil
}

// order is in which order the sides run in a round: as they are, then backwards.
func order(sides []Side, round int) []Side {
	out := slices.Clone(sides)
	if round%2 == 1 {
		slices.Reverse(out)
	}
	return out
}

// results compares ours with every peer in every metric that both have.
func (b Bench) results(h history) []Result {
	var out []Result
	ours := b.Sides[0].Name
	for _, m := range b.Metrics {
		mine := h.values(ours, m.Name)
		if len(mine) == 0 {
			continue
		}
		base := Result{Name: b.Name + "/" + m.Name, Ours: median(mine), Unit: m.Unit, Rounds: len(mine), Better: m.Better}
		alone := base
		alone.Target = m.target("")
		before := len(out)
		for _, s := range b.Sides[1:] {
			if m.Aside && m.target(s.Name) == nil {
				continue
			}
			theirs := h.values(s.Name, m.Name)
			if len(theirs) == 0 {
				continue
			}
			r := base
			r.Peer, r.Value, r.Rounds = s.Name, median(theirs), min(len(mine), len(theirs))
			if rs := h.ratios(ours, s.Name, m.Name); len(rs) > 0 {
				r.Ratio, r.RatioMin, r.RatioMax = median(rs), slices.Min(rs), slices.Max(rs)
			}
			r.Target = m.target(s.Name)
			out = append(out, r)
		}
		if len(out) == before && !m.Aside || alone.Target != nil {
			out = append(out, alone)
		}
	}
	return out
}

// values are the figures of one side in one metric, by round.
func (h history) values(side, metric string) []float64 {
	var out []float64
	for _, s := range h[side] {
		if v, ok := s[metric]; ok {
			out = append(out, v)
		}
	}
	return out
}

// ratios divides the figures of side a by those of side b, round by round. Rounds
// that one of them lacks, or in which b's is zero, are left out.
func (h history) ratios(a, b, metric string) []float64 {
	var out []float64
	for round := range min(len(h[a]), len(h[b])) {
		x, okX := h[a][round][metric]
		y, okY := h[b][round][metric]
		if okX && okY && y != 0 {
			out = append(out, x/y)
		}
	}
	return out
}

func (m Metric) target(peer string) *Target {
	for _, t := range m.Targets {
		if t.Peer == peer {
			return &t
		}
	}
	return nil
}

// show is a sample in one line.
func (b Bench) show(s Sample) string {
	out := ""
	for _, m := range b.Metrics {
		if v, ok := s[m.Name]; ok {
			out += fmt.Sprintf("  %s %s", figure(v), m.Unit)
		}
	}
	return out
}
