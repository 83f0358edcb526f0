//go:build unix

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// row is one attack: somebody who plays by the protocol, within what a client is
// allowed, and honest players who are to notice nothing. docs/abuse.md says how to add one.
type row struct {
	name     string
	role     string         // of the nodes attacked; empty is udp
	nodes    int            // 0 is 1
	env      []string       // small limits make an attack cheap
	shortEnv []string       // in the short form only
	fds      map[string]int // descriptors by role, where they are to run out
	crew     crewOptions    // players 0 is 8
	attack   func(*arena)
	// stallMax is how late a message between honest players may be at most, in the full
	// form. 0 is unlimited.
	stallMax time.Duration
	// shortage says that nobody can enter while the attack lasts; who is there stays, and
	// afterwards all can enter.
	shortage bool
	// fullOnly leaves the row out of the short form: it shows nothing in small numbers.
	fullOnly bool
}

// arena is where a row is played.
type arena struct {
	t      *testing.T
	c      *cluster
	nodes  []*node
	full   bool
	crew   *crew
	prober *prober
	http   *http.Client
	ctx    context.Context // ends when the row has taken far too long
	early  float64         // answers 503 before the attack, while nodes were starting

	mu     sync.Mutex // guards the fields below
	faults []string
}

// fault notes what should not have happened.
func (a *arena) fault(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults = append(a.faults, fmt.Sprintf(format, args...))
}

// n is a number of the short or of the full form.
func (a *arena) n(short, full int) int {
	if a.full {
		return full
	}
	return short
}

func (a *arena) node() *node { return a.nodes[0] }

// typ is the type of the nodes attacked.
func (a *arena) typ() string { return strings.ToUpper(a.node().name) }

// place asks for a place for a user.
func (a *arena) place(uid string) (client.Endpoint, error) {
	return a.placeIn(a.ctx, client.EndpointRequest{UID: uid, Type: a.typ()})
}

// placeIn asks as long as the answer is to come again, as protocol.md has it: one
// reservation that took too long on a busy machine keeps nobody out.
func (a *arena) placeIn(ctx context.Context, q client.EndpointRequest) (client.Endpoint, error) {
	q.URL, q.HTTP = a.c.url(), a.http
	for {
		place, err := client.RequestEndpoint(ctx, q)
		e, ok := errors.AsType[*client.EndpointError](err)
		if !ok || e.HTTPStatus != http.StatusServiceUnavailable {
			return place, err
		}
		if wait(ctx, max(e.RetryAfter, 100*time.Millisecond)); ctx.Err() != nil {
			return place, err // why it never came, not that time was up
		}
	}
}

// connect enters.
func (a *arena) connect(ctx context.Context, o client.Options) (*client.Client, error) {
	o.URL, o.HTTP = a.c.url(), a.http
	e, err := a.placeIn(ctx, client.EndpointRequest{UID: o.UID, Type: o.Type})
	if err != nil {
		return nil, err
	}
	return client.Dial(ctx, e, o)
}

// placeOn asks for a place on one node.
func (a *arena) placeOn(n *node, typ, uid string) (e client.Endpoint, err error) {
	code, body := get(a.t, a.c.url()+"/debug/endpoint/type/"+typ+"/user/"+uid+"/address/"+n.Public)
	if code != http.StatusOK {
		return e, fmt.Errorf("a place on %s: %d %s", n.Public, code, body)
	}
	return e, json.Unmarshal([]byte(body), &e)
}

// attacker enters as a user; its link is dropped when the test ends.
func (a *arena) attacker(uid string) (*link, error) {
	e, err := a.place(uid)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(a.ctx, entryPatience)
	defer cancel()
	l, err := dialLink(ctx, e, a.typ() == "TCP")
	if err != nil {
		return nil, err
	}
	a.t.Cleanup(l.drop)
	return l, nil
}

// mustAttack is attacker for those who have to get in: they do nothing wrong yet.
func (a *arena) mustAttack(uid string) *link {
	a.t.Helper()
	l, err := a.attacker(uid)
	if err != nil {
		a.t.Fatalf("the attacker %s can't enter: %v", uid, err)
	}
	return l
}

// metric returns a metric of the node attacked.
func (a *arena) metric(name string) float64 {
	_, body := a.node().admin("/metrics")
	return metric(body, name)
}

