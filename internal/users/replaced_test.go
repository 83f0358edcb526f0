package users

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// The client of a place that lost to a newer sid hears so, opened before or not.
func TestReplacedPlacesAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		a := nodes[0]
		unopened, err := a.Reserve(ReserveRequest{UID: "u"})
		if err != nil {
			t.Fatal(err)
		}
		a.login(t, "u")
		synctest.Wait()
		if want := []id.SID{unopened.SID}; !slices.Equal(a.places.replaced, want) {
			t.Errorf("replaced %v, want %v", a.places.replaced, want)
		}
		for range a.cfg.ReservationsPerUser + 1 {
			if _, err := a.Reserve(ReserveRequest{UID: "v"}); err != nil {
				t.Fatal(err)
			}
		}
		if len(a.places.replaced) != 1 {
			t.Error("a place that was cancelled for another reason counts as replaced")
		}
	})
}

// A place that waits for a user who is being moved is replaced when a newer sid opens, and
// not merely gone.
func TestReplacedMoveIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, u, _, _, stop := moving(t, newNetwork())
		defer stop()
		a.serve(u, cmdMove, "join")
		pass(time.Second)
		b.login(t, "u")
		synctest.Wait()
		if want := []id.SID{u.SID}; !slices.Equal(b.places.replaced, want) {
			t.Errorf("replaced %v, want %v", b.places.replaced, want)
		}
	})
}

// The same, when the client of the older sid is being let in at that moment.
func TestReplacedDuringTakeOver(t *testing.T) {
	for _, tc := range []struct {
		name        string
		there, here bool // who knows of the newer sid
		want        error
	}{
		{"nobody knows", false, false, transport.ErrRevoked},
		{"the old node knows", true, false, transport.ErrReplaced},
		{"the new node knows", false, true, transport.ErrReplaced},
	} {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork()
			nodes, stop := start(t, net, Config{}, "127.0.0.1:1", "127.0.0.1:2")
			defer stop()
			a, b := nodes[0], nodes[1]
			old, _ := a.login(t, "u")
			m := &moveOut{id: moveID{1}, user: old, to: b.cfg.Self.Node, done: make(chan struct{})}
			a.moves.addOut(m)
			old.mu.Lock()
			old.setPhaseLocked(ended)
			old.revoked = tc.there
			old.mu.Unlock()
			in := &User{ID: "u", SID: old.SID, registry: b.Registry, phase: incoming, revoked: tc.here}
			in.moveIn = &moveIn{id: m.id, user: in, from: a.cfg.Self.Node}
			for range 2 { // asked again, the answer is the same
				err := b.takeOver(t.Context(), in)
				if !errors.Is(err, tc.want) || errors.Is(err, transport.ErrReplaced) != (tc.want == transport.ErrReplaced) {
					t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
				}
			}
			a.moves.dropOut(m.id)
			a.UserEnded(old, wire.CloseReplaced)
		})
	}
	if _, released, err := parseMoveData(append(wasReplaced, 0)); released || err == nil || errors.Is(err, transport.ErrReplaced) {
		t.Errorf("a malformed answer: %v, %v", released, err)
	}
}
