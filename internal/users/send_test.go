package users

import (
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport"
)

// Reliable messages of one sender arrive once and in order, however often the
// connection is lost, resumed, frozen for a move that fails, and thawed meanwhile.
func TestNothingIsLostOrReordered(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork()
			a, _, u, link, result, stop := moving(t, net)
			defer stop()
			net.setCut(func(_, _ id.Node, cmd uint16) loss { // every move fails
				if cmd == mesh.CmdMoveRelease {
					return requestLost
				}
				return delivered
			})
			const messages = 500
			var wg sync.WaitGroup
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, 1))
				for i := range messages {
					if err := u.Send(nil, []byte(strconv.Itoa(i)), reliable.Reliable); err != nil {
						t.Errorf("seed %d: send %d: %v", seed, i, err)
					}
					pass(time.Duration(rng.IntN(40)) * time.Millisecond)
				}
			})
			rng := rand.New(rand.NewPCG(seed, 2))
			links := []*fakeLink{link}
			for range 12 {
				pass(time.Duration(rng.IntN(400)) * time.Millisecond)
				if rng.IntN(2) == 0 {
					a.serve(u, cmdMove, "move")
					if err := <-result; err == nil {
						t.Fatalf("seed %d: moved", seed)
					}
					continue
				}
				links[len(links)-1].set(transport.ErrClosed)
				pass(time.Duration(rng.IntN(100)) * time.Millisecond) // before Lost is told
				a.UserLost(u)
				pass(time.Duration(rng.IntN(100)) * time.Millisecond)
				links = append(links, a.places.connect(u.SID, true))
			}
			wg.Wait()
			synctest.Wait()
			var got []string
			for _, l := range links {
				got = append(got, l.got()...)
			}
			if len(got) != messages {
				t.Errorf("seed %d: %d messages arrived, want %d", seed, len(got), messages)
			}
			for i, s := range got {
				if s != strconv.Itoa(i) {
					t.Fatalf("seed %d: message %d is %s", seed, i, s)
				}
			}
		})
	}
}
