package reliable_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// lossyPeer is a client that just lost a packet: numbers 1 to 3 are acknowledged but
// for 2. Its round trip is 50 ms.
func lossyPeer(t *testing.T) *peer {
	p := newPeer(t, reliable.Config{RTT: 50 * ms})
	for range 3 {
		p.send(40, reliable.Unreliable, 0)
		p.packets()
	}
	p.mustTick(50 * ms)
	p.mustReceive(ack(wire.Range{Lo: 3, Hi: 3}, wire.Range{Lo: 0, Hi: 1}))
	p.mustTick(10 * ms)
	if got := p.Stats().Lost; got != 1 {
		t.Fatalf("%d packets lost, want 1", got)
	}
	return p
}

// seqs lists the fragments in the packets Append gives now, as "channel:seq".
func (p *peer) seqs() (out [][]string) {
	for _, packet := range p.frames() {
		var in []string
		for _, f := range packet {
			if f.Type == wire.FrameReliable {
				in = append(in, fmt.Sprintf("%d:%d", f.Channel, f.Seq))
			}
		}
		out = append(out, in)
	}
	return out
}

func requireSeqs(t *testing.T, p *peer, want string) {
	t.Helper()
	if got := fmt.Sprint(p.seqs()); got != want {
		t.Errorf("fragments sent: %v, want %v", got, want)
	}
}

func TestRepeatRidesAlong(t *testing.T) {
	p := lossyPeer(t)
	p.send(100, reliable.Reliable, 0)
	requireSeqs(t, p, "[[0:0]]")
	p.mustTick(16 * ms)
	p.send(100, reliable.Reliable, 3)
	requireSeqs(t, p, "[[3:0 0:0]]")
	p.mustTick(16 * ms)
	p.send(100, reliable.Reliable, 255)
	requireSeqs(t, p, "[[255:0 3:0]]")
	if s := p.Stats(); s.Repeated != 2 || s.Retransmitted != 0 {
		t.Errorf("stats = %+v", s)
	}
	p.mustTick(20 * ms)
	p.mustReceive(ack(wire.Range{Lo: 5, Hi: 6})) // the second copies; 4 counts as lost
	p.mustTick(20 * ms)
	requireSeqs(t, p, "[]")
	if s := p.Stats(); s.Lost != 2 || s.Retransmitted != 0 || s.Repeated != 2 {
		t.Errorf("stats = %+v, want nothing sent again", s)
	}
	if p.Unacked() {
		t.Error("a fragment waits although a copy of each arrived")
	}
}

func TestRepeatOnlyWhileItPays(t *testing.T) {
	// repeats counts the fragments repeated when two messages go out 16 ms apart.
	repeats := func(p *peer, size int) uint64 {
		before := p.Stats().Repeated
		for range 2 {
			p.send(size, reliable.Reliable, 0)
			p.packets()
			p.mustTick(16 * ms)
		}
		return p.Stats().Repeated - before
	}
	t.Run("after a loss", func(t *testing.T) {
		if got := repeats(lossyPeer(t), 300); got != 1 {
			t.Errorf("%d repeated, want 1", got)
		}
	})
	t.Run("not before", func(t *testing.T) {
		p := newPeer(t, reliable.Config{RTT: 50 * ms})
		if got := repeats(p, 100); got != 0 {
			t.Errorf("%d repeated, want none", got)
		}
	})
	t.Run("not long after", func(t *testing.T) {
		p := lossyPeer(t)
		p.now = p.now.Add(30 * time.Second)
		if got := repeats(p, 100); got != 0 {
			t.Errorf("%d repeated, want none", got)
		}
	})
	t.Run("not many packets after", func(t *testing.T) {
		p := lossyPeer(t)
		for range 180 {
			p.send(40, reliable.Unreliable, 0)
			p.packets()
			p.mustReceive(ack(wire.Range{Lo: p.pn, Hi: p.pn}))
		}
		if got := repeats(p, 100); got != 0 {
			t.Errorf("%d repeated, want none", got)
		}
	})
	t.Run("not large ones", func(t *testing.T) {
		if got := repeats(lossyPeer(t), 301); got != 0 {
			t.Errorf("%d repeated, want none", got)
		}
	})
	t.Run("not among bulk", func(t *testing.T) {
		p := lossyPeer(t)
		p.send(40_000, reliable.Reliable, 1)
		p.packets()
		if got := repeats(p, 100); got != 0 {
			t.Errorf("%d repeated, want none", got)
		}
	})
	t.Run("not into a queue", func(t *testing.T) {
		p := lossyPeer(t)
		for range 40 { // the round trip grows to 300 ms
			p.send(40, reliable.Unreliable, 0)
			p.packets()
			p.mustTick(300 * ms)
			p.mustReceive(ack(wire.Range{Lo: p.pn, Hi: p.pn}))
		}
		if got := repeats(p, 100); got != 0 {
			t.Errorf("%d repeated, want none", got)
		}
	})
	t.Run("not on TCP", func(t *testing.T) {
		if got := repeats(newPeer(t, clientTCP), 100); got != 0 {
			t.Errorf("%d repeated, want none", got)
		}
	})
	t.Run("not on another path", func(t *testing.T) {
		p := lossyPeer(t)
		p.PathChanged(p.now, 0)
		if got := repeats(p, 100); got != 0 {
			t.Errorf("%d repeated, want none", got)
		}
	})
}

