package reliable_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

const ms = time.Millisecond

func requireKinds(t *testing.T, p *peer, want ...wire.FrameType) {
	t.Helper()
	if got := p.kinds(); !slices.Equal(got, want) {
		t.Errorf("frames = %#x, want %#x", got, want)
	}
}

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
		p.send(100+i, reliable.Reliable, 0)
		p.send(50, reliable.Unreliable, 0)
		p.packets()
	}
	p.mustTick(50 * ms)
	p.mustReceive(ack(wire.Range{Lo: 2, Hi: 3}, wire.Range{Lo: 0, Hi: 0}))
	requireKinds(t, p)
	p.mustReceive(ack(wire.Range{Lo: 2, Hi: 4}, wire.Range{Lo: 0, Hi: 0}))
	f := p.frames()
	if len(f) != 1 || len(f[0]) != 1 || f[0][0].Seq != 0 || len(f[0][0].Data) != 100 {
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
	p.send(100, reliable.Reliable, 0)
	p.packets()
	p.send(101, reliable.Reliable, 0)
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
	if more := len(p.packets()); more < n {
		t.Errorf("%d packets after %d were acknowledged", more, n)
	}
	p.PathChanged(p.now)
	if smoothed, _ := p.RTT(); smoothed != 0 {
		t.Errorf("RTT of the old path: %v", smoothed)
	}
}

// ackAllBut sends all p has and acknowledges every packet but those with fragment
// hole, so that what is outstanding starts there. It returns how far it reaches.
func ackAllBut(p *peer, hole uint64) (newest uint64) {
	for {
		packets := p.frames()
		if len(packets) == 0 {
			return newest
		}
		for i, packet := range packets {
			pn, found := p.pn-uint64(len(packets)-1-i), false
			for _, f := range packet {
				newest, found = max(newest, f.Seq), found || f.Seq == hole
			}
			if !found {
				p.mustReceive(ack(wire.Range{Lo: pn, Hi: pn}))
			}
		}
	}
}

func TestPeerWindow(t *testing.T) {
	p := newPeer(t, reliable.Config{QueueBytes: 1 << 20})
	for range 300 {
		p.send(1000, reliable.Reliable, 0)
	}
	const perWindow = reliable.WindowMin / 1032
	if got := ackAllBut(p, 0); got != perWindow-1 {
		t.Errorf("newest fragment %d, want %d", got, perWindow-1)
	}
	p.mustReceive(wire.AppendWindow(nil, 1000)) // smaller: ignored
	if got := ackAllBut(p, 0); got != 0 {
		t.Errorf("newest fragment %d after a smaller window", got)
	}
	p.mustReceive(wire.AppendWindow(nil, 2*reliable.WindowMin))
	if got := ackAllBut(p, 0); got != 2*reliable.WindowMin/1032-1 {
		t.Errorf("newest fragment %d after a larger window, want %d", got, 2*reliable.WindowMin/1032-1)
	}

	// A new connection knows nothing of the larger window, and what was
	// acknowledged beyond fragment 0 takes no room in it.
	p.resume(reliable.Config{QueueBytes: 1 << 20})
	const acknowledged = 2*reliable.WindowMin/1032 - 1
	if got := ackAllBut(p, 0); got != acknowledged+perWindow-1 {
		t.Errorf("newest fragment %d after a resume, want %d", got, acknowledged+perWindow-1)
	}
}

// TestResendsStayInTheWindow has more to send again than a new connection's window.
func TestResendsStayInTheWindow(t *testing.T) {
	p := newPeer(t, reliable.Config{QueueBytes: 1 << 20})
	for range 400 {
		p.send(1000, reliable.Reliable, 0)
	}
	p.mustReceive(wire.AppendWindow(nil, 1<<20))
	var base uint64 // all below arrived
	for range 2 {   // the congestion window grows to 128 KiB
		base += uint64(len(p.packets()))
		p.mustReceive(ack(wire.Range{Lo: 1, Hi: p.pn}))
	}
	if lost := len(p.packets()); lost*1032 < reliable.WindowMin*3/2 {
		t.Fatalf("only %d packets under way", lost)
	}
	p.resume(reliable.Config{QueueBytes: 1 << 20})
	if got, want := ackAllBut(p, base), base+reliable.WindowMin/1032-1; got != want {
		t.Errorf("newest fragment %d, want %d", got, want)
	}
}

