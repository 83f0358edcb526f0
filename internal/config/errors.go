package config

import (
	"fmt"
	"strings"
)

// Exit codes of sysexits.h that errors of this package ask for.
const (
	ExitUsage  = 64
	ExitConfig = 78
)

// Problem is one thing wrong with the settings.
type Problem struct {
	Source string // file, environment variable or flag
	Line   int    // 1-based; 0 outside files
	Column int    // 1-based, in characters
	Key    string // setting concerned, "" when none
	Text   string // what is expected, and what was found
}

// String is one line: file:line:column: key: text.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Source)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	if p.Key != "" {
		b.WriteString(": " + p.Key)
	}
	b.WriteString(": " + p.Text)
	return b.String()
}

// Errors is every problem found in one [Load], so that one restart fixes them all.
type Errors struct{ Problems []Problem }

// Error lists the problems, one a line.
func (e *Errors) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// ExitCode is what the process exits with because of this error.
func (e *Errors) ExitCode() int { return ExitConfig }

// UsageError means the command line itself is wrong.
type UsageError struct{ Text string }

func (e *UsageError) Error() string { return e.Text }

// ExitCode is what the process exits with because of this error.
func (e *UsageError) ExitCode() int { return ExitUsage }
