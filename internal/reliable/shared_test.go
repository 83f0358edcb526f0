package reliable_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// sharedOf is a message of n bytes, each of them b behind the header.
func sharedOf(n int, b byte) *reliable.Shared {
	s := reliable.NewShared()
	s.Set(wire.Message{Kind: wire.Push, Ver: 2, Payload: bytes.Repeat([]byte{b}, n)}.AppendTo(s.Buffer()))
	return s
}

// TestSharedBytesStayUntilAllAreDone makes messages anew while others still need the
// old ones: to send them, to repeat them, or to go on from their state.
func TestSharedBytesStayUntilAllAreDone(t *testing.T) {
	for _, n := range []int{10, 5000} {
		for _, rel := range []reliable.Reliability{reliable.Unreliable, reliable.Reliable, reliable.OnChannel(3)} {
			if rel == reliable.Unreliable && n > 1000 {
				continue
			}
			old := sharedOf(n, 'a')
			var senders []*peer
			for range 4 {
				p := newPeer(t, reliable.Config{Server: true})
				if err := p.SendShared(p.now, old, rel); err != nil {
					t.Fatal(err)
				}
				senders = append(senders, p)
			}
			if rel != reliable.Unreliable {
				senders[1].packets() // lost
				senders[2].resume(reliable.Config{Server: true})
			}
			want := bytes.Clone(old.Bytes())
			old.Done()
			exchange(senders[0], newPeer(t, reliable.Config{}), time.Millisecond) // this one is done too
			for range 100 {
				sharedOf(n, 'b').Done()
			}
			for i, p := range senders[1:] {
				to := newPeer(t, reliable.Config{})
				if i == 1 {
					to.resume(reliable.Config{})
				}
				p.mustTick(5 * time.Second / 2)
				if got := firstMessage(p, to); !bytes.Equal(got, want) {
					t.Errorf("%d bytes, %v: sender %d sent %.12x, want %.12x", n, rel, i+1, got, want)
				}
			}
		}
	}
}

// firstMessage carries packets until a message is delivered.
func firstMessage(from, to *peer) []byte {
	for range 20 {
		for _, p := range from.packets() {
			to.in = from.pn - 1
			to.mustReceive(p)
			if len(to.got.Messages) > 0 {
				return to.got.Messages[0].Bytes
			}
		}
		for _, p := range to.packets() {
			from.in = to.pn - 1
			from.mustReceive(p)
		}
		from.mustTick(30 * time.Millisecond)
		to.mustTick(30 * time.Millisecond)
	}
	return nil
}

func TestSharedMakesNoGarbage(t *testing.T) {
	pair := []*peer{newPeer(t, reliable.Config{Server: true}), newPeer(t, reliable.Config{Server: true})}
	got := testing.AllocsPerRun(100, func() {
		s := reliable.NewShared()
		s.Set(append(s.Buffer(), 2, 2, 0, 1, 'x'))
		for _, p := range pair {
			if err := p.SendShared(p.now, s, reliable.Unreliable); err != nil {
				t.Fatal(err)
			}
		}
		s.Done()
		for _, p := range pair {
			p.pn++
			buffer = p.Append(p.now, p.pn, buffer[:0], reliable.PacketMin)
		}
	})
	if got > 0.5 { // what is under way is remembered in rings that grow
		t.Errorf("%v allocations a message for two", got)
	}
}

var buffer []byte