// last lets an attack last.
func (a *arena) last(d time.Duration) { wait(a.ctx, d) }

// wait waits for d or for the end of ctx.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// outcome is a line of the table.
type outcome struct {
	row     string
	crew    crewReport
	entries int
	failed  int
	p99     time.Duration // of entries while it was attacked
	late    time.Duration // p99 of the test's own timers meanwhile
	worst   *watch
	back    time.Duration
	faults  int
}

// TestAbuse has honest players play while each row's attacker does its worst. By default
// the rows run in small numbers, some at a time, and times are only told; `make abuse`
// runs all of them at full size, one by one.
func TestAbuse(t *testing.T) {
	full := os.Getenv("DIARKIS_ABUSE") == "1"
	var mu sync.Mutex
	table := make([]*outcome, len(abuseRows))
	slots := make(chan struct{}, 4)
	t.Run("rows", func(t *testing.T) {
		for i, r := range abuseRows {
			if r.fullOnly && !full {
				continue
			}
			t.Run(r.name, func(t *testing.T) {
				if !full {
					t.Parallel()
					slots <- struct{}{}
					defer func() { <-slots }()
				}
				o := r.play(t, full)
				mu.Lock()
				table[i] = &o
				mu.Unlock()
			})
		}
	})
	t.Log("\n" + tableOf(table))
}

// play plays a row and says what came of it.
func (r row) play(t *testing.T, full bool) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy, transport.DisableKeepAlives = nil, true // a new player has no connection yet
	a := &arena{t: t, full: full, ctx: ctx, http: &http.Client{Transport: transport, Timeout: entryPatience}}
	r.stage(a)

	watches := []*watch{startWatch(t, a.c.http)}
	for _, n := range a.nodes {
		watches = append(watches, startWatch(t, n))
	}
	late := startLateness(t)
	if !r.shortage {
		a.prober = startProber(a, a.typ())
	}
	a.last(time.Second) // all is to be well before the attack
	r.attack(a)
	if r.shortage {
		a.last(2 * time.Second) // a second until the node tries again, and what waits in the system's queue
		a.prober = startProber(a, a.typ())
	}
	a.last(time.Duration(a.n(1, 3)) * time.Second)
	over := time.Now()

	o := outcome{row: r.name, worst: watches[0], late: late.finish()}
	for _, w := range watches {
		took, still := w.back()
		o.back = max(o.back, took)
		if still != "" {
			a.fault("%s: not back after %.0f s: %s", w.node.name, took.Seconds(), still)
		}
		if w.peak.rss-w.before.rss > o.worst.peak.rss-o.worst.before.rss {
			o.worst = w
		}
	}
	a.prober.finish()
	o.crew = a.crew.finish()
	o.entries, o.failed = len(a.prober.entered), a.prober.failed
	o.p99, _ = quantiles(a.prober.begunBefore(over))
	for _, w := range watches {
		w.finish()
	}
	r.judge(a, o, watches)
	o.faults = len(a.faults)
	if o.faults > 0 {
		t.Errorf("attack %q: %s", r.name, strings.Join(a.faults, "\n  "))
	}
	t.Log("\n" + tableOf([]*outcome{&o}))
	return o
}

// stage starts the cluster and has the honest players play.
func (r row) stage(a *arena) {
	role, env := cmp.Or(r.role, "udp"), r.env
	if !a.full {
		env = append(slices.Clone(env), r.shortEnv...)
	}
	a.c = (&cluster{t: a.t, marsPort: freePort(a.t), env: env, files: r.fds}).begin()
	for range cmp.Or(r.nodes, 1) {
		a.nodes = append(a.nodes, a.c.start(role))
	}
	for _, n := range a.nodes {
		n.waitReady()
	}
	eventually(a.t, "the http node knows all nodes", func() bool { return a.c.members() == 2+len(a.nodes) })
	a.c.waitHandsOut(a.typ())
	o := r.crew
	o.typ, o.players = a.typ(), cmp.Or(o.players, 8)
	a.crew = startCrew(a, o)
	a.early = a.answers503()
}

