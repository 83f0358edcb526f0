//go:build unix

package e2e

import (
	"cmp"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// sample is what a node says of itself at one moment.
type sample struct{ rss, heap, goroutines float64 }

func (n *node) sample() sample {
	_, body := n.admin("/metrics")
	return sample{
		rss:        metric(body, "process_resident_memory_bytes"),
		heap:       metric(body, "go_memstats_heap_alloc_bytes"),
		goroutines: metric(body, "go_goroutines"),
	}
}

// metric returns the value of a metric, named with its labels if it has any, 0 when
// there is none.
func metric(body, name string) float64 {
	for l := range strings.SplitSeq(body, "\n") {
		if v, ok := strings.CutPrefix(l, name+" "); ok {
			f, _ := strconv.ParseFloat(v, 64)
			return f
		}
	}
	return 0
}

// TestSoak lets players play on a bad network and watches the node's memory. By
// default it is short; `make soak` plays for ten minutes with 2,000 bots.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(cmp.Or(os.Getenv("DIARKIS_SOAK"), "12s"))
	if err != nil {
		t.Fatalf("DIARKIS_SOAK: %v", err)
	}
	bots := cmp.Or(os.Getenv("DIARKIS_SOAK_BOTS"), "100")
	c := newCluster(t)
	n := c.start("udp").waitReady()
	c.waitHandsOut("UDP")

	var all []sample
	var sampling sync.WaitGroup
	over := make(chan struct{})
	sampling.Go(func() {
		tick := time.NewTicker(max(length/60, 200*time.Millisecond))
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
				all = append(all, n.sample())
			}
		}
	})
	s := c.botsFor(length+5*patience, "--count", bots, "--loss", "2", "--rate", "10", "--duration", length.String())
	close(over)
	sampling.Wait()
	t.Logf("%+v", s)
	if s.Connected != s.Bots || s.Delivered == 0 || s.Lost+s.Duplicated+s.Reordered+s.Errors != 0 {
		t.Errorf("%+v", s)
	}
	requireFlat(t, all)
}

// requireFlat compares the second quarter of a run, when all have joined, with the last.
func requireFlat(t *testing.T, all []sample) {
	t.Helper()
	if len(all) < 8 {
		t.Fatalf("%d samples are too few", len(all))
	}
	early, late := all[len(all)/4:len(all)/2], all[len(all)*3/4:]
	for _, q := range []struct {
		name string
		of   func(sample) float64
		more float64 // what may come with time: arenas of the allocator, connections being resumed
	}{
		{"resident bytes", func(s sample) float64 { return s.rss }, 16 << 20},
		{"heap bytes", func(s sample) float64 { return s.heap }, 16 << 20},
		{"goroutines", func(s sample) float64 { return s.goroutines }, 30},
	} {
		most := func(part []sample) float64 {
			return q.of(slices.MaxFunc(part, func(a, b sample) int { return cmp.Compare(q.of(a), q.of(b)) }))
		}
		t.Logf("%s: at most %.0f in the second quarter, %.0f in the last", q.name, most(early), most(late))
		if most(late) > most(early)*1.25+q.more {
			t.Errorf("%s grew", q.name)
		}
	}
}
