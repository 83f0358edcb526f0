package httpapi_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/Diarkis/diarkis/internal/httpapi"
	"github.com/Diarkis/diarkis/internal/id"
)

// TestEveryRequestCounts: no path and no method is free for an address, and what it may
// send in all leaves a health check its place. Who speaks for others is free.
func TestEveryRequestCounts(t *testing.T) {
	for _, q := range []struct{ method, path string }{
		{"GET", "/"}, {"GET", "/healthcheck"}, {"GET", "/openapi.json"}, {"GET", "/metrics"}, {"OPTIONS", "/endpoint/type/UDP/user/a"},
		{"DELETE", "/endpoint/type/UDP/user/a"}, {"PATCH", "/healthcheck"}, {"GET", "/endpoint/type/NOPE/user/a"}, {"GET", "/debug/server/list/type/UDP"},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, log := newAPI(t, oneOfEach(), func(c *httpapi.Config) {
				c.AllowOrigin, c.TrustedProxies, c.ExemptAddresses = "*", prefixes("10.0.0.0/8"), prefixes("198.51.100.0/24")
			})
			flood := func(from string, n int, forwarded ...string) (through int, last *httptest.ResponseRecorder) {
				for range n {
					r := httptest.NewRequest(q.method, q.path, nil)
					r.RemoteAddr = from
					for _, f := range forwarded {
						r.Header.Add("X-Forwarded-For", f)
					}
					last = httptest.NewRecorder()
					if s.ServeHTTP(last, r); last.Header().Get("Connection") != "close" {
						through++
					}
				}
				return through, last
			}
			n, last := flood("203.0.113.9:1", 2000)
			if n != 500 || last.Code != 429 || last.Header().Get("Retry-After") != "1" || last.Header().Get("Access-Control-Allow-Origin") != "*" {
				t.Errorf("%s %s: %d of 2000 at once, then %d %v", q.method, q.path, n, last.Code, last.Header())
			}
			if n, last := flood("203.0.113.10:1", 1); n != 1 || last.Code == 429 {
				t.Errorf("%s %s: a bystander got %d", q.method, q.path, last.Code)
			}
			if ask(s, "/healthcheck", "203.0.113.11:1").Code != 200 {
				t.Error("a health check failed")
			}
			time.Sleep(time.Second) // the bubble's clock
			if n, _ := flood("203.0.113.9:2", 200); n != 100 {
				t.Errorf("%s %s: %d a second later, want 100", q.method, q.path, n)
			}
			if strings.Contains(log.String(), "warn") {
				t.Errorf("a stranger wrote %s", log)
			}
			for _, free := range []string{"127.0.0.1:1", "198.51.100.7:1", "10.1.1.1:1"} {
				if n, _ := flood(free, 600); n != 600 {
					t.Errorf("%s %s: %d of 600 from %s", q.method, q.path, n, free)
				}
			}
			// A client of a proxy pays, and takes no connection from the proxy's others.
			n, last = flood("10.1.1.1:1", 600, "203.0.113.77")
			if n != 600 || q.path != "/endpoint/type/NOPE/user/a" && last.Code != 429 {
				t.Errorf("%s %s: through a proxy %d were left open, the last got %d", q.method, q.path, n, last.Code)
			}
		})
	}
}

// TestRefusalsCloseTheConnection: who is wrong again and again pays a handshake for it; who
// errs a few times doesn't, nor do the clients who share a connection of a proxy.
func TestRefusalsCloseTheConnection(t *testing.T) {
	for _, path := range []string{"/nope", "/endpoint/type/NOPE/user/a", "/endpoint/type/UDP/user/a%00", "/debug/server/list/type/UDP"} {
		served(t, oneOfEach(), httpapi.Limits{}, func(c *httpapi.Config) { c.TrustedProxies = prefixes("10.0.0.0/8") }, func(s *street, _ func(...string) float64) {
			answers := func(from string) (n int, more bool) {
				k := s.come(from)
				defer k.Close()
				go func() {
					for range 30 {
						_, _ = fmt.Fprintf(k, "GET %s HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: %s\r\n\r\n", path, "203.0.113.1")
					}
				}()
				br := bufio.NewReader(k)
				for n < 30 {
					res, err := http.ReadResponse(br, nil)
					if err != nil {
						return n, false
					}
					_, _ = io.Copy(io.Discard, res.Body)
					n++
				}
				return n, true
			}
			if n, more := answers("203.0.113.1"); more || n < 3 || n > 10 {
				t.Errorf("%s: %d wrong requests were answered on one connection", path, n)
			}
			if n, more := answers("10.0.0.1"); !more {
				t.Errorf("%s: the proxy's connection was closed after %d", path, n)
			}
		})
	}
}

// TestLateNodeIsNotDeadNodes: when this node wakes too late to have heard the game's nodes,
// that is no lack of nodes, which is an alert, and vice versa.
func TestLateNodeIsNotDeadNodes(t *testing.T) {
	for _, c := range []struct {
		name  string
		path  string
		late  time.Duration // after the deadline
		route string
		want  float64 // of overloaded
	}{
		{"no CPU", "/endpoint/type/UDP/user/a", 100 * time.Millisecond, "overloaded", 1},
		{"no CPU, both types", "/auth/a", time.Second, "overloaded", 1},
		{"nodes dead", "/endpoint/type/UDP/user/a", 5 * time.Millisecond, "endpoint", 0},
		{"nodes dead, both types", "/auth/a", 0, "auth", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := oneOfEach()
			f.dead = map[id.Node]bool{"10.0.0.1:8000": true, "10.0.0.2:8000": true}
			f.late = c.late
			var reg *prometheus.Registry
			synctest.Test(t, func(t *testing.T) {
				s, log := newAPI(t, f, func(cfg *httpapi.Config) { reg = cfg.Registerer.(*prometheus.Registry) })
				w := do(s, "GET", c.path, "")
				if w.Code != 503 || w.Header().Get("Retry-After") == "" {
					t.Errorf("answer %d %v", w.Code, w.Header())
				}
				if n := figure(t, reg, "diarkis_http_responses_total", c.route, "503"); n != 1 {
					t.Errorf("%v answers of route %s", n, c.route)
				}
				if n := figure(t, reg, "diarkis_http_overloaded_total", "late"); n != c.want {
					t.Errorf("%v were late, want %v", n, c.want)
				}
				if warns := strings.Contains(log.String(), "nodes gave no place"); warns != (c.want == 0) {
					t.Errorf("log %s", log)
				}
				synctest.Wait()
				time.Sleep(5 * time.Minute) // for the episode to end
			})
		})
	}
}
