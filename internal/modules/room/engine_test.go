package room

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/users"
)

// on runs f in a bubble with a cluster and checks that nothing is left over.
func on(t *testing.T, cfg Config, roles []string, f func(t *testing.T, c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, cfg, roles...)
		defer c.stop()
		f(t, c)
		for _, cl := range c.clients {
			cl.disconnect()
		}
		synctest.Wait()
		for i, n := range c.nodes {
			n.rooms.mu.RLock()
			if len(n.rooms.index.in) != 0 {
				t.Errorf("node %d: %d users are still in rooms", i, len(n.rooms.index.in))
			}
			n.rooms.mu.RUnlock()
		}
		pass(time.Hour)
		for i, n := range c.nodes {
			if n.rooms.Count() != 0 || len(n.rooms.index.open) != 0 || len(n.rooms.index.held) != 0 {
				t.Errorf("node %d: %d rooms, %d open, %d held are left", i, n.rooms.Count(), len(n.rooms.index.open), len(n.rooms.index.held))
			}
		}
	})
}

var udp, twoUDP = []string{"udp"}, []string{"udp", "udp"}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestRoomByCommands(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0].login("a"), c.nodes[0].login("b")
		created := a.must(CmdCreate, options(Settings{MembersMax: 3}))
		room := created[4:]
		if s := binary.BigEndian.Uint32(created); int64(s) != time.Now().Unix() || len(room) != id.RoomBytes {
			t.Errorf("create answered %d ‖ %q", s, room)
		}
		if got := b.must(CmdJoin, with(room, "hello")); !slices.Equal(got, created) {
			t.Errorf("join answered %q, want %q", got, created)
		}
		equal(t, "a", a.pushes(), []string{"101 hello"})
		if got := b.must(CmdMemberIDs, room); string(got) != "\x00\x00\x00\x01a\x00\x00\x00\x01b" {
			t.Errorf("member ids %q", got)
		}
		if got := b.must(CmdMemberCount, room); string(got) != "\x00\x02\x00\x03" {
			t.Errorf("member count %q", got)
		}
		if got := b.must(CmdOwnerID, room); string(got) != "a" {
			t.Errorf("owner %q", got)
		}
		if got := b.must(CmdBroadcast, with(room, "\x01", "x")); len(got) != 0 {
			t.Errorf("broadcast answered %q", got)
		}
		b.serve(CmdBroadcast, 0, with(room, "\x00", "y"))
		b.serve(CmdMessage, 0, with(room, "\x01\x00\x02", "\x00\x00\x00\x01a", "\x00\x00\x00\x01z", "psst"))
		equal(t, "a", a.pushes(), []string{"103 x", "103 y", "104 psst"})
		a.must(CmdSet, with(room, "\x00\x00\x00\x03", "map", "desert"))
		if got := b.must(CmdGet, with(room, "map")); string(got) != "desert" {
			t.Errorf("property %q", got)
		}
		minusTwo := "\xff\xff\xff\xff\xff\xff\xff\xfe"
		if got := b.must(CmdIncr, with(room, "\x00\x00\x00\x01", "n", minusTwo)); string(got) != minusTwo {
			t.Errorf("increment %q", got)
		}
		if got := b.must(CmdGet, with(room, "n")); string(got) != minusTwo {
			t.Errorf("incremented property %q", got)
		}
		b.pushes()
		a.must(CmdOwnerChange, with(room, "b"))
		equal(t, "b", b.pushes(), []string{"14 b"})
		b.must(CmdReserve, with(room, "\x00\x00\x00\x01d"))
		b.must(CmdCancel, with(room, "\x00\x00\x00\x01d"))
		a.pushes()
		if got := b.must(CmdLeave, with(room, "bye")); len(got) != 0 {
			t.Errorf("leave answered %q", got)
		}
		equal(t, "a", a.pushes(), []string{"102 bye", "14 a"})
		equal(t, "b", b.pushes(), nil)
		a.must(CmdLeave, room)
		if n := c.nodes[0].rooms.Count(); n != 0 {
			t.Errorf("%d rooms after the last one left", n)
		}
	})
}

