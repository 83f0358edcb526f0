package users

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/wire"
)

// A new sid of the same user id goes on with what the last had left, whether that is
// still there, gone, or lost its connection before.
func TestNewSidIsNoNewBudget(t *testing.T) {
	for name, leave := range map[string]func(n *node, u *User){
		"still open": func(*node, *User) {},
		"ended":      func(n *node, u *User) { n.places.End(u.SID, wire.CloseNormal, "") },
		"lost":       func(n *node, u *User) { n.UserLost(u) },
		"lost and ended": func(n *node, u *User) {
			n.UserLost(u)
			n.places.End(u.SID, wire.CloseNormal, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
				defer stop()
				n := nodes[0]
				u, link := n.login(t, "u")
				link.Spend(time.Second, 2*time.Second)
				spend := func(u *User) [3]int {
					got := [3]int{
						count(9999, func() bool { return u.Charge(nil, false) }),
						count(9999, func() bool {
							ok := u.MayDeliver(nil)
							if ok {
								u.Delivered(time.Now(), 1000)
							}
							return ok
						}),
						count(9999, func() bool { return u.ChargeCreate(nil) }),
					}
					synctest.Wait()
					return got
				}
				if got, want := spend(u), [3]int{2048, 50, 10}; got != want {
					t.Fatalf("a new user may do %v, want %v", got, want)
				}
				for range 3 {
					leave(n, u)
					v, link := n.login(t, "u")
					synctest.Wait()
					if got := spend(v); got != [3]int{} {
						t.Errorf("the next sid may do %v at once", got)
					}
					if packets, bytes := link.Spent(); packets != time.Second || bytes != 2*time.Second {
						t.Errorf("the next connection begins with %v of packets and %v of bytes spent", packets, bytes)
					}
					u = v
				}
				w, other := n.login(t, "w")
				if packets, bytes := other.Spent(); packets != 0 || bytes != 0 || spend(w)[0] != 2048 {
					t.Error("another user id pays for it")
				}
				pass(6 * time.Second)
				leave(n, u)
				u, _ = n.login(t, "u")
				if got, want := spend(u), [3]int{2048, 50, 10}; got != want {
					t.Errorf("six seconds later %v, want %v", got, want)
				}
			})
		})
	}
}

func TestSpentMemoryIsBounded(t *testing.T) {
	var m spentMemory
	m.init(100)
	for i := range 1000 {
		m.note(0, id.UID(fmt.Sprint("u", i)), spent{bytes: 10})
		m.note(0, "always", spent{bytes: int64(10 + i)})
	}
	if len(m.byUID) > 100 || len(m.order) != len(m.byUID) {
		t.Errorf("%d user ids are kept, in an order of %d", len(m.byUID), len(m.order))
	}
	if m.of("u999").bytes != 10 || m.of("u1").bytes != 0 {
		t.Error("others than the newest are kept")
	}
	m.note(5, "whole", spent{bytes: 5})
	if _, kept := m.byUID["whole"]; kept {
		t.Error("one who has spent nothing is kept")
	}
	for i := range 100 { // all before is whole again by now
		m.note(5000, id.UID(fmt.Sprint("v", i%3)), spent{bytes: 6000})
		m.note(5000, id.UID(fmt.Sprint("w", i)), spent{bytes: 5001})
	}
	m.note(6000, "x", spent{bytes: 6001})
	for range 200 {
		m.mu.Lock()
		m.makeRoomLocked(6000)
		m.mu.Unlock()
	}
	if len(m.byUID) > 1 || len(m.order) != len(m.byUID) {
		t.Errorf("%d user ids, order %d, are kept although all but one have everything again", len(m.byUID), len(m.order))
	}
}

// A user who comes from another node has spent most of everything.
func TestMovedUsersHaveNoBursts(t *testing.T) {
	u, _ := spender(Budget{})
	u.spendMoved()
	if got := count(1000, func() bool { return u.ChargeCreate(nil) }); got > 3 {
		t.Errorf("a move gives %d creates", got)
	}
	if got := count(3000, func() bool { return u.Charge(nil, false) }); got < 512 || got > 520 {
		t.Errorf("a move gives %d commands", got)
	}
}

// Long answers are paid for by who asks.
func TestLongAnswersAreCharged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, _ := spender(Budget{DeliveriesPerSec: 100, DeliveriesBurst: 100})
		if got := count(1000, func() bool { return u.ChargeAnswer(nil, 1100) }); got != 1000 {
			t.Errorf("%d of 1,000 answers of one datagram", got)
		}
		if got := count(1000, func() bool { return u.ChargeAnswer(nil, 11_000) }); got != 12 {
			t.Errorf("%d answers of ten datagrams, want 12", got)
		}
		if !u.ChargeAnswer(nil, 1) {
			t.Error("a short answer is refused")
		}
		if n := testing.AllocsPerRun(100, func() { u.ChargeAnswer(nil, 5000) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}
