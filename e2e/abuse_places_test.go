//go:build unix

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// What strangers ask the HTTP role for.

// asker sends requests at a rate, some at a time, from sockets of its own.
type asker struct {
	a      *arena
	client *http.Client
	mu     sync.Mutex
	status map[int]int
}

func newAsker(a *arena, atOnce int) *asker {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.MaxIdleConnsPerHost, t.MaxConnsPerHost = nil, atOnce, atOnce
	a.t.Cleanup(t.CloseIdleConnections)
	return &asker{a: a, client: &http.Client{Transport: t, Timeout: entryPatience}, status: make(map[int]int)}
}

// ask sends count requests, perSecond of them a second (0: as fast as they are
// answered) and at most atOnce at a time.
func (q *asker) ask(count, perSecond, atOnce int, send func(i int) int) {
	var next atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range atOnce {
		wg.Go(func() {
			for q.a.ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= count {
					return
				}
				if perSecond > 0 {
					q.a.last(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(perSecond))))
				}
				code := send(i)
				q.mu.Lock()
				q.status[code]++
				q.mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func (q *asker) get(uid string) int {
	return statusOf(q.a.ctx, q.client, http.MethodGet, q.a.c.url()+"/endpoint/type/"+q.a.typ()+"/user/"+uid, "", "")
}

func (q *asker) post(uid, body string) int {
	return statusOf(q.a.ctx, q.client, http.MethodPost, q.a.c.url()+"/endpoint/type/"+q.a.typ()+"/user/"+uid, "application/json", body)
}

// postBadBodies posts what no node takes: it is the caller's fault, and nobody else's.
func postBadBodies(a *arena) {
	q := newAsker(a, 8)
	long := `{"a":[1` + strings.Repeat(",1", 19_999) + `]}`
	deep := strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20)
	for name, body := range map[string]string{"a list of 20,000 ones": long, "20 levels": deep} {
		clear(q.status)
		q.ask(a.n(20, 500), 0, 8, func(i int) int { return q.post(fmt.Sprintf("bad-%d", i), body) })
		for code, n := range q.status {
			if code != http.StatusRequestEntityTooLarge && code != http.StatusBadRequest {
				a.fault("%s (%d bytes): %d answers %d, want 413 or 400", name, len(body), n, code)
			}
		}
		// A game that sends such a thing has to learn that it need not try again.
		var properties map[string]any
		if err := json.Unmarshal([]byte(body), &properties); err != nil {
			a.t.Fatal(err)
		}
		_, err := client.RequestEndpoint(a.ctx, client.EndpointRequest{URL: a.c.url(), UID: "bad", HTTP: a.http, Properties: properties})
		if e, ok := errors.AsType[*client.EndpointError](err); !ok || !e.Permanent() {
			a.fault("%s: the client library would try again after: %v", name, err)
		}
	}
}

// takePlaces asks for places for ever new users, and opens none.
func takePlaces(a *arena) {
	q := newAsker(a, 16)
	count, rate := a.n(5_500, 100_000), a.n(600, 0)
	q.ask(count, rate, 16, func(i int) int { return q.get(fmt.Sprintf("nobody-%d", i)) })
	reserved := a.metric("diarkis_users_reserved")
	a.t.Logf("%d users asked for: %v; %.0f places reserved", count, q.status, reserved)
}

// takePlacesOfTwo asks for the same user until small nodes are full, and then an honest
// player moves from one to the other.
func takePlacesOfTwo(a *arena) {
	here, err := a.enterOn(a.nodes[0], "mover")
	if err != nil {
		a.t.Fatal(err)
	}
	there, err := a.enterOn(a.nodes[1], "host")
	if err != nil {
		a.t.Fatal(err)
	}
	r, err := there.CreateRoom(a.ctx, client.RoomOptions{MembersMax: 4})
	if err != nil {
		a.t.Fatal(err)
	}
	q := newAsker(a, 8)
	for round := range a.n(3, 20) {
		q.ask(120, 0, 8, func(int) int { return q.get("greedy") })
		if round > 0 {
			a.last(200 * time.Millisecond)
		}
	}
	_, reserved := a.nodes[1].admin("/metrics")
	a.t.Logf("one user asked for: %v; %.0f and %.0f places reserved", q.status, a.metric("diarkis_users_reserved"), metric(reserved, "diarkis_users_reserved"))
	ctx, cancel := context.WithTimeout(a.ctx, entryPatience)
	defer cancel()
	if _, err := here.JoinRoom(ctx, r.ID, nil); err != nil {
		a.fault("a player can't be moved to the other node: %v", err)
	}
	if q.status[http.StatusServiceUnavailable] > 0 {
		a.fault("%d answers 503", q.status[http.StatusServiceUnavailable])
	}
}

// enterOn enters one node.
func (a *arena) enterOn(n *node, uid string) (*client.Client, error) {
	e, err := a.placeOn(n, a.typ(), uid)
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(a.ctx, e, client.Options{URL: a.c.url(), UID: uid, Type: a.typ(), HTTP: a.http})
	if err == nil {
		a.t.Cleanup(func() { _ = c.Close(a.ctx) })
	}
	return c, err
}

// postHeavyBodies posts properties that take a node 70 times their size, for users who
// never come.
func postHeavyBodies(a *arena) {
	q := newAsker(a, 8)
	const item, size = `{"":{}}`, 63 << 10
	body := []byte(`{"a":[` + item)
	for len(body)+len(item)+3 < size {
		body = append(append(body, ','), item...)
	}
	body = append(body, "]}"...)
	count := a.n(80, 1434)
	text := string(body)
	q.ask(count, 0, 8, func(i int) int { return q.post(fmt.Sprintf("heavy-%d", i), text) })
	f, _ := a.node().footprint()
	a.t.Logf("%d posts of %d bytes: %v; the node takes %.0f MB", count, len(body), q.status, f.rss/(1<<20))
	if most := float64(count*size) + rssKept; f.rss > most {
		a.fault("%d posts of %d kB take %.0f MB of the node", count, size>>10, f.rss/(1<<20))
	}
}

// postBulkyBodies posts properties that are in order, for users who never come, until
// together they are several times what a node is told to hold of such.
func postBulkyBodies(a *arena) {
	q := newAsker(a, 8)
	body := `{"a":"` + strings.Repeat("x", 60<<10) + `"}`
	count := a.n(800, 3000)
	before, _ := a.node().collected()
	q.ask(count, 0, 8, func(i int) int { return q.post(fmt.Sprintf("bulky-%d", i), body) })
	f, _ := a.node().collected()
	held := f.heap - before.heap
	a.t.Logf("%d posts of %d bytes: %v; the node holds %.0f MB more", count, len(body), q.status, held/(1<<20))
	if held > 24<<20 { // 8 MB of properties, places, and what is under way
		a.fault("the node holds %.0f MB for %d posts nobody opens", held/(1<<20), count)
	}
}

// replaceMany asks for many places of one user, and then enters with the last.
func replaceMany(a *arena) {
	q := newAsker(a, 16)
	count := a.n(10_000, 90_000)
	q.ask(count, a.n(2_500, 0), 16, func(int) int { return q.get("hydra") })
	reserved := a.metric("diarkis_users_reserved")
	e, err := a.place("hydra")
	if err != nil {
		a.t.Fatalf("the login: %v", err)
	}
	began := time.Now()
	c, err := client.Dial(a.ctx, e, client.Options{UID: "hydra"})
	if err != nil {
		a.t.Fatalf("the login: %v", err)
	}
	a.t.Cleanup(func() { _ = c.Close(a.ctx) })
	left := reserved
	for left > 100 && time.Since(began) < patience {
		a.last(20 * time.Millisecond)
		left = a.metric("diarkis_users_reserved")
	}
	a.t.Logf("%d places asked for: %v; %.0f reserved when it entered, %.0f after %v", count, q.status, reserved, left, time.Since(began).Round(time.Millisecond))
	if reserved > 100 {
		a.fault("one user holds %.0f places", reserved)
	}
}
