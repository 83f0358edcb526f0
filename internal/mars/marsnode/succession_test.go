package marsnode

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

// settled returns a home, an http, a udp and a tcp node of which three have seats.
func settled(t *testing.T) (c *cluster, m, h, u, x *process) {
	c = newCluster(t)
	m, h, u, x = c.role(1, "mars"), c.role(2, "http"), c.role(3, "udp"), c.role(4, "tcp")
	pass(20 * time.Second)
	if v := metric(t, m, "diarkis_mars_voters"); v != 3 {
		t.Fatalf("%v voters after 20 s, want 3:\n%s", v, m.log)
	}
	return c, m, h, u, x
}

// ruler waits until one of these may write as the authority, and returns it.
func ruler(t *testing.T, within time.Duration, ps ...*process) *process {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); pass(10 * time.Millisecond) {
		for _, p := range ps {
			if p.Reigns() && p.leaseHolds() {
				return p
			}
		}
	}
	for _, p := range ps {
		t.Logf("log of %s:\n%s", p.cfg.Self.Node, p.log)
	}
	t.Fatalf("nobody reigns after %v", within)
	return nil
}

func kill(ps ...*process) {
	for _, p := range ps {
		p.kill()
	}
}

// wantLog wants lines in a log; call it when the process has ended.
func (p *process) wantLog(lines ...string) {
	p.t.Helper()
	for _, line := range lines {
		if !strings.Contains(p.log.String(), `"message":"`+line+`"`) {
			p.t.Errorf("log of %s misses %q:\n%s", p.cfg.Self.Node, line, p.log)
		}
	}
}

func TestAnotherNodeTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, h, u, x := settled(t)
		others := []*process{h, u, x}
		var mu sync.Mutex
		fewest := 4
		h.OnUpdate(func(d *mars.Directory) {
			mu.Lock()
			defer mu.Unlock()
			fewest = min(fewest, len(d.Members))
		})
		epoch := h.Directory().Epoch
		m.kill()
		next := ruler(t, 5*time.Second, others...)
		pass(5 * time.Second)
		for _, p := range others {
			d := p.Directory()
			if !d.Live || d.Authority != next.cfg.Self.Node || d.Epoch.Compare(epoch) <= 0 {
				t.Errorf("%s follows %s in %v, live %v; want %s", p.cfg.Self.Node, d.Authority, d.Epoch, d.Live, next.cfg.Self.Node)
			}
			if ok, reason := p.Joined(); !ok || reason != "joined" {
				t.Errorf("Joined = %v, %q", ok, reason)
			}
			if want := p == next; (metric(t, p, "diarkis_mars_is_authority") == 1) != want || (metric(t, p, "diarkis_mars_lease_seconds") > 0) != want {
				t.Errorf("%s: metrics of the authority are wrong", p.cfg.Self.Node)
			}
		}
		if v := metric(t, next, "diarkis_mars_elections_total"); v < 1 {
			t.Errorf("%v elections counted", v)
		}
		if v := metric(t, next, "diarkis_mars_messages_total"); v < 100 {
			t.Errorf("%v messages counted", v)
		}
		pass(10 * time.Second)
		h.want("http=online udp=online tcp=online")
		m = c.role(1, "mars") // under its old address
		pass(10 * time.Second)
		h.want("mars=online http=online udp=online tcp=online")
		if back := ruler(t, time.Second, m, h, u, x); back != next {
			t.Errorf("%s reigns: home did not wait", back.cfg.Self.Node)
		}
		pass(40 * time.Second)
		if back := ruler(t, time.Second, m, h, u, x); back != m {
			t.Errorf("%s reigns, want home after it was healthy for a while", back.cfg.Self.Node)
		}
		mu.Lock()
		defer mu.Unlock()
		if fewest < 3 {
			t.Errorf("the directory went down to %d members", fewest)
		}
		kill(m, h, u, x)
		next.wantLog("this node became the authority", "office handed over")
		for _, p := range others {
			if p != next {
				p.wantLog("authority changed")
			}
		}
		m.wantLog("cluster joined", "this node became the authority")
	})
}

func TestLeavingAuthorityHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m, h, u, x := settled(t)
		if !m.Reigns() || !m.Votes() || h.Reigns() || h.Votes() == u.Votes() && u.Votes() == x.Votes() {
			t.Error("home does not reign with two of the others voting")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if err := m.Leave(ctx); err != nil {
			t.Errorf("Leave = %v after %v\n%s", err, time.Since(begin), m.log)
		}
		m.kill()
		ruler(t, 100*time.Millisecond, h, u, x)
		for range 20 {
			pass(100 * time.Millisecond)
			if d := x.Directory(); !d.Live {
				t.Error("the directory was not live for a moment")
				break
			}
		}
		x.want("http=online udp=online tcp=online")
		kill(h, u, x)
	})
}

func TestTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m, h, u, x := settled(t)
		done := x.Transfer(u.cfg.Self.Node)
		pass(3 * time.Second)
		if err := outcome(done); err != nil {
			t.Errorf("Transfer = %v", err)
		}
		if !u.Reigns() || m.Reigns() {
			t.Errorf("the office was not handed to %s:\n%s", u.cfg.Self.Node, m.log)
		}
		kill(m, h, u, x)
	})
}

// Where only an operator may found the cluster anew it waits for that.
func TestRecover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m := c.role(1, "mars")
		cfg := c.config(3, "udp")
		cfg.Recovery = mars.RecoveryManual
		u := c.start(cfg)
		pass(3 * time.Second) // too short for a seat
		m.kill()
		pass(2 * time.Minute)
		if u.Reigns() {
			t.Error("a cluster was founded without being told to")
		}
		done := u.Recover()
		ruler(t, 20*time.Second, u)
		pass(time.Second)
		if err := outcome(done); err != nil {
			t.Errorf("Recover = %v", err)
		}
		pass(20 * time.Second)
		u.want("udp=online")
		u.kill()
		u.wantLog("cluster founded", "this node became the authority")
	})
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m, h, u, x := settled(t)
		st, err := m.Status(t.Context())
		if err != nil || st.Authority != marsAddress || st.AuthorityRole != "mars" || st.Lease <= 0 || len(st.Voters) != 3 || len(st.Members) != 4 {
			t.Errorf("Status of the authority = %+v, %v", st, err)
		}
		for _, member := range st.Members {
			if member.Age < 0 || member.Age > 2*time.Second {
				t.Errorf("%s was heard %v ago", member.Node, member.Age)
			}
		}
		st, err = h.Status(t.Context())
		if err != nil || st.Authority != marsAddress || st.Lease != 0 || len(st.Voters) != 3 {
			t.Errorf("Status of another node = %+v, %v", st, err)
		}
		kill(m, h, u, x)
		if _, err := h.Status(t.Context()); !errors.Is(err, errEnded) {
			t.Errorf("Status after the end = %v", err)
		}
	})
}

func TestSuspectsAreNotHandedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m, h, u, x := settled(t)
		h.Suspect(u.cfg.Self.Node)
		m.Suspect(u.cfg.Self.Node)
		x.Suspect("10.0.0.99:8000") // a stranger
		pass(2500 * time.Millisecond)
		if d := h.Directory(); len(d.Available("UDP")) != 0 || len(d.ByType("UDP")) != 1 {
			t.Errorf("a node that two hosts can't reach is handed out: %+v", d.ByType("UDP"))
		}
		pass(2*mars.SuspicionMax + 2*time.Second) // while it is reported, and from then on
		if len(h.Directory().Available("UDP")) != 1 {
			t.Error("the suspicion did not end")
		}
		kill(m, h, u, x)
	})
}

