package users

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// A user is present while connected and heard of: the hooks are told of every change, and
// of nothing else.
func TestPresent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		var told []bool
		n.OnPresence(func(u *User) { told = append(told, u.Present()) })
		u, _ := n.login(t, "u")
		expect := func(what string, connected, present bool, hooks ...bool) {
			t.Helper()
			if u.Connected() != connected || u.Present() != present {
				t.Errorf("%s: connected %v, present %v", what, u.Connected(), u.Present())
			}
			if !slices.Equal(told, hooks) {
				t.Errorf("%s: hooks were told %v, want %v", what, told, hooks)
			}
			told = nil
		}
		expect("connected", true, true)
		n.UserSilent(u, true)
		n.UserSilent(u, true)
		expect("silent", true, false, false)
		n.UserSilent(u, false)
		n.UserSilent(u, false)
		expect("heard", true, true, true)
		n.UserSilent(u, true)
		n.UserLost(u)
		expect("lost", false, false, false, false)
		n.places.connect(u.SID, true)
		expect("back on another connection", true, true, true)
		n.UserSilent(u, true)
		n.places.connect(u.SID, true)
		expect("another connection took over", true, true, false, true)
		u.Disconnect(wire.CloseKicked, "")
		synctest.Wait()
		expect("ended", false, false)
	})
}

// Who waits for the node to be empty waits for those who are there, and for a moment for
// those who may be back, not for the dead.
func TestTheDeadHoldUpNoDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		gate := make(chan struct{})
		n.OnEnded(func(*User, wire.CloseCode) { <-gate })
		lost, _ := n.login(t, "lost")
		silent, _ := n.login(t, "silent")
		flaps, _ := n.login(t, "flaps")
		n.UserLost(lost)
		n.UserSilent(silent, true)
		drained := make(chan error, 1)
		go func() { drained <- n.WaitEmpty(t.Context()) }()
		waits := func(what string, d time.Duration) {
			t.Helper()
			pass(d)
			synctest.Wait()
			if len(drained) > 0 {
				t.Fatalf("drained: %s", what)
			}
		}
		waits("one is there", time.Hour)
		n.UserLost(flaps)
		waits("one may be back", deadGrace-time.Millisecond)
		n.places.connect(flaps.SID, true)
		waits("one was back", time.Hour)
		n.UserSilent(flaps, true)
		waits("one may be heard again", deadGrace-time.Millisecond)
		n.UserSilent(flaps, false)
		flaps.Disconnect(wire.CloseNormal, "")
		waits("the hooks of one still run", time.Hour)
		close(gate)
		pass(deadGrace)
		synctest.Wait()
		if len(drained) != 1 || n.CCU() != 2 {
			t.Errorf("the dead hold up a drain: %d users", n.CCU())
		}
		n.places.connect(lost.SID, true)
		n.UserSilent(silent, false)
		if n.living.Load() != 2 {
			t.Errorf("%d are present, want 2", n.living.Load())
		}
		lost.Disconnect(wire.CloseNormal, "")
		silent.Disconnect(wire.CloseNormal, "")
		synctest.Wait()
		if n.living.Load() != 0 || n.CCU() != 0 {
			t.Errorf("%d of %d are present", n.living.Load(), n.CCU())
		}
	})
}
