package guard_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/guard"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

type fixture struct {
	*guard.Guard
	log    bytes.Buffer
	panics prometheus.Counter
}

func newFixture() *fixture {
	f := &fixture{panics: prometheus.NewCounter(prometheus.CounterOpts{Name: "panics"})}
	f.Guard = guard.New(zerolog.New(zerolog.SyncWriter(&f.log)), f.panics)
	return f
}

func (f *fixture) lines() int { return strings.Count(f.log.String(), "\n") }

// secret is a value that must not be written out, and that fails when asked to.
type secret struct{ Ticket string }

type broken struct{}

func (broken) Error() string { panic("no words") }

func TestPanicIsCountedNamedAndReturned(t *testing.T) {
	for _, c := range []struct {
		value any
		want  string
	}{
		{"oops", `"panic":"oops"`},
		{errors.New("disk on fire"), `"panic":"disk on fire"`},
		{secret{"hidden"}, `"panic":"a guard_test.secret"`},
		{broken{}, `"panic":"a guard_test.broken"`},
		{strings.Repeat("x", 1000), `"panic":"` + strings.Repeat("x", 256) + `"`},
		{nil, `"panic":"panic called with nil argument`}, // the runtime makes an error of it
	} {
		f := newFixture()
		if err := f.Do("careless", func() { panic(c.value) }); err != guard.ErrPanic {
			t.Errorf("%v: returned %v", c.value, err)
		}
		for _, want := range []string{c.want, `"handler":"careless"`, "guard_test.go"} {
			if !strings.Contains(f.log.String(), want) {
				t.Errorf("%T: log lacks %s: %s", c.value, want, f.log.String())
			}
		}
		if strings.Contains(f.log.String(), "hidden") {
			t.Error("a value's fields are in the log")
		}
		if n := testutil.ToFloat64(f.panics); n != 1 {
			t.Errorf("%v panics counted", n)
		}
	}
}

func TestWhatDoesNotPanicIsLeftAlone(t *testing.T) {
	f := newFixture()
	if err := f.Do("careful", func() {}); err != nil || f.lines() != 0 || testutil.ToFloat64(f.panics) != 0 {
		t.Errorf("error %v, %d lines", err, f.lines())
	}
	want := errors.New("its own")
	if err := func() (err error) { defer f.Recover("careful", &err); return want }(); err != want {
		t.Errorf("error %v", err)
	}
}

// A panic that a client causes at will is one line a minute with a count, and each
// name has its own.
func TestSamePanicManyTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				for range 100 {
					_ = f.Do("careless", func() { panic("oops") })
				}
			})
		}
		wg.Wait()
		if n := f.lines(); n != 1 {
			t.Errorf("%d lines of 1,000 panics", n)
		}
		_ = f.Do("other", func() { panic("oops") })
		if n := f.lines(); n != 2 {
			t.Errorf("%d lines with another name", n)
		}
		<-time.After(telemetry.LineEvery)
		_ = f.Do("careless", func() { panic("oops") })
		if n := f.lines(); n != 3 || !strings.Contains(f.log.String(), `"more":999`) {
			t.Errorf("%d lines, or no count: %s", n, f.log.String())
		}
		if n := testutil.ToFloat64(f.panics); n != 1002 {
			t.Errorf("%v panics counted", n)
		}
	})
}

// A lock that the caller holds over a guarded call is freed as usual.
func TestNestedPanicsKeepTheCallersDefers(t *testing.T) {
	f := newFixture()
	var mu sync.Mutex
	err := f.Do("outer", func() {
		mu.Lock()
		defer mu.Unlock()
		_ = f.Do("inner", func() { panic("oops") })
	})
	if err != nil || !mu.TryLock() {
		t.Errorf("error %v, or the lock is still held", err)
	}
}
