package reliable_test

import (
	"testing"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

var (
	clientUDP = reliable.Config{}
	serverUDP = reliable.Config{Server: true}
	clientTCP = reliable.Config{Stream: true}
	serverTCP = reliable.Config{Stream: true, Server: true}
)

type packets [][]byte

// TestProtocolErrors has every mistake the protocol page names, in one or more
// packets, of which the last must be refused.
func TestProtocolErrors(t *testing.T) {
	move := wire.Move{Host: "::1", Port: 1}.AppendTo(nil)
	tests := []struct {
		name string
		cfg  reliable.Config
		in   packets
	}{
		{"unknown frame", serverUDP, packets{{0x06}}},
		{"unknown frame after a good one", serverUDP, packets{append(wire.AppendPing(nil, 1), 0x7f)}},
		{"truncated frame", serverUDP, packets{{0x01, 0, 0}}},
		{"trailing bytes", serverUDP, packets{append(wire.AppendWindow(nil, 70000), 0x09)}},
		{"no frame", serverUDP, packets{{}}},
		{"reserved flag bits", serverUDP, packets{{0x09, 0, 0, 0x07, 4, 0, 0, 0, 0}}},
		{"channel 16", serverUDP, packets{{0x09, 16, 0, 3, 4, 0, 0, 0, 0}}},
		{"channel 254", serverUDP, packets{{0x09, 254, 0, 3, 4, 0, 0, 0, 0}}},
		{"resume of channel 100", serverUDP, packets{{0x05, 100, 0}}},
		{"continues no message", serverUDP, packets{rel(0, 0, "middle", 1)}},
		{"last of no message", serverUDP, packets{rel(0, 0, "last", 1)}},
		{"starts inside another", serverUDP, packets{rel(0, 0, "first", 1), rel(0, 1, "first", 1)}},
		{"whole inside another", serverUDP, packets{rel(0, 0, "first", 1), rel(0, 1, "whole", 4)}},
		{"continues no message beyond a hole", serverUDP, packets{rel(0, 3, "whole", 4), rel(0, 4, "last", 1)}},
		{"starts inside another beyond a hole", serverUDP, packets{rel(0, 3, "first", 4), rel(0, 4, "whole", 4)}},
		{"does not fit the one after it", serverUDP, packets{rel(0, 4, "whole", 4), rel(0, 3, "first", 4)}},
		{"does not fit what filled the hole", serverUDP, packets{rel(1, 1, "last", 4), rel(1, 0, "whole", 4)}},
		{"beyond a hole, unordered", serverUDP, packets{rel(255, 3, "whole", 4), rel(255, 4, "middle", 4)}},
		{"empty fragment, not the last", serverUDP, packets{rel(0, 0, "first", 0)}},
		{"malformed ack", serverUDP, packets{{0x03, 0, 0, 0, 1}}},
		{"ack below zero", serverUDP, packets{{0x03, 0, 0, 1, 0, 0, 0}}},
		{"ack of a packet never sent", serverUDP, packets{ack(wire.Range{Lo: 0, Hi: 1})}},
		{"offline from a client", serverUDP, packets{wire.AppendOffline(nil, 1)}},
		{"move from a client", serverUDP, packets{move}},
		{"resume, not resumed", serverUDP, packets{wire.AppendResume(nil, 0, 0)}},
		{"message shorter than its header", serverUDP, packets{wire.AppendMessage(nil, []byte{0, 1, 0})}},
		{"message of unknown kind", serverUDP, packets{wire.AppendMessage(nil, []byte{3, 1, 0, 0})}},
		{"reliable message too short", serverUDP, packets{rel(0, 0, "whole", 3)}},
		{"reliable message too short, in fragments", serverUDP, packets{rel(0, 0, "first", 2), rel(0, 1, "last", 0)}},
		{"unordered message too short, early", serverUDP, packets{rel(255, 5, "whole", 3)}},

		{"ack on TCP", serverTCP, packets{ack(wire.Range{})}},
		{"window on TCP", serverTCP, packets{wire.AppendWindow(nil, 70000)}},
		{"path challenge on TCP", clientTCP, packets{wire.AppendPathChallenge(nil, [8]byte{})}},
		{"path response on TCP", serverTCP, packets{wire.AppendPathResponse(nil, [8]byte{})}},
		{"another channel on TCP", serverTCP, packets{rel(1, 0, "whole", 4)}},
		{"resume of another channel on TCP", serverTCP, packets{wire.AppendResume(nil, 1, 0)}},
		{"a gap on TCP", serverTCP, packets{rel(0, 0, "whole", 4), rel(0, 2, "whole", 4)}},
		{"resume above what was sent on TCP", serverTCP, packets{wire.AppendResume(nil, 0, 1)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPeer(t, tt.cfg)
			for _, b := range tt.in[:len(tt.in)-1] {
				p.mustReceive(b)
			}
			requireCode(t, p.receive(tt.in[len(tt.in)-1]), wire.CloseProtocol)
		})
	}
}

func TestAllowed(t *testing.T) {
	tests := []struct {
		name string
		cfg  reliable.Config
		in   packets
	}{
		{"padding alone", serverUDP, packets{{0}}},
		{"offline and move from a server", clientUDP, packets{wire.AppendOffline(nil, 1), wire.Move{Host: "a"}.AppendTo(nil)}},
		{"ack of the handshake", serverUDP, packets{ack(wire.Range{})}},
		{"an empty last fragment", serverUDP, packets{rel(0, 0, "first", 4), rel(0, 1, "last", 0)}},
		{"a fragment twice", serverUDP, packets{rel(0, 0, "whole", 4), rel(0, 0, "whole", 4)}},
		{"a fragment twice on TCP", serverTCP, packets{rel(0, 0, "whole", 4), rel(0, 0, "whole", 4)}},
		{"resume on TCP", serverTCP, packets{wire.AppendResume(nil, 0, 0)}},
		{"bytes after close", serverUDP, packets{append(wire.Close{}.AppendTo(nil), 0xff)}},
		{"a path response nobody asked for", serverUDP, packets{wire.AppendPathResponse(nil, [8]byte{})}},
		{"a pong nobody asked for", serverUDP, packets{wire.AppendPong(nil, 7, 0)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newPeer(t, tt.cfg)
			for _, b := range tt.in {
				p.mustReceive(b)
			}
		})
	}
}

func TestResumeAboveWhatWasSent(t *testing.T) {
	p := newPeer(t, serverUDP)
	p.send(100, reliable.Reliable, 3)
	p.packets()
	p.resume(serverUDP)
	p.mustReceive(wire.AppendResume(nil, 3, 1))
	p.mustReceive(wire.AppendResume(nil, 3, 0)) // below what is known: ignored
	p.mustReceive(wire.AppendResume(nil, 4, 0))
	if p.Unacked() {
		t.Error("RESUME acknowledged nothing")
	}
	requireCode(t, p.receive(wire.AppendResume(nil, 3, 2)), wire.CloseProtocol)
	requireCode(t, p.receive(wire.AppendResume(nil, 4, 1)), wire.CloseProtocol)
}

func TestWindowOverrun(t *testing.T) {
	p := newPeer(t, serverUDP)
	// 56 fragments of 1132 fill 65,536 but for 2,144; one more fits, the rest is dropped.
	seq := uint64(1)
	held := 0
	for ; held+1100+32 <= reliable.WindowMin; seq++ {
		p.mustReceive(rel(0, seq, "whole", 1100))
		held += 1132
	}
	p.packets()
	p.mustReceive(rel(0, seq, "whole", 1100))
	p.mustTick(20 * ms)
	if f := p.kinds(); len(f) > 0 {
		t.Errorf("a dropped fragment was acknowledged with %v", f)
	}
	dropped := 1132
	for ; dropped+1132 <= reliable.WindowMin; dropped += 1132 {
		p.mustReceive(rel(0, seq, "whole", 1100))
	}
	requireCode(t, p.receive(rel(0, seq, "whole", 1100)), wire.CloseFlow)
}

func TestDroppedStartsOverWhenOrderAdvances(t *testing.T) {
	p := newPeer(t, serverUDP)
	for round := range uint64(4) {
		base := round * 100
		for i := range uint64(100) { // 57 are held, 43 dropped
			p.mustReceive(rel(0, base+1+i, "whole", 1100))
		}
		for i := range uint64(100) {
			p.mustReceive(rel(0, base+i, "whole", 1100))
		}
	}
	if len(p.got.Messages) != 1 || p.got.Messages[0].Rel != reliable.Reliable {
		t.Errorf("messages = %v", p.got.Messages)
	}
}

func TestIncompleteOverrun(t *testing.T) {
	p := newPeer(t, serverUDP)
	total := 0
	for channel := uint8(0); ; channel++ {
		p.mustReceive(rel(channel, 0, "first", 1100))
		total += 1132
		for seq := uint64(1); seq < 900; seq++ {
			err := p.receive(rel(channel, seq, "middle", 1100))
			if total += 1132; total > 2<<20 {
				requireCode(t, err, wire.CloseFlow)
				return
			}
			if err != nil {
				t.Fatalf("after %d bytes: %v", total, err)
			}
		}
	}
}

func TestMessageOverrun(t *testing.T) {
	for _, channel := range []uint8{0, reliable.ChannelUnordered} {
		p := newPeer(t, reliable.Config{Server: true, Window: 4 << 20})
		const n = 64 << 10
		p.mustReceive(rel(channel, 0, "first", n))
		for seq := uint64(1); seq < 16; seq++ {
			p.mustReceive(rel(channel, seq, "middle", n))
		}
		requireCode(t, p.receive(rel(channel, 16, "last", 1)), wire.CloseFlow)

		p = newPeer(t, reliable.Config{Server: true, Window: 4 << 20})
		for seq := uint64(17); seq > 1; seq-- { // the hole is at 0 and the end comes first
			flags := "middle"
			if seq == 17 {
				flags = "last"
			}
			p.mustReceive(rel(channel, seq, flags, n))
		}
		err := p.receive(rel(channel, 1, "first", n))
		if channel == 0 {
			if err != nil {
				t.Fatal(err)
			}
			err = p.receive(rel(channel, 0, "whole", 4))
		}
		requireCode(t, err, wire.CloseFlow)
	}
}