// A message counts only from whom it names.
func TestForeignSenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, m, h, u, x := settled(t)
		self := m.Self().Instance
		renew := mars.Renew{Header: mars.Header{From: self.Node, Incarnation: self.Incarnation}}
		stranger := Peer{Node: "10.0.0.9:8000", Incarnation: id.Incarnation{9}}
		restarted := Peer{Node: self.Node, Incarnation: id.Incarnation{9}}
		for _, from := range []Peer{stranger, restarted} {
			if _, err := h.receive(t.Context(), from, renew.AppendTo(nil)); err == nil || !strings.Contains(err.Error(), "in the name of") {
				t.Errorf("renewal of %s by %v %v: %v", self.Node, from.Node, from.Incarnation, err)
			}
		}
		if _, err := h.receive(t.Context(), stranger, []byte("?")); err == nil {
			t.Error("rubbish was taken")
		}
		if v := metric(t, h, "diarkis_mars_messages_dropped_total"); v != 3 {
			t.Errorf("%v messages dropped, want 3", v)
		}
		if _, err := h.receive(t.Context(), Peer{Node: self.Node, Incarnation: c.net.ports[self.Node].peer.Incarnation}, renew.AppendTo(nil)); err != nil {
			t.Errorf("renewal by the authority itself: %v", err)
		}
		kill(m, h, u, x)
	})
}

func TestSpeaksFor(t *testing.T) {
	p := Peer{Node: "10.0.0.3:8000", Incarnation: id.Incarnation{0: 7, 15: 0xfe}}
	evicted, other := p.Incarnation, p.Incarnation
	evicted[15], other[0] = 0xff, 8 // counted on; another process
	for _, tt := range []struct {
		h    mars.Header
		want bool
	}{
		{mars.Header{From: p.Node, Incarnation: p.Incarnation}, true},
		{mars.Header{From: p.Node, Incarnation: evicted}, true},
		{mars.Header{From: p.Node, Incarnation: mars.Run(p.Incarnation)}, true},
		{mars.Header{From: p.Node, Incarnation: other}, false},
		{mars.Header{From: "10.0.0.4:8000", Incarnation: p.Incarnation}, false},
	} {
		if got := p.speaksFor(tt.h); got != tt.want {
			t.Errorf("%+v of %+v: %v", tt.h, p, got)
		}
	}
}

// An answer that vouches for the directory leaves only while the lease holds,
// however long this process was paused after it was made.
func TestLeaseIsCheckedBeforeTheAnswerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		cfg := c.config(1, "mars")
		n, err := New(cfg, c.net.join(Peer{Node: cfg.Self.Node}))
		if err != nil {
			t.Fatal(err)
		}
		from := Peer{Node: "10.0.0.3:8000", Incarnation: id.Incarnation{3}}
		beat := mars.Leave{Header: mars.Header{From: from.Node, Incarnation: from.Incarnation}}.AppendTo(nil)
		live := mars.Ack{Header: mars.Header{From: cfg.Self.Node}, Status: mars.StatusOK, Live: true}
		for _, tt := range []struct {
			reply mars.Message
			lease time.Duration // when the answer is made
			pause time.Duration // before it leaves
			want  error
		}{
			{live, time.Second, 0, nil},
			{live, time.Second, 2 * time.Second, errLease},
			{live, 0, 0, errLease},
			{mars.Ack{Header: live.Header, Status: mars.StatusNotAuthority}, 0, 0, nil},
			{nil, time.Second, 0, mars.ErrMessage},
		} {
			answered := make(chan error, 1)
			go func() {
				_, err := n.answer(t.Context(), from, beat)
				answered <- err
			}()
			call := <-n.inbox // as the loop does
			n.leaseEnd.Store(0)
			if tt.lease > 0 {
				n.leaseEnd.Store(n.cfg.now().Add(tt.lease).UnixNano())
			}
			pass(tt.pause)
			call.reply <- tt.reply
			if err := <-answered; !errors.Is(err, tt.want) {
				t.Errorf("lease of %v, pause of %v: %v, want %v", tt.lease, tt.pause, err, tt.want)
			}
		}
	})
}

