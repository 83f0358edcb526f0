package harness

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// MarshalText writes "higher", "lower" or "" into JSON.
func (b Better) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

func (b Better) String() string {
	switch b {
	case Higher:
		return "higher"
	case Lower:
		return "lower"
	}
	return ""
}

// figure writes a number with three digits that mean something.
func figure(v float64) string {
	switch a := max(v, -v); {
	case a >= 1e6:
		return digits(v/1e6) + "M"
	case a >= 1e4:
		return digits(v/1e3) + "k"
	}
	return digits(v)
}

func digits(v float64) string {
	decimals := 0
	switch a := max(v, -v); {
	case a == 0 || a >= 100:
	case a >= 10:
		decimals = 1
	case a >= 1:
		decimals = 2
	default:
		return fmt.Sprintf("%.3g", v)
	}
	return fmt.Sprintf("%.*f", decimals, v)
}

// value is what the target of r is about.
func (r Result) value() float64 {
	if r.Target.Peer == "" {
		return r.Ours
	}
	return r.Ratio
}

// met says whether v is at least as good as goal.
func (b Better) met(v, goal float64) bool {
	if b == Lower {
		return v <= goal
	}
	return v >= goal
}

// targetText is what we want and whether we have it, such as "≥ 0.7, aim 0.9: met".
func (r Result) targetText() string {
	if r.Target == nil {
		return ""
	}
	sign, verdict := "≥", "missed"
	if r.Better == Lower {
		sign = "≤"
	}
	switch v := r.value(); {
	case r.Better.met(v, r.Target.Aim):
		verdict = "aim met"
	case r.Better.met(v, r.Target.Must):
		verdict = "met"
	}
	return fmt.Sprintf("%s %s, aim %s: %s", sign, figure(r.Target.Must), figure(r.Target.Aim), verdict)
}

// cells are the columns of both tables.
func (r Result) cells() []string {
	unit := r.Unit
	if r.Better != None {
		unit += ", " + r.Better.String() + " is better"
	}
	if r.Peer == "" {
		return []string{r.Name, figure(r.Ours), "", "", "", "", unit, r.targetText()}
	}
	ratio, spread := "–", ""
	if r.Ratio != 0 {
		ratio = figure(r.Ratio) + "×"
		spread = fmt.Sprintf("%s–%s", figure(r.RatioMin), figure(r.RatioMax))
	}
	return []string{r.Name, figure(r.Ours), r.Peer, figure(r.Value), ratio, spread, unit, r.targetText()}
}

var columns = []string{"benchmark", "ours", "peer", "theirs", "ours ÷ theirs", "spread", "unit", "target"}

// WriteText writes a table for a terminal.
func WriteText(w io.Writer, results []Result, notes []Note) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(columns, "\t"))
	for _, r := range results {
		fmt.Fprintln(tw, strings.Join(r.cells(), "\t"))
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, n := range notes {
		if _, err := fmt.Fprintln(w, n); err != nil {
			return err
		}
	}
	return nil
}

// WriteJSON writes one object a line.
func WriteJSON(w io.Writer, results []Result) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for _, r := range results {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}
