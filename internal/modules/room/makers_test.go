package room

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/users"
)

// alone are options of a room that its creator does not join.
func alone(s Settings) []byte {
	b := options(s)
	b[3] = 0
	return b
}

func (c *client) lose()   { n, u := c.where(); n.users.UserLost(u) }
func (c *client) resume() { n, u := c.where(); n.users.UserOpened(nil, u, c, true) }

// wants checks that a command is refused.
func (c *client) wants(cmd uint16, payload []byte, want string) {
	c.cluster.t.Helper()
	if _, err := c.ask(cmd, payload); err == nil || !strings.HasPrefix(err.Error(), want) {
		c.cluster.t.Errorf("command %d of %s: %v, want %s", cmd, c.uid, err, want)
	}
}

// One client makes rooms as fast as it can: a few stay, it is told whose fault that is,
// and others make theirs.
func TestEmptyRoomsCountAgainstTheirMaker(t *testing.T) {
	on(t, Config{RoomsMax: 20}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		a := n.login("a")
		for i := range 300 {
			a.serve([]uint16{CmdCreate, CmdRandomCreate}[i%2], 0, alone(Settings{EmptyTTL: 65535 * time.Second}))
			pass(50 * time.Millisecond)
			if n.rooms.Count() > 4 {
				t.Fatalf("%d rooms of one client", n.rooms.Count())
			}
		}
		a.disconnect()
		synctest.Wait()
		again := n.login("a")
		again.wants(CmdCreate, alone(Settings{}), "status 4 code 2000 nobody is in 4 rooms")
		n.login("b").create(Settings{})
		pass(time.Second)        // a new sid has no creates of its own
		again.create(Settings{}) // a room it is in is another matter
		pass(10 * time.Minute)
		if got := n.rooms.Count(); got != 2 {
			t.Errorf("%d rooms after the longest ttl, want the two that somebody is in", got)
		}
		again.must(CmdLeave, c.roomOf(again))
		again.must(CmdCreate, alone(Settings{}))
	})
}

// roomOf returns the room that a client is in.
func (c *cluster) roomOf(cl *client) []byte {
	n, u := cl.where()
	return []byte(n.rooms.roomOf(u).id)
}

func TestCreatesHaveARate(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		a := c.nodes[0].login("a")
		made := 0
		for range 30 {
			if _, err := a.ask(CmdCreate, options(Settings{})); err == nil {
				made++
				a.must(CmdLeave, c.roomOf(a))
			}
		}
		if made != 10 {
			t.Errorf("%d rooms at once, want 10", made)
		}
		a.wants(CmdRandomCreate, options(Settings{}), "status 4 code 1004")
		a.wants(CmdRandomJoin, options(Settings{}), "status 4 code 1004")
		pass(500 * time.Millisecond)
		a.create(Settings{})
	})
}

// A room that becomes empty takes the place of its maker's oldest empty one.
func TestRoomsThatBecomeEmpty(t *testing.T) {
	on(t, Config{EmptyMax: 2}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		a, b := n.login("a"), n.login("b")
		var made [][]byte
		for range 3 {
			made = append(made, a.create(Settings{AllowEmpty: true, EmptyTTL: time.Minute}))
			b.must(CmdJoin, made[len(made)-1])
			a.must(CmdLeave, made[len(made)-1])
			b.must(CmdLeave, made[len(made)-1]) // whoever is last: it is the maker's
		}
		synctest.Wait()
		b.wants(CmdJoin, made[0], "status 4 code 2009")
		b.must(CmdJoin, made[1])
		b.must(CmdLeave, made[1])
		if got := testutil.ToFloat64(n.rooms.metrics.evicted.WithLabelValues(evictedMaker)); got != 1 {
			t.Errorf("%v rooms evicted", got)
		}
		b.create(Settings{AllowEmpty: true})
	})
}

// When the node is full the room goes that has been empty for longest, never one that
// somebody is in or on the way to; only then is it the node that can't.
func TestFullNode(t *testing.T) {
	on(t, Config{RoomsMax: 3}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		a, b, d, e := n.login("a"), n.login("b"), n.login("d"), n.login("e")
		first := a.must(CmdCreate, alone(Settings{}))[4:]
		second := a.must(CmdCreate, alone(Settings{}))[4:]
		r, err := n.rooms.find(id.Room(first))
		if err == nil {
			err = n.rooms.hold("10.0.0.1:1", r, "somebody", 5*time.Second)
		}
		if err != nil {
			t.Fatal(err)
		}
		b.create(Settings{})
		d.create(Settings{}) // instead of the second
		b.wants(CmdMemberCount, second, "status 4 code 2009")
		b.must(CmdMemberCount, first)
		e.wants(CmdCreate, options(Settings{}), "status 5 code 2000")
		if got := testutil.ToFloat64(n.rooms.metrics.creates.WithLabelValues(refused)); got != 1 {
			t.Errorf("%v refusals counted", got)
		}
		pass(6 * time.Second) // nobody came
		e.create(Settings{})
		b.wants(CmdMemberCount, first, "status 4 code 2009")
		if n.rooms.Count() != 3 {
			t.Errorf("%d rooms", n.rooms.Count())
		}
	})
}

func TestTTLOfClientsIsCut(t *testing.T) {
	on(t, Config{TTLMax: 20 * time.Second}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		n.login("a").must(CmdCreate, alone(Settings{EmptyTTL: time.Hour}))
		own, err := n.rooms.create(Settings{MembersMax: 2, EmptyTTL: 50 * time.Second}, "", true)
		if err != nil {
			t.Fatal(err)
		}
		n.rooms.publish(own) // the server's own code is not bound by it
		pass(21 * time.Second)
		if n.rooms.Count() != 1 {
			t.Errorf("%d rooms, want the server's", n.rooms.Count())
		}
	})
}

