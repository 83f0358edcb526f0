package marsnode

import (
	"encoding/json"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// logBuffer is a log that may be read while it is written.
type logBuffer struct {
	mu   sync.Mutex // guards the field below
	text []byte
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	return len(p), nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}

// lines are the log's entries from info up, after the first skip of them.
func (p *process) lines(skip int) (out []map[string]any) {
	p.t.Helper()
	for text := range strings.Lines(p.log.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(text), &entry); err != nil {
			p.t.Fatalf("%v in %s", err, text)
		}
		if entry["level"] != "debug" {
			out = append(out, entry)
		}
	}
	return out[min(skip, len(out)):]
}

// want wants exactly these lines, each "level: message: part of a field's value".
func wantLines(t *testing.T, who string, got []map[string]any, want ...string) {
	t.Helper()
	var texts []string
	for _, l := range got {
		b, _ := json.Marshal(l)
		texts = append(texts, string(b))
	}
	if len(got) != len(want) {
		t.Errorf("%s wrote %d lines, want %d:\n%s", who, len(got), len(want), strings.Join(texts, "\n"))
		return
	}
	for i, w := range want {
		for _, part := range strings.Split(w, ": ") {
			if !strings.Contains(texts[i], part) {
				t.Errorf("line %d of %s misses %q: %s", i, who, part, texts[i])
			}
		}
	}
}

// No line has a field without a value, a number whose unit is in its name, or no text.
func TestEveryEventIsALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		p := c.role(1, "mars")
		pass(time.Second)
		p.kill() // its loop is ours now
		start := len(p.log.String())
		n := 0
		for k := mars.Kind(1); k != 0; k++ {
			if strings.HasPrefix(k.String(), "kind(") {
				continue
			}
			for _, full := range []bool{false, true} {
				l := &loop{n: p.Node}
				l.story.warned, l.story.leaseless = true, true
				e := mars.Event{Kind: k}
				if full {
					e = mars.Event{
						Kind: k, Node: "10.0.0.7:8000", Role: "udp", Type: "UDP", Silence: 9030 * time.Millisecond,
						Count: 3, Epoch: mars.Epoch{Generation: 1, Term: 1}, Text: "some reason",
					}
					l.story.follows = e.Node
				}
				before := len(p.log.String())
				l.event(e)
				if full && len(p.log.String()) == before {
					t.Errorf("%v: no line", k)
				}
				n++
			}
		}
		if n < 60 {
			t.Errorf("%d events tried: the loop is broken", n)
		}
		for text := range strings.Lines(p.log.String()[start:]) {
			var entry map[string]any
			if err := json.Unmarshal([]byte(text), &entry); err != nil {
				t.Fatal(err)
			}
			for name, v := range entry {
				if v == "" || strings.HasSuffix(name, "_ms") || name == "silent" && v != "9.03s" {
					t.Errorf("field %s is %q in %s", name, v, text)
				}
			}
		}
	})
}

// A node that dies is one warning, a change of authority one line on each node that says
// who, why and since when.
func TestOneLineAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, h, u, x := settled(t)
		all := []*process{m, h, u, x}
		before := map[*process]int{}
		for _, p := range all {
			before[p] = len(p.lines(0))
		}
		x.kill()
		pass(12 * time.Second)
		wantLines(t, "mars", m.lines(before[m]), "warn: member expired: 10.0.0.4:8000: silent")
		for _, p := range []*process{h, u} {
			wantLines(t, "another node", p.lines(before[p]))
		}
		x = c.role(4, "tcp")
		pass(20 * time.Second)
		for _, p := range all[:3] {
			before[p] = len(p.lines(0))
		}
		m.kill()
		next := ruler(t, 5*time.Second, h, u, x)
		pass(15 * time.Second)
		for _, p := range []*process{h, u} {
			if p == next {
				wantLines(t, "the new authority", p.lines(before[p]),
					"info: this node became the authority: elected, 10.0.0.1:6779 was silent for 3", "warn: member expired: 10.0.0.1:6779: silent")
				continue
			}
			wantLines(t, "another node", p.lines(before[p]), "info: authority changed: \"authority\":\""+next.cfg.Self.Node.String()+
				": before\":\"10.0.0.1:6779: 10.0.0.1:6779 was silent for 3")
		}
		kill(h, u, x)
	})
}