func TestHeldBeforeTakesNoRoom(t *testing.T) {
	p := newPeer(t, serverUDP)
	kept := func(seq uint64) bool {
		p.mustReceive(rel(0, seq, "whole", 1100))
		p.mustTick(20 * ms)
		return len(p.kinds()) > 0
	}
	for seq := range uint64(107) { // 57 fit a window
		if seq == 50 {
			p.resume(serverUDP)
			p.packets()
		}
		if !kept(seq + 1) {
			t.Fatalf("fragment %d was dropped", seq+1)
		}
	}
	if !kept(0) || len(p.got.Messages) != 108 {
		t.Fatalf("%d messages after the hole was filled, want 108", len(p.got.Messages))
	}
	for seq := uint64(109); seq < 109+57; seq++ {
		if !kept(seq) {
			t.Fatalf("fragment %d was dropped", seq)
		}
	}
	if kept(109 + 57) {
		t.Error("more than the window is held")
	}
}

func TestWindowIsAnnounced(t *testing.T) {
	p := newPeer(t, reliable.Config{Window: 100_000, RTT: 40 * ms})
	requireKinds(t, p, wire.FrameWindow)
	p.mustTick(200 * ms)
	requireKinds(t, p, wire.FramePing) // the probe
	p.mustTick(20 * ms)
	p.mustReceive(ack(wire.Range{Lo: 2, Hi: 2}))
	p.mustTick(100 * ms)
	f := p.frames()
	if len(f) != 1 || f[0][0].Type != wire.FrameWindow || f[0][0].Window != 100_000 {
		t.Errorf("after its packet was lost: %+v, want WINDOW again", f)
	}
}

func TestFragments(t *testing.T) {
	a, b := newPeer(t, clientUDP), newPeer(t, serverUDP)
	a.send(1<<20, reliable.Reliable, 7)
	if n := exchange(a, b, 5*ms); n != 1 {
		t.Fatalf("%d messages, want 1", n)
	}
	if err := a.Send(a.now, message(1<<20+1), reliable.Reliable, 0); !errors.Is(err, reliable.ErrTooLarge) {
		t.Errorf("Send of 1 MiB and a byte = %v", err)
	}
	if err := a.Send(a.now, message(1169), reliable.Unreliable, 0); !errors.Is(err, reliable.ErrTooLarge) {
		t.Errorf("Send of an unreliable message larger than a packet = %v", err)
	}
	if err := a.Send(a.now, message(10), reliable.Reliable, 16); !errors.Is(err, reliable.ErrChannel) {
		t.Errorf("Send on channel 16 = %v", err)
	}
	if err := a.Send(a.now, []byte{0, 0, 0}, reliable.Reliable, 0); !errors.Is(err, wire.ErrMessage) {
		t.Errorf("Send of 3 bytes = %v", err)
	}
	a.send(1168, reliable.Unreliable, 0)
	if got := a.packets(); len(got) != 1 || len(got[0]) != reliable.PacketMin {
		t.Errorf("the largest unreliable message takes %d packets", len(got))
	}
}

func TestCoalescing(t *testing.T) {
	p := newPeer(t, clientUDP)
	for range 5 {
		p.send(100, reliable.Reliable, 0)
		p.send(100, reliable.Unreliable, 0)
	}
	if got := p.frames(); len(got) != 1 || len(got[0]) != 10 {
		t.Errorf("10 small messages take %d packets", len(got))
	}
}