// audit compares the engine's index with what the rooms themselves say.
func (n *node) audit(t *testing.T, most int) {
	t.Helper()
	e := n.rooms
	e.lookWhoIsHere()
	e.mu.Lock()
	defer e.mu.Unlock()
	x := &e.index
	empties, listed := 0, 0
	for _, r := range x.rooms {
		connected := 0
		for _, m := range r.m.members {
			if m.Link.Present() {
				connected++
			}
			if x.in[m.Link].room != r || !x.in[m.Link].joined {
				t.Fatalf("%v is not known to be in their room", m.Link)
			}
		}
		if connected != r.present {
			t.Fatalf("%d of a room's members are connected, counted %d", connected, r.present)
		}
		empty := len(r.m.members) == 0 && len(r.m.holds) == 0 && r.maker != ""
		if empty != (r.emptied != nil) || empty != slices.Contains(x.makers[r.maker], r) {
			t.Fatalf("a room's books are wrong: empty %v, listed %v", empty, r.emptied != nil)
		}
		if empty {
			empties++
		}
		open := r.settings.Random && r.m.Free() > 0
		if open != (r.at >= 0) || open && ((*x.open[r.settings])[r.at] != r || r.rank != r.appeal()) {
			t.Fatalf("a room that is open (%v) is listed at %d", open, r.at)
		}
		if open {
			listed++
		}
	}
	for s, h := range x.open {
		listed -= h.Len()
		best := slices.MinFunc(*h, func(a, b *room) int {
			return cmp.Or(cmp.Compare(b.appeal(), a.appeal()), cmp.Compare(a.number, b.number))
		})
		if x.best(s, "nobody", 0) != best {
			t.Fatal("the best room is not first")
		}
	}
	made := 0
	for maker, rooms := range x.makers {
		made += len(rooms)
		if len(rooms) == 0 || len(rooms) > most {
			t.Fatalf("%s has %d empty rooms", maker, len(rooms))
		}
	}
	if made != empties || x.empty.Len() != empties || listed != 0 || len(x.rooms) > e.cfg.RoomsMax {
		t.Fatalf("%d empty rooms, %d by makers, %d by age; %d too many listed; %d rooms",
			empties, made, x.empty.Len(), -listed, len(x.rooms))
	}
	for user, h := range x.held {
		if !h.room.m.Holds(user) {
			t.Fatalf("a seat for %s is remembered that nobody holds", user)
		}
	}
}

// Whatever happens to rooms and users in whatever order, the books are exact.
func TestBooksAreExact(t *testing.T) {
	for seed := range uint64(150) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 8))
			c := newClusterOf(t, Config{EmptyMax: 2, RoomsMax: 9}, users.Budget{CreatesPerSec: -1}, twoUDP...)
			defer c.stop()
			var all []*client
			login := func(i int) {
				cl := c.nodes[rng.IntN(2)].login(id.UID(fmt.Sprintf("u%d", i)))
				if i == len(all) {
					all = append(all, cl)
				}
				all[i] = cl
			}
			for i := range 8 {
				login(i)
			}
			for range 120 {
				c.anything(rng, all, login)
				synctest.Wait()
				for _, n := range c.nodes {
					n.audit(t, 2)
				}
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

// anything does one thing that can happen to rooms.
func (c *cluster) anything(rng *rand.Rand, all []*client, login func(i int)) {
	i := rng.IntN(len(all))
	cl := all[i]
	n, u := cl.where()
	s := Settings{MembersMax: 2 + rng.IntN(2), AllowEmpty: rng.IntN(3) > 0, EmptyTTL: time.Duration(10+10*rng.IntN(2)) * time.Second}
	var room []byte
	if rooms := c.nodes[rng.IntN(2)].rooms.Rooms(); len(rooms) > 0 {
		room = []byte(rooms[rng.IntN(len(rooms))].ID)
	}
	switch rng.IntN(14) {
	case 0:
		cl.serve(CmdCreate, 0, options(s))
	case 1:
		cl.serve(CmdRandomCreate, 0, options(s))
	case 2:
		cl.serve([]uint16{CmdCreate, CmdRandomCreate}[rng.IntN(2)], 0, alone(s))
	case 3:
		cl.serve(CmdRandomJoin, 0, options(s))
	case 4, 5:
		cl.serve(CmdJoin, 0, room) // perhaps elsewhere
	case 6, 7:
		if r := n.rooms.roomOf(u); r != nil {
			cl.serve(CmdLeave, 0, []byte(r.id))
		}
	case 8:
		cl.lose()
	case 9:
		cl.resume()
	case 10:
		cl.disconnect()
		login(i)
	case 11:
		switch rng.IntN(3) {
		case 0:
			_ = n.rooms.Kick(u, nil)
		case 1:
			_ = n.rooms.Delete(id.Room(room), nil)
		case 2:
			cl.serve(CmdReserve, 0, with(room, "\x00\x00\x00\x02u1"))
		}
	case 12:
		if r, err := n.rooms.find(id.Room(room)); err == nil {
			_ = n.rooms.hold("10.0.0.1:1", r, all[rng.IntN(len(all))].uid, time.Duration(rng.IntN(5000))*time.Millisecond)
		}
	case 13:
		pass(time.Duration(rng.IntN(8000)) * time.Millisecond)
	}
}
