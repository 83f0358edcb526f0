package telemetry

import (
	"log"
	"strings"

	"github.com/rs/zerolog"
)

// HTTPErrorLog is an http.Server's ErrorLog that turns what net/http has to say about broken
// peers, which strangers can make it say at will, into Debug lines.
func HTTPErrorLog(l zerolog.Logger) *log.Logger { return log.New(debugWriter{l}, "", 0) }

type debugWriter struct{ log zerolog.Logger }

func (d debugWriter) Write(p []byte) (int, error) {
	d.log.Debug().Str("cause", strings.TrimSpace(string(p))).Msg("http connection failed")
	return len(p), nil
}