func TestErrorCodes(t *testing.T) {
	on(t, Config{MembersMax: 100}, []string{"udp", "tcp"}, func(t *testing.T, c *cluster) {
		a, b, d := c.nodes[0].login("a"), c.nodes[0].login("b"), c.nodes[0].login("d")
		tcp := c.nodes[1].login("t")
		room := a.create(Settings{MembersMax: 2})
		away := tcp.create(Settings{})
		b.must(CmdJoin, room)
		b.must(CmdSet, with(room, "\x00\x00\x00\x01k", "bytes"))
		nowhere := []byte(id.NewRoom(c.nodes[0].rooms.addr, [8]byte{7}))
		unknown := []byte(strings.Replace(string(nowhere), "1f40", "ffff", 1)) // another port
		empty := d.must(CmdCreate, appendOptions(nil, Settings{MembersMax: 2, EmptyTTL: 10 * time.Second}))[4:]
		for _, x := range []struct {
			name    string
			who     *client
			cmd     uint16
			payload []byte
			want    string
		}{
			{"create with a short payload", d, CmdCreate, []byte{1}, "status 4 code 1000"},
			{"create with one seat", d, CmdCreate, options(Settings{MembersMax: 1}), "status 4 code 1001"},
			{"create over the node's limit", d, CmdCreate, options(Settings{MembersMax: 101}), "status 4 code 1001"},
			{"create in a room", a, CmdCreate, options(Settings{}), "status 4 code 2000"},
			{"join nothing", d, CmdJoin, nil, "status 4 code 2004"},
			{"join half an id", d, CmdJoin, room[:9], "status 4 code 2004 room id must be"},
			{"join a name", d, CmdJoin, []byte("lobby"), "status 4 code 2004"},
			{"join a long name", d, CmdJoin, bytes.Repeat([]byte("lobby"), 20), "status 4 code 2004"},
			{"ask about a name", d, CmdMemberCount, []byte("lobby"), "status 4 code 2004"},
			{"join nonsense", d, CmdJoin, []byte(strings.Repeat("z", 52)), "status 4 code 2004"},
			{"join a room that is not", d, CmdJoin, nowhere, "status 4 code 2009"},
			{"join a room of an unknown node", d, CmdJoin, unknown, "status 4 code 1002"},
			{"join a room of another transport", d, CmdJoin, away, "status 4 code 2002"},
			{"join a full room", d, CmdJoin, room, "status 4 code 2002"},
			{"join twice", b, CmdJoin, room, "status 4 code 2002"},
			{"random join in a room", b, CmdRandomJoin, options(Settings{}), "status 4 code 2002"},
			{"leave as a stranger", d, CmdLeave, room, "status 4 code 2001"},
			{"leave what is not", d, CmdLeave, nowhere, "status 4 code 2009"},
			{"broadcast as a stranger", d, CmdBroadcast, with(room, "\x01x"), "status 4 code 2001"},
			{"broadcast without a byte", a, CmdBroadcast, room, "status 4 code 1000"},
			{"message without a count", a, CmdMessage, with(room, "\x01"), "status 4 code 1000"},
			{"message as a stranger", d, CmdMessage, with(room, "\x01\x00\x00"), "status 4 code 2001"},
			{"members of nonsense", d, CmdMemberIDs, []byte(strings.Repeat("z", 52)), "status 4 code 2004"},
			{"owner of an empty room", d, CmdOwnerID, empty, "status 4 code 2005"},
			{"owner change by another", b, CmdOwnerChange, with(room, "b"), "status 4 code 2011"},
			{"owner change to a stranger", a, CmdOwnerChange, with(room, "d"), "status 4 code 2001"},
			{"owner change to nobody", a, CmdOwnerChange, room, "status 4 code 1001"},
			{"set without a name", a, CmdSet, with(room, "\x00\x00\x00\x00v"), "status 4 code 1001"},
			{"set as a stranger", d, CmdSet, with(room, "\x00\x00\x00\x01kv"), "status 4 code 2001"},
			{"get what is not", d, CmdGet, with(room, "none"), "status 4 code 2011 room has no such property"},
			{"a long unreliable broadcast", a, CmdBroadcast, with(room, "\x00", strings.Repeat("x", 1112)), "status 4 code 1001 an unreliable room message is at most 1111 bytes"},
			{"a long unreliable message", a, CmdMessage, with(room, "\x00\x00\x00", strings.Repeat("x", 1112)), "status 4 code 1001 an unreliable room message is at most 1111 bytes"},
			{"a long broadcast", a, CmdBroadcast, with(room, "\x01", strings.Repeat("x", 65537)), "status 4 code 1001 a room message is at most 65536 bytes"},
			{"increment bytes", a, CmdIncr, with(room, "\x00\x00\x00\x01k", "12345678"), "status 4 code 2006"},
			{"reserve too many", a, CmdReserve, with(room, "\x00\x00\x00\x01x"), "status 4 code 2007"},
			{"reserve as a stranger", d, CmdReserve, with(room, "\x00\x00\x00\x01x"), "status 4 code 2001"},
			{"an unknown command", d, 999, nil, "status 4 code 1001"},
		} {
			if _, err := x.who.ask(x.cmd, x.payload); err == nil || !strings.HasPrefix(err.Error(), x.want) {
				t.Errorf("%s: %v, want %s", x.name, err, x.want)
			}
		}
		equal(t, "a after all that", a.pushes(), nil)
	})
}

