package reliable_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

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

// flow lets p send for d over a path that takes 50 ms, there and back, and returns
// how many packets were acknowledged. It calls sent whenever nothing more leaves.
func flow(p *peer, d time.Duration, sent func()) (acked uint64) {
	const rtt = 50
	var newest []uint64 // packet number after each of the last milliseconds
	for range d / ms {
		p.packets()
		sent()
		newest = append(newest, p.pn)
		if len(newest) > rtt && newest[len(newest)-rtt-1] > acked {
			acked = newest[len(newest)-rtt-1]
			p.mustReceive(ack(wire.Range{Lo: 1, Hi: acked}))
		}
		p.mustTick(ms)
	}
	return acked
}

// TestResendsStayInTheWindow has more to send again than a new connection's window.
func TestResendsStayInTheWindow(t *testing.T) {
	p := newPeer(t, reliable.Config{QueueBytes: 1 << 20})
	for range 900 {
		p.send(1000, reliable.Reliable, 0)
	}
	p.mustReceive(wire.AppendWindow(nil, 1<<20))
	base := flow(p, 160*ms, func() {}) // a fragment a packet; congestion control lets 128 KiB go
	if lost := p.pn - base; lost*1032 < reliable.WindowMin*3/2 {
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
	t.Run("unreliable bytes", func(t *testing.T) {
		p := newPeer(t, reliable.Config{QueueBytes: 3 * (100 + 32)})
		for range 5 {
			p.send(100, reliable.Unreliable, 0)
		}
		if n, b := p.Queued(); n != 3 || b != 3*(100+32) {
			t.Errorf("Queued = %d, %d; want 3 messages", n, b)
		}
	})
	t.Run("reliable by count, where that is wanted", func(t *testing.T) {
		p := newPeer(t, reliable.Config{QueueReliable: 1024})
		for range 1 + 1024 {
			p.send(10, reliable.Reliable, 0)
		}
		if err := p.Send(p.now, message(10), reliable.Reliable); !errors.Is(err, reliable.ErrSlow) {
			t.Errorf("Send = %v, want %v", err, reliable.ErrSlow)
		}
	})
	t.Run("reliable bytes", func(t *testing.T) {
		p := newPeer(t, serverUDP)
		p.send(10, reliable.Reliable, 0) // the one being sent
		for n := 0; n+4+32 <= 1<<20; n += 4 + 32 {
			p.send(4, reliable.Reliable, 0)
		}
		if err := p.Send(p.now, message(4), reliable.Reliable); !errors.Is(err, reliable.ErrSlow) {
			t.Errorf("Send = %v, want %v", err, reliable.ErrSlow)
		}
	})
	t.Run("one message behind another fits, however long", func(t *testing.T) {
		p := newPeer(t, serverUDP)
		p.send(1<<20, reliable.Reliable, 0)
		p.send(1<<20, reliable.Reliable, 0)
		if err := p.Send(p.now, message(4), reliable.Reliable); !errors.Is(err, reliable.ErrSlow) {
			t.Errorf("Send = %v, want %v", err, reliable.ErrSlow)
		}
	})
	t.Run("neither kind takes the room of the other", func(t *testing.T) {
		p := newPeer(t, reliable.Config{Server: true, QueueMessages: 2, QueueBytes: 600, QueueBytesMax: 600})
		for range 2 {
			p.send(200, reliable.Unreliable, 0)
			p.send(200, reliable.Reliable, 0)
		}
		p.send(200, reliable.Reliable, 0)
		if got := p.Stats().DroppedUnreliable; got != 0 {
			t.Errorf("%d unreliable messages gave way to reliable ones", got)
		}
		if err := p.Send(p.now, message(200), reliable.Reliable); !errors.Is(err, reliable.ErrSlow) {
			t.Errorf("Send = %v, want %v", err, reliable.ErrSlow)
		}
		p.send(200, reliable.Unreliable, 0)
		if n, _ := p.Queued(); n != 2+2 {
			t.Errorf("%d messages wait, want 2 of either kind behind the one being sent", n)
		}
	})
	t.Run("what waited comes back with the connection", func(t *testing.T) {
		p := newPeer(t, serverUDP)
		fill := func() (n int) {
			for p.Send(p.now, message(10_000), reliable.Reliable) == nil {
				n++
			}
			return n
		}
		most := fill()
		p.resume(serverUDP)
		if got := fill(); got < most-2 {
			t.Errorf("after a resume %d messages of those that waited for it fit, want %d", got, most)
		}
		p.resume(serverUDP)
		if got := fill(); got > 2 {
			t.Errorf("%d more messages fit after a second resume: no bound", got)
		}
	})
}

// TestChannelsTakeTurns sends small messages while a long one is under way on another
// channel.
func TestChannelsTakeTurns(t *testing.T) {
	a, b := newPeer(t, clientUDP), newPeer(t, serverUDP)
	a.send(1<<20, reliable.Reliable, 1)
	for _, channel := range []uint8{2, 2, 255, 1} {
		a.send(100, reliable.Reliable, channel)
	}
	if messages, bytes := a.Queued(); messages != 4 || bytes != 4*(100+32) {
		t.Errorf("Queued = %d, %d; want the small ones", messages, bytes)
	}
	var order []uint8
	for a.Unacked() {
		for _, packet := range a.packets() {
			b.in++
			if err := b.Receive(b.now, b.in, packet, &b.got); err != nil {
				t.Fatal(err)
			}
			for _, d := range b.got.Messages {
				order = append(order, d.Channel)
			}
		}
		if len(order) < 3 && b.in > 6 {
			t.Fatalf("arrived on channels %v after %d packets, want 2, 255, 2", order, b.in)
		}
		a.mustTick(25 * ms)
		b.mustTick(25 * ms)
		for _, packet := range b.packets() {
			a.mustReceive(packet)
		}
	}
	if want := []uint8{2, 255, 2, 1, 1}; !slices.Equal(order, want) {
		t.Errorf("arrived on channels %v, want %v", order, want)
	}
}

// A user with all that may wait can be moved.
func TestFullQueueFitsAState(t *testing.T) {
	cfg := serverUDP
	cfg.QueueBytesMax = 4 << 20
	for _, size := range []int{100, 1000, 60_000} {
		p := newPeer(t, cfg)
		p.send(1<<20, reliable.Reliable, 0)
		for p.Send(p.now, message(size), reliable.Reliable) == nil {
		}
		encoded := p.Export().AppendTo(nil)
		if len(encoded) > reliable.StateBytesMax-4<<20 { // beside what may be under way and held
			t.Errorf("messages of %d bytes make a state of %d", size, len(encoded))
		}
		if _, err := reliable.ParseState(encoded); err != nil {
			t.Errorf("messages of %d bytes: %v", size, err)
		}
		p.resume(cfg)
		more := 0
		for p.Send(p.now, message(size), reliable.Reliable) == nil {
			more += size + 32
		}
		if more > 1<<20+size+32 {
			t.Errorf("%d bytes more fit after a resume, want 1 MiB", more)
		}
	}
}