// judge holds what the honest got, and what an operator read, to what is promised.
func (r row) judge(a *arena, o outcome, watches []*watch) {
	w := o.crew
	if w.closed > 0 || w.reconnects > 0 {
		a.fault("%d of %d honest players closed (%s), %d reconnects", w.closed, w.players, strings.Join(w.why[:min(3, len(w.why))], ", "), w.reconnects)
	}
	if w.lost+w.duplicated+w.reordered > 0 {
		a.fault("of %d deliveries to honest players %d lost, %d duplicated, %d reordered", w.delivered, w.lost, w.duplicated, w.reordered)
	}
	if w.refused != "" {
		a.fault("an honest player was refused: %s", w.refused)
	}
	if w.delivered == 0 {
		a.fault("nothing was delivered")
	}
	if o.failed > 0 || o.entries == 0 {
		a.fault("%d of %d entries failed: %v", o.failed, o.entries+o.failed, a.prober.first)
	}
	// In the short form rows share the machine: only an entry that hung is a fault.
	most := 3 * time.Second
	if a.full {
		most = time.Second
	}
	if o.p99 > most {
		a.fault("entry p99 %v; a timer of the test's own was %v late", o.p99.Round(time.Millisecond), o.late.Round(time.Millisecond))
	}
	if a.full && r.stallMax > 0 && w.slowest > r.stallMax {
		a.fault("a message between honest players took %v", w.slowest.Round(time.Millisecond))
	}
	r.judgeNodes(a, watches)
	r.judgeHTTP(a, o.entries)
}

// judgeNodes holds what an operator reads to what is promised: nothing that a client or
// a stranger sends is an alert, or a line of the log each.
func (r row) judgeNodes(a *arena, watches []*watch) {
	for _, w := range watches {
		if !w.node.running() {
			a.fault("%s ended: %v", w.node.name, w.node.cmd.ProcessState)
			continue
		}
		if lines := w.loud(); len(lines) > linesMax {
			a.fault("%s logged %d lines at warn and above, first %s", w.node.name, len(lines), lines[0])
		}
	}
	for _, name := range []string{
		"diarkis_users_handler_panics_total", "diarkis_router_handler_panics_total",
		`diarkis_transport_connections_closed_total{code="internal",protocol="` + a.typ() + `"}`,
	} {
		if n := a.metric(name); n > 0 {
			a.fault("%s is %.0f", name, n)
		}
	}
}

// judgeHTTP counts the answers that ring the alert "players cannot get in".
func (r row) judgeHTTP(a *arena, entries int) {
	most := 0
	if !a.full {
		most = 5 + entries/20 // reservations that took too long where rows share the machine
	}
	if n := a.answers503() - a.early; n > float64(most) {
		a.fault("%.0f answers 503: an alert of the operator's", n)
	}
}

// answers503 is how often the http node said that no node takes a user.
func (a *arena) answers503() (n float64) {
	_, body := a.c.http.admin("/metrics")
	for _, route := range []string{"endpoint", "debug_endpoint"} {
		n += metric(body, `diarkis_http_responses_total{code="503",route="`+route+`"}`)
	}
	return n
}

// tableOf lays the outcomes out for people.
func tableOf(all []*outcome) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-28s %7s %6s %6s %8s %7s %6s %9s %9s %8s %22s %10s %7s %s\n",
		"row", "honest", "closed", "lost", "p99 msg", "entries", "failed", "p99 entry", "max msg", "machine", "RSS MB before/peak/after", "goroutines", "back", "faults")
	for _, o := range all {
		if o == nil {
			continue // it was not played
		}
		ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
		mb := func(v float64) string { return fmt.Sprintf("%.0f", v/(1<<20)) }
		fmt.Fprintf(&b, "%-28s %7d %6d %6d %8s %7d %6d %9s %9s %8s %22s %10.0f %7s %d\n",
			o.row, o.crew.players, o.crew.closed, o.crew.lost+o.crew.duplicated+o.crew.reordered, ms(o.crew.p99), o.entries, o.failed, ms(o.p99), ms(o.crew.slowest), ms(o.late),
			mb(o.worst.before.rss)+"/"+mb(o.worst.peak.rss)+"/"+mb(o.worst.after.rss), o.worst.peak.goroutines, fmt.Sprintf("%.0f s", o.back.Seconds()), o.faults)
	}
	return b.String()
}
