package telemetry

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// What net/http says is a line of the node's log, however often it says it.
func TestHTTPErrorLog(t *testing.T) {
	log := &bytes.Buffer{}
	f := HTTPErrorLog(zerolog.New(log)).Writer()
	for range 100 {
		if _, err := f.Write([]byte("http: TLS handshake error from 10.0.0.1:5: EOF\n")); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = f.Write([]byte("http: panic serving 10.0.0.1:5: boom\ngoroutine 7 [running]:\nmain.main()\n"))
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines, want one a kind:\n%s", len(lines), log)
	}
	for i, want := range []map[string]any{
		{"level": "debug", "cause": "http: TLS handshake error from 10.0.0.1:5: EOF", "message": "http request failed"},
		{"level": "error", "cause": "http: panic serving 10.0.0.1:5: boom", "stack": "goroutine 7 [running]:\nmain.main()", "message": "http request failed"},
	} {
		got := map[string]any{}
		if err := json.Unmarshal([]byte(lines[i]), &got); err != nil {
			t.Fatal(err)
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("line %d: %s = %v, want %v", i, k, got[k], v)
			}
		}
	}
}
