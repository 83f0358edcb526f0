package harness

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		in   []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 2, 100}, 3},
	} {
		if got := median(test.in); got != test.want {
			t.Errorf("median(%v) = %v, want %v", test.in, got, test.want)
		}
	}
}

func TestFigure(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.00123: "0.00123", 0.5: "0.5", 1.234: "1.23", 45.67: "45.7", 999: "999",
		9999: "9999", 12345: "12.3k", 310482: "310k", 2_500_000: "2.50M", -45.67: "-45.7",
	} {
		if got := figure(v); got != want {
			t.Errorf("figure(%v) = %q, want %q", v, got, want)
		}
	}
}

// fixed is a side that returns one value after the other and notes that it ran.
func fixed(name string, ran *[]string, values ...float64) Side {
	return Side{Name: name, Run: func(context.Context, *Env) (Sample, error) {
		*ran = append(*ran, name)
		v := values[0]
		values = values[1:]
		return Sample{"speed": v}, nil
	}}
}

func TestRunComparesWithinARound(t *testing.T) {
	var ran []string
	b := Bench{
		Name: "b", Metrics: []Metric{{Name: "speed", Unit: "m/s", Better: Higher, Targets: []Target{{Peer: "slow", Must: 1.5, Aim: 3}}}},
		// The machine halves its speed in the second round: medians of values alone
		// would compare different rounds.
		Sides: []Side{fixed("ours", &ran, 10, 4, 12), fixed("slow", &ran, 5, 2, 4), fixed("fast", &ran, 20, 10, 24)},
	}
	results, notes, err := Run(t.Context(), &Env{}, b, 3, func(string) {})
	if err != nil || len(notes) > 0 {
		t.Fatal(err, notes)
	}
	if want := "ours slow fast fast slow ours ours slow fast"; strings.Join(ran, " ") != want {
		t.Errorf("ran %v, want %s", ran, want)
	}
	if len(results) != 2 {
		t.Fatalf("%d results, want 2: %+v", len(results), results)
	}
	slow, fast := results[0], results[1]
	if slow.Ratio != 2 || slow.RatioMin != 2 || slow.RatioMax != 3 || slow.Ours != 10 || slow.Value != 4 || slow.Rounds != 3 {
		t.Errorf("against slow: %+v", slow)
	}
	if slow.Target == nil || fast.Target != nil || fast.Ratio != 0.5 {
		t.Errorf("against fast: %+v, target of slow: %+v", fast, slow.Target)
	}
}

