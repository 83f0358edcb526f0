// Package telemetry makes the logger, the metrics registry and the HTTP handler
// an operator looks at a node through. It opens no socket: the admin listener
// is lifecycle's. Nothing in it is global, so that one process can hold several
// nodes.
package telemetry

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/rs/zerolog"
)

// LogOptions says what log lines look like. The zero value logs from info up,
// coloured when the output is a terminal.
type LogOptions struct {
	// Level is trace, debug, info, warn, error or fatal. Empty means info.
	Level string
	// Color is auto, true or false. Empty means auto: on a terminal, unless
	// NO_COLOR is set.
	Color string
	// JSON writes one JSON object a line.
	JSON bool
	// Flat writes key=value pairs, every entry on one line and never coloured.
	Flat bool
	// Out is where lines go, one Write a line. Nil means stderr.
	Out io.Writer
}

// Level is the lowest level that is logged. It can be changed while the node
// runs and holds for every logger derived from the one it came with.
type Level struct{ level atomic.Int32 }

// ParseLevel reads a level's name in any case.
func ParseLevel(name string) (zerolog.Level, error) {
	switch l, err := zerolog.ParseLevel(strings.ToLower(name)); {
	case name != "" && err == nil && l >= zerolog.TraceLevel && l <= zerolog.FatalLevel:
		return l, nil
	default:
		return 0, fmt.Errorf("log level %q: expected trace, debug, info, warn, error or fatal", name)
	}
}

// Set changes the level by name.
func (l *Level) Set(name string) error {
	v, err := ParseLevel(name)
	if err == nil {
		l.level.Store(int32(v))
	}
	return err
}

// String returns the level's name.
func (l *Level) String() string { return zerolog.Level(l.level.Load()).String() }

// Sample implements zerolog.Sampler, which is asked before an entry is built: a
// line below the level costs a comparison.
func (l *Level) Sample(of zerolog.Level) bool { return of >= zerolog.Level(l.level.Load()) }

// timeFormat has milliseconds: the order of lines of several nodes matters.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

// NewLogger makes the root logger of a node.
func NewLogger(o LogOptions) (zerolog.Logger, *Level, error) {
	level := &Level{}
	name := o.Level
	if name == "" {
		name = "info"
	}
	if err := level.Set(name); err != nil {
		return zerolog.Nop(), nil, err
	}
	out := o.Out
	if out == nil {
		out = os.Stderr
	}
	color := o.Color == "true" || o.Color != "false" && os.Getenv("NO_COLOR") == "" && isTerminal(out)
	switch {
	case o.JSON:
	case o.Flat:
		out = flatWriter(out)
	default:
		out = zerolog.ConsoleWriter{Out: out, NoColor: !color, TimeFormat: "15:04:05.000"}
	}
	// The level of the logger itself stays at trace, so that Level decides alone.
	log := zerolog.New(zerolog.SyncWriter(out)).Level(zerolog.TraceLevel).Sample(level).Hook(stamp{})
	return log, level, nil
}

// stamp adds the time with our own format; zerolog's is a global.
type stamp struct{}

func (stamp) Run(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(zerolog.TimestampFieldName, time.Now().Format(timeFormat))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(interface{ Fd() uintptr })
	return ok && isatty.IsTerminal(f.Fd())
}

// flatWriter turns entries into time=… level=… message="…" key=value.
func flatWriter(out io.Writer) io.Writer {
	text := func(name string) zerolog.Formatter {
		return func(v any) string {
			if v == nil {
				return ""
			}
			return name + "=" + quote(fmt.Sprint(v))
		}
	}
	return zerolog.ConsoleWriter{
		Out: out, NoColor: true,
		FormatTimestamp: text("time"), FormatLevel: text("level"), FormatMessage: text("message"),
	}
}

func quote(s string) string {
	if s == "" || strings.ContainsAny(s, " \"=\\") || strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 }) {
		return strconv.Quote(s)
	}
	return s
}
