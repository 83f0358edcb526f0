package room

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users"
	"github.com/Diarkis/diarkis/internal/wire"
)

type counter struct{ atomic.Int64 }

func (c *counter) get() int { return int(c.Load()) }

// counted is a connection that counts what it gets.
type counted struct {
	nowhere
	messages counter // broadcasts, merged ones each
	pushes   counter // packets of them, and all other pushes
	answers  [8]counter
}

func (l *counted) Send(_ *transport.Batch, msg []byte, _ reliable.Reliability) error {
	m, err := wire.ParseMessage(msg)
	if err != nil {
		return err
	}
	if m.Kind == wire.Response {
		l.answers[m.Status].Add(1)
		return nil
	}
	l.pushes.Add(1)
	for b := m.Payload; m.Cmd == CmdBroadcast && len(b) > 0; l.messages.Add(1) {
		p := payload{b: b}
		p.sized(MessageMax)
		b = p.b
	}
	return nil
}

func (l *counted) SendShared(b *transport.Batch, msg *reliable.Shared, rel reliable.Reliability) error {
	return l.Send(b, msg.Bytes(), rel)
}

func (l *counted) status(s byte) int { return l.answers[s].get() }

// arena is a room of many with links that count. All members are in one room.
type arena struct {
	*node
	t     *testing.T
	room  []byte
	users []*users.User
	links []*counted
}

func newArena(t *testing.T, size int, s Settings) *arena {
	c := newCluster(t, Config{}, "udp")
	t.Cleanup(c.stop)
	a := &arena{node: c.nodes[0], t: t}
	s.MembersMax, s.EmptyTTL = MembersMax, time.Minute
	r, err := a.rooms.create(s, "", true)
	if err != nil {
		t.Fatal(err)
	}
	a.node.rooms.publish(r)
	a.room = []byte(r.id)
	for range size {
		a.join()
	}
	return a
}