// Nodes that are gone hold up neither the loop nor the messages for others.
func TestOutboxIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newNetwork()
		p := w.join(Peer{Node: "10.0.0.1:6779"})
		arrived := 0
		w.join(Peer{Node: "10.0.0.2:8000"}).Handle(command, func(context.Context, Peer, []byte) ([]byte, error) {
			arrived++
			return nil, nil
		})
		o := outbox{mesh: p, cmd: command, byPeer: make(map[id.Node]int)}
		var mu sync.Mutex
		failed := 0
		send := func(to id.Node) bool {
			return o.send(t.Context(), to, nil, func(error) { mu.Lock(); defer mu.Unlock(); failed++ })
		}
		for i := range underWayPeerMax + 2 {
			if ok := send("10.0.0.66:8000"); ok != (i < underWayPeerMax) {
				t.Errorf("message %d to a node that is gone: %v", i, ok)
			}
		}
		if !send("10.0.0.2:8000") {
			t.Error("a message for a node that is there was dropped")
		}
		pass(10 * time.Millisecond)
		if arrived != 1 {
			t.Errorf("%d messages arrived, want 1", arrived)
		}
		taken := 0
		for i := range underWayMax + 100 {
			if send(id.Node(fmt.Sprintf("10.1.%d.%d:8000", i/250, i%250))) {
				taken++
			}
		}
		if want := underWayMax - underWayPeerMax; taken != want {
			t.Errorf("%d further messages taken, want %d", taken, want)
		}
		o.wg.Wait()
		if failed != underWayMax || p.waitingMax != underWayMax {
			t.Errorf("%d messages failed, %d waited at a time, want %d", failed, p.waitingMax, underWayMax)
		}
		if len(o.byPeer) != 0 || o.total != 0 || !send("10.0.0.66:8000") {
			t.Errorf("no room after all have failed: %d, %v", o.total, o.byPeer)
		}
		o.wg.Wait()
	})
}

// An authority that is not home keeps looking for it at whatever address it has now.
func TestHomeIsLookedUpAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m := c.role(1, "mars")
		var lookups atomic.Int64
		cfg := c.config(3, "udp")
		cfg.Addresses = func(context.Context) ([]id.Node, error) {
			lookups.Add(1)
			return []id.Node{marsAddress}, nil
		}
		u, h := c.start(cfg), c.role(2, "http")
		pass(20 * time.Second)
		if n := lookups.Load(); n != 1 {
			t.Errorf("%d look-ups while all was well, want 1 a minute", n)
		}
		u.Transfer(u.cfg.Self.Node)
		pass(3 * time.Second)
		before := lookups.Load()
		if u.Reigns() {
			pass(10 * time.Second)
			if n := lookups.Load() - before; n < 1 || n > 4 {
				t.Errorf("%d look-ups in 10 s of reigning", n)
			}
		} else {
			t.Errorf("the office was not handed over:\n%s", m.log)
		}
		kill(m, h, u)
	})
}

// What a node wrote for all outlives the authority it told.
func TestSharedDataSurvivesTheAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m, h, u, x := settled(t)
		if err := u.SetShared("season", 7); err != nil {
			t.Error(err)
		}
		if err := u.SetShared("", 7); !errors.Is(err, mars.ErrShared) {
			t.Errorf("empty key: %v", err)
		}
		pass(3 * time.Second)
		m.kill()
		ruler(t, 5*time.Second, h, u, x)
		pass(3 * time.Second)
		for _, p := range []*process{h, u, x} {
			if s := p.Shared(); len(s) != 1 || s[0].Key != "season" || s[0].Value != 7 {
				t.Errorf("%s has %+v", p.cfg.Self.Node, s)
			}
		}
		kill(h, u, x)
	})
}
