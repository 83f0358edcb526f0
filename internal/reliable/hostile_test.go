package reliable_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// hostile is a peer that keeps to the form of every frame and fills what it is given:
// half messages, holes, small fragments, acknowledgements of nothing; it comes back as
// often as it likes, at once or after a while.
type hostile struct {
	rng  *rand.Rand
	next map[uint8]uint64 // in order, of half messages
	far  map[uint8]uint64 // beyond a hole
	size int
	rush bool // as fast as it can; else now and then, as long as it may stay
}

// packet is the next one.
func (h *hostile) packet() []byte {
	b := wire.AppendPing(nil, 1)
	for len(b) < 900 {
		channel := uint8(h.rng.IntN(16))
		if h.rng.IntN(8) == 0 {
			channel = reliable.ChannelUnordered
		}
		size := 1 + h.rng.IntN(h.size)
		if h.rng.IntN(2) == 0 {
			seq := h.next[channel]
			h.next[channel]++
			b = wire.AppendReliable(b, channel, seq, seq == 0, false, make([]byte, size))
			continue
		}
		h.far[channel] += 2
		seq := 1<<30 + h.far[channel] // next to no other
		b = wire.AppendReliable(b, channel, seq, true, size >= 4 && h.rng.IntN(2) == 0, make([]byte, size))
	}
	return b
}

// TestSimHostile requires that such a peer is closed, in time and before it has more
// held for it than its budget, however often it comes back.
func TestSimHostile(t *testing.T) {
	for seed := range simSeeds(t) / 20 {
		h := &hostile{rng: rand.New(rand.NewPCG(seed, 7)), next: map[uint8]uint64{}, far: map[uint8]uint64{}, size: 1 << (1 + seed%10), rush: seed%2 == 0}
		cfg := reliable.Config{Server: true, MaxRetry: 1 << 20}
		p := newPeer(t, cfg)
		start := p.now
		var err error
		for packets := 0; err == nil; packets++ {
			if packets > 200_000 || !h.rush && p.now.Sub(start) > time.Minute {
				t.Fatalf("seed %d: %d packets in %v, and %d bytes held", seed, packets, p.now.Sub(start), p.Held())
			}
			if packets%50 == 0 {
				if err := p.Check(); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			pause := time.Millisecond
			if !h.rush {
				pause = time.Duration(h.rng.IntN(9000)) * time.Millisecond
			}
			switch h.rng.IntN(60) {
			case 0:
				p.now = p.now.Add(pause)
				p.resume(cfg)
			case 1:
				p.now = p.now.Add(pause)
				p.carryOver(cfg)
			}
			b := wire.AppendPing(nil, 1)
			if h.rush || packets == 0 {
				b = h.packet()
			}
			if err = p.receive(b); err == nil {
				err = p.tick(pause)
			}
			p.packets()
		}
		requireCode(t, err, wire.CloseFlow)
		if p.Held() > reliable.HeldMax {
			t.Fatalf("seed %d: %d bytes held", seed, p.Held())
		}
	}
}