func (a *arena) join() {
	reply, err := a.node.users.Reserve(users.ReserveRequest{UID: id.UID(fmt.Sprint("user", len(a.users)))})
	if err != nil {
		a.t.Fatal(err)
	}
	u, l := a.node.users.BySID(reply.SID), &counted{}
	a.node.users.UserOpened(nil, u, l, false)
	r, err := a.rooms.find(id.Room(a.room))
	if err == nil {
		err = a.rooms.enter(r, u, nil, nil)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	a.users, a.links = append(a.users, u), append(a.links, l)
}

// serve has member i send a command, with an id when that is not 0.
func (a *arena) serve(i int, cmd uint16, id uint64, rel reliable.Reliability, parts ...string) {
	m := wire.Message{Ver: Ver, Cmd: cmd, HasID: id != 0, ID: id, Payload: with(a.room, parts...)}
	a.router.Serve(nil, a.users[i], m, rel)
	if cmd != CmdBroadcast {
		synctest.Wait()
	}
}

func (a *arena) broadcast(i, n int) {
	for range n {
		a.serve(i, CmdBroadcast, 0, reliable.Reliable, "\x01", "spam")
	}
}

func bubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

// One member sends as fast as the node takes it: the others get what the budgets allow,
// merged or not, and the sender is told, though not of each refusal.
func TestFloodIsTheSendersOwn(t *testing.T) {
	for _, interval := range []time.Duration{0, 100 * time.Millisecond} {
		for _, size := range []int{8, 1000} {
			bubble(t, fmt.Sprint(size, " members, interval ", interval), func(t *testing.T) {
				a := newArena(t, size, Settings{Interval: interval})
				const attack = 5000
				a.broadcast(0, attack)
				most := min(2048, 50_000/(size-1)+1)
				pass(time.Second) // what is merged comes out
				if got := a.links[1].messages.get(); got > most || got < most-1 {
					t.Errorf("another member got %d of %d broadcasts, want %d", got, attack, most)
				}
				if told := a.links[0].status(4); told < 1 || told > 100 {
					t.Errorf("%d refusals were told", told)
				}
				a.broadcast(0, attack)
				perSecond := min(500, 25_000/(size-1)+1)
				pass(time.Second)
				if got := a.links[1].messages.get() - most; got > perSecond+1 || got < perSecond-1 {
					t.Errorf("another member got %d broadcasts a second later, want %d", got, perSecond)
				}
				before := a.links[2].messages.get()
				a.broadcast(1, 1)
				pass(time.Second)
				if a.links[2].messages.get() != before+1 {
					t.Error("another member can't speak any more")
				}
			})
		}
	}
}

// The defaults are out of the way of the largest games.
func TestBudgetsNeverTouchPlay(t *testing.T) {
	for _, c := range []struct{ size, perSecond int }{{100, 60}, {1000, 20}} {
		bubble(t, fmt.Sprint(c), func(t *testing.T) {
			a := newArena(t, c.size, Settings{})
			const seconds = 20
			for range seconds * c.perSecond {
				a.broadcast(0, 1)
				pass(time.Second / time.Duration(c.perSecond))
			}
			if got, want := a.links[1].messages.get(), seconds*c.perSecond; got != want {
				t.Errorf("%d of %d broadcasts", got, want)
			}
		})
	}
	bubble(t, "a client that resumes sends what it queued", func(t *testing.T) {
		a := newArena(t, 20, Settings{})
		u := a.users[0]
		a.node.users.UserLost(u)
		a.node.users.UserOpened(nil, u, a.links[0], true)
		a.broadcast(0, 2000)
		if got := a.links[1].messages.get(); got != 2000 {
			t.Errorf("%d of 2000 broadcasts", got)
		}
	})
}

// What a user has used up is not given back by a new connection.
func TestBudgetSurvivesResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, 8, Settings{})
		for range 5 {
			a.broadcast(0, 3000)
			a.node.users.UserLost(a.users[0])
			a.node.users.UserOpened(nil, a.users[0], a.links[0], true)
		}
		if got := a.links[1].messages.get(); got > 2048 {
			t.Errorf("another member got %d broadcasts", got)
		}
	})
}

// Requests, known or not, that are refused fill neither the sender's queue nor a log.
func TestRefusalsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, 2, Settings{})
		for i := range 10_000 {
			a.router.Serve(nil, a.users[0], wire.Message{Ver: 9, Cmd: 999, HasID: true, ID: uint64(i + 1)}, reliable.Reliable)
		}
		if got := a.links[0].status(4); got != 2048+refusalsTold {
			t.Errorf("%d answers", got)
		}
	})
}

const refusalsTold = 100

// Unreliable messages without an id are dropped, because nobody waits for the answer.
func TestUnreliableFloodIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, 2, Settings{})
		for range 5000 {
			a.serve(0, CmdBroadcast, 0, reliable.Unreliable, "\x00", "spam")
		}
		if got := a.links[0].status(4); got != 0 {
			t.Errorf("%d refusals were told", got)
		}
		if got := a.links[1].messages.get(); got != 2048 {
			t.Errorf("%d of 5000 got through", got)
		}
	})
}

// Leaving is never refused, so what it makes others receive is paid before the next
// join; all pushes that a client causes cost alike.
func TestEveryPushOfAClientIsPaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, 1000, Settings{})
		big := string(bytes.Repeat([]byte("x"), 1000))
		for range 200 { // 2,000 pushes a round
			a.serve(999, CmdLeave, 0, reliable.Reliable, big)
			a.serve(999, CmdJoin, 0, reliable.Reliable, big)
		}
		if got := a.links[1].pushes.get(); got > 52 {
			t.Errorf("another member got %d pushes", got)
		}
		a.serve(999, CmdLeave, 7, reliable.Reliable) // in or out by now: not refused for the rate
		if n := a.rooms.Rooms()[0].Members; n != 999 {
			t.Errorf("%d members after leaving", n)
		}
		for range 200 { // the owner hands the room on
			a.serve(0, CmdOwnerChange, 0, reliable.Reliable, "user1")
			a.serve(1, CmdOwnerChange, 0, reliable.Reliable, "user0")
		}
		if got := a.links[2].pushes.get(); got > 52+104 {
			t.Errorf("another member got %d pushes", got)
		}
		a.broadcast(2, 5000) // the budget of commands is empty
		a.serve(2, CmdLeave, 0, reliable.Reliable)
		if n := a.rooms.Rooms()[0].Members; n != 998 {
			t.Errorf("%d members after one over the budget left", n)
		}
	})
}

