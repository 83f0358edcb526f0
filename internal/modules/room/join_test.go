package room

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/wire"
)

func TestJoinOnAnotherNode(t *testing.T) {
	on(t, Config{}, twoUDP, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0].login("a"), c.nodes[1].login("b")
		created := a.must(CmdCreate, options(Settings{}))
		room := created[4:]
		_, before := b.where()
		before.Set("level", "7")
		b.serve(CmdJoin, 77, with(room, "hello"))
		b.serve(CmdBroadcast, 0, with(room, "\x01", "first")) // right behind the join
		synctest.Wait()
		at, u := b.where()
		if at != c.nodes[0] || u == before || !before.Gone() {
			t.Fatal("the user was not moved to the room's node")
		}
		if v, _ := u.Get("level"); v != "7" {
			t.Errorf("properties did not come along: %v", u.Properties())
		}
		b.mu.Lock()
		got := b.received
		b.mu.Unlock()
		if len(got) != 1 || got[0].ID != 77 || got[0].Status != 1 || !slices.Equal(got[0].Payload, created) {
			t.Errorf("answers %+v", got)
		}
		equal(t, "a", a.pushes(), []string{"101 hello", "103 first"})
		a.must(CmdBroadcast, with(room, "\x01", "welcome"))
		equal(t, "b", b.pushes(), []string{"103 welcome"})
		if n := c.nodes[1].users.CCU(); n != 0 {
			t.Errorf("%d users on the old node", n)
		}
	})
}

func TestJoinOnAnotherNodeRefused(t *testing.T) {
	for _, x := range []struct {
		name   string
		before func(c *cluster)
		want   string
	}{
		{"full", func(c *cluster) {
			for i := range 1 {
				c.nodes[0].login(id.UID(fmt.Sprint("x", i))).must(CmdJoin, c.room())
			}
		}, "status 4 code 2002 room is full"},
		{"gone", func(c *cluster) { _ = c.nodes[0].rooms.Delete(id.Room(c.room()), nil) }, "status 4 code 2009"},
		{"unreachable", func(c *cluster) { c.down[c.nodes[0].name] = true }, "status 4 code 1002"},
		{"draining", func(c *cluster) { c.nodes[0].users.SetState(mars.Offline) }, "status 5 code 2002"},
	} {
		t.Run(x.name, func(t *testing.T) {
			on(t, Config{}, twoUDP, func(t *testing.T, c *cluster) {
				a, b := c.nodes[0].login("a"), c.nodes[1].login("b")
				a.create(Settings{MembersMax: 2})
				room := c.room()
				x.before(c)
				if _, err := b.ask(CmdJoin, room); err == nil || !strings.HasPrefix(err.Error(), x.want) {
					t.Errorf("join: %v, want %s", err, x.want)
				}
				if at, _ := b.where(); at != c.nodes[1] {
					t.Error("the user was moved")
				}
				b.create(Settings{}) // and goes on where they are
				delete(c.down, c.nodes[0].name)
				if r, err := c.nodes[0].rooms.find(id.Room(room)); err == nil && len(r.m.holds) != 0 {
					t.Errorf("%d seats are still held", len(r.m.holds))
				}
			})
		})
	}
}

// A node that joined the cluster a moment ago may not be known everywhere yet.
func TestJoinOnANodeThatIsNotKnownYet(t *testing.T) {
	on(t, Config{}, twoUDP, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0].login("a"), c.nodes[1].login("b")
		room := a.create(Settings{})
		all := c.directory.Load().Members
		c.setMembers(all[1])
		b.serve(CmdJoin, 77, room)
		pass(time.Second)
		if at, _ := b.where(); at != c.nodes[1] {
			t.Error("asked a node that is not in the directory")
		}
		c.setMembers(all...)
		pass(time.Second)
		synctest.Wait()
		if at, _ := b.where(); at != c.nodes[0] {
			t.Error("not joined when the node became known")
		}
	})
}

// room returns the only room of the first node.
func (c *cluster) room() []byte { return []byte(c.nodes[0].rooms.Rooms()[0].ID) }

