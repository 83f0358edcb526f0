package users

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/secure"
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

// goroutines counts those that do runs, or starts, before anything of them has ended.
func goroutines(do func()) int {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // whatever do starts waits until it is done
	before := runtime.NumGoroutine()
	do()
	return runtime.NumGoroutine() - before
}

func TestManySIDsOfOneUserAreOneTask(t *testing.T) {
	const sids = 5000
	many := Config{ReservationsPerUser: sids, ReservationsMax: 2 * sids}
	t.Run("login", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, stop := start(t, newNetwork(), many, "127.0.0.1:1")
			defer stop()
			n := nodes[0]
			for range sids - 1 {
				n.ask(t, "u")
			}
			if got := goroutines(func() { n.login(t, "u") }); got > endersMax+hookersMax {
				t.Errorf("a login started %d goroutines", got)
			}
			synctest.Wait()
			if n.Reserved() != 0 || n.CCU() != 1 || n.cancelled(cancelReplaced) != sids-1 {
				t.Errorf("%d places and %d players are left, %d cancelled", n.Reserved(), n.CCU(), n.cancelled(cancelReplaced))
			}
			n.check(t)
		})
	})
	t.Run("login elsewhere", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, stop := start(t, newNetwork(), many, "127.0.0.1:1")
			defer stop()
			n := nodes[0]
			notices := []byte{noticeLayout}
			for i := range noticesPerSend {
				uid := id.UID(fmt.Sprint("u", i))
				for range 10 {
					n.ask(t, uid)
				}
				notices = appendNotice(notices, notice{uid: uid, order: order{issued: time.Now().Add(time.Hour).UnixMicro()}})
			}
			got := goroutines(func() {
				if _, err := n.handleNotices(t.Context(), peer("x"), notices); err != nil {
					t.Fatal(err)
				}
			})
			if got > endersMax+hookersMax {
				t.Errorf("a message of another node started %d goroutines", got)
			}
			synctest.Wait()
			if n.Reserved() != 0 {
				t.Errorf("%d places are left", n.Reserved())
			}
		})
	})
	t.Run("a burst of opens", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, stop := start(t, newNetwork(), many, "127.0.0.1:1")
			defer stop()
			n := nodes[0]
			if got := goroutines(func() {
				for range 500 {
					n.login(t, "u")
				}
			}); got > endersMax+hookersMax {
				t.Errorf("500 logins started %d goroutines", got)
			}
			synctest.Wait()
			if n.CCU() != 1 || len(n.endCodes()) != 499 {
				t.Errorf("%d players, %d ended", n.CCU(), len(n.endCodes()))
			}
		})
	})
	t.Run("who is ended again and again", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
			defer stop()
			u, _ := nodes[0].login(t, "u")
			if got := goroutines(func() {
				for range 500 {
					u.Disconnect(0, "")
				}
			}); got > endersMax+hookersMax {
				t.Errorf("ending one user started %d goroutines", got)
			}
		})
	})
}

// Taking one of many sids of a user id out of the table costs nothing that grows
// with them.
func TestTableRemovalDoesNotCopy(t *testing.T) {
	var users table
	users.init()
	all := make([]*User, 0, 10_000)
	for i := range cap(all) {
		u := &User{ID: "u", SID: id.SID{byte(i), byte(i >> 8)}}
		if !users.add(u) {
			t.Fatal("not added")
		}
		all = append(all, u)
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	i := 0
	if allocs := testing.AllocsPerRun(5000, func() { users.remove(all[i]); i++ }); allocs > 0 {
		t.Errorf("a removal allocates %v times", allocs)
	}
	if left := users.byUID(nil, "u"); len(left) != len(all)-i {
		t.Errorf("%d are left, want %d", len(left), len(all)-i)
	}
	for ; i < len(all); i++ {
		users.remove(all[i])
	}
	if n := &users.uids[users.uidShard("u")]; len(n.m) != 0 {
		t.Error("an empty chain is kept")
	}
}

func TestNobodyNewWhileMemoryIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		short := false
		nodes, stop := start(t, newNetwork(), Config{MemoryShort: func() bool { return short }}, "127.0.0.1:1", "127.0.0.1:2")
		defer stop()
		a, b := nodes[0], nodes[1]
		result := make(chan error, 1)
		a.commands.run = moveTo(t, a, b, result)
		u, _ := a.login(t, "u")
		short = true
		if reply, err := b.Reserve(ReserveRequest{UID: "v"}); err != nil || reply.Refused != Memory {
			t.Errorf("reserve = %v, %v", reply.Refused, err)
		}
		if got := testutil.ToFloat64(b.metrics.reservations.WithLabelValues("memory")); got != 1 {
			t.Errorf("counted %v times", got)
		}
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		if err := <-result; err == nil || u.Gone() || !strings.Contains(err.Error(), "memory") {
			t.Errorf("a move here while a player can stay: %v", err)
		}
		// Now the user's node is about to end.
		b.cfg.Directory = func() *mars.Directory {
			return mars.NewDirectory(2, mars.Member{Instance: a.cfg.Self, State: mars.Offline}, mars.Member{Instance: b.cfg.Self, State: mars.Online})
		}
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		b.places.connect(u.SID, true)
		synctest.Wait()
		if err := <-result; err != nil {
			t.Errorf("a move off a node that ends: %v", err)
		}
	})
}

func TestOffersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{ArrivalsMax: 10}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		offer := func(i byte, ttl time.Duration) Refusal {
			o := moveOffer{id: moveID{i}, uid: "u", creds: secure.Credentials{SID: id.SID{i}}, ttl: ttl}
			b, err := n.handleOffer(t.Context(), mesh.Peer{Node: "x"}, o.marshal())
			if err != nil {
				t.Fatal(err)
			}
			reply, err := parseMoveReply(b)
			if err != nil {
				t.Fatal(err)
			}
			return reply.refused
		}
		for i := range byte(10) {
			if got := offer(i, time.Hour*time.Duration(i)); got != Accepted {
				t.Errorf("offer %d: %v", i, got)
			}
		}
		if got := offer(3, time.Second); got != InUse {
			t.Errorf("an offer that came twice: %v", got)
		}
		if n.moves.in(moveID{3}) == nil {
			t.Error("the second forgot the first")
		}
		if got := offer(10, time.Second); got != Busy {
			t.Errorf("one more than may arrive: %v", got)
		}
		for i := range byte(10) {
			if ttl := n.places.ttl(id.SID{i}); ttl <= 0 || ttl > offerTTLMax {
				t.Errorf("place %d waits %v", i, ttl)
			}
		}
		pass(offerTTLMax + time.Second)
		synctest.Wait()
		if n.Reserved() != 0 || n.moves.countIn() != 0 {
			t.Errorf("%d places and %d arrivals are left", n.Reserved(), n.moves.countIn())
		}
	})
}
