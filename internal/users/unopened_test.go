package users

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/Diarkis/diarkis/internal/id"
)

// ask reserves and wants a place.
func (n *node) ask(t *testing.T, uid id.UID) ReserveReply {
	t.Helper()
	reply, err := n.Reserve(ReserveRequest{UID: uid})
	if err != nil || reply.Refused != Accepted {
		t.Fatalf("reserve for %v = %v, %v", uid, reply.Refused, err)
	}
	return reply
}

func (n *node) cancelled(reason string) int {
	return int(testutil.ToFloat64(n.metrics.cancelled.WithLabelValues(reason)))
}

// check holds the lists of unopened places against the tables.
func (n *node) check(t *testing.T) {
	t.Helper()
	synctest.Wait()
	w := &n.unopened
	w.mu.Lock()
	defer w.mu.Unlock()
	count, bytes, perUser := 0, 0, 0
	for p := w.all.oldest; p != nil; p = p.links[ageOfAll].newer {
		count++
		bytes += p.bytes
		if n.BySID(p.user.SID) != p.user {
			t.Errorf("%v waits and is in no table", p.user)
		}
	}
	for _, l := range w.byUID {
		perUser += l.n
	}
	if count != w.all.n || bytes != w.bytes || perUser != count || count+n.CCU() != int(n.count.Load()) {
		t.Errorf("%d places on the list of %d, %d by user, %d players, %d in all; %d bytes of %d",
			count, w.all.n, perUser, n.CCU(), n.count.Load(), bytes, w.bytes)
	}
}

func TestOneUserCannotTakeTwoNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{UsersMax: 50}, "127.0.0.1:1", "127.0.0.1:2")
		defer stop()
		var last [2]ReserveReply
		for i := range 120 {
			last[i%2] = nodes[i%2].ask(t, "greedy")
		}
		for i, n := range nodes {
			if n.Reserved() != 3 || n.cancelled(cancelUser) != 57 {
				t.Errorf("node %d keeps %d places, cancelled %d", i, n.Reserved(), n.cancelled(cancelUser))
			}
			for j := range 40 {
				n.login(t, id.UID(fmt.Sprint("honest", i, "-", j)))
			}
			if n.BySID(last[i].SID) == nil {
				t.Error("the newest of the places is gone")
			}
			n.check(t)
		}
		if nodes[1].places.connect(last[1].SID, false) == nil {
			t.Error("and can't be opened")
		}
	})
}

// Strangers ask for a hundred thousand places. Whoever comes within what the share
// holds gets in, who plays goes on playing, and users of other nodes can be moved here.
func TestStrangersDoNotFillTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{UsersMax: 1000}, "127.0.0.1:1", "127.0.0.1:2")
		defer stop()
		a, b := nodes[0], nodes[1]
		inside, _ := b.login(t, "inside")
		stranger := 0
		flood := func(n int) {
			for range n {
				b.ask(t, id.UID(fmt.Sprint("stranger", stranger)))
				stranger++
			}
		}
		for i := range 100 {
			flood(950)
			reply := b.ask(t, id.UID(fmt.Sprint("honest", i)))
			flood(50) // while the answer is on its way
			if b.places.connect(reply.SID, false) == nil {
				t.Fatalf("honest player %d did not get in", i)
			}
		}
		if b.CCU() != 101 || inside.Gone() || b.Reserved() > 100 {
			t.Errorf("%d players, the one inside gone: %v, %d places wait", b.CCU(), inside.Gone(), b.Reserved())
		}
		result := make(chan error, 1)
		a.commands.run = moveTo(t, a, b, result)
		moved, _ := a.login(t, "moved")
		a.serve(moved, cmdMove, "join")
		synctest.Wait()
		flood(1000)
		b.places.connect(moved.SID, true)
		synctest.Wait()
		if err := <-result; err != nil {
			t.Errorf("a user could not be moved here: %v", err)
		}
		b.check(t)
	})
}

func TestFullMeansFullOfPlayers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{UsersMax: 10}, "127.0.0.1:1", "127.0.0.1:2")
		defer stop()
		n := nodes[0]
		for i := range 9 {
			n.login(t, id.UID(fmt.Sprint("player", i)))
		}
		for i := range 5 {
			n.ask(t, id.UID(fmt.Sprint("stranger", i)))
		}
		if n.Reserved() != 1 || n.cancelled(cancelFull) != 4 {
			t.Errorf("%d places wait, %d were cancelled", n.Reserved(), n.cancelled(cancelFull))
		}
		n.login(t, "last")
		if reply, err := n.Reserve(ReserveRequest{UID: "one more"}); err != nil || reply.Refused != Full {
			t.Errorf("a node full of players answers %v, %v", reply.Refused, err)
		}
		if n.CCU() != 10 {
			t.Errorf("%d players", n.CCU())
		}
		n.check(t)
	})
}

