package bot

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client/clienttest"
)

// doorOf answers for an arena until its nodes are gone; from then on it says so.
func (a *arena) doorOf(gone *atomic.Bool) (url string, closeDoor func()) {
	open := clienttest.Endpoints(func(typ string) *clienttest.Node {
		if typ == "TCP" {
			return a.tcp
		}
		return a.udp
	})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !gone.Load():
			open.ServeHTTP(w, r)
		case strings.HasPrefix(r.URL.Path, "/node/"):
			_, _ = fmt.Fprint(w, `{"state":"gone"}`)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = fmt.Fprint(w, `{"error":{"code":503,"message":"no node of the type is online"}}`)
		}
	}))
	return s.URL, s.Close
}

// TestOnlyNodeDies: bots whose only node is gone play no more, say why nobody lets them in, and
// are a failure, however their node went.
func TestOnlyNodeDies(t *testing.T) {
	for _, tc := range []struct {
		name, typ string
		dies      func(*clienttest.Node)
	}{
		{"udp, killed", "UDP", (*clienttest.Node).Kill},
		{"tcp, killed", "TCP", (*clienttest.Node).Kill},
		{"udp, silent", "UDP", func(n *clienttest.Node) { n.SetDeaf(true) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newArena(t, faithful)
			var gone atomic.Bool
			o := a.options()
			var closeDoor func()
			o.URL, closeDoor = a.doorOf(&gone)
			defer closeDoor()
			a.udp.Restart("its run") // which /node is asked about
			o.Type, o.Count, o.Duration, o.Play = tc.typ, 4, 0, 0
			ctx, stop := context.WithTimeout(context.Background(), time.Minute)
			defer stop()
			var told atomic.Bool
			o.Status = func(line string) {
				switch {
				case strings.Contains(line, "playing 4") && !gone.Load():
					gone.Store(true)
					tc.dies(map[string]*clienttest.Node{"UDP": a.udp, "TCP": a.tcp}[tc.typ])
				case strings.Contains(line, "playing 0") && strings.Contains(line, "no place: http 503: no node of the type is online"):
					told.Store(true)
					stop()
				}
			}
			s, err := Run(ctx, o)
			if err != nil || !told.Load() || s.Connected != 0 || s.Gaps != 4 || s.Errors == 0 {
				t.Fatalf("%v, summary %v", err, s)
			}
			if why := s.Failure(); !strings.Contains(why, "4 of 4 bots did not play at the end") {
				t.Errorf("failure %q", why)
			}
			if s.Taken == 0 && tc.typ == "UDP" { // a TCP client knows the end before it says more
				t.Errorf("nothing went with the node that they went on to talk to: %v", s)
			}
		})
	}
}

// TestSilentNode: bots whose node stands still don't play, before their clients have given it
// up, and the words for it are that it did not answer, not that it forgot them.
func TestSilentNode(t *testing.T) {
	a := newArena(t, faithful)
	o := a.options()
	o.Type, o.Count, o.Duration, o.Play = "mixed", 8, 0, 0
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	var deaf, told atomic.Bool
	silent := a.udp.Addr().String() + " does not answer"
	o.Status = func(line string) {
		switch {
		case strings.Contains(line, "playing 8") && deaf.CompareAndSwap(false, true):
			a.udp.SetDeaf(true)
		case strings.Contains(line, "playing 4") && strings.Contains(line, silent):
			told.Store(true)
			a.udp.SetDeaf(false)
		case strings.Contains(line, "playing 8") && told.Load():
			stop()
		}
	}
	s, err := Run(ctx, o)
	if err != nil || !told.Load() || s.Connected != 8 || s.Gaps != 0 || s.Faulty() {
		t.Fatalf("%v, summary %v", err, s)
	}
	if text := s.String(); !strings.Contains(text, silent) || strings.Contains(text, "know") || strings.Contains(text, "stay ended") {
		t.Errorf("the summary says of a node that stood still:\n%s", text)
	}
}

// TestNodeDiesAtTheEnd: what goes with a node after play is missing all the same.
func TestNodeDiesAtTheEnd(t *testing.T) {
	a := newArena(t, faithful)
	var gone atomic.Bool
	o := a.options()
	var closeDoor func()
	o.URL, closeDoor = a.doorOf(&gone)
	defer closeDoor()
	o.Count, o.Duration, o.Play = 4, 0, 0
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	o.Status = func(line string) {
		if strings.Contains(line, "playing 4") && gone.CompareAndSwap(false, true) {
			a.udp.Do(func() {
				for _, c := range a.udp.Conns() {
					c.Mute()
				}
			})
			stop()
			time.AfterFunc(500*time.Millisecond, a.udp.Kill)
		}
	}
	s, err := Run(ctx, o)
	if err != nil || s.Failure() == "" || s.Taken+s.Lost == 0 {
		t.Errorf("%v, summary %v", err, s)
	}
}
