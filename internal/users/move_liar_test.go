package users

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
)

// A node ends or takes nobody's users by commands of a move it has no part in.
func TestMoveCommandsOfStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, u, _, result, stop := moving(t, newNetwork())
		defer stop()
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		mid := b.BySID(u.SID).moveIn.id
		liar := peer("127.0.0.1:9")
		if answer, err := a.handleRelease(t.Context(), liar, mid.marshal()); err != nil || string(answer) != string(notReleased) || u.Gone() {
			t.Errorf("release to a stranger: %x, %v", answer, err)
		}
		if answer, err := b.handleAbort(t.Context(), liar, mid.marshal()); err != nil || answer[1] != 0 || b.BySID(u.SID) == nil {
			t.Errorf("abort by a stranger: %x, %v", answer, err)
		}
		offer := moveOffer{id: moveID{7}, uid: "v", ttl: time.Second}
		for _, role := range []string{"http", "tcp", "mars"} {
			if _, err := b.handleOffer(t.Context(), mesh.Peer{Node: "127.0.0.1:8", Role: role}, offer.marshal()); err == nil || b.moves.in(offer.id) != nil {
				t.Errorf("a node of role %s hands over a user", role)
			}
		}
		if b.places.connect(u.SID, true) == nil || <-result != nil {
			t.Error("the move failed")
		}
	})
}

// The old node stood still until nobody waits at the new one any more: it keeps the user,
// whatever it reads first when it goes on.
func TestReleaseBehindTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, u, _, result, stop := moving(t, newNetwork())
		defer stop()
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		mid := b.BySID(u.SID).moveIn.id
		m := a.moves.out(mid)
		m.setTold(time.Now().Add(-a.cfg.MoveDeadline - time.Millisecond)) // as if this process had been stopped
		answer, err := a.handleRelease(t.Context(), peer(b.Self().Node), mid.marshal())
		if err != nil || string(answer) != string(notReleased) {
			t.Errorf("released to nobody: %x, %v", answer, err)
		}
		if err := <-result; err == nil {
			t.Error("the move went well")
		}
		pass(10 * time.Second)
		if u.Gone() || b.Reserved() != 0 || b.places.connect(u.SID, true) != nil {
			t.Errorf("gone %v, %d places on the other node", u.Gone(), b.Reserved())
		}
	})
}

// A lost answer to a release is asked for again while the client waits.
func TestLostReleaseIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		a, b, u, _, result, stop := moving(t, net)
		defer stop()
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		lost := 0
		net.setCut(func(_, _ id.Node, cmd uint16) loss {
			if cmd == mesh.CmdMoveRelease && lost < 2 {
				lost++
				return []loss{silent, replyLost}[lost-1]
			}
			return delivered
		})
		began := time.Now()
		if b.places.connect(u.SID, true) == nil || time.Since(began) > 2*time.Second {
			t.Errorf("not let in, or after %v", time.Since(began))
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
}

// A client that knocks while the old node says nothing holds a place no longer than
// anybody waits for it.
func TestReleaseThatIsNeverAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		a, b, u, _, result, stop := moving(t, net)
		defer stop()
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		net.setCut(func(_, _ id.Node, cmd uint16) loss {
			if cmd == mesh.CmdMoveRelease {
				return silent
			}
			return delivered
		})
		began := time.Now()
		if b.places.connect(u.SID, true) != nil || time.Since(began) > releaseTimeout {
			t.Errorf("let in without a release, or asked for %v", time.Since(began))
		}
		if err := <-result; err == nil || errors.Is(err, ErrGone) {
			t.Errorf("MoveOut = %v", err)
		}
		pass(10 * time.Second)
		if u.Gone() || b.Reserved() != 0 {
			t.Error("the user is not where they were")
		}
	})
}
