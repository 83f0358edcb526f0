package room

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/users"
)

var four = Settings{MembersMax: 4, AllowEmpty: true, EmptyTTL: time.Minute}

// litter leaves n empty random rooms behind, of as many makers as it takes.
func (n *node) litter(s Settings, rooms int) {
	s.Random = true
	for i := range rooms {
		r, err := n.rooms.create(s, id.UID(fmt.Sprint("litter", i/4)), true)
		if err != nil {
			n.t.Fatal(err)
		}
		n.rooms.publish(r)
	}
}

// random joins a random room and returns which one.
func (c *client) random(s Settings) string {
	c.cluster.t.Helper()
	return string(c.must(CmdRandomJoin, options(s))[5:])
}

// Empty rooms that somebody left behind keep nobody apart: 16 players fill 4 rooms of 4,
// one after the other or all at once.
func TestEmptyRoomsKeepNobodyApart(t *testing.T) {
	for _, atOnce := range []bool{false, true} {
		bubble(t, fmt.Sprint("at once ", atOnce), func(t *testing.T) {
			c := newCluster(t, Config{}, "udp")
			defer c.stop()
			n := c.nodes[0]
			n.litter(four, 1269)
			for i := range 16 {
				cl := n.login(id.UID(fmt.Sprint("u", i)))
				go cl.serve(CmdRandomJoin, 1, options(four))
				if !atOnce {
					synctest.Wait()
				}
			}
			synctest.Wait()
			used := 0
			for _, r := range n.rooms.Rooms() {
				if r.Members > 0 {
					used++
				}
			}
			if used != 4 {
				t.Errorf("16 players are in %d rooms of 4", used)
			}
		})
	}
}

// The fullest of those whose members are connected, then the oldest; then the user's own
// empty room; then one whose members may come back; then strangers' empty ones.
func TestRandomJoinPrefers(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		player := func(name string) *client { return n.login(id.UID(name)) }
		room := func(names ...string) string { // of members who made it themselves
			first := player(names[0])
			r := first.must(CmdRandomCreate, options(four))[4:]
			for _, name := range names[1:] {
				player(name).must(CmdJoin, r)
			}
			return string(r)
		}
		n.litter(four, 1)
		lost := room("lost1", "lost2", "lost3")
		one, two, alsoTwo := room("one"), room("two1", "two2"), room("also1", "also2")
		for _, cl := range c.clients {
			if len(cl.uid) > 4 && cl.uid[:4] == "lost" {
				cl.lose()
			}
		}
		me := player("me")
		own := string(me.must(CmdRandomCreate, alone(four))[4:])
		leave := func(r string) { me.must(CmdLeave, []byte(r)) }
		for _, want := range []struct{ what, room string }{
			{"the older of the fullest", two}, {"the other of the fullest", alsoTwo}, {"the last that is alive", one},
		} {
			if got := me.random(four); got != want.room {
				t.Errorf("not %s", want.what)
			}
			leave(want.room)
			if err := n.rooms.Delete(id.Room(want.room), nil); err != nil {
				t.Fatal(err)
			}
		}
		if got := me.random(four); got != own {
			t.Error("not the user's own room")
		}
		leave(own)
		if err := n.rooms.Delete(id.Room(own), nil); err != nil {
			t.Fatal(err)
		}
		if got := me.random(four); got != lost {
			t.Error("not the room whose members may come back")
		}
		leave(lost)
		for _, cl := range c.clients {
			if cl.uid == "lost2" {
				cl.resume()
			}
		}
		fresh := room("fresh1", "fresh2")
		if got := me.random(four); got != fresh {
			t.Error("not the room with more who are connected")
		}
		leave(fresh)
		for _, r := range []string{lost, fresh} {
			if err := n.rooms.Delete(id.Room(r), nil); err != nil {
				t.Fatal(err)
			}
		}
		if before := n.rooms.Count(); me.random(four) == "" || n.rooms.Count() != before {
			t.Error("made a room though a stranger's is empty")
		}
	})
}