func TestSmallPackets(t *testing.T) {
	p := newPeer(t, clientUDP)
	p.send(1000, reliable.Reliable, 0)
	p.send(900, reliable.Unreliable, 0)
	var data int
	for {
		b := p.Append(p.now, p.pn+1, nil, 300)
		if len(b) == 0 {
			break
		}
		if p.pn++; len(b) > 300 {
			t.Fatalf("packet of %d bytes", len(b))
		}
		for _, f := range parseAll(t, b) {
			data += len(f.Data)
		}
	}
	if data != 1000 || p.Stats().DroppedUnreliable != 1 {
		t.Errorf("%d bytes sent, stats %+v", data, p.Stats())
	}
}

func TestUnorderedDeliversEarly(t *testing.T) {
	p := newPeer(t, serverUDP)
	p.mustReceive(rel(255, 3, "last", 10))
	p.mustReceive(rel(255, 2, "first", 10))
	if len(p.got.Messages) != 1 || len(p.got.Messages[0].Bytes) != 20 {
		t.Fatalf("messages = %v", p.got.Messages)
	}
	p.mustReceive(rel(255, 1, "last", 10))
	p.mustReceive(rel(255, 4, "whole", 5))
	if len(p.got.Messages) != 1 || len(p.got.Messages[0].Bytes) != 5 {
		t.Fatalf("messages = %v", p.got.Messages)
	}
	p.resume(serverUDP) // what was delivered stays so
	if f := p.frames(); len(f) != 1 || f[0][0].Channel != 255 || f[0][0].Seq != 0 {
		t.Errorf("RESUME = %+v, want the lowest not received", f)
	}
	for seq := range uint64(5) {
		p.mustReceive(rel(255, seq, map[uint64]string{0: "first", 1: "last", 2: "first", 3: "last", 4: "whole"}[seq], 10))
		if want := seq == 0; (len(p.got.Messages) == 1) != want {
			t.Errorf("after fragment %d: %v", seq, p.got.Messages)
		}
	}
	p.resume(serverUDP)
	if f := p.frames(); f[0][0].Seq != 5 {
		t.Errorf("RESUME = %+v, want 5", f)
	}
}

func TestResumeIsRepeated(t *testing.T) {
	p := newPeer(t, reliable.Config{Server: true, RTT: 40 * ms})
	p.mustReceive(rel(0, 0, "whole", 4))
	p.mustReceive(rel(9, 0, "whole", 4))
	p.packets()
	p.resume(reliable.Config{Server: true, RTT: 40 * ms})
	requireKinds(t, p, wire.FrameResume, wire.FrameResume)
	p.mustReceive(rel(0, 1, "whole", 4)) // meanwhile
	p.mustTick(140 * ms)
	requireKinds(t, p, wire.FrameAck, wire.FramePing)
	p.mustTick(20 * ms)
	p.mustReceive(ack(wire.Range{Lo: 2, Hi: 2}))
	p.mustTick(200 * ms)
	f := p.frames()
	if len(f) != 1 || len(f[0]) != 2 || f[0][0].Seq != 2 || f[0][1].Channel != 9 || f[0][1].Seq != 1 {
		t.Errorf("RESUME after loss = %+v, want both, up to date", f)
	}
}

func TestAcknowledgedBeyondHoleSurvives(t *testing.T) {
	a, b := newPeer(t, clientUDP), newPeer(t, serverUDP)
	for i := range 4 {
		a.send(100+i, reliable.Reliable, 0)
		if p := a.packets(); i != 1 {
			b.mustReceive(p[0])
		}
	}
	a.mustReceive(ack(wire.Range{Lo: 3, Hi: 4}, wire.Range{Lo: 0, Hi: 1}))
	a.resume(clientUDP)
	b.resume(serverUDP)
	f := a.frames()
	if len(f) != 1 || len(f[0]) != 1 || f[0][0].Seq != 1 {
		t.Fatalf("sent again: %+v, want fragment 1 alone", f)
	}
	b.mustReceive(f[0][0].AppendTo(nil))
	if len(b.got.Messages) != 3 {
		t.Errorf("%d messages, want 3", len(b.got.Messages))
	}
}

