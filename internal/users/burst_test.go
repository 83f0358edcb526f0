package users

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/users/exchange"
)

// goroutines counts those that do runs, or starts, before anything of them has ended.
func goroutines(do func()) int {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // whatever do starts waits until it is done
	before := runtime.NumGoroutine()
	do()
	return runtime.NumGoroutine() - before
}

func TestManySIDsOfOneUserAreOneTask(t *testing.T) {
	const sids = 5000
	many := Config{ReservationsPerUser: sids, ReservationsMax: 2 * sids}
	t.Run("login", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, stop := start(t, newNetwork(), many, "127.0.0.1:1")
			defer stop()
			n := nodes[0]
			for range sids - 1 {
				n.ask(t, "u")
			}
			if got := goroutines(func() { n.login(t, "u") }); got > endersMax+hookersMax {
				t.Errorf("a login started %d goroutines", got)
			}
			synctest.Wait()
			if n.Reserved() != 0 || n.CCU() != 1 || n.cancelled(cancelReplaced) != sids-1 {
				t.Errorf("%d places and %d players are left, %d cancelled", n.Reserved(), n.CCU(), n.cancelled(cancelReplaced))
			}
			n.check(t)
		})
	})
	t.Run("login elsewhere", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, stop := start(t, newNetwork(), many, "127.0.0.1:1")
			defer stop()
			n := nodes[0]
			var msg notices
			for i := range exchange.FactsMax {
				uid := id.UID(fmt.Sprint("u", i))
				for range 10 {
					n.ask(t, uid)
				}
				msg.facts = append(msg.facts, exchange.Fact{UID: uid, Order: order{Issued: time.Now().Add(time.Hour).UnixMicro()}})
			}
			got := goroutines(func() {
				if _, err := n.handleNotices(t.Context(), peer("x"), msg.marshal(told)); err != nil {
					t.Fatal(err)
				}
			})
			if got > endersMax+hookersMax {
				t.Errorf("a message of another node started %d goroutines", got)
			}
			synctest.Wait()
			if n.Reserved() != 0 {
				t.Errorf("%d places are left", n.Reserved())
			}
		})
	})
	t.Run("a burst of opens", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, stop := start(t, newNetwork(), many, "127.0.0.1:1")
			defer stop()
			n := nodes[0]
			if got := goroutines(func() {
				for range 500 {
					n.login(t, "u")
				}
			}); got > endersMax+hookersMax {
				t.Errorf("500 logins started %d goroutines", got)
			}
			synctest.Wait()
			if n.CCU() != 1 || len(n.endCodes()) != 499 {
				t.Errorf("%d players, %d ended", n.CCU(), len(n.endCodes()))
			}
		})
	})
	t.Run("who is ended again and again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
			defer stop()
			u, _ := nodes[0].login(t, "u")
			if got := goroutines(func() {
				for range 500 {
					u.Disconnect(0, "")
				}
			}); got > endersMax+hookersMax {
				t.Errorf("ending one user started %d goroutines", got)
			}
		})
	})
}

// Taking one of many sids of a user id out of the table costs nothing that grows
// with them.
func TestTableRemovalDoesNotCopy(t *testing.T) {
	var users table
	users.init()
	all := make([]*User, 0, 10_000)
	for i := range cap(all) {
		u := &User{ID: "u", SID: id.SID{byte(i), byte(i >> 8)}}
		if !users.add(u) {
			t.Fatal("not added")
		}
		all = append(all, u)
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	i := 0
	if allocs := testing.AllocsPerRun(5000, func() { users.remove(all[i]); i++ }); allocs > 0 {
		t.Errorf("a removal allocates %v times", allocs)
	}
	if left := users.byUID(nil, "u"); len(left) != len(all)-i {
		t.Errorf("%d are left, want %d", len(left), len(all)-i)
	}
	for ; i < len(all); i++ {
		users.remove(all[i])
	}
	if n := &users.uids[users.uidShard("u")]; len(n.m) != 0 {
		t.Error("an empty chain is kept")
	}
}
