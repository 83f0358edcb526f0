package telemetry

import (
	"log"
	"strings"

	"github.com/rs/zerolog"
)

// HTTPErrorLog is an http.Server's ErrorLog that makes what net/http has to say lines of l.
// Most of it is about broken peers, which strangers can make it say at will: Debug. A
// handler that panicked is a bug: Error. Of either kind there is one line in [LineEvery].
func HTTPErrorLog(l zerolog.Logger) *log.Logger { return log.New(&httpFaults{log: l}, "", 0) }

type httpFaults struct {
	log   zerolog.Logger
	lines Throttle
}

// Write is called by net/http with one message.
func (f *httpFaults) Write(p []byte) (int, error) {
	text, stack, _ := strings.Cut(strings.TrimSpace(string(p)), "\n")
	kind, e := "peer", f.log.Debug()
	if strings.Contains(text, "panic serving") {
		kind, e = "panic", f.log.Error().Str("stack", stack)
	}
	if more, ok := f.lines.Line(kind); ok {
		if more > 0 {
			e = e.Int("more", more)
		}
		e.Str("cause", text).Msg("http request failed")
	}
	return len(p), nil
}
