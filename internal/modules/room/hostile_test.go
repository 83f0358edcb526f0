package room

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// Nothing that a client does is worth a line each time: not a MOVE it does not follow,
// not a room of a node that is gone, not nonsense.
func TestClientsDontWriteTheLog(t *testing.T) {
	on(t, Config{}, []string{"udp", "udp", "udp"}, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0].login("a"), c.nodes[1].login("b")
		room := a.create(Settings{})
		away := c.nodes[2].login("x").create(Settings{})
		c.mu.Lock()
		c.down[c.nodes[2].name] = true
		c.mu.Unlock()
		c.ignore.Store(true)
		for range 20 {
			pass(time.Minute / 20)
			b.serve(CmdJoin, 0, room)
			b.serve(CmdJoin, 0, away)
			b.serve(CmdJoin, 0, []byte(strings.Repeat("z", id.RoomBytes)))
			b.serve(CmdBroadcast, 0, []byte{1})
			b.serve(999, 0, nil)
		}
		pass(5 * time.Minute)
		synctest.Wait()
		if n := strings.Count(c.log.String(), "\n"); n < 1 || n > 5 || strings.Count(c.log.String(), "node not reached") != n {
			t.Errorf("%d lines, want one a minute for the node that is gone:\n%s", n, &c.log)
		}
	})
}

// A client that looks for rooms all the time asks other nodes now and then only.
func TestQuestionsToOtherNodesHaveARate(t *testing.T) {
	on(t, Config{}, twoUDP, func(t *testing.T, c *cluster) {
		owner, a := c.nodes[0].login("owner"), c.nodes[1].login("a")
		full := owner.create(Settings{MembersMax: 2})
		c.nodes[0].login("second").must(CmdJoin, full)
		before := c.requests.Load()
		for range 100 {
			a.serve(CmdJoin, 0, full)
			a.serve(CmdRandomJoin, 0, options(Settings{}))
			synctest.Wait()
			if _, u := a.where(); c.nodes[1].rooms.roomOf(u) != nil {
				a.serve(CmdLeave, 0, c.roomOf(a))
			}
			synctest.Wait()
		}
		if n := c.requests.Load() - before; n < 1 || n > 10 {
			t.Errorf("%d questions to the other node", n)
		}
	})
}

// A user on the way has one seat on a node, however many rooms they ask for.
func TestOneSeatAUser(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		var rooms []*room
		for i := range 5 {
			r, err := n.rooms.find(id.Room(n.login(id.UID(fmt.Sprint("u", i))).create(Settings{MembersMax: 2})))
			if err == nil {
				err = n.rooms.hold("10.0.0.1:1", r, "traveller", time.Minute)
			}
			if err != nil {
				t.Fatal(err)
			}
			rooms = append(rooms, r)
		}
		for i, r := range rooms {
			if held := len(r.m.holds); held != i/4 {
				t.Errorf("room %d holds %d seats", i, held)
			}
		}
		n.audit(t, 4)
	})
}

// Whom chance led into a room does not keep others out of it.
func TestStrangersReserveNoSeats(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		a, b := n.login("a"), n.login("b")
		room := a.random(four)
		b.random(four)
		seats := with([]byte(room), "\x00\x00\x00\x01x", "\x00\x00\x00\x01y")
		b.wants(CmdReserve, seats, "status 4 code 2007 only the room's owner")
		if got := n.login("d").random(four); got != room {
			t.Error("the third player is kept out")
		}
	})
}

// What one maker leaves behind in properties is bounded with the rooms themselves.
func TestPropertiesOfEmptyRooms(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		a := n.login("a")
		for range 20 {
			pass(time.Second)
			room := a.create(Settings{AllowEmpty: true, EmptyTTL: time.Hour})
			for i := range 4 {
				a.must(CmdSet, with(room, "\x00\x00\x00\x01", fmt.Sprint(i), strings.Repeat("x", 16_000)))
			}
			a.must(CmdLeave, room)
		}
		synctest.Wait()
		kept := 0
		for _, r := range n.rooms.index.rooms {
			kept += r.m.props.bytes
		}
		if kept > 4*PropertiesBytesMax {
			t.Errorf("%d KiB of one client's are kept", kept>>10)
		}
	})
}
