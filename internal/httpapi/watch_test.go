package httpapi_test

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/httpapi"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/users"
)

// news returns the lines of a log but those of debug, without their levels' order.
func news(log *logBuffer) (lines []string) {
	for line := range strings.Lines(log.String()) {
		if !strings.Contains(line, `"debug"`) {
			lines = append(lines, regexp.MustCompile(`[{}"\n]`).ReplaceAllString(line, ""))
		}
	}
	return lines
}

// TestNobodyCanEnter: the log says once when players can enter no node, why, and when that is
// over; also when nobody asks; and nobody makes it say more by asking.
func TestNobodyCanEnter(t *testing.T) {
	online := func() []mars.Member {
		return []mars.Member{member("10.0.0.1:8000", "udp", "UDP", mars.Online, 3), member("10.0.0.2:8000", "udp", "UDP", mars.Online, 3)}
	}
	state := func(s mars.State) func(*fake) {
		return func(f *fake) {
			f.members = online()
			f.members[0].State, f.members[1].State = s, s
		}
	}
	for _, tc := range []struct {
		name   string
		change func(*fake)
		begin  string
		over   string
	}{
		{"draining", state(mars.Offline), "level:warn,cause:all nodes are draining,type:UDP,nodes:2,draining:2,taken:0,silent:0,refused:3,message:no node takes players", "type:UDP,message:nodes take players again"},
		{"taken", state(mars.Taken), "all nodes are taken", "nodes take players again"},
		{"gone", func(f *fake) { f.members = nil }, "cause:no node is there, they vanished,vanished:2,ago:2.", "nodes take players again"},
		{"suspected", func(f *fake) {
			f.members = online()
			f.members[0].Hidden, f.members[1].Hidden = true, true
		}, "all nodes are silent or suspected", "nodes take players again"},
		{"for several reasons", func(f *fake) {
			f.members = online()
			f.members[0].Hidden, f.members[1].State = true, mars.Taken
		}, "no node is online,type:UDP,nodes:2,draining:0,taken:1,silent:1", "nodes take players again"},
		{"not joined", func(f *fake) { f.serving = errors.New("not joined: mars is silent") }, "cause:not joined: mars is silent,message:this node hands out no places", "this node hands out places again"},
		{"full", func(f *fake) {
			f.refuse = map[id.Node]users.Refusal{"10.0.0.1:8000": users.Full, "10.0.0.2:8000": users.Full}
		}, "are full: try again,message:nodes gave no place", "failures:20,"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := &fake{members: online()}
			log := &logBuffer{}
			set := func(c *httpapi.Config) { c.Log = zerolog.New(log) }
			served(t, f, httpapi.Limits{}, set, func(s *street, _ func(...string) float64) {
				change := func(g func(*fake)) {
					f.mu.Lock()
					defer f.mu.Unlock()
					f.refuse, f.serving = nil, nil
					g(f)
				}
				ask := func(n int) {
					k := s.come("203.0.113.1")
					defer k.Close()
					for range n {
						say(k, "/endpoint/type/UDP/user/ann")
					}
				}
				time.Sleep(20 * time.Second)
				change(tc.change)
				time.Sleep(time.Second)
				ask(3)
				time.Sleep(20 * time.Second)
				ask(17)
				lines := news(log)
				if len(lines) != 1 || !strings.Contains(lines[0], tc.begin) {
					t.Errorf("log %q, want one line with %s", lines, tc.begin)
				}
				change(func(f *fake) { f.members = online() })
				time.Sleep(2 * time.Minute)
				lines = news(log)
				if len(lines) != 2 || !strings.Contains(lines[1], tc.over) || !strings.Contains(lines[1], ":20,") {
					t.Errorf("log %q, want a second line with %s and how many were refused", lines, tc.over)
				}
			})
		})
	}
}

// TestBlinksAreNoNews: a node that is restarted, and a start that waits for mars, are in
// nobody's way.
func TestBlinksAreNoNews(t *testing.T) {
	f := oneOfEach()
	f.serving = errors.New("not joined: no answer from mars yet")
	log := &logBuffer{}
	served(t, f, httpapi.Limits{}, func(c *httpapi.Config) { c.Log = zerolog.New(log) }, func(_ *street, _ func(...string) float64) {
		time.Sleep(5 * time.Second)
		f.mu.Lock()
		f.serving = nil
		f.mu.Unlock()
		for range 10 {
			for _, d := range []time.Duration{time.Second, 3 * time.Second} {
				f.mu.Lock()
				f.members[0].Hidden = !f.members[0].Hidden
				f.mu.Unlock()
				time.Sleep(d)
			}
		}
		if lines := news(log); len(lines) > 0 {
			t.Errorf("log %q", lines)
		}
	})
}

// TestChangingWords: a node that asks one mars after the other in vain has joined no more for
// that, and is no more news.
func TestChangingWords(t *testing.T) {
	f := oneOfEach()
	log := &logBuffer{}
	served(t, f, httpapi.Limits{}, func(c *httpapi.Config) { c.Log = zerolog.New(log) }, func(_ *street, _ func(...string) float64) {
		for i := range 100 {
			f.mu.Lock()
			f.serving = fmt.Errorf("not joined: 10.0.0.%d is silent", i%3)
			f.mu.Unlock()
			time.Sleep(time.Second)
		}
		if lines := news(log); len(lines) != 1 || !strings.Contains(lines[0], "is silent,message:this node hands out no places") {
			t.Errorf("log %q", lines)
		}
	})
}
