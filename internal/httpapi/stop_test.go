package httpapi_test

import (
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/httpapi"
	"github.com/Diarkis/diarkis/internal/id"
)

// TestStopWaitsForNobodyWhoAskedNothing: connections that were opened ahead, or stopped in the
// middle of their header, hold up no stop.
func TestStopWaitsForNobodyWhoAskedNothing(t *testing.T) {
	f := oneOfEach()
	served(t, f, httpapi.Limits{}, nil, func(s *street, _ func(...string) float64) {
		var held []net.Conn
		for i := range 6 {
			k := s.come(stranger(i))
			if i%2 == 0 {
				_, _ = k.Write([]byte("GET /healthcheck HTTP/1.1\r\nHo"))
			}
			held = append(held, k)
		}
		time.Sleep(time.Second)
		for _, k := range held {
			if !open(k) {
				t.Error("closed before the stop")
			}
		}
	})
	if f.stopped > 500*time.Millisecond {
		t.Errorf("the stop took %v", f.stopped)
	}
}

// TestStopIsBounded: a request whose answer takes too long holds up a stop for DrainTimeout.
func TestStopIsBounded(t *testing.T) {
	f := oneOfEach()
	f.dead = map[id.Node]bool{"10.0.0.1:8000": true}
	served(t, f, httpapi.Limits{}, func(c *httpapi.Config) { c.DrainTimeout = 50 * time.Millisecond }, func(s *street, _ func(...string) float64) {
		k := s.come(stranger(0))
		go func() { _ = say(k, "/endpoint/type/UDP/user/ann") }()
		synctest.Wait() // it waits for the node, for 200 ms
	})
	if f.stopped > 500*time.Millisecond { // cancelling included
		t.Errorf("the stop took %v", f.stopped)
	}
}
