package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// regular is a player who asks the server something all the time and keeps when it was
// answered. It is served when an answer comes, whatever it says.
type regular struct {
	*player
	mu      sync.Mutex
	answers []time.Time
}

// askOn has count players enter a node and ask every interval until the function returned
// is called.
func (is *islands) askOn(n *node, count int, every time.Duration) ([]*regular, func()) {
	is.t.Helper()
	typ := strings.ToUpper(n.name)
	stop := make(chan struct{})
	var asking sync.WaitGroup
	var all []*regular
	for i := range count {
		a := &regular{player: is.connectTo(fmt.Sprintf("player-%v-%d", every, i), typ, n)}
		all = append(all, a)
		asking.Go(func() { a.ask(every, stop) })
	}
	for _, a := range all {
		eventually(is.t, "answers", func() bool { return a.answered() >= 3 })
	}
	return all, func() { close(stop); asking.Wait() }
}

func (a *regular) ask(every time.Duration, stop chan struct{}) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		// No such command, which is an answer too. While there is nobody to ask it is refused.
		_ = a.Go(2, 1, nil, func(_ client.Response, err error) {
			if _, refused := errors.AsType[*client.StatusError](err); err == nil || refused {
				a.mu.Lock()
				defer a.mu.Unlock()
				a.answers = append(a.answers, time.Now())
			}
		})
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

func (a *regular) answered() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.answers)
}

// outage is the longest time without an answer that ended after a moment; false as long
// as none came since.
func (a *regular) outage(since time.Time) (time.Duration, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	worst := time.Duration(0)
	for i := 1; i < len(a.answers); i++ {
		if a.answers[i].After(since) {
			worst = max(worst, a.answers[i].Sub(a.answers[i-1]))
		}
	}
	n := len(a.answers)
	return worst, n > 0 && a.answers[n-1].After(since.Add(time.Second)) && worst > time.Second
}

// wantBack waits until all are served again and holds their outages to what is promised.
func wantBack(t *testing.T, what string, all []*regular, since time.Time, promised time.Duration) {
	t.Helper()
	var outages []time.Duration
	for _, a := range all {
		var d time.Duration
		eventually(t, what+": a player served again", func() (back bool) {
			d, back = a.outage(since)
			return back
		})
		outages = append(outages, d)
	}
	slices.Sort(outages)
	at := func(percent int) time.Duration { return outages[(len(outages)-1)*percent/100] }
	t.Logf("%s: %d players out for %.2f s (median), %.2f s (p90), %.2f s (most)", what, len(outages), at(50).Seconds(), at(90).Seconds(), at(100).Seconds())
	wantSoon(t, what+", p99", outages[(len(outages)*99+99)/100-1], promised)
}

// TestNodeVanishes cuts a node's machine off, without a word of any router: its players
// find out by themselves, and play on elsewhere soon after the cluster knows.
func TestNodeVanishes(t *testing.T) {
	t.Parallel()
	if !privileged(t) {
		return
	}
	for role, other := range map[string]string{"udp": "tcp", "tcp": "udp"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			is, games := newIslands(t, role, role, other)
			often, stopOften := is.askOn(games[0], 20, 100*time.Millisecond)
			seldom, stopSeldom := is.askOn(games[0], 20, time.Second)
			began := time.Now()
			is.lan.part(is.hosts(games[0]), append(is.hosts(is.but(games[0])...), is.players()))
			wantBack(t, "who asks ten times a second", often, began, 10*time.Second)
			wantBack(t, "who asks once a second", seldom, began, 10*time.Second)
			stopOften()
			stopSeldom()
			for _, a := range append(often, seldom...) {
				if a.Addr() != games[1].Public {
					t.Errorf("a player plays on %s", a.Addr())
				}
			}
		})
	}
}

// TestNodeRestartsUnnoticed kills a node's process and starts it anew on the same port,
// while nothing tells its players that the port was closed for a moment.
func TestNodeRestartsUnnoticed(t *testing.T) {
	t.Parallel()
	if !privileged(t) {
		return
	}
	is, games := newIslands(t, "udp", "udp", "tcp")
	often, stopOften := is.askOn(games[0], 20, 100*time.Millisecond)
	seldom, stopSeldom := is.askOn(games[0], 20, time.Second)
	home := is.home[games[0]]
	is.lan.part([]*host{home}, []*host{is.players()})
	began := time.Now()
	games[0].kill()
	is.settle("udp", home)
	is.lan.heal()
	t.Logf("started anew after %.2f s", time.Since(began).Seconds())
	wantBack(t, "who asks ten times a second", often, began, 4*time.Second)
	wantBack(t, "who asks once a second", seldom, began, 6*time.Second)
	stopOften()
	stopSeldom()
}

// players is the host that the players are on.
func (is *islands) players() *host {
	for _, h := range is.lan.hosts {
		if &h.place == is.place {
			return h
		}
	}
	return nil
}