func TestQueueLimits(t *testing.T) {
	t.Run("unreliable drops the oldest", func(t *testing.T) {
		p := newPeer(t, reliable.Config{QueueMessages: 3})
		for i := range 5 {
			p.send(10+i, reliable.Unreliable, 0)
		}
		f := p.frames()
		if len(f) != 1 || len(f[0]) != 3 || len(f[0][0].Data) != 12 {
			t.Errorf("sent %+v, want the newest 3", f)
		}
		if got := p.Stats().DroppedUnreliable; got != 2 {
			t.Errorf("dropped %d, want 2", got)
		}
	})
	t.Run("reliable is slow", func(t *testing.T) {
		p := newPeer(t, clientUDP)
		for range 1 + 1024 {
			p.send(10, reliable.Reliable, 0)
		}
		if err := p.Send(p.now, message(10), reliable.Reliable, 0); !errors.Is(err, reliable.ErrSlow) {
			t.Errorf("Send = %v, want %v", err, reliable.ErrSlow)
		}
		p.send(10, reliable.Unreliable, 0) // no room either: gone, silently
		if n, b := p.Queued(); n != 1024 || b != 10240 {
			t.Errorf("Queued = %d, %d", n, b)
		}
	})
	t.Run("bytes", func(t *testing.T) {
		p := newPeer(t, clientUDP)
		p.send(1<<20, reliable.Reliable, 0) // the one being sent
		p.send(100<<10, reliable.Reliable, 0)
		p.send(156<<10, reliable.Reliable, 0)
		if err := p.Send(p.now, message(4), reliable.Reliable, 0); !errors.Is(err, reliable.ErrSlow) {
			t.Errorf("Send = %v, want %v", err, reliable.ErrSlow)
		}
	})
	t.Run("reliable displaces unreliable", func(t *testing.T) {
		p := newPeer(t, reliable.Config{QueueMessages: 2})
		p.send(10, reliable.Reliable, 0)
		for range 2 {
			p.send(10, reliable.Unreliable, 0)
		}
		p.send(10, reliable.Reliable, 0)
		if got := p.Stats().DroppedUnreliable; got != 1 {
			t.Errorf("dropped %d, want 1", got)
		}
	})
}

func TestIdleAndKeepAlive(t *testing.T) {
	c := newPeer(t, reliable.Config{KeepAlive: 10 * time.Second})
	s := newPeer(t, reliable.Config{Server: true, IdleTimeout: 30 * time.Second})
	for range 10 {
		if got := c.WakeAt().Sub(c.now); got != 10*time.Second {
			t.Fatalf("client wakes in %v, want 10s", got)
		}
		c.mustTick(10 * time.Second)
		s.mustTick(10 * time.Second)
		exchange(c, s, 0)
	}
	if err := s.tick(30*time.Second - 1); err != nil {
		t.Fatal(err)
	}
	if err := s.tick(1); !errors.Is(err, reliable.ErrIdle) {
		t.Errorf("Tick = %v, want %v", err, reliable.ErrIdle)
	}
	s.Thaw(s.now) // it was frozen all the time
	s.mustTick(30*time.Second - 1)
}

func TestPing(t *testing.T) {
	c := newPeer(t, clientUDP)
	s := newPeer(t, serverUDP)
	s.now = s.now.Add(5 * time.Second) // its clock is ahead
	c.SendPing(c.now)
	ping := c.packets()
	c.mustTick(20 * ms)
	s.mustTick(20 * ms)
	s.mustReceive(ping...)
	pong := s.packets()
	c.mustTick(20 * ms)
	c.mustReceive(pong...)
	if g := c.got.Pong; !g.Has || g.RTT != 40*ms || g.ServerTime != uint64(s.now.UnixMicro()) {
		t.Errorf("Pong = %+v", g)
	}
	if off, ok := c.ClockOffset(); !ok || off != 5*time.Second {
		t.Errorf("ClockOffset = %v, %v, want 5s", off, ok)
	}
	c.mustReceive(pong[0][len(pong[0])-17:]) // twice: not an answer
	if c.got.Pong.Has {
		t.Error("a second PONG counts")
	}
	for i := range uint64(10) {
		s.mustReceive(wire.AppendPing(nil, i))
	}
	if n := len(s.frames()[0]); n != 1+4 {
		t.Errorf("%d frames, want an ACK and 4 PONGs", n)
	}
}