func TestRunLeavesOutWhoCannotRun(t *testing.T) {
	var ran []string
	broken := errors.New("broken")
	runs := 0
	b := Bench{
		Name: "b", Metrics: []Metric{{Name: "speed", Better: Higher, Targets: []Target{{Must: 1, Aim: 2}}}},
		Sides: []Side{
			fixed("ours", &ran, 1, 1),
			{Name: "absent", Run: func(context.Context, *Env) (Sample, error) { runs++; return nil, Skip("no header") }},
			{Name: "broken", Run: func(context.Context, *Env) (Sample, error) { return nil, broken }},
		},
	}
	results, notes, err := Run(t.Context(), &Env{}, b, 2, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if runs != 1 {
		t.Errorf("a side that can't run was tried %d times", runs)
	}
	if len(notes) != 2 || !notes[0].Skipped() || notes[1].Skipped() || !errors.Is(notes[1].Err, broken) {
		t.Errorf("notes %v", notes)
	}
	if len(results) != 1 || results[0].Peer != "" || results[0].Ours != 1 {
		t.Errorf("results %+v, want ours alone", results)
	}
}

func TestRunGoesOnAfterAFailure(t *testing.T) {
	var ran []string
	round := 0
	b := Bench{
		Name: "b", Metrics: []Metric{{Name: "speed", Better: Higher}},
		Sides: []Side{fixed("ours", &ran, 10, 20, 30), {Name: "shaky", Run: func(context.Context, *Env) (Sample, error) {
			if round++; round == 2 {
				return nil, errors.New("nothing came back")
			}
			return Sample{"speed": 10}, nil
		}}},
	}
	results, notes, err := Run(t.Context(), &Env{}, b, 3, func(string) {})
	if err != nil || len(notes) != 1 {
		t.Fatal(err, notes)
	}
	if len(results) != 1 || results[0].Rounds != 2 || results[0].RatioMin != 1 || results[0].RatioMax != 3 {
		t.Errorf("results %+v, want rounds 1 and 3", results)
	}
}

func TestZeroHasNoRatio(t *testing.T) {
	var ran []string
	b := Bench{
		Name: "b", Metrics: []Metric{{Name: "speed", Better: Lower}},
		Sides: []Side{fixed("ours", &ran, 10), fixed("free", &ran, 0)},
	}
	results, _, err := Run(t.Context(), &Env{}, b, 1, func(string) {})
	if err != nil || len(results) != 1 {
		t.Fatal(err, results)
	}
	if got := results[0].cells()[4]; got != "–" {
		t.Errorf("ratio to zero is %q", got)
	}
}

func TestTargetText(t *testing.T) {
	for _, test := range []struct {
		better Better
		peer   string
		ours   float64
		ratio  float64
		want   string
	}{
		{Higher, "c", 0, 0.5, "≥ 0.7, aim 0.9: missed"},
		{Higher, "c", 0, 0.8, "≥ 0.7, aim 0.9: met"},
		{Higher, "c", 0, 0.9, "≥ 0.7, aim 0.9: aim met"},
		{Higher, "", 0.95, 0, "≥ 0.7, aim 0.9: aim met"},
		{Lower, "c", 0, 0.8, "≤ 0.7, aim 0.9: aim met"},
	} {
		r := Result{Ours: test.ours, Ratio: test.ratio, Better: test.better, Target: &Target{Peer: test.peer, Must: 0.7, Aim: 0.9}}
		if got := r.targetText(); got != test.want {
			t.Errorf("%+v: %q, want %q", test, got, test.want)
		}
	}
}

var oneResult = Result{
	Name: "echo/64/packets", Ours: 200_000, Peer: "C", Value: 250_000, Ratio: 0.8, RatioMin: 0.79, RatioMax: 0.82,
	Unit: "packets/CPU-s", Rounds: 5, Better: Higher, Target: &Target{Peer: "C", Must: 0.7, Aim: 0.9},
}

func TestWriteJSON(t *testing.T) {
	var b bytes.Buffer
	if err := WriteJSON(&b, []Result{oneResult}); err != nil {
		t.Fatal(err)
	}
	want := `{"name":"echo/64/packets","ours":200000,"peer":"C","peer_value":250000,"ratio":0.8,"unit":"packets/CPU-s","rounds":5,` +
		`"ratio_min":0.79,"ratio_max":0.82,"better":"higher","target":{"peer":"C","must":0.7,"aim":0.9}}` + "\n"
	if b.String() != want {
		t.Errorf("got  %swant %s", b.String(), want)
	}
}

func TestMarkdown(t *testing.T) {
	got := markdown([]Result{oneResult}, []Note{{"echo/64", "ENet", Skip("no header")}})
	want := `|  | ours | C | target |
| --- | --- | --- | --- |
| echo/64/packets, packets/CPU-s ↑ | 200k | 250k · **0.8×** (0.79–0.82) | ≥ 0.7, aim 0.9: met (C) |

Not measured:

- echo/64: ENet: skipped: no header
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestReplaceResults(t *testing.T) {
	begin, end := marks("echo")
	other, otherEnd := marks("idle")
	page := "# Head\n" + begin + "\nold\n" + end + "\nbetween\n" + other + "\nkept\n" + otherEnd + "\ntail\n"
	got, err := replaceResults(page, "echo", "new\n")
	want := "# Head\n" + begin + "\nnew\n\n" + end + "\nbetween\n" + other + "\nkept\n" + otherEnd + "\ntail\n"
	if err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if again, err := replaceResults(got, "echo", "new\n"); err != nil || again != got {
		t.Errorf("a second time: %q, %v", again, err)
	}
	for _, bad := range []string{"", begin, end, other + otherEnd} {
		if _, err := replaceResults(bad, "echo", "new"); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestMachine(t *testing.T) {
	if got := cpuModel("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n", "?"); got != "Some CPU @ 2 GHz" {
		t.Errorf("model %q", got)
	}
	if got := kernelVersion("6.1.44-maker-v6\n"); got != "6.1.44" {
		t.Errorf("kernel %q", got)
	}
}

func TestOrderKeepsTheSides(t *testing.T) {
	sides := []Side{{Name: "a"}, {Name: "b"}}
	order(sides, 1)
	if !slices.EqualFunc(sides, []string{"a", "b"}, func(s Side, n string) bool { return s.Name == n }) {
		t.Error("order changed the bench")
	}
}
