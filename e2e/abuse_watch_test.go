//go:build unix

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// proberEvery is how often a player who was never there enters.
const proberEvery = 100 * time.Millisecond

// entryPatience is how long one of them tries.
const entryPatience = 10 * time.Second

// prober has new players enter all the time: HTTP, handshake, a room of their own,
// leave, close. Each entry begins at its moment, however long those before it take.
type prober struct {
	stop    context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	entered []entry
	failed  int
	first   error // of the failures
}

// entry is one that came to its end.
type entry struct {
	began time.Time
	took  time.Duration // until in a room
}

// begunBefore returns how long the entries took that began before a time.
func (p *prober) begunBefore(t time.Time) (all []time.Duration) {
	for _, e := range p.entered {
		if e.began.Before(t) {
			all = append(all, e.took)
		}
	}
	return all
}

func startProber(a *arena, typ string) *prober {
	ctx, stop := context.WithCancel(context.Background())
	p := &prober{stop: stop}
	p.running.Go(func() {
		tick := time.NewTicker(proberEvery)
		defer tick.Stop()
		for i := 0; ; i++ {
			p.running.Go(func() { p.enter(a, typ, fmt.Sprintf("new-%d", i)) })
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	a.t.Cleanup(func() { p.finish() })
	return p
}

func (p *prober) enter(a *arena, typ, uid string) {
	ctx, cancel := context.WithTimeout(context.Background(), entryPatience)
	defer cancel()
	began := time.Now()
	took, err := func() (time.Duration, error) {
		c, err := a.connect(ctx, client.Options{UID: uid, Type: typ, NoReconnect: true})
		if err != nil {
			return 0, err
		}
		defer func() { _ = c.Close(ctx) }()
		r, err := c.CreateRoom(ctx, client.RoomOptions{MembersMax: 4})
		if err != nil {
			return 0, fmt.Errorf("create a room: %w", err)
		}
		took := time.Since(began)
		if err := c.LeaveRoom(ctx, r.ID, nil); err != nil {
			return 0, fmt.Errorf("leave the room: %w", err)
		}
		return took, nil
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed++
		if p.first == nil {
			p.first = err
		}
		return
	}
	p.entered = append(p.entered, entry{began, took})
}

// finish waits for the entries under way.
func (p *prober) finish() {
	p.stop()
	p.running.Wait()
}

// footprint is what a node takes of its machine.
type footprint struct{ rss, heap, goroutines, descriptors float64 }

// footprint asks the node, false when it does not answer.
func (n *node) footprint() (footprint, bool) {
	code, body := n.admin("/metrics")
	return footprint{
		rss: metric(body, "process_resident_memory_bytes"), heap: metric(body, "go_memstats_heap_alloc_bytes"),
		goroutines: metric(body, "go_goroutines"), descriptors: metric(body, "process_open_fds"),
	}, code == http.StatusOK
}

// collected is the footprint after a collection of garbage, which an idle node does by
// itself only every two minutes.
func (n *node) collected() (footprint, bool) {
	if code, _ := n.admin("/debug/pprof/heap?gc=1"); code != http.StatusOK {
		return footprint{}, false
	}
	return n.footprint()
}

// What a node may keep of an attack: arenas of the allocator, tables that have grown,
// connections kept alive. Each row's attack takes several times as much where it works.
const (
	heapKept        = 8 << 20
	rssKept         = 64 << 20
	goroutinesKept  = 50
	descriptorsKept = 40
)

// over says in what f is above what it was, "" when it is not.
func (f footprint) over(before footprint) string {
	var out []string
	for _, q := range []struct {
		name             string
		now, before, add float64
		unit             float64
	}{
		{"MB of heap", f.heap, before.heap, heapKept, 1 << 20},
		{"MB resident", f.rss, before.rss, rssKept, 1 << 20},
		{"goroutines", f.goroutines, before.goroutines, goroutinesKept, 1},
		{"descriptors", f.descriptors, before.descriptors, descriptorsKept, 1},
	} {
		if q.now > q.before*1.25+q.add {
			out = append(out, fmt.Sprintf("%.0f %s, %.0f before", q.now/q.unit, q.name, q.before/q.unit))
		}
	}
	return strings.Join(out, "; ")
}

// watch samples one node while a row runs.
type watch struct {
	node         *node
	lines        int // of its log when the attack began
	before, peak footprint
	after        footprint
	stop         context.CancelFunc
	running      sync.WaitGroup
}

func startWatch(t *testing.T, n *node) *watch {
	before, ok := n.collected()
	if !ok {
		t.Fatalf("%s does not say what it takes", n.name)
	}
	w := &watch{node: n, before: before, peak: before}
	n.mu.Lock()
	w.lines = len(n.lines)
	n.mu.Unlock()
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	w.running.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			f, _ := n.footprint()
			w.peak.rss, w.peak.heap = max(w.peak.rss, f.rss), max(w.peak.heap, f.heap)
			w.peak.goroutines, w.peak.descriptors = max(w.peak.goroutines, f.goroutines), max(w.peak.descriptors, f.descriptors)
		}
	})
	t.Cleanup(w.finish)
	return w
}

func (w *watch) finish() {
	w.stop()
	w.running.Wait()
}

// backMax is how long a node may take to be what it was.
const backMax = 2 * time.Minute

// back waits until a node takes what it took before, and returns how long that took and
// what is still too much when it never did.
func (w *watch) back() (time.Duration, string) {
	began := time.Now()
	for {
		after, ok := w.node.collected()
		over := "it does not say what it takes"
		if ok {
			w.after, over = after, after.over(w.before)
		}
		took := time.Since(began)
		if over == "" || took > backMax || !w.node.running() {
			return took, over
		}
		<-time.After(500 * time.Millisecond) // nothing tells of memory given back
	}
}

// linesMax is how many lines an attack may leave in a node's log at Warn and above: one
// an episode.
const linesMax = 10

// loud returns what the node logged at Warn and above since the watch began.
func (w *watch) loud() []string {
	w.node.mu.Lock()
	defer w.node.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.node.lines[min(w.lines, len(w.node.lines)):]), func(l string) bool {
		return !strings.Contains(l, `"level":"warn"`) && !strings.Contains(l, `"level":"error"`)
	})
}

// lateness is how late the test's own timers were: what the machine, and not a node, took.
type lateness struct {
	stop    context.CancelFunc
	running sync.WaitGroup
	all     []time.Duration
}

func startLateness(t *testing.T) *lateness {
	ctx, stop := context.WithCancel(context.Background())
	l := &lateness{stop: stop}
	l.running.Go(func() {
		const every = 10 * time.Millisecond
		for ctx.Err() == nil {
			began := time.Now()
			wait(ctx, every)
			l.all = append(l.all, time.Since(began)-every)
		}
	})
	t.Cleanup(func() { l.finish() })
	return l
}

// finish returns the p99.
func (l *lateness) finish() time.Duration {
	l.stop()
	l.running.Wait()
	p99, _ := quantiles(l.all)
	return p99
}

// statusOf sends a request and returns the status, 0 when nothing answered.
func statusOf(ctx context.Context, h *http.Client, method, url, contentType, body string) int {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := h.Do(req)
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}
