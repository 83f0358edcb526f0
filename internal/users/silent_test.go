package users

import (
	"slices"
	"testing"
	"testing/synctest"

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
