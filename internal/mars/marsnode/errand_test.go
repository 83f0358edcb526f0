package marsnode

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

var errNothingYet = errors.New("nothing came of it yet")

// outcome returns what came of an errand.
func outcome(done <-chan error) error {
	select {
	case err := <-done:
		return err
	default:
		return errNothingYet
	}
}

// Whichever node an operator asks, it tells what came of a transfer.
func TestTransferOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m, h, u, x := settled(t)
		refused := func(name string, by *process, to id.Node, after time.Duration, want string) {
			t.Helper()
			done := by.Transfer(to)
			pass(after)
			if err := outcome(done); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", name, err, want)
			}
		}
		const nobody = "10.0.0.77:8000"
		refused("no member, asked at the authority", m, nobody, 100*time.Millisecond, "no such member")
		refused("no member, asked elsewhere", x, nobody, 100*time.Millisecond, "no such member")
		done := x.Transfer(m.cfg.Self.Node)
		pass(100 * time.Millisecond)
		if err := outcome(done); err != nil {
			t.Errorf("to who has it already: %v", err)
		}
		u.SetState(mars.Offline)
		pass(2 * time.Second)
		refused("about to leave", x, u.cfg.Self.Node, 100*time.Millisecond, "about to leave")
		u.SetState(mars.Online)
		pass(2 * time.Second)
		first := x.Transfer(u.cfg.Self.Node)
		second := x.Transfer(h.cfg.Self.Node)
		pass(20 * time.Second)
		if err := outcome(first); err == nil || !strings.Contains(err.Error(), "another node") {
			t.Errorf("a wish that another one replaced: %v", err)
		}
		if err := outcome(second); err != nil || !h.Reigns() {
			t.Errorf("the later wish: %v\n%s", err, m.log)
		}
		// A member that does not answer while the authority still believes in it.
		x.port.cut(false)
		refused("silent", u, x.cfg.Self.Node, mars.ErrandMax, "") // expired or silent, and said by the authority
		kill(m, h, u, x)
	})
}

// A question to an authority that is lost is asked again.
func TestTransferIsAskedUntilItIsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m, h, u, x := settled(t)
		x.port.cut(false)
		done := x.Transfer(u.cfg.Self.Node)
		pass(1200 * time.Millisecond)
		x.port.cut(true)
		pass(5 * time.Second)
		if err := outcome(done); err != nil || !u.Reigns() {
			t.Errorf("asked while the link was cut: %v\n%s", err, x.log)
		}
		kill(m, h, u, x)
	})
}

func TestErrandsWithoutAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		cfg := c.config(3, "udp")
		cfg.Recovery = mars.RecoveryManual
		m, u := c.role(1, "mars"), c.start(cfg)
		pass(3 * time.Second)
		done := u.Recover()
		pass(time.Second)
		if err := outcome(done); err == nil || !strings.Contains(err.Error(), "nothing to recover, 10.0.0.1:6779 is the authority") {
			t.Errorf("recovery of what works: %v", err)
		}
		m.kill()
		pass(10 * time.Second)
		done = u.Transfer(u.cfg.Self.Node)
		pass(100 * time.Millisecond)
		if err := outcome(done); err == nil || !strings.Contains(err.Error(), "no authority is known") {
			t.Errorf("transfer without an authority: %v", err)
		}
		waiting := u.Recover()
		u.kill()
		if err := <-waiting; !errors.Is(err, errEnded) {
			t.Errorf("the node ended: %v", err)
		}
		if err := <-u.Transfer(u.cfg.Self.Node); !errors.Is(err, errEnded) {
			t.Errorf("asked of a node that ended: %v", err)
		}
		if err := <-u.Recover(); !errors.Is(err, errEnded) {
			t.Errorf("asked of a node that ended: %v", err)
		}
	})
}

// A recovery ends well once there is an authority, and says what it waits for when it
// does not come to an end in time.
func TestRecoveryEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		cfg := c.config(3, "udp")
		cfg.Recovery = mars.RecoveryManual
		cfg.Addresses = func(context.Context) ([]id.Node, error) { return nil, errors.New("no such host") }
		u := c.start(cfg)
		done := u.Recover()
		pass(5 * time.Second)
		if err := outcome(done); err != nil || !u.Reigns() {
			t.Errorf("Recover of a lone node = %v", err)
		}
		u.kill()

		cfg = c.config(4, "udp")
		cfg.Recovery = mars.RecoveryManual
		x := c.start(cfg)
		pass(time.Second)
		x.kill() // its loop is ours now
		l := &loop{n: x.Node}
		late := make(chan error, 1)
		l.errands.recovery, l.errands.until = []chan<- error{late}, cfg.now()
		l.errands.event(mars.Event{Kind: mars.FoundingRefused, Text: "there is an authority, says 10.0.0.9:8000"})
		l.errands.mind(l, cfg.now())
		err := outcome(late)
		for _, part := range []string{"no authority after 20s", "says 10.0.0.9:8000", "it waits for an authority"} {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("too late: %v, want %q", err, part)
			}
		}
	})
}

// Nobody has to be told that a node leaves which nobody let in, even while it asks.
func TestLeaveOfANodeThatNeverJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		u := c.role(3, "udp")
		pass(100 * time.Millisecond) // a heartbeat is under way, to nobody
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if err := u.Leave(ctx); err != nil {
			t.Errorf("Leave = %v", err)
		}
		u.kill()
	})
}

// A registration in another role than the link's is none.
func TestRegistrationInAnotherRole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m := c.role(1, "mars")
		pass(time.Second)
		self := c.config(3, "http").Self
		liar := c.net.join(Peer{Node: self.Node, Incarnation: self.Incarnation, Role: "udp"})
		beat := mars.Heartbeat{
			Header: mars.Header{From: self.Node, Incarnation: self.Incarnation}, Seq: 1,
			Status: mars.Dynamic{State: mars.Online, HasValues: true}, Register: &self,
		}
		if _, err := liar.Request(t.Context(), marsAddress, command, beat.AppendTo(nil)); err == nil || !strings.Contains(err.Error(), "which the mesh knows as udp") {
			t.Errorf("registration = %v", err)
		}
		m.want("mars=online")
		kill(m)
	})
}