func TestErrorsWithoutIDAreAnswered(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		a := c.nodes[0].login("a")
		a.serve(CmdBroadcast, 0, []byte("short"))
		synctest.Wait()
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.received) != 1 || a.received[0].HasID || a.received[0].Status != 4 {
			t.Errorf("answers %+v", a.received)
		}
	})
}

func TestLostConnectionLeaves(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		a, b, d := n.login("a"), n.login("b"), n.login("d")
		room := a.create(Settings{})
		b.must(CmdJoin, room)
		d.must(CmdJoin, room)
		_, u := d.where()
		if err := n.rooms.SetDiscard(u, []byte("d is gone")); err != nil {
			t.Fatal(err)
		}
		b.disconnect()
		d.disconnect()
		synctest.Wait()
		got := a.pushes()
		slices.Sort(got) // the two may be told in either order
		equal(t, "a", got, []string{"102 " + string(room) + "b", "102 d is gone"})
		if err := n.rooms.Kick(u, nil); err != ErrNotIn {
			t.Errorf("kick who is gone: %v", err)
		}
	})
}

func TestMergedBroadcastsAndTTL(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0].login("a"), c.nodes[0].login("b")
		room := a.create(Settings{Interval: 200 * time.Millisecond, AllowEmpty: true})
		b.must(CmdJoin, room)
		a.serve(CmdBroadcast, 0, with(room, "\x01", "1"))
		pass(150 * time.Millisecond)
		a.serve(CmdBroadcast, 0, with(room, "\x01", "2"))
		synctest.Wait()
		equal(t, "early", b.pushes(), nil)
		pass(51 * time.Millisecond)
		synctest.Wait()
		equal(t, "merged", b.pushes(), []string{"103 1+2"})
		a.must(CmdLeave, room)
		b.must(CmdLeave, room)
		pass(9 * time.Second)
		if c.nodes[0].rooms.Count() != 1 {
			t.Error("an empty room ended before its ttl")
		}
		pass(2 * time.Second)
		if c.nodes[0].rooms.Count() != 0 {
			t.Error("an empty room outlived its ttl")
		}
	})
}

func TestServerSide(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		a, b := n.login("a"), n.login("b")
		room := a.create(Settings{})
		b.must(CmdJoin, room)
		_, u := b.where()
		if err := n.rooms.Kick(u, []byte("out")); err != nil {
			t.Fatal(err)
		}
		equal(t, "a", a.pushes(), []string{"102 out"})
		equal(t, "b", b.pushes(), []string{"102 out"})
		b.must(CmdJoin, room)
		if infos := n.rooms.Rooms(); len(infos) != 1 || infos[0].Members != 2 || infos[0].Owner != "a" || string(infos[0].ID) != string(room) {
			t.Errorf("rooms %+v", infos)
		}
		if err := n.rooms.Delete(id.Room(room), []byte("end")); err != nil {
			t.Fatal(err)
		}
		equal(t, "a", a.pushes(), []string{"102 end"})
		if err := n.rooms.Delete(id.Room(room), nil); err != ErrNotFound {
			t.Errorf("delete twice: %v", err)
		}
		a.create(Settings{}) // both are free again
		b.create(Settings{})
	})
}

