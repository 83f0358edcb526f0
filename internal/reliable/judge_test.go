package reliable_test

import (
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// TestAsked: a peer is asked by what wants an answer, until it is heard, and stays so when
// it is found gone.
func TestAsked(t *testing.T) {
	for name, cfg := range map[string]reliable.Config{"udp": clientUDP, "tcp": clientTCP} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, cfg)
			want := func(asked bool) {
				t.Helper()
				if p.Asked() != asked {
					t.Fatalf("asked = %v", !asked)
				}
			}
			want(false)
			p.SendPing(p.now)
			p.packets()
			want(true)
			p.mustReceive(wire.AppendPing(nil, 1))
			want(false)
			p.packets() // PONG
			want(false)
			p.send(50, reliable.Reliable, 0)
			p.packets()
			p.mustTick(7 * time.Second)
			if want(true); !p.Unanswered() {
				t.Error("not found gone")
			}
		})
	}
}
