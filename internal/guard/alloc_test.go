//go:build !race

package guard_test

import "testing"

func TestRecoverAllocatesNothing(t *testing.T) {
	f := newFixture()
	name := "careful"
	call := func(g func() error) (err error) {
		defer f.Recover(name, &err)
		return g()
	}
	nothing := func() error { return nil }
	if avg := testing.AllocsPerRun(1000, func() { _ = call(nothing) }); avg != 0 {
		t.Errorf("%v allocations a call", avg)
	}
}
