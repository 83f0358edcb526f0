package room

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users"
)

// careless hooks panic, all of them, after they were noted.
func careless(log *[]string) Hooks {
	var mu sync.Mutex
	note := func(what string) {
		mu.Lock()
		*log = append(*log, what)
		mu.Unlock()
		panic(what)
	}
	return Hooks{
		Joined:       func(id.Room, *users.User) { note("joined") },
		Left:         func(id.Room, *users.User) { note("left") },
		OwnerChanged: func(id.Room, id.UID, id.UID) { note("owner changed") },
		Ended:        func(id.Room) { note("ended") },
	}
}

// A hook that panics takes nothing with it: not the process, whatever goroutine called
// it, not the hooks after it, no lock and no table.
func TestPanickingHooks(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		var log []string
		n.rooms.SetHooks(careless(&log))
		a, b := n.login("a"), n.login("b")
		room := a.create(Settings{AllowEmpty: true})
		b.must(CmdJoin, room)
		a.must(CmdLeave, room)
		b.disconnect() // the goroutine of an ended user
		pass(time.Minute)
		synctest.Wait() // the room's timer
		equal(t, "hooks", log, []string{"joined", "owner changed", "joined",
			"left", "owner changed", "left", "owner changed", "ended"})
		if got := testutil.ToFloat64(n.rooms.metrics.hookPanics); got != float64(len(log)) {
			t.Errorf("%v panics counted, want %d", got, len(log))
		}
		if n.rooms.Count() != 0 {
			t.Error("the room is still listed")
		}
		a.create(Settings{}) // and all goes on
	})
}

// A panic under a room's lock, which would be a fault of ours, takes one command with it
// and not everybody's in the room.
func TestPanicFreesTheRoom(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		a, b := n.login("a"), n.login("b")
		room := a.create(Settings{})
		r, err := n.rooms.find(id.Room(room))
		if err != nil {
			t.Fatal(err)
		}
		_ = n.rooms.guard.Do("fault", func() {
			_, _ = n.rooms.step(nil, r, input{Op: OpTick}, func(*transport.Batch) { panic("ours") })
		})
		if !r.mu.TryLock() {
			t.Fatal("the room is locked for good")
		}
		r.mu.Unlock()
		b.must(CmdJoin, room)
	})
}

// Nobody gets in whom the application could not judge.
func TestPanickingJoinAllowed(t *testing.T) {
	on(t, Config{}, udp, func(t *testing.T, c *cluster) {
		n := c.nodes[0]
		a, b := n.login("a"), n.login("b")
		room := a.create(Settings{MembersMax: 2})
		n.rooms.SetHooks(Hooks{JoinAllowed: func(id.Room, *users.User) error { panic("no idea") }})
		if _, err := b.ask(CmdJoin, room); err == nil || !strings.HasPrefix(err.Error(), "status 5 code 2002") {
			t.Errorf("join: %v", err)
		}
		if _, err := b.ask(CmdRandomJoin, options(Settings{MembersMax: 2})); err == nil {
			t.Error("joined at random")
		}
		n.rooms.SetHooks(Hooks{})
		b.must(CmdJoin, room) // the seat is free
	})
}