// TestRepeatedBytesAreBounded sends far more than a game does while packets get lost.
func TestRepeatedBytesAreBounded(t *testing.T) {
	tr := trip{messages: 10_000, size: 250, interval: ms, delay: 4 * ms, loss: 0.2}
	f := tr.run(t, 1)
	const perSecond = 32 << 10
	if most := uint64(perSecond*10/250) + 100; f.sender.Repeated < most/2 || f.sender.Repeated > most {
		t.Errorf("%d fragments repeated in 10 s, want at most %d and most of that", f.sender.Repeated, most)
	}
}

// TestEarlyRepeat sends at once what an ACK shows to be missing, before the packet
// counts as lost.
func TestEarlyRepeat(t *testing.T) {
	send := func(p *peer) {
		for range 3 {
			p.send(100, reliable.Reliable, 0)
			p.packets()
			p.mustTick(2 * ms)
		}
		p.mustTick(200 * ms)
	}
	t.Run("a hole", func(t *testing.T) {
		p := newPeer(t, reliable.Config{RTT: 200 * ms})
		send(p)
		p.mustReceive(ack(wire.Range{Lo: 2, Hi: 3}, wire.Range{Lo: 0, Hi: 0}))
		requireSeqs(t, p, "[[0:0]]")
		if s := p.Stats(); s.Lost != 0 || s.Repeated != 1 {
			t.Errorf("stats = %+v", s)
		}
		p.mustTick(25 * ms) // now packet 1 counts as lost
		requireSeqs(t, p, "[]")
		if s := p.Stats(); s.Lost != 1 || s.Retransmitted != 0 {
			t.Errorf("stats = %+v", s)
		}
	})
	t.Run("disorder", func(t *testing.T) {
		p := newPeer(t, reliable.Config{RTT: 200 * ms})
		send(p)
		p.mustReceive(ack(wire.Range{Lo: 2, Hi: 2}, wire.Range{Lo: 0, Hi: 0}))
		requireSeqs(t, p, "[[0:0]]")
		p.mustReceive(ack(wire.Range{Lo: 0, Hi: 3})) // it was only late
		send(p)                                      // packets 5 to 7
		p.mustReceive(ack(wire.Range{Lo: 6, Hi: 7}, wire.Range{Lo: 0, Hi: 4}))
		requireSeqs(t, p, "[]")
	})
}

// TestLateIsNotLost takes a loss back when the packet arrives after all.
func TestLateIsNotLost(t *testing.T) {
	p := lossyPeer(t)
	p.mustReceive(ack(wire.Range{Lo: 0, Hi: 3}))
	for range 3 {
		p.send(100, reliable.Reliable, 0)
		p.packets()
		p.mustTick(16 * ms)
	}
	if got := p.Stats().Repeated; got != 0 {
		t.Errorf("%d repeated, want none", got)
	}
}

