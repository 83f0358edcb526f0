//go:build unix

package e2e

import (
	"context"
	bin "encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// What one client makes others receive, and what it leaves behind.

// flood is what to say in a room to make the others hear as much as possible.
type flood func(a *arena, r client.RoomID) []wire.Message

func builtin(cmd uint16, payload []byte) wire.Message {
	return wire.Message{Kind: wire.Request, Ver: client.VerBuiltin, Cmd: cmd, Payload: payload}
}

// smallBroadcasts is the smallest reliable broadcast: no message at all.
func smallBroadcasts(_ *arena, r client.RoomID) []wire.Message {
	return []wire.Message{builtin(client.CmdRoomBroadcast, append([]byte(r), 1))}
}

// messagesToAll is the smallest reliable message to each member by name.
func messagesToAll(a *arena, r client.RoomID) []wire.Message {
	b := append([]byte(r), 1)
	b = bin.BigEndian.AppendUint16(b, uint16(len(a.crew.players)))
	for _, h := range a.crew.players {
		b = bin.BigEndian.AppendUint32(b, uint32(len(h.uid())))
		b = append(b, h.uid()...)
	}
	return []wire.Message{builtin(client.CmdRoomMessage, b)}
}

// comingsAndGoings tells the others of each.
func comingsAndGoings(_ *arena, r client.RoomID) []wire.Message {
	b := append([]byte(r), '!')
	return []wire.Message{builtin(client.CmdRoomLeave, b), builtin(client.CmdRoomJoin, b)}
}

// floodRoom joins the honest players' room and sends, within its packet and byte limits,
// packets full of what, all at once or as fast as they are carried out.
func floodRoom(what flood) func(*arena) { return func(a *arena) { a.floodRoom(what) } }

func (a *arena) floodRoom(what flood) {
	r := a.crew.players[0].room
	messages := what(a, r)
	const packets = 180 // 210 kB, of 400 packets and 256 KiB at once
	var l *link
	for round := range a.n(3, 6) {
		if round > 0 {
			a.last(2 * time.Second) // 128 KiB a second come back
		}
		if l == nil || l.end() != "open" {
			l = a.mustAttack(fmt.Sprintf("mallory-%d", round))
			if _, err := l.request(a.ctx, client.CmdRoomJoin, []byte(r)); err != nil {
				a.t.Logf("the attacker can't join: %v", err)
				continue
			}
		}
		frames, each := l.full(false, messages...)
		for i := range packets {
			l.packet(frames)
			if round%2 == 1 && i%3 == 2 {
				a.last(300 * time.Microsecond)
			}
		}
		a.last(time.Second)
		gone := a.crew.gone()
		members, _, err := a.crew.players[0].MemberCount(a.ctx, r)
		a.t.Logf("%d packets of %d messages into a room of %d: %d honest members closed, %d left in the room (%v); attacker %s, %d answers refused",
			packets, each, len(a.crew.players)+1, gone, members, err, l.end(), l.answersRefused())
		if gone > 0 {
			room := "there"
			if err != nil {
				room = "gone"
			}
			a.fault("%d of %d honest members closed, the room is %s; the attacker is %s", gone, len(a.crew.players), room, l.end())
			return
		}
	}
}

// burstAfterBurst sends the bytes of a burst as long broadcasts, and comes back for the
// next: by a resume, or else with a new sid. One honest member has a line of 1 MB/s.
func burstAfterBurst(resume bool) func(*arena) {
	return func(a *arena) {
		r := a.crew.players[0].room
		long := builtin(client.CmdRoomBroadcast, append(append([]byte(r), 1), make([]byte, 60_000)...)).AppendTo(nil)
		join := func(uid string) *link {
			l := a.mustAttack(uid)
			if _, err := l.request(a.ctx, client.CmdRoomJoin, []byte(r)); err != nil {
				a.t.Logf("%s can't join: %v", uid, err)
			}
			return l
		}
		slow := join("slow")
		slow.mu.Lock()
		slow.pace = 1200 * time.Microsecond
		slow.mu.Unlock()
		l := join("mallory")
		bursts := a.n(12, 60)
		for range bursts {
			l.mu.Lock()
			for range 4 { // of 256 KiB
				_ = l.machine.Send(time.Now(), long, reliable.Reliable)
			}
			l.flushLocked(time.Now())
			l.mu.Unlock()
			l.acked(300 * time.Millisecond)
			if l.drop(); !resume {
				l = join("mallory")
				continue
			}
			ctx, cancel := context.WithTimeout(a.ctx, entryPatience)
			if err := l.shakeHands(ctx, true); err != nil {
				a.t.Logf("the attacker can't resume: %v", err)
			}
			cancel()
		}
		a.t.Logf("%d bursts: %d honest members closed, the slow one %s; attacker %s, %d answers refused", bursts, a.crew.gone(), slow.end(), l.end(), l.answersRefused())
		if slow.end() != "open" {
			a.fault("the member with a slow line is %s", slow.end())
		}
	}
}

// talkALot is no attack: what games do has to go through.
func talkALot(seconds, fullSeconds int) func(*arena) {
	return func(a *arena) { a.last(time.Duration(a.n(seconds, fullSeconds)) * time.Second) }
}

// hoardRooms creates rooms that nobody joins, for as long as a client may ask for.
func hoardRooms(a *arena) {
	l := a.mustAttack("mallory")
	before := a.metric("diarkis_rooms")
	settings := roomSettings(2, true, false, 65_535)
	m := builtin(client.CmdRoomCreate, settings)
	asked, want := 0, a.n(4_000, 140_000)
	tick := time.NewTicker(8 * time.Millisecond) // 125 packets a second, of 200
	defer tick.Stop()
	for again := 0; asked < want && a.ctx.Err() == nil; {
		if l.end() != "open" {
			// Thrown out: under another name it goes on.
			again++
			next, err := a.attacker(fmt.Sprintf("mallory-%d", again))
			if err != nil {
				a.t.Logf("the attacker can't enter again: %v", err)
				break
			}
			l = next
		}
		frames, n := l.full(true, m)
		l.packet(frames)
		asked += n
		<-tick.C
	}
	rooms := a.metric("diarkis_rooms") - before
	a.t.Logf("%d rooms asked for, %.0f are there; attacker %s, %d answers refused", asked, rooms, l.end(), l.answersRefused())
	if rooms > 1000 {
		a.fault("one client holds %.0f rooms that nobody is in", rooms)
	}
}

// litterRooms leaves empty rooms behind that a random join finds, many makers a few each.
func litterRooms(a *arena) {
	settings := roomSettings(4, true, true, 60)
	makers := a.n(30, 120)
	made := 0
	for i := range makers {
		l := a.mustAttack(fmt.Sprintf("litterer-%d", i))
		for range 10 {
			answer, err := l.request(a.ctx, client.CmdRoomRandomCreate, settings)
			if err != nil {
				continue // refused: that is what limits are for
			}
			made++
			if _, err := l.request(a.ctx, client.CmdRoomLeave, answer.Payload[4:]); err != nil {
				a.t.Fatalf("leave: %v", err)
			}
		}
	}
	a.t.Logf("%d empty rooms left behind by %d makers", made, makers)
	rooms := map[client.RoomID]int{}
	const players = 16
	for i := range players {
		uid := fmt.Sprintf("joiner-%d", i)
		c, err := a.connect(a.ctx, client.Options{UID: uid})
		if err != nil {
			a.t.Fatalf("%s: %v", uid, err)
		}
		a.t.Cleanup(func() { _ = c.Close(a.ctx) })
		r, err := c.RandomJoinRoom(a.ctx, client.RoomOptions{MembersMax: 4, KeepEmpty: true, TTL: time.Minute}, nil)
		if err != nil {
			a.t.Fatalf("%s joins: %v", uid, err)
		}
		rooms[r.ID]++
	}
	if len(rooms) != players/4 {
		a.fault("%d players who fit into %d rooms sit in %d", players, players/4, len(rooms))
	}
}

// floodCommands sends unknown commands and such that are refused, each with an id that
// asks for an answer.
func floodCommands(a *arena) {
	l := a.mustAttack("mallory")
	unknown, refused := builtin(9999, nil), builtin(client.CmdRoomJoin, []byte("none"))
	asked := 0
	var again atomic.Int32
	tick := time.NewTicker(10 * time.Millisecond) // 100 packets and 117 kB a second
	defer tick.Stop()
	for end := time.Now().Add(time.Duration(a.n(3, 20)) * time.Second); time.Now().Before(end); {
		if l.end() != "open" {
			next, err := a.attacker(fmt.Sprintf("mallory-%d", again.Add(1)))
			if err != nil {
				a.t.Logf("the attacker can't enter again: %v", err)
				break
			}
			l = next
		}
		for _, m := range []wire.Message{unknown, refused} {
			frames, n := l.full(true, m)
			l.packet(frames)
			asked += n
			<-tick.C
		}
	}
	a.t.Logf("%d commands, attacker thrown out %d times; now %s, %d answers refused", asked, again.Load(), l.end(), l.answersRefused())
}
