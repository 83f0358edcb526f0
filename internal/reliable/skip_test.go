package reliable_test

import (
	"math/rand/v2"
	"testing"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// skipper is a server that sends a message a packet and leaves numbers out.
func skipper(t *testing.T, packets int) (p *peer, left []uint64) {
	rng := rand.New(rand.NewPCG(1, 2))
	p = newPeer(t, reliable.Config{Server: true, Random: rng.Uint64})
	for range packets {
		p.send(20, reliable.Unreliable, 0)
		pn := p.pn + 1
		if p.Skip(pn) {
			left = append(left, pn)
			pn++
		}
		if p.Skip(pn) {
			t.Fatalf("%d left out after %v", pn, left)
		}
		if b := p.Append(p.now, pn, nil, reliable.PacketMin); len(b) == 0 {
			t.Fatal("nothing to send")
		}
		p.pn = pn
		if len(left) > 0 && left[len(left)-1] == pn-1 || pn%16 == 0 {
			lo := uint64(1)
			if len(left) > 0 {
				lo = left[len(left)-1] + 1
			}
			p.mustReceive(ack(wire.Range{Lo: lo, Hi: pn}))
		}
	}
	return p, left
}

func TestNumbersAreLeftOut(t *testing.T) {
	_, left := skipper(t, 50_000)
	if n := len(left); n < 25 || n > 100 {
		t.Errorf("%d of 50,000 numbers left out, want some 50", n)
	}
	p := newPeer(t, serverUDP)
	tcp := newPeer(t, reliable.Config{Server: true, Stream: true, Random: func() uint64 { return 1<<64 - 1 }})
	for pn := range uint64(10_000) {
		if p.Skip(pn) || tcp.Skip(pn) {
			t.Fatalf("%d left out without chance, or on TCP", pn)
		}
	}
}

// TestAckOfNumberLeftOut has a peer acknowledge what was never sent, by itself and
// within a range, and what was.
func TestAckOfNumberLeftOut(t *testing.T) {
	_, left := skipper(t, 20_000)
	if len(left) < 10 {
		t.Fatalf("only %d left out", len(left))
	}
	for i, pn := range left[len(left)-8:] {
		p, _ := skipper(t, 20_000)
		requireCode(t, p.receive(ack(wire.Range{Lo: pn, Hi: pn})), wire.CloseProtocol)
		p, _ = skipper(t, 20_000)
		requireCode(t, p.receive(ack(wire.Range{Lo: 0, Hi: p.pn})), wire.CloseProtocol)
		p, _ = skipper(t, 20_000)
		honest := []wire.Range{{Lo: pn + 1, Hi: pn + 1}, {Lo: pn - 1, Hi: pn - 1}}
		if err := p.receive(ack(honest...)); err != nil {
			t.Errorf("number %d: ACK of its neighbours: %v", i, err)
		}
		requireCode(t, p.receive(ack(wire.Range{Lo: pn + 1, Hi: pn + 1}, wire.Range{Lo: pn - 1, Hi: pn - 1}, wire.Range{Lo: 1, Hi: pn - 3}),
			ack(wire.Range{Lo: pn - 1, Hi: pn})), wire.CloseProtocol)
	}
	p, _ := skipper(t, 20_000)
	p.mustReceive(ack(wire.Range{Lo: left[0], Hi: left[0]})) // too long ago to be remembered
}

// TestReceiverKeepsHoles has numbers that never come: they split ranges and cost one
// early ACK each, also when more are missing than an ACK has ranges.
func TestReceiverKeepsHoles(t *testing.T) {
	p := newPeer(t, clientUDP)
	acks := 0
	never := map[uint64]bool{}
	for pn := uint64(1); pn <= 4000; pn++ {
		if pn%50 == 0 {
			never[pn] = true
			continue
		}
		if err := p.Receive(p.now, pn, wire.AppendWindow(nil, 1), &p.got); err != nil {
			t.Fatal(err)
		}
		for _, packet := range p.frames() {
			for _, f := range packet {
				if f.Type != wire.FrameAck {
					continue
				}
				acks++
				for r := range f.Ack.Ranges {
					for n := range never {
						if n >= r.Lo && n <= r.Hi {
							t.Fatalf("ACK of %d, which never came", n)
						}
					}
				}
			}
		}
		p.mustTick(ms)
	}
	if most := (4000-len(never))/2 + 2*len(never); acks > most {
		t.Errorf("%d ACKs, want at most %d: every second packet, and around holes", acks, most)
	}
}

// TestNumbersLeftOutCostNothing measures a game's messages from a server that leaves
// numbers out, many more than it would, beside one that does not.
func TestNumbersLeftOutCostNothing(t *testing.T) {
	for _, loss := range []float64{0, 0.05} {
		seeds := []uint64{1, 2, 3, 4}
		trip := gameTrip(loss, 0, true)
		trip.messages = 10_000
		without := trip.run(t, seeds...)
		rng := rand.New(rand.NewPCG(3, 4))
		trip.random = func() uint64 { return -(rng.Uint64() / 10) } // one in 100
		with := trip.run(t, seeds...)
		t.Logf("loss %v: without %+v", loss, without)
		t.Logf("loss %v: with    %+v", loss, with)
		if with.perByte > without.perByte*1.01 || with.p99 > without.p99+ms || loss == 0 && with.sender != (reliable.Stats{}) {
			t.Errorf("loss %v: %+v with numbers left out, %+v without", loss, with, without)
		}
	}
}
