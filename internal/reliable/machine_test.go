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

func TestFragments(t *testing.T) {
	a, b := newPeer(t, clientUDP), newPeer(t, serverUDP)
	a.send(1<<20, reliable.Reliable, 7)
	if n := exchange(a, b, 5*ms); n != 1 {
		t.Fatalf("%d messages, want 1", n)
	}
	if err := a.Send(a.now, message(1<<20+1), reliable.Reliable); !errors.Is(err, reliable.ErrTooLarge) {
		t.Errorf("Send of 1 MiB and a byte = %v", err)
	}
	if err := a.Send(a.now, message(1169), reliable.Unreliable); !errors.Is(err, reliable.ErrTooLarge) {
		t.Errorf("Send of an unreliable message larger than a packet = %v", err)
	}
	if err := a.Send(a.now, message(10), reliable.OnChannel(16)); !errors.Is(err, reliable.ErrChannel) {
		t.Errorf("Send on channel 16 = %v", err)
	}
	if err := a.Send(a.now, []byte{0, 0, 0}, reliable.Reliable); !errors.Is(err, wire.ErrMessage) {
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
	if c.got.PathChallenge != (reliable.PathToken{Has: true, Token: [8]byte{1, 2, 3}}) {
		t.Errorf("PathChallenge = %+v", c.got.PathChallenge)
	}
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

// A client can't know yet whether it is resumed: RESUME belongs behind Accept.
func TestResumeInConfirm(t *testing.T) {
	for _, cfg := range []reliable.Config{serverUDP, serverTCP} {
		for _, wanted := range []bool{false, true} {
			p := newPeer(t, cfg)
			err := p.ReceiveConfirm(p.now, wire.AppendResume(nil, 0, 0), wanted, &p.got)
			requireCode(t, err, wire.CloseProtocol)
			p.resume(cfg)
			err = p.ReceiveConfirm(p.now, wire.AppendResume(nil, 0, 0), wanted, &p.got)
			requireCode(t, err, wire.CloseProtocol)
		}
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
