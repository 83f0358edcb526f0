package harness

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// What stands around the results in docs/benchmarks.md.
const (
	resultsBegin = "<!-- results: written by bench, do not edit -->"
	resultsEnd   = "<!-- end of results -->"
)

// WriteDocs replaces the results in docs/benchmarks.md.
func (e *Env) WriteDocs(now time.Time, results []Result, notes []Note) error {
	path := e.Source("..", "docs", "benchmarks.md")
	page, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the page for results: %w", err)
	}
	text := fmt.Sprintf("Measured on %s, %s.\n\n%s", now.Format(time.DateOnly), machine(), markdown(results, notes))
	out, err := replaceResults(string(page), text)
	if err != nil {
		return fmt.Errorf("write results to %s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(out), 0o644); err != nil {
		return fmt.Errorf("write the page for results: %w", err)
	}
	return nil
}

func replaceResults(page, text string) (string, error) {
	before, rest, ok := strings.Cut(page, resultsBegin)
	_, after, okEnd := strings.Cut(rest, resultsEnd)
	if !ok || !okEnd {
		return "", fmt.Errorf("there is no %q followed by %q", resultsBegin, resultsEnd)
	}
	return before + resultsBegin + "\n\n" + text + "\n" + resultsEnd + after, nil
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
