package httpapi_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/httpapi"
)

// TestErrorsAreJSON: also those of requests that no handler sees.
func TestErrorsAreJSON(t *testing.T) {
	for _, tc := range []struct {
		name, request string
		want          int
		text          string
	}{
		{"path", "GET /nope HTTP/1.1\r\nHost: x\r\n\r\n", 404, "no such path"},
		{"method", "DELETE /healthcheck HTTP/1.1\r\nHost: x\r\n\r\n", 405, "GET"},
		{"no type", "GET /endpoint/type//user/x HTTP/1.1\r\nHost: x\r\n\r\n", 400, "empty"},
		{"slashes", "GET //endpoint/type/UDP/user/x HTTP/1.1\r\nHost: x\r\n\r\n", 400, "empty"},
		{"no user", "GET /endpoint/type/UDP/user/ HTTP/1.1\r\nHost: x\r\n\r\n", 404, "no such path"},
		{"dots", "GET /endpoint/type/UDP/../user/x HTTP/1.1\r\nHost: x\r\n\r\n", 400, "%2E"},
		{"star", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "no path"},
		{"connect", "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 400, "no path"},
		{"not HTTP", "nonsense\r\n\r\n", 400, "not an HTTP request"},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "not an HTTP request"},
		{"no host", "GET /healthcheck HTTP/1.1\r\n\r\n", 400, "missing required Host header"},
		{"header", "GET /healthcheck HTTP/1.1\r\nHost: x\r\na b: c\r\n\r\n", 400, "invalid header name"},
		{"large header", "GET /healthcheck HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 40<<10) + "\r\n\r\n", 431, "Too Large"},
		{"encoding", "POST /auth/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "transfer encoding"},
		{"version", "GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505, "version"},
		{"expect", "POST /auth/a HTTP/1.1\r\nHost: x\r\nExpect: nothing\r\nContent-Length: 1\r\n\r\nx", 417, "Expect"},
		{"body", "POST /auth/a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", 413, "over"},
	} {
		served(t, oneOfEach(), httpapi.Limits{}, nil, func(s *street, figure func(...string) float64) {
			k := s.come("203.0.113.1")
			defer k.Close()
			go func() { _, _ = io.WriteString(k, tc.request) }()
			res, err := http.ReadResponse(bufio.NewReader(k), nil)
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
				return
			}
			b, err := io.ReadAll(res.Body)
			var e struct {
				Error struct {
					Code    int
					Message string
				}
			}
			if json.Unmarshal(b, &e) != nil || err != nil || res.StatusCode != tc.want || e.Error.Code != tc.want ||
				!strings.Contains(e.Error.Message, tc.text) || res.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: %d %v %q %v, want %d with %q", tc.name, res.StatusCode, res.Header, b, err, tc.want, tc.text)
			}
			if n := figure("diarkis_http_responses_total", fmt.Sprint(tc.want)); n != 1 {
				t.Errorf("%s: %v answers counted", tc.name, n)
			}
		})
	}
}

// TestMistakesAreNamed: what would do nothing, or end in silence later, is refused at once
// with a sentence that says what to change.
func TestMistakesAreNamed(t *testing.T) {
	const form = "application/x-www-form-urlencoded"
	f := oneOfEach()
	s, _ := newAPI(t, f, nil)
	for _, tc := range []struct {
		name, method, body string
		header             []string
		want               int
		text               string
	}{
		{"JSON as a form", "POST", `{"rank":7}`, []string{"Content-Type", form}, 415, "application/json"},
		{"JSON as a form, indented", "POST", "\n { \"rank\":7}", []string{"Content-Type", form}, 415, "application/json"},
		{"list as a form", "POST", `[1]`, []string{"Content-Type", form}, 415, "application/json"},
		{"a form", "POST", `rank=7`, []string{"Content-Type", form}, 200, ""},
		{"a form with a brace in it", "POST", `%7Brank=7`, []string{"Content-Type", form}, 200, ""},
		{"a key where there is none", "GET", "", []string{"ClientKey", "secret"}, 401, "has no client key"},
		{"an empty key", "GET", "", []string{"ClientKey", ""}, 200, ""},
	} {
		f.asked = nil
		w := do(s, tc.method, "/endpoint/type/UDP/user/a", tc.body, tc.header...)
		if w.Code != tc.want || !strings.Contains(w.Body.String(), tc.text) || strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%s: %d %s, want %d with %q", tc.name, w.Code, w.Body, tc.want, tc.text)
		}
		if w.Code != 200 && len(f.asked) > 0 {
			t.Errorf("%s: a node was asked", tc.name)
		}
	}
}

// broken is a cluster with a bug in it.
type broken struct{ *fake }

func (broken) Current() bool { panic("a bug") }

// TestPanicsAreErrors: a bug of ours is an answer and a line in the log, not one a request.
func TestPanicsAreErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logBuffer{}
		cfg := newConfig()
		cfg.Log = zerolog.New(log)
		f := oneOfEach()
		s := httpapi.New(cfg, broken{f}, f, f.why)
		for range 10 {
			if w := do(s, "GET", "/node/"+tokenOf(1), ""); w.Code != 500 || !strings.Contains(w.Body.String(), `"code":500`) {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		}
		if lines := news(log); len(lines) != 1 || !strings.Contains(lines[0], "a bug") || !strings.Contains(lines[0], "handler panicked") {
			t.Errorf("log %q", lines)
		}
		time.Sleep(2 * time.Minute) // for the episode to end
	})
}
