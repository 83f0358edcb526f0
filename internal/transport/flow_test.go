package transport

import (
	"bytes"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport/limit"
	"github.com/Diarkis/diarkis/internal/wire"
)

// ackOf is a frame that acknowledges one packet.
func ackOf(pn uint64) []byte {
	b := wire.AppendVarint([]byte{byte(wire.FrameAck)}, pn)
	return append(b, 0, 0, 0) // without delay, and no more ranges or packets below
}

// A client that comes back, however it does, has no burst again.
func TestBurstsOutliveConnections(t *testing.T) {
	const burst, size = 4000, 1000
	for name, c := range map[string]struct {
		resume, lost bool
	}{"takeover": {false, false}, "resume": {true, false}, "resume after a loss": {true, true}} {
		t.Run(name, func(t *testing.T) {
			r := start(t, "UDP", func(cfg *Config) {
				cfg.IdleTimeout = 300 * time.Millisecond
				cfg.Limits.BytesPerSec, cfg.Limits.BytesBurst = 1, burst
			}, nil)
			u := r.join("u")
			for range 3 {
				u.send(cmdKeep, make([]byte, size), reliable.Unreliable)
			}
			u.flush()
			keeps := func(n int) func([]string) bool {
				return func([]string) bool { return len(r.h.kept) >= n }
			}
			r.h.wait(t, "first burst", keeps(3))
			if c.lost {
				r.h.wait(t, "lost", func(log []string) bool { return len(log) == 2 })
			}
			u.open(r.addr, c.resume)
			for range 3 {
				u.send(cmdKeep, make([]byte, size), reliable.Unreliable)
			}
			u.flush()
			r.requireFigure("packets_dropped_total", "rate_limit", 3)
			r.h.wait(t, "no more than the first burst", func([]string) bool { return len(r.h.kept) == 3 })
		})
	}
}

// Over TCP, where the client waits instead, and from one connection to another's.
func TestSpentGoesAlong(t *testing.T) {
	r := start(t, "TCP", func(cfg *Config) { cfg.Limits.BytesPerSec, cfg.Limits.BytesBurst = 1, 1<<20 }, nil)
	u := r.join("u")
	u.send(cmdEcho, make([]byte, 1000), reliable.Reliable)
	u.pump("answer", func() bool { return len(u.got) == 1 })
	u.open(r.addr, true)
	packets, spent := r.h.last().Spent()
	if packets != 0 || spent < 900*time.Second {
		t.Errorf("after a resume %v of packets and %v of bytes are spent, want none and about 1,000 s", packets, spent)
	}
	v := r.join("v")
	c := r.h.last()
	c.Spend(time.Hour, spent)
	c.Spend(time.Minute, time.Minute)
	if _, got := c.Spent(); got < spent-time.Minute || got > spent {
		t.Errorf("%v of bytes are spent after Spend, want %v", got, spent)
	}
	v.send(cmdEcho, []byte("x"), reliable.Reliable)
	v.pump("answer within the burst", func() bool { return len(v.got) == 1 })
}

// A client that acknowledges every packet at once, as it may, loses nothing of its own
// because others make the server send to it.
func TestAcksOfWhatOthersSendAreFree(t *testing.T) {
	const rounds, each = 20, 50
	r := start(t, "UDP", func(c *Config) { c.Limits.PacketsPerSec, c.Limits.PacketsBurst = 1, 3*rounds }, nil)
	u := r.join("u")
	conn := r.h.last()
	push := wire.Message{Kind: wire.Push, Payload: make([]byte, 1000)}.AppendTo(nil)
	ack := func(pn uint64) {
		u.write(u.sealer.Finish(time.Now(), append(u.sealer.Begin(nil), ackOf(pn)...), 0))
	}
	last := uint64(0)
	for round := range rounds {
		for range each {
			if err := conn.Send(nil, push, reliable.Unreliable); err != nil {
				t.Fatal(err)
			}
		}
		u.send(cmdKeep, counter(round), reliable.Unreliable)
		u.flush()
		for n := 0; n < each; n++ {
			pkt := u.read(time.Now().Add(200 * time.Millisecond))
			if pkt == nil {
				break // lost by a slow machine
			}
			pn, _, err := u.opener.Open(time.Now(), pkt)
			if err == secure.ErrForged {
				t.Fatal(err)
			}
			if err == nil {
				ack(pn)
				last = max(last, pn)
			}
		}
	}
	r.h.wait(t, "all own messages", func([]string) bool { return len(r.h.kept) == rounds })
	if got := r.figure("packets_dropped_total", "rate_limit"); got != 0 {
		t.Errorf("%v packets were dropped for their rate", got)
	}
	// Now more than there was to acknowledge.
	for range 2*rounds*each + 3*rounds {
		ack(last)
	}
	for end := time.Now().Add(patience); r.figure("packets_dropped_total", "rate_limit") < 1; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a flood of acknowledgements is not dropped")
		}
	}
}

// Ten times the rate of packets in acknowledgements is what the protocol asks for when
// the server sends as much, and abuse when it does not.
func TestAckFlow(t *testing.T) {
	for name, honest := range map[string]bool{"honest": true, "flood": false} {
		t.Run(name, func(t *testing.T) {
			packets, size := limit.NewRate(100, 200), limit.NewRate(1<<20, 1<<20)
			f := flow{}
			closed, lost := false, 0
			for i := range 30_000 { // 30 s
				now := int64(time.Hour) + int64(i)*int64(time.Millisecond)
				frames := ackOf(uint64(i))
				if i%20 == 0 { // 50 messages a second of its own
					frames = append(frames, byte(wire.FramePing))
				}
				if honest {
					f.sent()
				}
				ok, abuse := f.take(now, packets, size, 50, frames)
				closed = closed || abuse
				if !ok {
					lost++
				}
			}
			if closed == honest || lost > 0 == honest {
				t.Errorf("closed %v, %d packets dropped", closed, lost)
			}
		})
	}
	f := flow{}
	for range 1 << 20 {
		f.sent()
	}
	if f.ackable != ackableMax {
		t.Errorf("%d acknowledgements are saved up, want %d", f.ackable, ackableMax)
	}
}

func TestOnlyAcks(t *testing.T) {
	two := append(ackOf(7), ackOf(9)...)
	for _, c := range []struct {
		frames []byte
		want   bool
	}{
		{nil, false}, {ackOf(7), true}, {two, true}, {append(ackOf(7), byte(wire.FramePadding)), false},
		{append(ackOf(7), byte(wire.FrameMessage), 1, 0), false}, {ackOf(7)[:2], false}, {[]byte{byte(wire.FrameMessage), 1, 0}, false},
		{bytes.Repeat(ackOf(7), acksMax), false},
	} {
		if got := onlyAcks(c.frames); got != c.want {
			t.Errorf("onlyAcks(%x) = %v", c.frames, got)
		}
	}
}

// Whole bursts of 15 others at once do not make a client a slow one.
func TestBurstsOfManyFit(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, nil, nil)
			r.join("u")
			conn := r.h.last()
			push := wire.Message{Kind: wire.Push, Payload: make([]byte, 60_000)}.AppendTo(nil)
			sent := 0
			for sent < 1000 && conn.Send(nil, push, reliable.Reliable) == nil {
				sent++
			}
			if sent < 15*4 || sent > 90 {
				t.Errorf("%d messages of 60,000 bytes wait for a client, want those of 15 bursts of 4, and a bound", sent)
			}
		})
	}
}