// What the server's own code does is charged to nobody.
func TestServersOwnPushesAreFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, 1000, Settings{})
		for range 300 {
			if err := a.rooms.Kick(a.users[999], []byte("out")); err != nil {
				t.Fatal(err)
			}
			r, _ := a.rooms.find(id.Room(a.room))
			if err := a.rooms.enter(r, a.users[999], nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		a.broadcast(999, 1)
		if got := a.links[1].messages.get(); got != 1 {
			t.Error("who was kicked pays for it")
		}
	})
}

// A user who is moved here brings no full budget along: else two rooms on two nodes
// would be an endless one.
func TestMovingDoesNotFillTheBudget(t *testing.T) {
	on(t, Config{}, twoUDP, func(t *testing.T, c *cluster) {
		a, b := c.nodes[0].login("a"), c.nodes[1].login("b")
		room := a.create(Settings{})
		b.must(CmdJoin, room)
		a.pushes()
		for range 5000 {
			b.serve(CmdBroadcast, 0, with(room, "\x01", "x"))
		}
		if got := len(a.pushes()); got < 512 || got > 520 {
			t.Errorf("%d broadcasts right after a move", got)
		}
	})
}

// A long message costs its sender what it costs everyone else: its datagrams.
func TestLongMessagesCountByDatagrams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, 1000, Settings{})
		long := string(make([]byte, 60_000))
		for range 100 {
			a.serve(0, CmdBroadcast, 0, reliable.Reliable, "\x01", long)
		}
		if got := a.links[1].messages.get(); got != 1 {
			t.Errorf("another member got %d messages of 60,000 bytes at once, want 1", got)
		}
		for range 100 {
			a.serve(1, CmdMessage, 0, reliable.Reliable, "\x01\x00\x01\x00\x00\x00\x05user2", long)
		}
		if got := a.links[2].pushes.get() - 1; got != 100 {
			t.Errorf("one member got %d of 100 messages", got)
		}
	})
}

// Who asks for long answers pays for them, and still gets short ones.
func TestLongAnswersHaveABudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newArena(t, 2, Settings{})
		a.serve(0, CmdSet, 0, reliable.Reliable, "\x00\x00\x00\x01k", string(make([]byte, 16_000)))
		a.serve(0, CmdSet, 0, reliable.Reliable, "\x00\x00\x00\x01s", "short")
		const asked = 1900
		for i := range asked { // while there are commands, deliveries run out
			if i%8 == 0 {
				a.users[0].Delivered(time.Now(), 200)
			}
			a.serve(0, CmdGet, 1, reliable.Reliable, "k")
		}
		// 14 deliveries each, and 200 besides for every eighth: 39
		if got, want := a.links[0].status(1), 50_000/39; got < want-10 || got > want+10 {
			t.Errorf("%d answers of 16,000 bytes, want %d", got, want)
		}
		before := a.links[0].status(1)
		a.serve(0, CmdGet, 1, reliable.Reliable, "s")
		a.serve(0, CmdMemberIDs, 1, reliable.Reliable)
		if got := a.links[0].status(1) - before; got != 2 {
			t.Errorf("%d of 2 short answers", got)
		}
	})
}