func TestRandomJoin(t *testing.T) {
	on(t, Config{}, []string{"udp", "udp", "tcp"}, func(t *testing.T, c *cluster) {
		s := options(Settings{MembersMax: 3})
		a, b, d, e := c.nodes[0].login("a"), c.nodes[0].login("b"), c.nodes[1].login("d"), c.nodes[1].login("e")
		other, tcp := c.nodes[0].login("other"), c.nodes[2].login("t")
		first := a.must(CmdRandomJoin, with(s, "hi"))
		if first[0] != randomCreated || len(first) != 1+4+id.RoomBytes {
			t.Fatalf("random join answered %q", first)
		}
		if got := b.must(CmdRandomJoin, with(s, "b is here")); got[0] != randomJoined || string(got[1:]) != string(first[1:]) {
			t.Errorf("second: %q", got)
		}
		if got := other.must(CmdRandomJoin, options(Settings{MembersMax: 4})); got[0] != randomCreated {
			t.Error("other options led to the same room")
		}
		if got := tcp.must(CmdRandomJoin, s); got[0] != randomCreated {
			t.Error("a user was sent to a node of another transport")
		}
		if got := d.must(CmdRandomJoin, with(s, "d is here")); got[0] != randomJoined || string(got[1:]) != string(first[1:]) {
			t.Errorf("from another node: %q", got)
		}
		if at, _ := d.where(); at != c.nodes[0] {
			t.Error("not moved")
		}
		equal(t, "a", a.pushes(), []string{"101 b is here", "101 d is here"})
		if got := e.must(CmdRandomJoin, s); got[0] != randomCreated {
			t.Error("joined a full room")
		}
		if at, _ := e.where(); at != c.nodes[1] {
			t.Error("moved without need")
		}
	})
}

func TestRandomCreateIsFound(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		a, b, d := c.nodes[0].login("a"), c.nodes[0].login("b"), c.nodes[0].login("d")
		s := options(Settings{})
		room := a.must(CmdRandomCreate, s)[4:]
		plain := b.must(CmdCreate, s)[4:]
		if got := d.must(CmdRandomJoin, s); got[0] != randomJoined || string(got[5:]) != string(room) || string(got[5:]) == string(plain) {
			t.Errorf("random join %q", got)
		}
		d.must(CmdLeave, room)
		a.must(CmdLeave, room)
		if got := d.must(CmdRandomJoin, s); got[0] != randomCreated {
			t.Error("joined a room that has ended")
		}
	})
}

// However many look at the same time, rooms fill up before new ones are made.
func TestRandomJoinsMeet(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		s := options(Settings{MembersMax: 4})
		for i := range 40 {
			cl := c.nodes[0].login(id.UID(fmt.Sprint("u", i)))
			go cl.serve(CmdRandomJoin, 1, s)
		}
		synctest.Wait()
		in := 0
		for _, r := range c.nodes[0].rooms.Rooms() {
			in += r.Members
		}
		if n := c.nodes[0].rooms.Count(); n != 10 || in != 40 {
			t.Errorf("%d users in %d rooms of 4", in, n)
		}
	})
}

// A seat that nobody came for is free again, and found again.
func TestHeldSeatExpires(t *testing.T) {
	on(t, Config{}, twoUDP, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		a, b := n.login("a"), n.login("b")
		s := options(Settings{MembersMax: 2})
		a.must(CmdRandomCreate, s)
		r, err := n.rooms.find(id.Room(c.room()))
		if err != nil {
			t.Fatal(err)
		}
		if err := n.rooms.hold("10.0.0.1:1", r, "late", 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if got := b.must(CmdRandomJoin, s); got[0] != randomCreated {
			t.Error("took a held seat")
		}
		pass(6 * time.Second)
		if got := n.login("d").must(CmdRandomJoin, s); got[0] != randomJoined {
			t.Error("a seat nobody came for is not found again")
		}
	})
}

func TestUserEndsDuringJoin(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		a, b := n.login("a"), n.login("b")
		room := a.create(Settings{})
		_, u := b.where()
		r, err := n.rooms.find(id.Room(room))
		if err != nil {
			t.Fatal(err)
		}
		b.disconnect()
		synctest.Wait()
		_ = n.rooms.enter(r, u, nil, nil) // the last command of one who is gone
		if ids := a.must(CmdMemberIDs, room); string(ids) != "\x00\x00\x00\x01a" {
			t.Errorf("members %q", ids)
		}
	})
}

