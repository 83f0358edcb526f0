package reliable_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

func TestAckPolicy(t *testing.T) {
	ping, pad := wire.AppendWindow(nil, 65536), []byte{0} // a WINDOW elicits and needs no answer
	t.Run("second packet at once", func(t *testing.T) {
		p := newPeer(t, serverUDP)
		p.mustReceive(ping)
		requireKinds(t, p)
		p.mustReceive(ping)
		requireKinds(t, p, wire.FrameAck)
	})
	t.Run("one within 20 ms", func(t *testing.T) {
		p := newPeer(t, serverUDP)
		p.mustReceive(ping)
		if got := p.WakeAt().Sub(p.now); got != 20*ms {
			t.Errorf("WakeAt in %v, want 20ms", got)
		}
		p.mustTick(19 * ms)
		requireKinds(t, p)
		p.mustTick(ms)
		f := p.frames()
		if len(f) != 1 || f[0][0].Ack.Largest != 1 || f[0][0].Ack.DelayMicros != 20_000 {
			t.Errorf("frames = %+v", f)
		}
		if !p.WakeAt().IsZero() {
			t.Error("an ACK alone wakes somebody up")
		}
	})
	t.Run("a gap at once", func(t *testing.T) {
		p := newPeer(t, serverUDP)
		p.in = 4
		p.mustReceive(ping)
		f := p.frames()
		if want := []wire.Range{{Lo: 5, Hi: 5}, {Lo: 0, Hi: 0}}; len(f) != 1 || !slices.Equal(slices.Collect(f[0][0].Ack.Ranges), want) {
			t.Errorf("frames = %+v, want ranges %v", f, want)
		}
		p.in = 1 // late
		p.mustReceive(ping)
		requireKinds(t, p, wire.FrameAck)
	})
	t.Run("nothing that does not elicit", func(t *testing.T) {
		p := newPeer(t, serverUDP)
		for range 5 {
			p.mustReceive(pad, wire.AppendPong(nil, 1, 1), wire.AppendPathResponse(nil, [8]byte{}))
			p.mustReceive(wire.AppendPong(nil, 1, 1))
		}
		p.mustTick(time.Second)
		requireKinds(t, p)
	})
	t.Run("company", func(t *testing.T) {
		p := newPeer(t, serverUDP)
		p.mustReceive(ping)
		p.send(10, reliable.Unreliable, 0)
		requireKinds(t, p, wire.FrameAck, wire.FrameMessage)
	})
}

func TestAckRangesAreBounded(t *testing.T) {
	p := newPeer(t, serverUDP)
	for range 200 {
		p.in++ // every second one is lost
		p.mustReceive(wire.AppendWindow(nil, 65536))
	}
	f := p.frames()
	if n := len(slices.Collect(f[0][0].Ack.Ranges)); n != 32 {
		t.Errorf("%d ranges, want 32", n)
	}
	p.send(10, reliable.Reliable, 0)
	p.mustReceive(wire.AppendWindow(nil, 65536))
	p.packets() // the message, with an ACK
	p.mustReceive(ack(wire.Range{Lo: 0, Hi: p.pn}))
	p.mustReceive(wire.AppendWindow(nil, 65536))
	p.mustTick(20 * ms)
	if n := len(slices.Collect(p.frames()[0][0].Ack.Ranges)); n != 1 {
		t.Errorf("%d ranges after the peer saw them, want 1", n)
	}
}

func TestLossByPackets(t *testing.T) {
	p := newPeer(t, clientUDP)
	for i := range 4 {
		p.send(400+i, reliable.Reliable, 0)
		p.send(50, reliable.Unreliable, 0)
		p.packets()
	}
	p.mustTick(50 * ms)
	p.mustReceive(ack(wire.Range{Lo: 2, Hi: 3}, wire.Range{Lo: 0, Hi: 0}))
	requireKinds(t, p)
	p.mustReceive(ack(wire.Range{Lo: 2, Hi: 4}, wire.Range{Lo: 0, Hi: 0}))
	f := p.frames()
	if len(f) != 1 || len(f[0]) != 1 || f[0][0].Seq != 0 || len(f[0][0].Data) != 400 {
		t.Fatalf("sent again: %+v, want fragment 0 alone", f)
	}
	if s := p.Stats(); s.Lost != 1 || s.Retransmitted != 1 {
		t.Errorf("stats = %+v", s)
	}
	p.mustReceive(ack(wire.Range{Lo: 5, Hi: 5}))
	if p.Unacked() {
		t.Error("still unacknowledged")
	}
	if n, ok := p.LargestAcked(); n != 5 || !ok {
		t.Errorf("LargestAcked = %d, %v", n, ok)
	}
	if _, latest := p.RTT(); latest != time.Microsecond {
		t.Errorf("latest RTT = %v", latest)
	}
}