// TestDisorderIsNotLoss has packets overtake each other, none of them lost.
func TestDisorderIsNotLoss(t *testing.T) {
	tr := gameTrip(0, 0, false)
	tr.jitter = 10 * ms // less than an interval: no disorder yet
	if f := tr.run(t, 1); f.sender.Repeated != 0 || f.perByte > 1.6 {
		t.Errorf("%d fragments repeated, %.2f bytes for one", f.sender.Repeated, f.perByte)
	}
	tr.jitter = 40 * ms // a tenth of the packets come after three later ones
	if f := tr.run(t, 1); f.sender.Repeated > uint64(tr.messages)/20 || f.sender.Lost < uint64(tr.messages)/20 {
		t.Errorf("%d of %d fragments repeated, %d packets counted as lost", f.sender.Repeated, tr.messages, f.sender.Lost)
	}
}

// TestTail loses the last message: nothing follows that would show it.
func TestTail(t *testing.T) {
	t.Run("losses seen", func(t *testing.T) {
		p := lossyPeer(t)
		p.send(100, reliable.Reliable, 0)
		p.packets()
		if got := p.WakeAt().Sub(p.now); got != 25*ms {
			t.Errorf("WakeAt in %v, want half a round trip", got)
		}
		p.mustTick(25 * ms)
		requireSeqs(t, p, "[[0:0]]")
		if got := p.WakeAt().Sub(p.now); got < 50*ms {
			t.Errorf("WakeAt in %v, want a probe timeout", got)
		}
	})
	t.Run("among others", func(t *testing.T) {
		p := lossyPeer(t)
		for range 3 {
			p.send(100, reliable.Reliable, 0)
			p.packets()
			p.mustTick(16 * ms)
		}
		if got := p.WakeAt().Sub(p.now); got != 34*ms {
			t.Errorf("WakeAt in %v, want a round trip after the last", got)
		}
	})
	t.Run("no losses seen", func(t *testing.T) {
		p := newPeer(t, reliable.Config{})
		for range 30 { // until the round trip is known well
			p.send(100, reliable.Unreliable, 0)
			p.packets()
			p.mustTick(50 * ms)
			p.mustReceive(ack(wire.Range{Lo: p.pn, Hi: p.pn}))
		}
		for range 3 {
			p.send(100, reliable.Reliable, 0)
			p.packets()
		}
		if got := p.WakeAt().Sub(p.now); got < 70*ms || got > 72*ms {
			t.Errorf("WakeAt in %v, want a round trip and 20 ms", got)
		}
		p.mustTick(72 * ms)
		requireSeqs(t, p, "[[0:0 0:1 0:2]]")
	})
}

// TestChannelsDoNotWait loses a message on one channel. Those on the others arrive.
func TestChannelsDoNotWait(t *testing.T) {
	a, b := newPeer(t, clientUDP), newPeer(t, serverUDP)
	a.send(100, reliable.Reliable, 1)
	a.packets() // lost
	for _, channel := range []uint8{2, 255, 1} {
		a.send(100, reliable.Reliable, channel)
		for _, packet := range a.packets() {
			b.in = a.pn - 1
			b.mustReceive(packet)
		}
		want := 1
		if channel == 1 {
			want = 0
		}
		if got := len(b.got.Messages); got != want {
			t.Errorf("%d messages arrived on channel %d, want %d", got, channel, want)
		}
	}
	if n := exchange(a, b, 25*ms); n != 2 {
		t.Errorf("%d messages arrived after the repeat, want 2", n)
	}
}

// TestAckForgetsHoles has a receiver whose ACKs nobody acknowledges.
func TestAckForgetsHoles(t *testing.T) {
	p := newPeer(t, serverUDP)
	longest := 0
	for i := range 600 { // 10 s; every tenth packet is lost
		p.mustTick(time.Second / 60)
		if i%10 == 0 {
			p.in++
		}
		p.mustReceive(wire.AppendWindow(nil, 65536))
		for _, packet := range p.frames() {
			n := 0
			for range packet[0].Ack.Ranges {
				n++
			}
			longest = max(longest, n)
		}
	}
	if longest < 3 || longest > 6 {
		t.Errorf("an ACK had %d ranges, want those of the last 250 to 500 ms", longest)
	}
}