func TestControlFrames(t *testing.T) {
	s, c := newPeer(t, reliable.Config{Server: true, RTT: 40 * ms}), newPeer(t, clientUDP)
	s.SendOffline(wire.OfflineOperator)
	s.SendMove(wire.Move{Deadline: time.Second, Host: "example.com", Port: 7000})
	c.mustReceive(s.packets()...)
	if c.got.Offline != wire.OfflineOperator || c.got.Move == nil || *c.got.Move != (wire.Move{Deadline: time.Second, Host: "example.com", Port: 7000}) {
		t.Errorf("got %+v", c.got)
	}
	s.mustTick(200 * ms)
	s.packets()
	s.mustTick(10 * ms)
	s.mustReceive(ack(wire.Range{Lo: 2, Hi: 2}))
	s.mustTick(200 * ms)
	requireKinds(t, s, wire.FrameOffline)

	c.mustReceive(wire.AppendPathChallenge(nil, [8]byte{1, 2, 3}))
	f := c.frames()
	if last := f[0][len(f[0])-1]; last.Type != wire.FramePathResponse || last.Path != [8]byte{1, 2, 3} {
		t.Errorf("answer to PATH_CHALLENGE: %+v", f)
	}
	s.Sent(9) // a challenge the caller built
	s.mustReceive(wire.AppendPathResponse(nil, [8]byte{4}), ack(wire.Range{Lo: 9, Hi: 9}))
	if s.got.PathResponse != (reliable.PathToken{Has: true, Token: [8]byte{4}}) {
		t.Errorf("PathResponse = %+v", s.got.PathResponse)
	}
	c.mustReceive(wire.Close{Code: wire.CloseKicked, Reason: "bye"}.AppendTo(nil))
	if c.got.Close == nil || *c.got.Close != (wire.Close{Code: wire.CloseKicked, Reason: "bye"}) {
		t.Errorf("Close = %+v", c.got.Close)
	}
}

func TestConfirm(t *testing.T) {
	c, s := newPeer(t, clientUDP), newPeer(t, serverUDP)
	c.send(50, reliable.Reliable, 0)
	confirm := c.Append(c.now, 0, nil, reliable.PacketMin)
	if err := s.ReceiveConfirm(s.now, confirm, false, &s.got); err != nil || len(s.got.Messages) != 1 {
		t.Errorf("ReceiveConfirm = %v, messages %v", err, s.got.Messages)
	}
	requireKinds(t, s) // Accept acknowledges it
	c.mustTick(30 * ms)
	c.Accepted(c.now, 30*ms)
	if c.Unacked() || !c.WakeAt().IsZero() {
		t.Error("Accept did not acknowledge the message in Confirm")
	}
	if smoothed, _ := c.RTT(); smoothed != 30*ms {
		t.Errorf("RTT = %v", smoothed)
	}

	s = newPeer(t, serverUDP)
	both := append(wire.AppendMessage(nil, message(10)), confirm...)
	if err := s.ReceiveConfirm(s.now, both, true, &s.got); err != nil || len(s.got.Messages) != 0 {
		t.Errorf("with resume wanted: %v, messages %v", err, s.got.Messages)
	}
	if err := s.ReceiveConfirm(s.now, nil, false, &s.got); err != nil {
		t.Errorf("without frames: %v", err)
	}
	s.mustReceive(rel(0, 0, "whole", 8)) // its number was not used up
	if len(s.got.Messages) != 1 {
		t.Error("a message in a dropped Confirm counts as received")
	}
}

