package netbench

import (
	"context"
	"errors"
	"slices"

	"github.com/Diarkis/diarkis/bench/internal/harness"
)

// outcome is what came of one side.
type outcome struct {
	sample harness.Sample
	err    error
}

// together runs all sides of a bench at once when the first of a round is asked for,
// and hands the others what they measured then.
type together struct {
	sides []string
	start func(ctx context.Context, e *harness.Env, sides []string, seed uint64) map[string]outcome

	seeds   seeds
	results map[string]outcome // of this round, not asked for yet
}

func (t *together) side(name string) harness.Side {
	return harness.Side{Name: name, Run: func(ctx context.Context, e *harness.Env) (harness.Sample, error) {
		o, ok := t.results[name]
		if !ok {
			t.results = t.start(ctx, e, t.sides, t.seeds.next())
			if o, ok = t.results[name]; !ok {
				return nil, errors.New("did not take part")
			}
		}
		delete(t.results, name)
		if o.err != nil {
			t.sides = slices.DeleteFunc(slices.Clone(t.sides), func(s string) bool { return s == name }) // it is not asked again
		}
		return o.sample, o.err
	}}
}