// An authority that is away for long is a warning, and its return the end of that.
func TestAuthorityAwayAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, u := c.role(1, "mars"), c.role(3, "udp")
		pass(3 * time.Second)
		before := len(u.lines(0))
		u.port.cut(false)
		pass(4 * time.Second)
		u.port.cut(true)
		pass(3 * time.Second)
		wantLines(t, "a node that was cut off shortly", u.lines(before))
		u.port.cut(false)
		pass(9 * time.Second)
		u.port.cut(true)
		pass(3 * time.Second)
		wantLines(t, "a node that was cut off", u.lines(before),
			"warn: authority lost, directory kept: silent\":\"6: cause",
			"warn: this node was evicted: not heard for too long",
			"info: cluster joined again: it had been evicted",
			"info: authority back: silent")
		kill(m, u)
	})
}

// A process that stood still says so, and blames nobody else for what it missed.
func TestSuspendedProcess(t *testing.T) {
	for _, role := range []string{"udp", "mars"} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster(t)
			var slept atomic.Int64
			start := func(cfg Config, sleeps bool) *process {
				if sleeps {
					cfg.now = func() time.Time { return time.Now().Add(time.Duration(slept.Load())).Round(0) }
				}
				return c.start(cfg)
			}
			m := start(c.config(1, "mars"), role == "mars")
			h := start(c.config(2, "http"), false)
			u := start(c.config(3, "udp"), role == "udp")
			pass(20 * time.Second)
			p := map[string]*process{"mars": m, "udp": u}[role]
			before := len(p.lines(0))
			p.port.cut(false)
			slept.Add(int64(9030 * time.Millisecond)) // it wakes up with what others did meanwhile
			pass(600 * time.Millisecond)
			p.port.cut(true)
			pass(4 * time.Second)
			lines := p.lines(before)
			if len(lines) == 0 || lines[0]["message"] != "this process was suspended" {
				t.Fatalf("%s: first line is not that it was suspended:\n%s", role, p.log)
			}
			if d, err := time.ParseDuration(lines[0]["for"].(string)); err != nil || d < 9*time.Second || d > 10*time.Second {
				t.Errorf("%s: suspended for %v, want 9 s", role, lines[0]["for"])
			}
			for _, l := range lines[1:] {
				b, _ := json.Marshal(l)
				if s := string(b); !strings.Contains(s, "this process was suspended for 9") && l["message"] != "authority changed" || strings.Contains(s, "did not answer") {
					t.Errorf("%s: another reason is given: %s", role, s)
				}
			}
			if v := metric(t, p, "diarkis_mars_suspensions_total"); v != 1 {
				t.Errorf("%s: %v suspensions counted", role, v)
			}
			kill(m, h, u)
		})
	}
}

// A member that is refused again and again, or speaks another protocol, is one line a minute.
func TestRefusedMembersDoNotFloodTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m := c.role(1, "mars")
		pass(time.Second)
		stranger := c.net.join(Peer{Node: "10.0.0.9:8000", Role: "udp"})
		for range 20 {
			_, _ = stranger.Request(t.Context(), marsAddress, command, []byte{mars.Protocol + 1, 1})
			l := &loop{n: m.Node}
			l.event(mars.Event{Kind: mars.MemberRefused, Node: "10.0.0.8:8000", Text: "role or type is empty"})
		}
		for _, line := range []string{"node of an incompatible mesh protocol refused", "member refused"} {
			if n := strings.Count(m.log.String(), line); n != 1 {
				t.Errorf("%q was written %d times", line, n)
			}
		}
		m.kill()
	})
}
