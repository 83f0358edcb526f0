package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// chaos is one run: a cluster on a lan, players on it, and what came of the faults.
type chaos struct {
	*islands
	seed    uint64
	size    chaosSize
	ctx     context.Context // ends when the players are to stop
	cancel  context.CancelFunc
	start   time.Time
	slots   map[string]*slot
	crowds  []*host
	started map[string]footprint // of the first node of a role, before anybody played
	left    []*node              // were told to go, and had a successor
	bots    []*bot
	running sync.WaitGroup // drivers of devices
	stayed  stays

	mu       sync.Mutex // guards the fields below
	events   []string
	problems []string
	faults   []*befallen
	gaps     []gap
	stalls   []stall
	open     []net.Conn // of devices that are gone: closing them would tell the node
}

// slot is a place in the cluster, where one process runs at a time.
type slot struct {
	name, role string
	host       *host
	node       *node
	ports      int    // added to the usual ones: a fresh node has others
	clock      string // the file its clock is set by
}

// befallen is a fault that was done.
type befallen struct {
	fault
	alone    bool      // no other node had one in that round
	from, to time.Time // to is zero while it lasts
	publics  []string  // where the players are that it befalls
	touched  []*bot
}

// newChaos starts the cluster.
func newChaos(t *testing.T, seed uint64, size chaosSize) *chaos {
	w := &chaos{
		islands: &islands{cluster: &cluster{t: t}, lan: newLAN(), home: make(map[*node]*host), binary: size.binary(t)},
		seed:    seed, size: size, start: time.Now(), slots: make(map[string]*slot), started: make(map[string]footprint),
	}
	for range size.crowds {
		w.crowds = append(w.crowds, w.lan.host(t))
	}
	w.place = &w.crowds[0].place
	marsHost := w.lan.host(t)
	w.env = append([]string{
		"DIARKIS_MESH_MARS_ADDRESS=" + marsHost.addr.String(),
		// A crowd is a few dozen players behind one address, who all come back at once.
		"DIARKIS_HTTP_REQUESTS_PER_ADDRESS=0", "DIARKIS_UDP_HELLO_PER_ADDRESS=0", "DIARKIS_TCP_HELLO_PER_ADDRESS=0",
		"DIARKIS_UDP_RESERVATION_TTL=10", "DIARKIS_TCP_RESERVATION_TTL=10",
	}, size.env...)
	for _, name := range append(slices.Clone(otherSlots), gameSlots...) {
		role, _, _ := strings.Cut(name, "-")
		s := &slot{name: name, role: role, host: marsHost}
		if role != "mars" {
			s.host = w.lan.host(t)
		}
		if size.clocks {
			s.clock = filepath.Join(t.TempDir(), "clock")
			w.setClock(s, 0)
		}
		w.slots[name] = s
		w.launch(s)
	}
	w.mars, w.http = w.slots["mars"].node, w.slots["http-1"].node
	for _, n := range w.alive() {
		n.waitReady()
	}
	within(t, 2*patience, "one directory everywhere", func() bool { return len(w.disagreement()) == 0 })
	for _, n := range w.alive() {
		if f, ok := n.collected(); ok && w.started[n.name] == (footprint{}) {
			w.started[n.name] = f
		}
	}
	return w
}

// launch starts a process in a slot.
func (w *chaos) launch(s *slot) {
	w.t.Helper()
	env := []string{
		"DIARKIS_MESH_PORT=" + strconv.Itoa(8000+s.ports), "DIARKIS_HTTP_PORT=" + strconv.Itoa(7000+s.ports),
		"DIARKIS_UDP_PORT=" + strconv.Itoa(7100+s.ports), "DIARKIS_TCP_PORT=" + strconv.Itoa(7200+s.ports),
	}
	var seeds []string
	for _, n := range w.alive() {
		if n.name != "mars" {
			seeds = append(seeds, n.Mesh)
		}
	}
	if len(seeds) > 0 && s.role != "mars" {
		env = append(env, "DIARKIS_MESH_SEEDS="+strings.Join(seeds, ","))
	}
	if s.clock != "" {
		env = append(env, clockEnv+"="+s.clock)
	}
	s.node = w.settle(s.role, s.host, env...)
	s.node.quiet = true
	if s.role == "mars" {
		w.mars = s.node
	}
	if s.name == "http-1" {
		w.http = s.node
	}
}

