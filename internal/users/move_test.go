package users

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// cmdMove is the command with which the tests have their user moved to node b;
// on b it only runs.
const cmdMove = 2

// moving makes nodes a and b and a user on a whose cmdMove moves them to b. result
// has the outcome of MoveOut.
func moving(t *testing.T, net *network) (a, b *node, u *User, link *fakeLink, result chan error, stop func()) {
	nodes, stop := start(t, net, Config{}, "127.0.0.1:1", "127.0.0.1:2")
	a, b = nodes[0], nodes[1]
	result = make(chan error, 1)
	a.commands.run = moveTo(t, a, b, result)
	u, link = a.login(t, "u")
	return a, b, u, link, result, stop
}

// moveTo has cmdMove on a move its user to b.
func moveTo(t *testing.T, a, b *node, result chan<- error) func(*User, wire.Message) {
	return func(u *User, m wire.Message) {
		if m.Cmd == cmdMove {
			result <- a.MoveOut(t.Context(), u, b.cfg.Self.Node, m, reliable.Reliable)
		}
	}
}

func (n *node) serve(u *User, cmd uint16, payload string) {
	n.commands.Serve(nil, u, request(cmd, payload), reliable.Reliable)
}

func TestMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, u, link, result, stop := moving(t, newNetwork())
		defer stop()
		var out, in atomic.Int32
		a.OnMovedOut(func(u *User) { out.Add(1) })
		b.OnMovedIn(func(u *User) { in.Add(1) })
		u.Set("level", "7")
		a.serve(u, cmdMove, "join")
		a.serve(u, 1, "next")
		a.serve(u, 3, "last")
		synctest.Wait()
		if err := u.Send(nil, []byte("push"), reliable.Reliable); err != nil {
			t.Fatal(err)
		}
		if len(a.places.moved) != 1 || a.places.moved[0] != (wire.Move{Deadline: 5 * time.Second, Host: "192.0.2.7", Port: 7100}) {
			t.Fatalf("client was told %+v", a.places.moved)
		}
		pass(time.Second)
		there := b.places.connect(u.SID, true)
		synctest.Wait()
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(b.commands.got(), " "); got != "join next last" {
			t.Errorf("new node ran %q", got)
		}
		if got := a.commands.got(); !slices.Equal(got, []string{"join"}) {
			t.Errorf("old node ran %q", got)
		}
		if got := there.got(); !slices.Equal(got, []string{"push"}) || len(link.got()) != 0 {
			t.Errorf("client got %q there and %q here", got, link.got())
		}
		v := b.BySID(u.SID)
		if level, _ := v.Get("level"); level != "7" {
			t.Errorf("properties did not move: %v", v.Properties())
		}
		if !u.Gone() || a.CCU() != 0 || b.CCU() != 1 || a.BySID(u.SID) != nil || len(a.endCodes()) != 0 {
			t.Errorf("gone %v, ccu %d and %d, ended %v", u.Gone(), a.CCU(), b.CCU(), a.endCodes())
		}
		if len(a.moves.outgoing) != 0 {
			t.Error("the old node keeps what it released, although it has arrived")
		}
		if out.Load() != 1 || in.Load() != 1 {
			t.Errorf("hooks ran %d times there and %d times here", out.Load(), in.Load())
		}
		b.serve(v, 1, "after")
		if got := b.commands.got(); got[len(got)-1] != "after" {
			t.Error("the moved user's commands do not run")
		}
	})
}

// Each of these leaves the user on the old node, with nothing lost or doubled.
func TestMoveThatFails(t *testing.T) {
	lose := func(what loss, cmds ...uint16) func(net *network) {
		return func(net *network) {
			net.setCut(func(_, _ id.Node, cmd uint16) loss {
				if slices.Contains(cmds, cmd) {
					return what
				}
				return delivered
			})
		}
	}
	for _, c := range []struct {
		name   string
		before func(net *network, b *node, u *User)
		thawed time.Duration // the user goes on after at most this long
	}{
		{"the node refuses", func(_ *network, b *node, _ *User) { b.SetState(mars.Offline) }, 0},
		{"the node is gone", func(net *network, _ *node, _ *User) { lose(requestLost, mesh.CmdMoveOffer, mesh.CmdMoveAbort)(net) }, 0},
		{"the answer to the offer is lost", func(net *network, _ *node, _ *User) { lose(replyLost, mesh.CmdMoveOffer)(net) }, 0},
		{"a handler owes an answer", func(_ *network, _ *node, u *User) { u.Owe(1) }, quietMax},
		{"a property can't cross", func(_ *network, _ *node, u *User) { u.Set("f", func() {}) }, 0},
		{"the client never arrives", func(*network, *node, *User) {}, 5 * time.Second},
		{"nor can the node be asked to give up", func(net *network, _ *node, _ *User) { lose(requestLost, mesh.CmdMoveAbort)(net) }, 7 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork()
				a, b, u, link, result, stop := moving(t, net)
				defer stop()
				c.before(net, b, u)
				started := time.Now()
				a.serve(u, cmdMove, "join")
				a.serve(u, 3, "next")
				_ = u.Send(nil, []byte("push"), reliable.Reliable)
				if err := <-result; err == nil {
					t.Fatal("the move went well")
				}
				if took := time.Since(started); took > c.thawed {
					t.Errorf("the user stood still for %v, want %v", took, c.thawed)
				}
				synctest.Wait()
				if got := strings.Join(a.commands.got(), " "); got != "join next" {
					t.Errorf("old node ran %q", got)
				}
				if got := link.got(); !slices.Equal(got, []string{"push"}) {
					t.Errorf("client got %q", got)
				}
				if b.places.connect(u.SID, true) != nil || b.CCU() != 0 {
					t.Error("the new node takes the user after the old one went on")
				}
				pass(10 * time.Second)
				if b.Reserved() != 0 || len(b.moves.arriving) != 0 || len(a.moves.outgoing) != 0 || u.Gone() {
					t.Errorf("left over: %d places, %d arriving, %d outgoing", b.Reserved(), len(b.moves.arriving), len(a.moves.outgoing))
				}
			})
		})
	}
}

