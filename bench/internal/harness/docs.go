package harness

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// group is the first part of a bench's name: what it is about. docs/benchmarks.md has a
// table of each group between two marks, so that one can be measured again alone.
func group(name string) string {
	g, _, _ := strings.Cut(name, "/")
	return g
}

func marks(group string) (begin, end string) {
	return "<!-- results of " + group + ": written by bench, do not edit -->", "<!-- end of " + group + " -->"
}

// WriteDocs replaces the tables in docs/benchmarks.md of the groups there are results of.
func (e *Env) WriteDocs(now time.Time, results []Result, notes []Note) error {
	path := e.Source("..", "docs", "benchmarks.md")
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the page for results: %w", err)
	}
	page := string(b)
	for _, g := range groups(results) {
		of := func(name string) bool { return group(name) != g }
		rs := slices.DeleteFunc(slices.Clone(results), func(r Result) bool { return of(r.Name) })
		ns := slices.DeleteFunc(slices.Clone(notes), func(n Note) bool { return of(n.Bench) })
		text := fmt.Sprintf("%s, %s, medians of %d rounds.\n\n%s", now.Format(time.DateOnly), machine(), rs[0].Rounds, markdown(rs, ns))
		if page, err = replaceResults(page, g, text); err != nil {
			return fmt.Errorf("write results to %s: %w", path, err)
		}
	}
	if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
		return fmt.Errorf("write the page for results: %w", err)
	}
	return nil
}

// groups are those of results, in order.
func groups(results []Result) (all []string) {
	for _, r := range results {
		if g := group(r.Name); !slices.Contains(all, g) {
			all = append(all, g)
		}
	}
	return all
}

func replaceResults(page, group, text string) (string, error) {
	begin, end := marks(group)
	before, rest, ok := strings.Cut(page, begin)
	_, after, okEnd := strings.Cut(rest, end)
	if !ok || !okEnd {
		return "", fmt.Errorf("there is no %q followed by %q", begin, end)
	}
	return before + begin + "\n" + text + "\n" + end + after, nil
}

// markdown is the table for docs/: a row a metric, a column a peer.
func markdown(results []Result, notes []Note) string {
	var names, peers []string
	for _, r := range results {
		if !slices.Contains(names, r.Name) {
			names = append(names, r.Name)
		}
		if r.Peer != "" && !slices.Contains(peers, r.Peer) {
			peers = append(peers, r.Peer)
		}
	}
	var b strings.Builder
	row := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	row(slices.Concat([]string{"", "ours"}, peers, []string{"target"}))
	fmt.Fprintf(&b, "|%s\n", strings.Repeat(" --- |", len(peers)+3))
	for _, name := range names {
		row(rowOf(name, peers, results))
	}
	for i, n := range notes {
		if i == 0 {
			b.WriteString("\nNot measured:\n\n")
		}
		fmt.Fprintf(&b, "- %s\n", n)
	}
	return b.String()
}

// rowOf is what we have of one metric: ours, and for each peer its figure and ours as a
// multiple of it.
func rowOf(name string, peers []string, results []Result) []string {
	cells := make([]string, len(peers)+3)
	for _, r := range results {
		if r.Name != name {
			continue
		}
		cells[0] = name + ", " + r.Unit + r.Better.arrow()
		cells[1] = figure(r.Ours)
		if i := slices.Index(peers, r.Peer); i >= 0 {
			cells[2+i] = figure(r.Value)
			if r.Ratio != 0 {
				cells[2+i] += fmt.Sprintf(" · **%s×** (%s–%s)", figure(r.Ratio), figure(r.RatioMin), figure(r.RatioMax))
			}
		}
		if t := r.targetText(); t != "" {
			if r.Peer != "" {
				t += " (" + r.Peer + ")"
			}
			cells[len(cells)-1] = t
		}
	}
	return cells
}

// arrow points to where better is.
func (b Better) arrow() string {
	switch b {
	case Higher:
		return " ↑"
	case Lower:
		return " ↓"
	}
	return ""
}

// machine says where the figures come from: they mean little elsewhere.
func machine() string {
	model := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		model = cpuModel(string(info), model)
	}
	kernel := runtime.GOOS
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = "Linux " + kernelVersion(string(release))
	}
	return fmt.Sprintf("%s, %d cores, %s, %s, loopback", model, runtime.NumCPU(), kernel, runtime.Version())
}

// kernelVersion is a release without what its builder appended.
func kernelVersion(release string) string {
	v, _, _ := strings.Cut(strings.TrimSpace(release), "-")
	return v
}

func cpuModel(cpuinfo, unknown string) string {
	for line := range strings.Lines(cpuinfo) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return unknown
}
