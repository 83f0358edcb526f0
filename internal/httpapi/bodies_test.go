package httpapi_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/Diarkis/diarkis/internal/httpapi"
)

// beginBody sends a request with all of its body but the end.
func beginBody(t *testing.T, s *street, from, length string) net.Conn {
	t.Helper()
	k := s.come(from)
	if _, err := fmt.Fprintf(k, "POST /endpoint/type/UDP/user/a HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n", length); err != nil {
		t.Fatal(err)
	}
	synctest.Wait() // it is being read, or was refused
	return k
}

// status reads an answer.
func status(k net.Conn) int {
	res, err := http.ReadResponse(bufio.NewReader(k), nil)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

func post(t *testing.T, s *street, from string) int {
	t.Helper()
	k := beginBody(t, s, from, "Content-Length: 7")
	defer k.Close()
	_, _ = io.WriteString(k, `{"a":1}`)
	return status(k)
}

// TestSlowBodiesOfOneAddress: an address has a share of the bodies that are on their way,
// announced or in chunks, and past it is refused itself.
func TestSlowBodiesOfOneAddress(t *testing.T) {
	for _, length := range []string{"Content-Length: 65536", "Transfer-Encoding: chunked"} {
		served(t, oneOfEach(), httpapi.Limits{}, nil, func(s *street, figure func(...string) float64) {
			var slow []net.Conn
			for range 16 {
				slow = append(slow, beginBody(t, s, "203.0.113.1", length))
			}
			more := beginBody(t, s, "203.0.113.1", length)
			began := time.Now()
			if code := status(more); code != 429 || time.Since(began) > time.Second {
				t.Errorf("%s: one more got %d after %v", length, code, time.Since(began))
			}
			if n := figure("diarkis_http_refused_total", "bodies"); n != 1 {
				t.Errorf("%s: %v were counted", length, n)
			}
			if code := post(t, s, "203.0.113.2"); code != 200 {
				t.Errorf("%s: a bystander got %d", length, code)
			}
			for _, k := range append(slow, more) {
				_ = k.Close()
			}
			synctest.Wait()
			if code := post(t, s, "203.0.113.1"); code != 200 {
				t.Errorf("%s: when they are gone: %d", length, code)
			}
		})
	}
}

// TestSlowBodiesMakeRoom: when many addresses fill what there is for bodies, the oldest goes
// for a newcomer, which is nobody's alert.
func TestSlowBodiesMakeRoom(t *testing.T) {
	served(t, oneOfEach(), httpapi.Limits{}, nil, func(s *street, figure func(...string) float64) {
		var slow []net.Conn
		for i := range 256 {
			slow = append(slow, beginBody(t, s, stranger(i), "Content-Length: 65536"))
		}
		if code := post(t, s, "198.51.100.7"); code != 200 {
			t.Errorf("a player got %d", code)
		}
		began := time.Now()
		if code := status(slow[0]); code != 503 || time.Since(began) > time.Second {
			t.Errorf("the oldest got %d after %v", code, time.Since(began))
		}
		if !open(slow[1]) || !open(slow[255]) {
			t.Error("more than the oldest went")
		}
		if n := figure("diarkis_http_responses_total", "endpoint", "503"); n != 0 {
			t.Errorf("%v answers look like a lack of nodes", n)
		}
		if n := figure("diarkis_http_overloaded_total", "bodies"); n != 1 {
			t.Errorf("%v were counted", n)
		}
		for _, k := range slow {
			_ = k.Close()
		}
	})
}

// TestShortOfMemory: what the log and the gauge say of memory is so: nobody gets a place, and
// no node is asked.
func TestShortOfMemory(t *testing.T) {
	f := oneOfEach()
	short := false
	var reg *prometheus.Registry
	s, _ := newAPI(t, f, func(c *httpapi.Config) {
		c.MemoryShort, reg = func() bool { return short }, c.Registerer.(*prometheus.Registry)
	})
	for _, path := range []string{"/endpoint/type/UDP/user/a", "/auth/a"} {
		if w := do(s, "GET", path, ""); w.Code != 200 {
			t.Fatalf("answer %d", w.Code)
		}
	}
	asked := len(f.asked)
	short = true
	for _, path := range []string{"/endpoint/type/UDP/user/a", "/auth/a"} {
		if w := do(s, "POST", path, "{}"); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
	if w := do(s, "GET", "/healthcheck", ""); w.Code != 200 {
		t.Errorf("a health check: %d", w.Code)
	}
	if len(f.asked) != asked || figure(t, reg, "diarkis_http_overloaded_total", "memory") != 2 || figure(t, reg, "diarkis_http_responses_total", "overloaded", "503") != 2 {
		t.Errorf("%d nodes were asked", len(f.asked)-asked)
	}
}