// Who logs in anew and joins the room they were in gets in, although what the server does
// at the end of the old connection comes later: here and from another node, with the room
// full, and when the old connection's node has not heard of the new one yet.
func TestJoinAnewAtOnce(t *testing.T) {
	for _, x := range []struct {
		name      string
		elsewhere bool // the new login
		notices   bool
	}{{"here", false, true}, {"on another node", true, true}, {"on another node that said nothing yet", true, false}} {
		t.Run(x.name, func(t *testing.T) {
			on(t, Config{}, twoUDP, func(t *testing.T, c *cluster) {
				n, m := c.nodes[0], c.nodes[0]
				if x.elsewhere {
					m = c.nodes[1]
				}
				pass(time.Second)
				a, b := n.login("a"), n.login("b")
				room := a.create(Settings{MembersMax: 2})
				b.must(CmdJoin, room)
				pass(time.Second)
				gate := n.slowHooks()
				if !x.notices {
					c.mute.Store(true)
				}
				again := m.login("b")
				again.serve(CmdJoin, 7, room)
				again.serve(CmdMemberCount, 8, room)
				synctest.Wait()
				b.serve(CmdLeave, 9, room) // was on its way
				c.mute.Store(false)
				close(gate)
				pass(10 * time.Second)
				if got := again.answers(7); len(got) != 1 || got[0].Status != 1 {
					t.Errorf("join: %+v", got)
				}
				at, u := again.where()
				if r := n.rooms.roomOf(u); at != n || r == nil || len(r.m.Members()) != 2 || r.m.Members()[1].Link != u {
					t.Errorf("not in the room afterwards: %v", r)
				}
				a.must(CmdBroadcast, with(room, "\x01", "x"))
				n.audit(t, 4)
			})
		})
	}
}

// A seat is given back by the node that asked for it, not by another for whom the user was
// on the way before, and not by a liar.
func TestUnholdByAnotherNode(t *testing.T) {
	on(t, Config{}, twoUDP, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		room := n.login("a").create(Settings{})
		r, _ := n.rooms.find(id.Room(room))
		if err := n.rooms.hold("10.0.0.1:1", r, "late", 5*time.Second); err != nil {
			t.Fatal(err)
		}
		for _, x := range []struct {
			node  id.Node
			stays bool
		}{{"10.0.0.2:1", true}, {"10.0.0.1:1", false}} {
			if err := n.rooms.onSeat(x.node, append([]byte{unholdSeat, 0, 0, 0, 0}, with(room, "late")...)); err != nil || r.m.Holds("late") != x.stays {
				t.Errorf("%v: %v, still held: %v", x.node, err, r.m.Holds("late"))
			}
		}
	})
}

// A silent member counts as nobody to play with, and becomes owner last.
func TestSilentMembers(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		ghosts := n.login("g1").random(four)
		n.login("g2").must(CmdJoin, []byte(ghosts))
		for _, who := range []id.UID{"g1", "g2"} {
			n.users.UserSilent(n.users.ByUID(who), true)
		}
		synctest.Wait()
		living := string(n.login("alive").must(CmdRandomCreate, options(four))[4:])
		if got := n.login("new").random(four); got != living {
			t.Error("a newcomer is seated with the dead")
		}
		n.users.UserSilent(n.users.ByUID("g1"), false)
		n.users.UserSilent(n.users.ByUID("g2"), false)
		synctest.Wait()
		third := n.login("third")
		third.must(CmdJoin, []byte(ghosts))
		if got := n.login("newer").random(four); got != ghosts {
			t.Error("who is heard again does not count")
		}
		n.users.UserSilent(n.users.ByUID("g2"), true)
		n.users.ByUID("g1").Disconnect(wire.CloseNormal, "")
		synctest.Wait()
		if r, _ := n.rooms.find(id.Room(ghosts)); r.m.Owner() != "third" {
			t.Errorf("the owner is %v", r.m.Owner())
		}
		n.audit(t, 4)
	})
}
