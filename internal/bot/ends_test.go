package bot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// answering is an HTTP role that answers each request as told.
func answering(t *testing.T, code int, text string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = fmt.Fprintf(w, `{"error":{"code":%d,"message":%q}}`, code, text)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// TestRefusedForGood: what trying again can't mend ends the run at once, with the reason.
func TestRefusedForGood(t *testing.T) {
	for _, tc := range []struct {
		name string
		o    Options
		want string
	}{
		{"wrong key", Options{URL: answering(t, 401, "the header ClientKey is missing or wrong")}, "the header ClientKey is missing or wrong"},
		{"another's ticket", Options{URL: answering(t, 403, "the ticket is for another user")}, "for another user"},
		{"bad request", Options{URL: answering(t, 400, "uid is bad")}, "uid is bad"},
		{"no such type", Options{URL: answering(t, 404, "no node for players of type"), Type: "RANKED"}, "no node for players of type"},
		{"type in the wrong case", Options{URL: answering(t, 404, "no node for players of type"), Type: "udp"}, "did you mean UDP?"},
		{"no ticket", Options{URL: answering(t, 500, "x"), Ticket: func(context.Context, string) (string, error) { return "", never{} }}, "never a ticket"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.o.Count = 20 // without Duration: the test hangs unless the run ends by itself
			s, err := Run(context.Background(), tc.o)
			if err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, ErrOptions) || s.Connected != 0 || s.Interrupted {
				t.Errorf("%v, summary %v", err, s)
			}
		})
	}
}

type never struct{}

func (never) Error() string   { return "never a ticket" }
func (never) Permanent() bool { return true }

// TestWithoutCluster: a cluster that is not there may come, so that bots wait for it, but for
// no longer than the duration, and say what they wait for.
func TestWithoutCluster(t *testing.T) {
	dead := httptest.NewServer(nil)
	dead.Close()
	for _, tc := range []struct{ name, url, want string }{
		{"nobody listens", dead.URL, "connection refused"},
		{"no node", answering(t, 503, "no node of type UDP is online"), "no node of type UDP is online"},
		{"too many", answering(t, 429, "too many requests"), "too many requests"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var lines sync.Map
			s, err := Run(context.Background(), Options{URL: tc.url, Count: 2, Duration: 1500 * time.Millisecond, Status: func(line string) { lines.Store(line, true) }})
			if err == nil || !strings.Contains(err.Error(), tc.want) || s.Connected != 0 || s.Errors == 0 || s.Seconds < 1.4 {
				t.Errorf("%v, summary %v", err, s)
			}
			if text := s.String(); !strings.Contains(text, tc.want) || len(s.Causes) != 1 || s.Causes[0].Count != s.Errors {
				t.Errorf("the summary does not name the cause once: %s", text)
			}
			lines.Range(func(line, _ any) bool {
				if !strings.Contains(line.(string), tc.want) {
					t.Errorf("line %q does not say why nobody plays", line)
				}
				return true
			})
		})
	}
}

// TestDurationBoundsEverything: also that a node neither takes nor refuses a handshake.
func TestDurationBoundsEverything(t *testing.T) {
	a := newArena(t, faithful)
	a.udp.Kill()
	o := a.options()
	o.Duration = time.Second
	done := make(chan struct{})
	go func() {
		defer close(done)
		if s, err := Run(context.Background(), o); err == nil || s.Connected != 0 || s.Failure() == "" {
			t.Errorf("%v, summary %v", err, s)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute): // not in 2 min of connecting
		t.Fatal("the run goes on")
	}
}

