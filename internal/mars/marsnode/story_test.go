package marsnode

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

// A node that was suspended does not take that for the reason of what happened after it
// woke: an authority that was silent then died by itself.
func TestAuthorityDiesAfterASuspension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		var slept atomic.Int64
		cfg := c.config(2, "http")
		cfg.now = func() time.Time { return time.Now().Add(time.Duration(slept.Load())).Round(0) }
		m := c.role(1, "mars")
		h, u, x := c.start(cfg), c.role(3, "udp"), c.role(4, "tcp")
		pass(20 * time.Second)
		before := len(h.lines(0))
		slept.Add(int64(10200 * time.Millisecond))
		m.kill()
		next := ruler(t, 8*time.Second, u, x)
		pass(15 * time.Second)
		said := 0
		for _, l := range h.lines(before) {
			if l["message"] != "authority changed" {
				continue
			}
			said++
			reason := l["reason"].(string)
			if l["authority"] != string(next.cfg.Self.Node) || !strings.HasPrefix(reason, "10.0.0.1:6779 was silent for ") {
				t.Errorf("authority changed: %v", l)
			}
			if d, err := time.ParseDuration(strings.TrimPrefix(reason, "10.0.0.1:6779 was silent for ")); err != nil || d > 8*time.Second {
				t.Errorf("reason %q counts the time in which this node was away", reason)
			}
		}
		if said != 1 {
			t.Errorf("said %d times that the authority changed:\n%s", said, h.log)
		}
		kill(h, u, x)
	})
}

// changeReason by what is known: when this node woke, and how long nobody was heard.
func TestReasonOfAChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		h := c.role(2, "http")
		pass(time.Second)
		const other, handed = "10.0.0.1:6779", "10.0.0.1:6779 handed its office over"
		for _, tt := range []struct {
			name       string
			woke, gap  time.Duration // ago; 0 for not lately
			before     string
			looks      string
			want       string
			ownAbsence bool
		}{
			{"never away", 0, 3 * time.Second, other, other + " was silent for 3s", other + " was silent for 3s", false},
			{"woke just now", time.Second, 11 * time.Second, other, other + " was silent for 11s", "this process was suspended for 10s", true},
			{"silent since it woke", 3300 * time.Millisecond, 13500 * time.Millisecond, other, other + " was silent for 13.5s", other + " was silent for 3.3s", false},
			{"handed over after it woke", 4 * time.Second, 100 * time.Millisecond, other, handed, handed, false},
			{"was the authority itself", 4 * time.Second, 14 * time.Second, string(h.cfg.Self.Node), "any", "this process was suspended for 10s", true},
		} {
			n := &Node{cfg: h.cfg}
			now := time.Now()
			n.cfg.now = func() time.Time { return now }
			if tt.woke > 0 {
				n.still.Awake(now.Add(-tt.woke - 10*time.Second))
				n.still.Awake(now.Add(-tt.woke))
			}
			got, own := (&loop{n: n}).changeReason(id.Node(tt.before), tt.gap, tt.looks)
			if got != tt.want || own != tt.ownAbsence {
				t.Errorf("%s: %q, %v, want %q", tt.name, got, own, tt.want)
			}
		}
		h.kill()
	})
}

// An own absence is told once: by the line of who joined again, which names the authority.
func TestOwnAbsenceIsToldOnce(t *testing.T) {
	for sinceItWoke, want := range map[time.Duration][]string{
		time.Second:     {"info: cluster joined again: this process was suspended for 10s"},
		3 * time.Second: {"info: cluster joined again: this process was suspended for 10s", "info: authority changed: 10.0.0.1:6779 was silent for 3s"},
	} {
		p := &process{t: t, log: &logBuffer{}}
		n := &Node{log: zerolog.New(p.log).Level(zerolog.InfoLevel)}
		now := time.Now()
		n.cfg.now = func() time.Time { return now }
		n.still.Awake(now.Add(-sinceItWoke - 10*time.Second))
		n.still.Awake(now.Add(-sinceItWoke))
		l := &loop{n: n}
		l.story = story{follows: marsAddress, evicted: true}
		l.story.rejoined(l, mars.Event{Kind: mars.Rejoined, Node: "10.0.0.2:8000", Silence: sinceItWoke + 10*time.Second})
		l.story.changed(l, &mars.Directory{Authority: marsAddress}, &mars.Directory{Authority: "10.0.0.2:8000", Live: true})
		wantLines(t, "a node that was away", p.lines(0), want...)
	}
}

// What happened once is one line.
func TestWhatHappensOnceIsOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, lost := c.role(1, "mars"), c.role(3, "udp")
		pass(3 * time.Second)
		lost.kill()
		for _, tt := range []struct {
			name   string
			events []mars.Event
			want   []string
		}{
			{"a restart", []mars.Event{{Kind: mars.MemberReplaced, Node: "10.0.0.8:8000", Role: "udp"}, {Kind: mars.MemberJoined, Node: "10.0.0.8:8000", Role: "udp"}},
				[]string{"warn: member replaced by a newer process: 10.0.0.8:8000"}},
			{"a restart, and another that joins", []mars.Event{{Kind: mars.MemberReplaced, Node: "10.0.0.8:8000"}, {Kind: mars.MemberJoined, Node: "10.0.0.9:8000"}},
				[]string{"warn: member replaced", "info: member joined: 10.0.0.9:8000"}},
			{"a transfer, at who asked for it", []mars.Event{{Kind: mars.Transferring, Node: "10.0.0.8:8000", Text: "an operator wants it"}, {Kind: mars.TransferDone, Node: "10.0.0.8:8000"}},
				[]string{"info: office handed over: an operator"}},
		} {
			before, l := len(m.lines(0)), &loop{n: m.Node}
			for _, e := range tt.events {
				l.event(e)
			}
			wantLines(t, tt.name, m.lines(before), tt.want...)
		}
		m.kill()
	})
}

// A node that never heard of a council does not say that it is gone.
func TestPollWithoutACouncil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		u := c.role(3, "udp")
		pass(time.Second)
		before := len(u.lines(0))
		(&loop{n: u.Node}).event(mars.Event{Kind: mars.PollStarted, Count: 1})
		wantLines(t, "a node that never joined", u.lines(before), "info: every node asked for an authority: no authority was ever heard: nodes\":1")
		u.kill()
	})
}

// Who joined the wrong cluster sees it in the line: how many are there, and of which app.
func TestJoinedSaysWhichCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, h := c.role(1, "mars"), c.role(2, "http")
		pass(3 * time.Second)
		cfg := c.config(3, "udp")
		u := c.start(cfg)
		pass(3 * time.Second)
		if log := u.log.String(); !strings.Contains(log, `"members":3`) {
			t.Errorf("cluster joined does not say how many are there:\n%s", log)
		}
		if age, ok := u.AuthorityAge(); !ok || age < 0 || age > 2*time.Second {
			t.Errorf("the authority was heard %v ago, %v", age, ok)
		}
		if age, ok := m.AuthorityAge(); !ok || age != 0 {
			t.Errorf("of itself the authority says %v, %v", age, ok)
		}
		m.kill()
		pass(2300 * time.Millisecond)
		if age, _ := u.AuthorityAge(); !u.Directory().Live || age < 2*time.Second {
			t.Errorf("heard %v ago, live %v", age, u.Directory().Live)
		}
		kill(h, u)
	})
}
