package transport

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// A node that does not answer holds up those who come from it, and nobody else.
func TestSlowNodeHoldsUpItsOwn(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, func(c *Config) { c.ReleaseTimeout = time.Minute }, nil)
			asked, answer := make(chan struct{}, 2*releasesMax), make(chan struct{})
			defer close(answer)
			from := func(node id.Node, slow bool) func(*Reservation) {
				return func(q *Reservation) {
					q.From = node
					q.Release = func(ctx context.Context) error {
						if !slow {
							return nil
						}
						asked <- struct{}{}
						select {
						case <-answer:
						case <-ctx.Done():
						}
						return ctx.Err()
					}
				}
			}
			for i := range releasesMax + 1 {
				c := r.reserve(id.UID(fmt.Sprint("stuck", i)), from("192.0.2.1:1", true))
				c.dial(r.addr)
				hs, err := secure.NewClient(c.creds, "key", c.options, zeros{})
				if err != nil {
					t.Fatal(err)
				}
				confirm, err := hs.Challenge(c.exchange(hs.Hello(), wire.PacketChallenge), false, nil)
				if err != nil {
					t.Fatal(err)
				}
				c.write(confirm)
				if i < releasesMax {
					<-asked
				}
			}
			r.requireFigure("packets_dropped_total", string(dropBusy), 1)
			for i := range 3 {
				r.reserve(id.UID(fmt.Sprint("other", i)), from("192.0.2.2:1", false)).open(r.addr, false)
			}
			r.join("newcomer")
		})
	}
}

// Who floods with probes from forged addresses uses up what is for all, and not what
// health checks of the own host have.
func TestProbesOfStrangersAreLimited(t *testing.T) {
	d := newDesk(t, Limits{UnauthenticatedPerSec: 100})
	limited := 0
	for i := range 1000 {
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 4000)
		probe := secure.AppendProbe(nil, []byte("guess"), wire.Nonce{1})
		if _, err := d.send(probe, src); err == dropProcess {
			limited++
		}
	}
	if limited != 900 {
		t.Errorf("%d of 1000 were not looked at, want 900", limited)
	}
	if _, err := d.send(secure.AppendProbe(nil, []byte("guess"), wire.Nonce{1}), netip.MustParseAddrPort("127.0.0.1:1")); err != dropProbe {
		t.Errorf("a probe of this host: %v, want it looked at", err)
	}
}