func TestStream(t *testing.T) {
	a, b := newPeer(t, clientTCP), newPeer(t, serverTCP)
	a.send(1<<20, reliable.Reliable, 5)
	a.send(200, reliable.Reliable, 255)
	a.send(30, reliable.Unreliable, 0)
	if n := exchange(a, b, ms); n != 3 {
		t.Errorf("%d messages, want 3", n)
	}
	a.mustTick(time.Second)
	b.mustTick(time.Second)
	exchange(a, b, ms)
	if a.Unacked() {
		t.Error("RESUME acknowledged nothing")
	}
}

func TestStreamAcknowledges(t *testing.T) {
	p := newPeer(t, serverTCP)
	p.mustReceive(rel(0, 0, "whole", 100))
	requireKinds(t, p)
	if wait := p.WakeAt().Sub(p.now); wait <= 0 || wait > 500*ms {
		t.Errorf("acknowledges in %v, want within 500 ms", wait)
	}
	p.mustTick(500 * ms)
	if f := p.frames(); len(f) != 1 || f[0][0].Type != wire.FrameResume || f[0][0].Seq != 1 {
		t.Errorf("frames = %+v, want RESUME 1", f)
	}
	seq, unsaid := uint64(1), 0
	for ; len(p.frames()) == 0; seq++ {
		p.mustReceive(rel(0, seq, "whole", 1000))
		if unsaid += 1032; unsaid > 32<<10 {
			t.Fatal("32 KiB without RESUME")
		}
	}
}

func TestStreamStall(t *testing.T) {
	p := newPeer(t, reliable.Config{Stream: true, Server: true, IdleTimeout: time.Minute})
	p.send(1<<20, reliable.Reliable, 0)
	p.send(100, reliable.Reliable, 0)
	sent := 0
	for _, b := range p.packets() {
		sent += len(b)
	}
	if sent > 1<<20 {
		t.Errorf("%d bytes without acknowledgement, want at most 1 MiB", sent)
	}
	if got := p.WakeAt().Sub(p.now); got != 10*time.Second {
		t.Errorf("WakeAt in %v, want 10s", got)
	}
	p.mustTick(10*time.Second - 1)
	p.mustReceive(wire.AppendResume(nil, 0, 1)) // room for one more fragment
	p.packets()
	p.mustTick(10*time.Second - 1)
	if err := p.tick(time.Second); !errors.Is(err, reliable.ErrSlow) {
		t.Errorf("Tick = %v, want %v", err, reliable.ErrSlow)
	}
}

func TestStreamResumes(t *testing.T) {
	a, b := newPeer(t, clientTCP), newPeer(t, serverTCP)
	for i := range 3 {
		a.send(100+i, reliable.Reliable, 0)
	}
	b.mustReceive(a.packets()...)
	b.send(40, reliable.Reliable, 0)
	b.packets() // lost with the connection
	a.send(99, reliable.Reliable, 0)
	a.resume(clientTCP)
	b.resume(serverTCP)
	if n := exchange(a, b, ms); n != 2 {
		t.Errorf("%d messages, want the 2 that are new", n)
	}
}

func TestExportLeavesTheMachineAlone(t *testing.T) {
	a, b := newPeer(t, clientUDP), newPeer(t, serverUDP)
	a.send(5000, reliable.Reliable, 0)
	a.send(100, reliable.Reliable, 2)
	b.mustReceive(a.packets()[0])
	before, state := a.Export().AppendTo(nil), b.Export()
	held := state.AppendTo(nil)
	a.mustTick(time.Second)
	b.mustTick(time.Second)
	if n := exchange(a, b, 5*ms); n != 2 {
		t.Errorf("%d messages, want 2", n)
	}
	if !bytes.Equal(state.AppendTo(nil), held) {
		t.Error("an exported state changed with the machine")
	}
	if bytes.Equal(a.Export().AppendTo(nil), before) {
		t.Error("the state after everything was acknowledged is the one before")
	}
}