func TestLossByTime(t *testing.T) {
	p := newPeer(t, clientUDP)
	p.send(400, reliable.Reliable, 0)
	p.packets()
	p.send(401, reliable.Reliable, 0)
	p.packets()
	p.mustTick(80 * ms)
	p.mustReceive(ack(wire.Range{Lo: 2, Hi: 2}))
	if got := p.WakeAt().Sub(epoch); got != 90*ms {
		t.Errorf("WakeAt = %v, want 9/8 of 80 ms", got)
	}
	p.mustTick(9 * ms)
	requireKinds(t, p)
	p.mustTick(ms)
	requireKinds(t, p, wire.FrameReliable)
}

func TestProbeTimeouts(t *testing.T) {
	p := newPeer(t, reliable.Config{RTT: 40 * ms, RetryIntervalMax: 500 * ms, MaxRetry: 4})
	p.send(100, reliable.Reliable, 0)
	p.packets()
	// smoothed 40 + 4 × 20 + 20, then doubled up to the cap.
	for i, want := range []time.Duration{140 * ms, 280 * ms, 500 * ms, 500 * ms} {
		if got := p.WakeAt().Sub(p.now); got != want {
			t.Errorf("probe %d in %v, want %v", i, got, want)
		}
		p.mustTick(p.WakeAt().Sub(p.now))
		requireKinds(t, p, wire.FrameReliable)
	}
	if err := p.tick(500 * ms); !errors.Is(err, reliable.ErrDead) {
		t.Errorf("Tick = %v, want %v", err, reliable.ErrDead)
	}
}

func TestProbeWithoutReliable(t *testing.T) {
	p := newPeer(t, clientUDP)
	p.send(100, reliable.Unreliable, 0)
	p.packets()
	p.mustTick(time.Second)
	requireKinds(t, p, wire.FramePing)
	p.mustReceive(ack(wire.Range{Lo: 1, Hi: 2}))
	if at := p.WakeAt(); !at.IsZero() {
		t.Errorf("WakeAt = %v with nothing under way", at)
	}
}

func TestCongestionWindow(t *testing.T) {
	p := newPeer(t, reliable.Config{RTT: 50 * ms})
	for range 60 {
		p.send(1100, reliable.Reliable, 0)
	}
	n := len(p.packets())
	if got := n * 1160; got < 31<<10 || got > 35<<10 {
		t.Errorf("%d bytes in flight, want about 32 KiB", got)
	}
	p.mustTick(50 * ms)
	p.mustReceive(ack(wire.Range{Lo: 0, Hi: p.pn}))
	p.send(500, reliable.Unreliable, 0)
	more := 0
	for range 50 {
		more += len(p.packets())
		p.mustTick(ms)
	}
	if more < n {
		t.Errorf("%d packets in a round trip after %d were acknowledged", more, n)
	}
	p.PathChanged(p.now, 0)
	if smoothed, _ := p.RTT(); smoothed != 0 {
		t.Errorf("RTT of the old path: %v", smoothed)
	}
}

func TestPathChangeAsksWhatArrived(t *testing.T) {
	p := newPeer(t, reliable.Config{RTT: 400 * ms})
	p.PathChanged(p.now, 0)
	requireKinds(t, p, wire.FrameAck) // nothing to ask for
	p.send(100, reliable.Reliable, 0)
	p.packets()
	p.mustTick(1000 * ms)
	if quiet, probes := p.Silence(p.now); quiet != time.Second || probes != 1 {
		t.Errorf("silent for %v and %d probes", quiet, probes)
	}
	p.packets()
	p.PathChanged(p.now, 80*ms)
	if smoothed, _ := p.RTT(); smoothed != 80*ms {
		t.Errorf("RTT %v of a path found in 80 ms", smoothed)
	}
	requireKinds(t, p, wire.FrameAck, wire.FrameReliable)
	p.mustReceive(ack(wire.Range{Lo: 4, Hi: 4}))
	if quiet, probes := p.Silence(p.now); quiet != 0 || probes != 0 {
		t.Errorf("silent for %v and %d probes after an answer", quiet, probes)
	}
}
