package client

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestOnlyGoneIsGone: whatever else the role, or somebody in its place, answers tells
// nothing about the node.
func TestOnlyGoneIsGone(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"state":"gone"}`)
	}))
	defer elsewhere.Close()
	var path string
	for name, q := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		gone   bool
	}{
		"gone":     {say(200, `{"state":"gone"}`), true},
		"online":   {say(200, `{"state":"online"}`), false},
		"offline":  {say(200, `{"state":"offline"}`), false},
		"later":    {say(200, `{"state":"retired"}`), false},
		"an error": {say(503, `{"state":"gone"}`), false},
		"unknown":  {say(404, `{"state":"gone"}`), false},
		"garbage":  {say(200, `gone`), false},
		"nothing":  {say(200, ``), false},
		"too long": {say(200, `{"state":"gone","x":"`+strings.Repeat("x", 1<<20)+`"}`), false},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusFound)
		}, false},
		"slow": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if name == "gone" {
					path = r.URL.EscapedPath()
				}
				for h := range r.Header {
					if h == "Clientkey" || h == "Authorization" {
						t.Errorf("the question carries %s", h)
					}
				}
				q.answer(w, r)
			}))
			defer s.Close()
			c, err := New(Options{
				URL: s.URL + "/base", UID: "ann", ClientKey: "secret", HTTP: s.Client(),
				Ticket: func(context.Context, string) (string, error) { return "secret", nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			defer c.cancel()
			if gone := c.nodeGone(t.Context(), "../a?b"); gone != q.gone {
				t.Errorf("gone = %v", gone)
			}
			if name == "gone" && path != "/base/node/..%2Fa%3Fb" {
				t.Errorf("asked for %s", path)
			}
			s.Client().CloseIdleConnections()
		})
	}
}

func say(code int, body string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

// TestWhoStoodStill: the client's goroutine came late, so that what it did not hear is no
// silence of the node.
func TestWhoStoodStill(t *testing.T) {
	now := time.Unix(1000, 0)
	late, soon := now.Add(-stoodStill-1), now.Add(-stoodStill+1)
	for name, q := range map[string]struct {
		armed, came time.Time
		poked       bool
		still       bool
	}{
		"in time":             {armed: soon},
		"late":                {armed: late, still: true},
		"late, but poked":     {armed: late, poked: true},
		"never to be woken":   {},
		"callbacks":           {came: soon},
		"callbacks for long":  {came: late, still: true},
		"woken before it was": {armed: now.Add(time.Second)},
	} {
		t.Run(name, func(t *testing.T) {
			j := judge{came: q.came, verdict: now}
			still := j.wakeUp(now, q.armed, q.poked)
			if still != q.still || still != j.from.Equal(now) || still != j.verdict.IsZero() || !j.came.IsZero() {
				t.Errorf("stood still = %v: %+v", still, j)
			}
		})
	}
}