func TestHooks(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		var mu sync.Mutex
		var log []string
		note := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			log = append(log, fmt.Sprintf(format, args...))
		}
		n.rooms.SetHooks(Hooks{
			JoinAllowed: func(_ id.Room, u *users.User) error {
				pass(time.Millisecond) // may block
				if u.ID == "banned" {
					return invalid("banned")
				}
				return nil
			},
			Joined:       func(_ id.Room, u *users.User) { note("%v joined", u) },
			Left:         func(_ id.Room, u *users.User) { note("%v left", u) },
			OwnerChanged: func(_ id.Room, before, after id.UID) { note("owner %q to %q", before, after) },
			Ended:        func(id.Room) { note("ended") },
		})
		a, b, x := n.login("a"), n.login("b"), n.login("banned")
		ask := func(cl *client, cmd uint16, payload []byte) []byte { // the hook's time has to pass
			cl.nextID++
			cl.serve(cmd, cl.nextID, payload)
			pass(10 * time.Millisecond)
			cl.mu.Lock()
			defer cl.mu.Unlock()
			return cl.received[len(cl.received)-1].Payload
		}
		room := ask(a, CmdCreate, options(Settings{}))[4:]
		ask(b, CmdJoin, room)
		if got := ask(x, CmdJoin, room); string(got[4:]) != "banned" {
			t.Errorf("a banned user got %q", got)
		}
		ask(a, CmdLeave, room)
		b.disconnect()
		synctest.Wait()
		equal(t, "hooks", log, []string{"a joined", `owner "" to "a"`, "b joined",
			"a left", `owner "a" to "b"`, "b left", `owner "b" to ""`, "ended"})
	})
}

// All members of a room see the same order, whoever sends, and the one who joins
// gets their answer before anything that happened in the room after it.
func TestOneOrderForAll(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		owner := n.login("owner")
		room := owner.create(Settings{MembersMax: 100})
		watchers := []*client{n.login("w1"), n.login("w2"), n.login("w3")}
		for _, w := range watchers[:2] {
			w.must(CmdJoin, room)
		}
		var senders []*client
		for i := range 8 {
			s := n.login(id.UID(fmt.Sprintf("s%d", i)))
			s.must(CmdJoin, room)
			senders = append(senders, s)
		}
		for _, w := range watchers {
			w.pushes()
		}
		var wg sync.WaitGroup
		for _, s := range senders {
			wg.Go(func() {
				for k := range 50 {
					s.serve(CmdBroadcast, 0, with(room, "\x01", fmt.Sprintf("%s-%d", s.uid, k)))
				}
			})
		}
		wg.Go(func() { watchers[2].serve(CmdJoin, 1, room) })
		wg.Wait()
		synctest.Wait()
		late := watchers[2].received
		if len(late) == 0 || late[0].Cmd != CmdJoin || late[0].Status != 1 {
			t.Errorf("the first thing after joining was %+v", late)
		}
		one, two, three := watchers[0].pushes(), watchers[1].pushes(), watchers[2].pushes()
		if len(one) != 400 || !slices.Equal(one, two) {
			t.Errorf("members saw %d and %d messages, or another order", len(one), len(two))
		}
		equal(t, "the late one", three, one[len(one)-len(three):])
	})
}

// Users join, talk, leave and vanish at the same time.
func TestEverythingAtOnce(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		var wg sync.WaitGroup
		for i := range 24 {
			cl := n.login(id.UID(fmt.Sprintf("u%d", i)))
			wg.Go(func() {
				for k := range 20 {
					cl.serve(CmdRandomJoin, uint64(k+1), options(Settings{MembersMax: 3}))
					pass(time.Millisecond)
					n.rooms.mu.RLock()
					_, u := cl.where()
					r := n.rooms.index.in[u].room
					n.rooms.mu.RUnlock()
					if r == nil {
						continue
					}
					cl.serve(CmdBroadcast, 0, with([]byte(r.id), "\x01x"))
					if k == 15 && i%3 == 0 {
						cl.disconnect()
						return
					}
					cl.serve(CmdLeave, 0, []byte(r.id))
					pass(time.Millisecond)
				}
			})
		}
		wg.Wait()
	})
}