// TestEndWaitsForNobodyOnTheWay: bots that wait for their turn, and requests that hang, don't
// hold up the end.
func TestEndWaitsForNobodyOnTheWay(t *testing.T) {
	hang := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	t.Cleanup(s.Close)
	t.Cleanup(func() { close(hang) }) // before it
	done := make(chan struct{})
	go func() {
		defer close(done)
		s, err := Run(context.Background(), Options{URL: s.URL, Count: 50, Ramp: 4, Duration: 100 * time.Millisecond, DrainTimeout: time.Hour})
		if err != nil || s.Connected != 0 || s.Failure() == "" {
			t.Errorf("%v, summary %v", err, s)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the run goes on")
	}
}

func TestBadOptions(t *testing.T) {
	for want, o := range map[string]Options{
		"count must": {Count: -1}, "size must": {Size: 1 << 20}, "rate must": {Rate: -1}, "loss must": {Loss: math.NaN()},
		"duration must": {Duration: -time.Second}, "room size": {RoomSize: 1}, "prefix": {Prefix: strings.Repeat("x", 200)},
	} {
		o.URL = "http://127.0.0.1:1"
		if _, err := Run(context.Background(), o); !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	for _, u := range []string{"", "127.0.0.1:7000", "ftp://a", "http://"} {
		if _, err := Run(context.Background(), Options{URL: u}); !errors.Is(err, ErrOptions) {
			t.Errorf("url %q: %v", u, err)
		}
	}
	_, err := Run(context.Background(), Options{Rate: math.NaN(), Size: 1})
	for _, want := range []string{"http must", "rate must", "size must"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

// TestTwoRunsAtOnce: they don't take each other's user ids, and meet in rooms without taking
// what the others say for their own.
func TestTwoRunsAtOnce(t *testing.T) {
	a := newArena(t, faithful)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			o := a.options()
			o.Prefix, o.Count, o.RoomSize = "", 5, 4 // so that rooms are shared
			s, err := Run(context.Background(), o)
			if err != nil || !s.Clean() || s.Reconnects != 0 {
				t.Errorf("%v, summary %v", err, s)
			}
		})
	}
	wg.Wait()
}

// TestKilledNode: what a node takes along is counted and named, and is no loss of the protocol.
func TestKilledNode(t *testing.T) {
	a := newArena(t, func(*clienttest.Conn, []byte, reliable.Reliability) {}) // nothing of it arrives
	o := a.options()
	o.Duration, o.Play, o.DrainTimeout = 0, 0, 500*time.Millisecond
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var lines atomic.Int64
	o.Status = func(string) {
		switch lines.Add(1) {
		case 2:
			a.udp.Do(func() {
				for _, c := range a.udp.Conns() {
					c.Close(wire.CloseInternal, "killed")
				}
			})
		case 4:
			stop()
		}
	}
	s, err := Run(ctx, o)
	if err != nil || s.Gaps == 0 {
		t.Fatalf("%v, summary %v", err, s)
	}
	if s.Taken == 0 || !strings.Contains(s.Failure(), "went with a node") || !strings.Contains(s.String(), a.udp.Addr().String()) {
		t.Errorf("summary %v, failure %q", s, s.Failure())
	}
}

// TestTransportIsTheNodes: a type is a free label, so that it does not say what a node speaks.
func TestTransportIsTheNodes(t *testing.T) {
	a := newArena(t, faithful)
	label := func(n *clienttest.Node, transport string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			parts := strings.Split(r.URL.Path, "/")
			p, err := n.Reserve(parts[len(parts)-1])
			if err != nil {
				t.Error(err)
				return
			}
			var m map[string]any
			if err := json.Unmarshal(n.Answer(p), &m); err != nil {
				t.Error(err)
			}
			m["serverType"], m["transport"] = "LOWT", transport
			_ = json.NewEncoder(w).Encode(m)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	for transport, n := range map[string]*clienttest.Node{"tcp": a.tcp, "udp": a.udp} {
		o := a.options()
		o.URL, o.Type = label(n, transport), "LOWT"
		if s, err := Run(context.Background(), o); err != nil || !s.Clean() {
			t.Errorf("%s: %v, summary %v", transport, err, s)
		}
	}
}

func TestFailure(t *testing.T) {
	for _, tc := range []struct {
		name string
		s    Summary
		want string
	}{
		{"all well", Summary{Bots: 4, Connected: 4, Sent: 1}, ""},
		{"errors that were overcome", Summary{Bots: 4, Connected: 4, Errors: 3, Reconnects: 2}, ""},
		{"interrupted on the way in", Summary{Bots: 4, Connected: 1, Interrupted: true}, ""},
		{"interrupted after errors", Summary{Bots: 4, Connected: 1, Errors: 3, Interrupted: true}, "3 of 4 bots"},
		{"some never came", Summary{Bots: 4, Connected: 3}, "1 of 4 bots"},
		{"lost", Summary{Bots: 4, Connected: 4, Lost: 2}, "2 reliable messages lost"},
		{"taken", Summary{Bots: 4, Connected: 4, Taken: 7}, "7 reliable messages went"},
	} {
		if got := tc.s.Failure(); (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q", tc.name, got)
		}
	}
}
