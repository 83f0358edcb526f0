//go:build unix

package e2e

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/Diarkis/diarkis/client"
)

// TestMovesUnderBroadcasts moves players to and fro between two nodes that read with
// four sockets each, while the rooms there are full of broadcasts and every player has
// requests under way. Everything is heard, and everything is answered.
func TestMovesUnderBroadcasts(t *testing.T) {
	const movers, said = 4, 250
	c := newCluster(t, "DIARKIS_UDP_SOCKETS=4", "DIARKIS_ROOM_CREATES_PER_SECOND=0") // more moves a second than a user may cause
	nodes := []*node{c.start("udp").waitReady(), c.start("udp").waitReady()}
	eventually(t, "both nodes handed out", func() bool { return c.members() == 4 })
	stay := []*pair{c.pairOn(nodes[0]), c.pairOn(nodes[1])}
	rooms := []client.RoomID{stay[0].room, stay[1].room}
	var all []*mover
	for i := range movers {
		all = append(all, &mover{player: c.connectTo(fmt.Sprint("mover-", i), "UDP", nodes[i%2])})
	}

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var playing sync.WaitGroup
	for _, p := range stay {
		playing.Go(func() { broadcasts(ctx, p.ann, p.room, "ann ") })
	}
	for i, m := range all {
		playing.Go(func() { m.listen(ctx) })
		playing.Go(func() { m.ask(ctx, rooms[0]) })
		playing.Go(func() { m.hop(ctx, rooms[i%2], rooms[(i+1)%2]) })
	}
	for _, p := range stay {
		(&hearing{t: t}).until(p.bob, fmt.Sprint("ann ", said))
	}
	stop()
	playing.Wait()
	for i, m := range all {
		t.Logf("mover %d: %d moves, %d answers", i, m.moves.Load(), m.answers.Load())
		if m.moves.Load() == 0 || m.answers.Load() == 0 {
			t.Errorf("mover %d: %d moves, %d answers", i, m.moves.Load(), m.answers.Load())
		}
		select {
		case gap := <-m.again:
			t.Errorf("mover %d was reconnected, gap %v", i, gap)
		default:
		}
	}
	for _, p := range stay {
		p.wantStayed()
	}
}

// mover is a player on the way between two nodes.
type mover struct {
	*player
	moves, answers atomic.Int64
}

// hop joins the rooms in turns.
func (m *mover) hop(ctx context.Context, rooms ...client.RoomID) {
	for i := 0; ctx.Err() == nil; i++ {
		r := rooms[i%len(rooms)]
		if _, err := m.JoinRoom(m.ctx(), r, []byte("hop")); err != nil {
			m.t.Errorf("join: %v", err)
			return
		}
		if err := m.LeaveRoom(m.ctx(), r, nil); err != nil {
			m.t.Errorf("leave: %v", err)
			return
		}
	}
}

// ask asks one thing after the other. An answer may be no, but it has to come.
func (m *mover) ask(ctx context.Context, r client.RoomID) {
	for ctx.Err() == nil {
		_, _, err := m.MemberCount(m.ctx(), r)
		if _, refused := errors.AsType[*client.StatusError](err); err != nil && !refused {
			m.t.Errorf("a question was not answered: %v", err)
			return
		}
		m.answers.Add(1)
	}
}

// listen counts the moves. What the player hears depends on where it is.
func (m *mover) listen(ctx context.Context) {
	for {
		select {
		case <-m.moved:
			m.moves.Add(1)
		case <-m.pushes:
		case <-ctx.Done():
			return
		}
	}
}
