package reliable_test

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// FuzzReceive feeds a machine whatever opens. Input is a byte of configuration and
// packets, each behind 5 bits for the time until it comes and 11 for its length.
func FuzzReceive(f *testing.F) {
	seed := func(mode byte, packets ...[]byte) {
		b := []byte{mode}
		for _, p := range packets {
			b = append(append(b, byte(len(p)>>8), byte(len(p))), p...)
		}
		f.Add(b)
	}
	seed(0, rel(0, 0, "whole", 8), rel(0, 3, "first", 9), wire.AppendPing(nil, 3), rel(0, 1, "whole", 4))
	seed(1, rel(255, 4, "last", 8), rel(255, 3, "first", 9), ack(wire.Range{Lo: 0, Hi: 1}), wire.AppendWindow(nil, 1<<40))
	seed(2, rel(0, 0, "first", 8), rel(0, 1, "last", 9), wire.AppendResume(nil, 0, 2))
	seed(4, wire.AppendResume(nil, 0, 2), wire.AppendResume(nil, 3, 1), wire.AppendResume(nil, 255, 0), ack(wire.Range{Lo: 1, Hi: 2}))
	seed(7, wire.Close{Reason: "x"}.AppendTo(nil), wire.Move{Host: "h"}.AppendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		cfg := reliable.Config{Server: b[0]&1 != 0, Stream: b[0]&2 != 0, IdleTimeout: time.Minute}
		p := newPeer(t, cfg)
		p.send(3000, reliable.Reliable, 0)
		p.send(40, reliable.Reliable, 3)
		p.send(40, reliable.Unreliable, 0)
		p.packets()
		if b[0]&4 != 0 {
			p.resume(cfg)
			p.packets()
		}
		for b = b[1:]; len(b) > 2; {
			n := min(int(b[0]&7)<<8|int(b[1]), len(b)-2)
			p.now = p.now.Add(stepOf(b[0] >> 3))
			if p.Tick(p.now) != nil {
				break
			}
			p.packets()
			if p.receive(b[2:2+n]) != nil {
				return
			}
			b = b[2+n:]
			p.packets()
			requireWake(t, p)
		}
		state := p.Export().AppendTo(nil)
		st, err := reliable.ParseState(state)
		if err != nil {
			t.Fatalf("ParseState of an export: %v", err)
		}
		if again := st.AppendTo(nil); !bytes.Equal(again, state) {
			t.Errorf("AppendTo after ParseState = %x, want %x", again, state)
		}
	})
}

// stepOf is 7 ms, or anything from no time to a minute.
func stepOf(bits byte) time.Duration {
	if bits == 0 {
		return 7 * time.Millisecond
	}
	return time.Duration(1)<<bits*30 - 60
}

// requireWake checks that a machine with nothing to send right now asks for a time
// that passing it brings it on from, so that its owner does not spin.
func requireWake(t *testing.T, p *peer) {
	t.Helper()
	now := p.now
	for range 1000 {
		at := p.WakeAt()
		if at.IsZero() {
			return
		}
		if at.After(now.Add(2 * time.Minute)) {
			t.Fatalf("wakes %v from now, past every timeout", at.Sub(now))
		}
		if at.After(now) {
			return
		}
		if p.Tick(now) != nil {
			return
		}
		p.packets()
	}
	t.Fatalf("due at %v for ever, at %v", p.WakeAt(), now)
}

func FuzzParseState(f *testing.F) {
	p := newPeer(f, reliable.Config{})
	p.mustReceive(rel(0, 0, "first", 8), rel(0, 4, "whole", 9), rel(255, 1, "whole", 9), rel(255, 2, "first", 9))
	for i := range 3 {
		p.send(30*i+10, reliable.Reliable, uint8(i))
	}
	p.Append(p.now, 1, nil, 40) // cuts the second message
	p.Append(p.now, 2, nil, 40)
	f.Add(p.Export().AppendTo(nil))
	p.mustTick(time.Second)
	p.mustReceive(ack(wire.Range{Lo: 1, Hi: 1}))
	f.Add(p.Export().AppendTo(nil)) // of the later version: with an age, and a message half acknowledged
	f.Add(newPeer(f, reliable.Config{}).Export().AppendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := reliable.ParseState(b)
		if err != nil {
			return
		}
		first := st.AppendTo(nil)
		st, err = reliable.ParseState(first)
		if err != nil {
			t.Fatalf("ParseState of our own: %v", err)
		}
		if again := st.AppendTo(nil); !bytes.Equal(again, first) {
			t.Errorf("AppendTo = %x, then %x", first, again)
		}
		// A machine must live with it, whatever the peer then does.
		p := newPeer(t, reliable.Config{})
		p.Machine = reliable.New(epoch, reliable.Config{Server: true}, st)
		for seq := range uint64(4) {
			p.packets()
			if p.receive(rel(0, seq, "whole", 5), rel(255, seq, "whole", 5), wire.AppendResume(nil, 1, seq)) != nil {
				return
			}
			_ = p.tick(time.Second)
		}
	})
}

// TestMemoryOfAnAttack keeps what a peer can make one connection hold in bounds:
// tiny fragments beyond holes on every channel, and long incomplete messages.
func TestMemoryOfAnAttack(t *testing.T) {
	p := newPeer(t, serverUDP)
	before := heapBytes()
	for seq := uint64(1 << 40); ; seq -= 2 {
		var b []byte
		for len(b) < 1100 {
			b = append(b, rel(uint8(seq%16), seq, "whole", 4)...)
			seq -= 2
		}
		if p.receive(b) != nil {
			break
		}
		p.packets()
	}
	for channel := range uint8(16) {
		for seq := uint64(0); p.receive(rel(channel, seq, map[bool]string{true: "first", false: "middle"}[seq == 0], 1100)) == nil; seq++ {
			if seq > 2000 {
				t.Fatal("no limit")
			}
		}
	}
	if got := heapBytes() - before; got > 5<<20 {
		t.Errorf("one connection holds %d KiB, want at most 5 MiB", got>>10)
	}
	runtime.KeepAlive(p)
}

func heapBytes() int64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.GC() // the first one moves pooled buffers aside, the second drops them
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}
