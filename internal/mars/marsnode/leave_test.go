package marsnode

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// leaveWithin lets a node leave, which may take so long, and ends it.
func (p *process) leaveWithin(d time.Duration) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), d)
	defer cancel()
	begin := time.Now()
	if err := p.Leave(ctx); err != nil {
		p.t.Errorf("%s could not leave in %v: %v", p.cfg.Self.Node, time.Since(begin), err)
	}
	p.kill()
}

// TestVotersLeaveWhileAllOthersAreYoung: in a rolling update each node ends as soon as the
// one in its place is ready, long before that is ripe for the council.
func TestVotersLeaveWhileAllOthersAreYoung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		m, olds := c.role(1, "mars"), []*process{c.role(2, "http"), c.role(3, "udp"), c.role(4, "tcp"), c.role(5, "udp")}
		pass(30 * time.Second)
		if v := metric(t, m, "diarkis_mars_voters"); v != 5 {
			t.Fatalf("%v voters after 30 s, want 5", v)
		}
		var news []*process
		for i, old := range olds {
			n := c.role(10+i, old.cfg.Self.Role)
			news = append(news, n)
			pass(time.Second)
			old.leaveWithin(500 * time.Millisecond)
			if v := metric(t, m, "diarkis_mars_voters"); v != 5 {
				t.Errorf("%v voters after %d of them left", v, i+1)
			}
		}
		pass(2 * time.Second)
		m.want("http=online udp=online tcp=online udp=online mars=online")
		for _, line := range []string{"member expired", "member hidden", "many members fell silent"} {
			if strings.Contains(m.log.String(), line) {
				t.Errorf("all left in order, and it says %q:\n%s", line, m.log)
			}
		}
		m.kill() // and the council of the new ones still elects
		ruler(t, 6*time.Second, news...)
		kill(news...)
	})
}

// TestLeaveOfAVoterThatIsNeeded: who ends before the council can do without its vote is told
// so, rather than that nobody answered.
func TestLeaveOfAVoterThatIsNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, m, h, u, x := settled(t)
		var voters, others []*process
		for _, p := range []*process{h, u, x} {
			if p.Votes() {
				voters = append(voters, p)
			} else {
				others = append(others, p)
			}
		}
		// Without the other voter and with a candidate that does not answer it is needed.
		voters[1].kill()
		for _, p := range others {
			p.port.cut(false)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		err := voters[0].Leave(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the authority knows") {
			t.Errorf("Leave = %v\n%s", err, m.log)
		}
		voters[0].kill()
		for _, p := range others {
			p.port.cut(true)
		}
		if t.Failed() {
			t.Log(m.log)
		}
		kill(append(others, m)...)
	})
}

// TestTransferToOneThatJustDied: who asked learns at once what came of it.
func TestTransferToOneThatJustDied(t *testing.T) {
	for _, at := range []string{"the authority", "another node"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, m, h, u, x := settled(t)
				var dead *process
				var left []*process
				for _, p := range []*process{h, u, x} {
					if dead == nil && p.Votes() {
						dead = p
					} else {
						left = append(left, p)
					}
				}
				asker := m
				if at == "another node" {
					asker = left[0]
				}
				dead.kill()
				done := asker.Transfer(dead.cfg.Self.Node)
				pass(3 * time.Second)
				if err := outcome(done); err == nil || !strings.Contains(err.Error(), "did not take the office") {
					t.Errorf("Transfer = %v\n%s", err, m.log)
				}
				ruler(t, 3*time.Second, append(left, m)...)
				kill(append(left, m)...)
			})
		})
	}
}
