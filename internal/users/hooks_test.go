package users

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Hooks are code of others: one that panics costs nothing but itself.
func TestHooksMayPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, u, _, result, stop := moving(t, newNetwork())
		defer stop()
		var mu sync.Mutex
		var ran []string
		then := func(name string) {
			mu.Lock()
			defer mu.Unlock()
			ran = append(ran, name)
		}
		for _, n := range []*node{a, b} {
			n.OnOpened(func(*User) { panic("opened") })
			n.OnOpened(func(*User) { then("opened") })
			n.OnPresence(func(*User) { panic("presence") })
			n.OnPresence(func(*User) { then("presence") })
			n.OnEnded(func(*User, wire.CloseCode) { panic("ended") })
			n.OnEnded(func(*User, wire.CloseCode) { then("ended") })
			n.OnMovedIn(func(*User) { panic("in") })
			n.OnMovedIn(func(*User) { then("in") })
			n.OnMovedOut(func(*User) { panic("out") })
			n.OnMovedOut(func(*User) { then("out") })
		}
		a.login(t, "v")
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		b.places.connect(u.SID, true)
		synctest.Wait()
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		b.UserLost(b.BySID(u.SID))
		b.BySID(u.SID).Disconnect(wire.CloseKicked, "")
		synctest.Wait()
		slices.Sort(ran)
		if want := []string{"ended", "in", "opened", "out", "presence"}; !slices.Equal(ran, want) {
			t.Errorf("the hooks after those that panicked: %v, want %v", ran, want)
		}
		if got := testutil.ToFloat64(a.metrics.panics) + testutil.ToFloat64(b.metrics.panics); got != 5 {
			t.Errorf("%v panics were counted", got)
		}
		if a.CCU() != 1 || b.CCU() != 0 {
			t.Errorf("%d and %d players", a.CCU(), b.CCU())
		}
	})
}

// The new node waits for the answer to its MoveRelease: a hook here is not its matter.
func TestMovedOutHookDoesNotHoldTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, u, _, result, stop := moving(t, newNetwork())
		defer stop()
		gate := make(chan struct{})
		ran := false
		a.OnMovedOut(func(u *User) {
			<-gate
			m := &moveOut{}
			for _, v := range a.moves.outgoing {
				m = v
			}
			ran = m.mu.TryLock() // and no lock of ours is held
		})
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		in := make(chan *fakeLink, 1)
		go func() { in <- b.places.connect(u.SID, true) }()
		synctest.Wait()
		select {
		case link := <-in:
			if link == nil {
				t.Error("the client was not let in")
			}
		default:
			t.Error("the client waits for a hook on its old node")
		}
		close(gate)
		synctest.Wait()
		if err := <-result; err != nil || !ran {
			t.Errorf("moved: %v; the hook ran without a lock: %v", err, ran)
		}
	})
}

// Ended hooks never run in who ended the user, who may hold any lock, not even when
// the node is stopping.
func TestEndedHooksRunWithoutTheCallersLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		n := nodes[0]
		var room sync.Mutex
		var hooks atomic.Int32
		n.OnEnded(func(*User, wire.CloseCode) {
			room.Lock()
			defer room.Unlock()
			hooks.Add(1)
		})
		first, _ := n.login(t, "u")
		second, _ := n.login(t, "v")
		end := func(u *User) {
			room.Lock()
			defer room.Unlock()
			n.UserEnded(u, wire.CloseNormal)
		}
		end(first)
		stop()
		returned := make(chan struct{})
		go func() { end(second); close(returned) }()
		synctest.Wait()
		select {
		case <-returned:
		default:
			t.Fatal("the hook ran in its caller, who holds a lock that it wants")
		}
		if hooks.Load() != 2 || n.CCU() != 0 {
			t.Errorf("%d hooks ran, %d players", hooks.Load(), n.CCU())
		}
	})
}

// A hook that blocks against its contract keeps nobody but itself.
func TestOneBlockedHookHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		gate := make(chan struct{})
		n.OnEnded(func(u *User, _ wire.CloseCode) {
			if u.ID == "bad" {
				<-gate
			}
		})
		bad, _ := n.login(t, "bad")
		bad.Disconnect(0, "")
		for range 100 {
			u, _ := n.login(t, "u")
			u.Disconnect(0, "")
			pass(time.Millisecond)
		}
		synctest.Wait()
		if n.CCU() != 1 {
			t.Errorf("%d users still count", n.CCU())
		}
		if err := bad.Send(nil, nil, reliable.Reliable); err == nil {
			t.Error("the user is still here")
		}
		close(gate)
		synctest.Wait()
		if n.CCU() != 0 {
			t.Errorf("%d users are left", n.CCU())
		}
	})
}
