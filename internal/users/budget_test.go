package users

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func spender(b Budget) (*User, *budgets) {
	r := &Registry{budgets: newBudgets(b, prometheus.NewRegistry())}
	return &User{registry: r}, &r.budgets
}

// count is how many of n times f says yes.
func count(n int, f func() bool) (yes int) {
	for range n {
		if f() {
			yes++
		}
	}
	return yes
}

func TestBudgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, s := spender(Budget{CommandsPerSec: 100, CommandsBurst: 300, CreatesPerSec: 1, CreatesBurst: 3})
		commands := func() bool { return u.Charge(nil, false) }
		expect := func(what string, got, want int) {
			t.Helper()
			if got != want {
				t.Errorf("%s: %d, want %d", what, got, want)
			}
		}
		expect("commands at once", count(1000, commands), 300)
		expect("exempt ones over the budget", count(1000, func() bool { return u.Charge(nil, true) }), exemptBurst)
		expect("creates at once", count(1000, func() bool { return u.ChargeCreate(nil) }), 3)
		expect("refusals told at once", count(1000, func() bool { return u.MayRefuse(nil) }), refusalsBurst)
		<-time.After(2 * time.Second)
		expect("commands 2 s later", count(1000, commands), 200)
		expect("creates 2 s later", count(1000, func() bool { return u.ChargeCreate(nil) }), 2)
		for name, want := range map[prometheus.Counter]float64{
			s.overCommands: 700 + 990 + 800, s.overCreates: 997 + 998, s.untold: 900, s.overDeliveries: 0,
		} {
			if got := testutil.ToFloat64(name); got != want {
				t.Errorf("%v counted, want %v", got, want)
			}
		}
	})
}

// A message goes while anything is left, whatever the number of its receivers, and what
// it overdraws is paid back.
func TestDeliveriesMayOverdraw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, _ := spender(Budget{DeliveriesPerSec: 1000, DeliveriesBurst: 2000})
		send := func() bool {
			if !u.MayDeliver(nil) {
				return false
			}
			u.Delivered(time.Now(), 1500)
			return true
		}
		if n := count(10, send); n != 2 {
			t.Errorf("%d messages to 1,500 at once, want 2", n)
		}
		<-time.After(time.Second)
		if send() {
			t.Error("sent while 0 were left")
		}
		<-time.After(time.Millisecond)
		if !send() {
			t.Error("not sent while one was left")
		}
	})
}

func TestNoLimit(t *testing.T) {
	u, _ := spender(Budget{CommandsPerSec: -1, DeliveriesPerSec: -1, CreatesPerSec: -1})
	u.Delivered(time.Now(), 1_000_000)
	if n := count(100_000, func() bool { return u.Charge(nil, false) && u.MayDeliver(nil) && u.ChargeCreate(nil) }); n != 100_000 {
		t.Errorf("%d of 100,000", n)
	}
}

// A read loop and an executor may charge a user at the same time.
func TestBudgetIsExactAmongGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u, _ := spender(Budget{CommandsPerSec: 1, CommandsBurst: 5000})
		var wg sync.WaitGroup
		var yes atomic.Int64
		for range 8 {
			wg.Go(func() { yes.Add(int64(count(1000, func() bool { return u.Charge(nil, false) }))) })
		}
		wg.Wait()
		if yes.Load() != 5000 {
			t.Errorf("%d charged, want 5000", yes.Load())
		}
	})
}