// On another node only a room in which somebody is is worth a move.
func TestRandomJoinElsewhere(t *testing.T) {
	for _, x := range []struct {
		name    string
		prepare func(n *node) *client
		moved   bool
	}{
		{"empty", func(n *node) *client { n.litter(four, 5); return nil }, false},
		{"all lost", func(n *node) *client { cl := n.login("x"); cl.random(four); cl.lose(); return cl }, false},
		{"back", func(n *node) *client { cl := n.login("x"); cl.random(four); cl.lose(); cl.resume(); return cl }, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			on(t, Config{}, twoUDP, func(t *testing.T, c *cluster) {
				x.prepare(c.nodes[0])
				c.nodes[1].litter(four, 1)
				me := c.nodes[1].login("me")
				me.random(four)
				if at, _ := me.where(); (at == c.nodes[0]) != x.moved {
					t.Errorf("moved: %v", !x.moved)
				}
			})
		})
	}
}

// A user whose older connection is still a member of the best room takes its place there.
func TestRandomJoinTakesOverFromTheOldSelf(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		gate := n.slowHooks()
		me, other := n.login("me"), n.login("other")
		mine := me.random(four)
		n.login("third").must(CmdJoin, []byte(mine))
		theirs := string(other.must(CmdRandomCreate, options(four))[4:])
		again := n.login("me")
		if got := again.random(four); got != mine {
			t.Errorf("joined %v, not the one of most players; there is %v", got, theirs)
		}
		close(gate)
		synctest.Wait()
		if _, u := again.where(); n.rooms.roomOf(u) == nil {
			t.Error("the old self took the new one along")
		}
		n.audit(t, 4)
	})
}

// However players come, leave, are lost and come back, nobody opens a room while another
// one with players who are there has a seat.
func TestRandomJoinsNeverSplit(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 9))
			c := newClusterOf(t, Config{}, users.Budget{CreatesPerSec: -1}, "udp")
			defer c.stop()
			n := c.nodes[0]
			n.litter(four, 40)
			var all []*client
			for i := range 24 {
				all = append(all, n.login(id.UID(fmt.Sprint("u", i))))
			}
			for range 150 {
				cl := all[rng.IntN(len(all))]
				_, u := cl.where()
				r := n.rooms.roomOf(u)
				switch {
				case r == nil && u.Connected():
					best := n.fullest()
					got, err := n.rooms.find(id.Room(cl.random(four)))
					if err != nil {
						t.Fatal(err)
					}
					if now := got.present - 1; now != best {
						t.Fatalf("seed %d: joined %d others, there was a room of %d", seed, now, best)
					}
				case !u.Connected():
					cl.resume()
				case rng.IntN(2) == 0:
					cl.lose()
				default:
					cl.must(CmdLeave, []byte(r.id))
				}
				synctest.Wait()
			}
		})
	}
}

// fullest is how many connected members the best room with a seat has.
func (n *node) fullest() (most int) {
	for _, r := range n.rooms.index.rooms {
		connected := 0
		for _, m := range r.m.members {
			if m.Link.Connected() {
				connected++
			}
		}
		if r.m.Free() > 0 {
			most = max(most, connected)
		}
	}
	return most
}

// BenchmarkPick is the choice of a room among many with the same settings.
func BenchmarkPick(b *testing.B) {
	for _, rooms := range []int{10, 1000, 50_000} {
		b.Run(fmt.Sprint(rooms), func(b *testing.B) {
			c := newCluster(b, Config{}, "udp")
			defer c.stop()
			n := c.nodes[0]
			n.litter(four, rooms)
			s := four
			s.Random = true
			for b.Loop() {
				r, _, err := n.rooms.pick(s, "me", true)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = n.rooms.step(nil, r, input{Op: OpUnhold, User: "me"}, nil)
			}
		})
	}
}