// fresh has the slot's next process listen elsewhere.
func (s *slot) fresh() {
	if s.role != "mars" {
		s.ports++
	}
}

// setClock sets the clock of a slot wrong.
func (w *chaos) setClock(s *slot, wrong time.Duration) {
	tmp := s.clock + ".new"
	err := os.WriteFile(tmp, []byte(strconv.FormatInt(int64(wrong/time.Second), 10)+"\n"), 0o600)
	if err = errors.Join(err, os.Rename(tmp, s.clock)); err != nil {
		w.t.Fatalf("set the clock of %s: %v", s.name, err)
	}
}

// keep keeps a socket open until the players stop.
func (w *chaos) keep(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = append(w.open, c)
}

// stop ends the play: all players leave.
func (w *chaos) stop() {
	w.cancel()
	w.running.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.open {
		_ = c.Close()
	}
	w.open = nil
}

// games returns the nodes that players are on.
func (w *chaos) games() []*node {
	return slices.DeleteFunc(w.alive(), func(n *node) bool { return n.name != "udp" && n.name != "tcp" })
}

// everybody returns all hosts but one.
func (w *chaos) everybody(but *host) (all []*host) {
	w.lan.mu.RLock()
	defer w.lan.mu.RUnlock()
	for _, h := range w.lan.hosts {
		if h != but {
			all = append(all, h)
		}
	}
	return all
}

// event notes what happened, for whoever reads a seed that failed.
func (w *chaos) event(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf("%7.2f s  ", time.Since(w.start).Seconds())+fmt.Sprintf(format, args...))
}

// problem notes what should not have happened.
func (w *chaos) problem(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.event("PROBLEM: %s", text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, text)
}

// balancer is the load balancer in front of the http nodes: it asks one that answers.
type balancer struct {
	w    *chaos
	from *host

	mu   sync.Mutex
	down map[string]time.Time // until when a node is not asked
}

const (
	balancerPatience = 2 * time.Second // with a node
	balancerDown     = 2 * time.Second // after it did not answer
)

func (b *balancer) client() *http.Client { return &http.Client{Transport: b} }

// RoundTrip asks the nodes one after the other, in an order of chance.
func (b *balancer) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		_ = r.Body.Close()
	}
	var busy *http.Response // what a node said that had no place
	err := errors.New("no http node answers")
	for _, addr := range b.order() {
		res, problem := b.ask(r, addr, body)
		switch {
		case problem == nil && res.StatusCode != http.StatusServiceUnavailable:
			return res, nil
		case problem == nil:
			busy = res
		default:
			err = problem
			if r.Context().Err() == nil {
				b.mu.Lock()
				b.down[addr] = time.Now().Add(balancerDown)
				b.mu.Unlock()
			}
		}
	}
	if busy != nil {
		return busy, nil
	}
	return nil, err
}

// order is whom to ask, those last who did not answer lately.
func (b *balancer) order() (up []string) {
	var down []string
	for _, n := range b.w.alive() {
		if n.name != "http" {
			continue
		}
		b.mu.Lock()
		late := time.Now().Before(b.down[n.Public])
		b.mu.Unlock()
		if late {
			down = append(down, n.Public)
		} else {
			up = append(up, n.Public)
		}
	}
	rand.Shuffle(len(up), func(i, j int) { up[i], up[j] = up[j], up[i] })
	return append(up, down...)
}

// ask asks one node and reads the whole answer.
func (b *balancer) ask(r *http.Request, addr string, body []byte) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(r.Context(), balancerPatience)
	defer cancel()
	q := r.Clone(ctx)
	q.URL.Host, q.Host = addr, ""
	q.Body = io.NopCloser(bytes.NewReader(body))
	res, err := b.from.http.Transport.RoundTrip(q)
	if err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if err != nil {
		return nil, err
	}
	res.Body = io.NopCloser(bytes.NewReader(answer))
	return res, nil
}