func TestReserveTTLUnderPressure(t *testing.T) {
	c := Config{UsersMax: 2000, ReserveTTL: time.Minute}.withDefaults()
	for n, want := range map[int]time.Duration{
		1: time.Minute, 100: time.Minute, 101: 59450 * time.Millisecond, 150: 32500 * time.Millisecond, 200: 5 * time.Second,
	} {
		if got := c.reserveTTL(n); got != want {
			t.Errorf("place %d of 200 waits %v, want %v", n, got, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{UsersMax: 2000}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		var last ReserveReply
		for i := range 200 {
			last = n.ask(t, id.UID(fmt.Sprint("u", i)))
		}
		if ttl := n.places.ttl(last.SID); last.ExpiresIn != 5*time.Second || ttl != last.ExpiresIn {
			t.Errorf("the client is told %v, the place waits %v", last.ExpiresIn, ttl)
		}
		pass(5*time.Second + time.Millisecond)
		synctest.Wait()
		if n.BySID(last.SID) != nil {
			t.Error("the place is still there")
		}
		pass(time.Minute)
		synctest.Wait()
		if n.Reserved() != 0 {
			t.Errorf("%d places never expire", n.Reserved())
		}
		n.check(t)
	})
}

func TestUnopenedPropertiesHaveABudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		props := encodedProps(map[string]any{"a": strings.Repeat("x", 60<<10)})
		nodes, stop := start(t, newNetwork(), Config{ReservedBytesMax: 10*len(props) + 100}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		plain := n.ask(t, "brings nothing")
		var last ReserveReply
		for i := range 100 {
			q := ReserveRequest{UID: id.UID(fmt.Sprint("u", i)), Props: props}
			var err error
			if last, err = n.Reserve(q); err != nil || last.Refused != Accepted {
				t.Fatalf("reserve = %v, %v", last.Refused, err)
			}
		}
		if _, bytes := n.unopened.sizes(); bytes != 10*len(props) || n.cancelled(cancelBytes) != 90 {
			t.Errorf("%d bytes wait, %d places were cancelled", bytes, n.cancelled(cancelBytes))
		}
		if n.BySID(plain.SID) == nil {
			t.Error("a place that brings nothing went for the bytes of others")
		}
		n.places.connect(last.SID, false)
		if _, bytes := n.unopened.sizes(); bytes != 9*len(props) {
			t.Errorf("%d bytes wait after one was opened", bytes)
		}
		n.check(t)
	})
}

// Between the transport's acceptance of a Confirm and its call, a place is nobody's to
// take any more.
func TestAPlaceBeingOpenedIsNotCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{UsersMax: 4}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		reply := n.ask(t, "u")
		n.places.mu.Lock()
		place := n.places.places[reply.SID]
		place.opened, place.link = true, &fakeLink{}
		n.places.mu.Unlock()
		for range 10 {
			n.ask(t, "u")
		}
		n.UserOpened(nil, place.res.Owner.(*User), place.link, false)
		synctest.Wait()
		if u := n.ByUID("u"); u == nil || u.SID != reply.SID || n.CCU() != 1 {
			t.Errorf("the user is not here: %d players", n.CCU())
		}
		n.check(t)
	})
}

// Any mix of requests, arrivals, expiries and ends keeps the lists true.
func TestUnopenedListsStayTrue(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			nodes, stop := start(t, newNetwork(), Config{UsersMax: 40, ReservationsMax: 20, ReservedBytesMax: 2000}, "127.0.0.1:1")
			defer stop()
			n, dice := nodes[0], rand.New(rand.NewPCG(seed, 0))
			var sids []id.SID
			for range 2000 {
				switch dice.IntN(8) {
				default:
					q := ReserveRequest{UID: id.UID(fmt.Sprint("u", dice.IntN(30)))}
					if dice.IntN(2) == 0 {
						q.Props = encodedProps(map[string]any{"a": strings.Repeat("x", dice.IntN(500))})
					}
					reply, err := n.Reserve(q)
					if err != nil || reply.Refused != Accepted && reply.Refused != Full {
						t.Fatalf("seed %d: reserve = %v, %v", seed, reply.Refused, err)
					}
					if reply.Refused == Accepted {
						sids = append(sids, reply.SID)
					}
				case 5:
					if len(sids) > 0 {
						n.places.connect(sids[max(0, len(sids)-1-dice.IntN(10))], false)
					}
				case 6:
					pass(time.Duration(dice.IntN(2000)) * time.Millisecond)
				case 7:
					if u := n.ByUID(id.UID(fmt.Sprint("u", dice.IntN(30)))); u != nil {
						u.Disconnect(0, "")
					}
				}
				synctest.Wait()
				if n.unopened.all.n > 20 || n.count.Load() > 40 || n.unopened.bytes > 2000 {
					t.Fatalf("seed %d: %d wait, %d in all, %d bytes", seed, n.unopened.all.n, n.count.Load(), n.unopened.bytes)
				}
				n.check(t)
			}
		})
	}
}