// A release whose answer was lost for longer than the client waits is answered again.
func TestReleaseIsAnsweredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		a, b, u, _, result, stop := moving(t, net)
		defer stop()
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		net.setCut(func(_, _ id.Node, cmd uint16) loss {
			if cmd == mesh.CmdMoveRelease {
				return replyLost
			}
			return delivered
		})
		if b.places.connect(u.SID, true) != nil {
			t.Fatal("accepted without an answer")
		}
		if err := <-result; err != nil || !u.Gone() {
			t.Fatalf("the old node did not release: %v", err)
		}
		net.setCut(nil)
		if b.places.connect(u.SID, true) == nil {
			t.Fatal("the second Confirm was not accepted")
		}
		synctest.Wait()
		if got := b.commands.got(); !slices.Equal(got, []string{"join"}) {
			t.Errorf("new node ran %q", got)
		}
	})
}

func TestUserEndsWhileMoving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, u, _, result, stop := moving(t, newNetwork())
		defer stop()
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		a.login(t, "u") // a newer sid
		if err := <-result; !errors.Is(err, ErrGone) {
			t.Errorf("MoveOut = %v", err)
		}
		synctest.Wait()
		if !u.Gone() || b.places.connect(u.SID, true) != nil || b.Reserved() != 0 {
			t.Error("the new node still takes a user who was replaced")
		}
	})
}

// Two owners, or none while both nodes live, must never be: whatever is lost or handled
// late, by a node that stood still, and whenever the client knocks. (None can be when all
// answers to a release, granted at the last moment, are lost for seconds: 1 in 10,000.)
func TestMoveNeverHasTwoOwners(t *testing.T) {
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) {
			rng, dice := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2)) // the network's under its lock
			net := newNetwork()
			a, b, u, _, result, stop := moving(t, net)
			defer stop()
			var quiet atomic.Bool
			net.setCut(func(_, _ id.Node, _ uint16) loss {
				if quiet.Load() {
					return delivered
				}
				return loss(max(0, int(dice.Uint32()%8)-3)) // half of it arrives in time
			})
			a.serve(u, cmdMove, "join")
			a.serve(u, 3, "next")
			knocks := time.Now().Add(time.Duration(rng.IntN(8000)) * time.Millisecond) // the deadline is at 5 s
			for range 60 {
				pass(time.Duration(rng.IntN(300)) * time.Millisecond)
				if time.Now().After(knocks) && rng.IntN(2) == 0 {
					b.places.connect(u.SID, true)
				}
				synctest.Wait()
				assertOneOwner(t, seed, a, b, u)
			}
			quiet.Store(true)
			for range 20 { // the client insists, on both
				pass(time.Second)
				b.places.connect(u.SID, true)
				synctest.Wait()
				assertOneOwner(t, seed, a, b, u)
			}
			if len(result) != 1 {
				t.Fatalf("seed %d: the move has no outcome", seed)
			}
			onA, onB := strings.Join(a.commands.got(), " "), strings.Join(b.commands.got(), " ")
			switch {
			case (<-result) == nil:
				if b.CCU() != 1 || onB != "join next" || onA != "join" {
					t.Errorf("seed %d: moved, old ran %q, new ran %q", seed, onA, onB)
				}
			case onA != "join next" || onB != "":
				t.Errorf("seed %d: stayed, old ran %q, new ran %q", seed, onA, onB)
			}
		})
	}
}

// assertOneOwner checks that at most one node would process what the client sends.
func assertOneOwner(t *testing.T, seed uint64, a, b *node, u *User) {
	t.Helper()
	u.mu.Lock()
	here := u.phase == open && !u.box.frozen
	u.mu.Unlock()
	there := false
	if v := b.BySID(u.SID); v != nil {
		v.mu.Lock()
		there = v.phase == open || v.phase == arrived
		v.mu.Unlock()
	}
	if here && there {
		t.Fatalf("seed %d: two owners", seed)
	}
}

// What was released is answered again until its arrival is known, which only the node
// that got it can say.
func TestReleasedDataIsKeptUntilItHasArrived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		a, b, u, _, result, stop := moving(t, net)
		defer stop()
		net.setCut(func(_, _ id.Node, cmd uint16) loss {
			if cmd == mesh.CmdMoveDone {
				return requestLost
			}
			return delivered
		})
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		mid := b.BySID(u.SID).moveIn.id
		done := func(from id.Node) {
			if _, err := a.handleDone(t.Context(), peer(from), mid.marshal()); err != nil {
				t.Fatal(err)
			}
		}
		release := func() bool {
			answer, err := a.handleRelease(t.Context(), peer(b.cfg.Self.Node), mid.marshal())
			if err != nil {
				t.Fatal(err)
			}
			_, released, err := parseMoveData(answer)
			if err != nil {
				t.Fatal(err)
			}
			return released
		}
		done(b.cfg.Self.Node) // before anything was released
		b.places.connect(u.SID, true)
		synctest.Wait()
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		if done("somebody else"); !release() {
			t.Error("a released user is not answered again")
		}
		if done(b.cfg.Self.Node); release() {
			t.Error("the data is kept although it has arrived")
		}
		if len(a.moves.outgoing) != 0 {
			t.Error("the move is kept")
		}
	})
}
