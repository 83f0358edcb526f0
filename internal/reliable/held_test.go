package reliable_test

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// carryOver is resume by way of another node.
func (p *peer) carryOver(cfg reliable.Config) {
	p.t.Helper()
	st, err := reliable.ParseState(p.Export().AppendTo(nil))
	if err != nil {
		p.t.Fatalf("ParseState of an export: %v", err)
	}
	p.Machine = reliable.New(p.now, cfg, st)
	p.pn, p.in = 0, 0
}

// TestResumesShareOneBudget has a client come back again and again with a hole it
// never fills: every connection has a window of its own, all of them one budget.
func TestResumesShareOneBudget(t *testing.T) {
	for name, resume := range map[string]func(*peer, reliable.Config){"here": (*peer).resume, "on another node": (*peer).carryOver} {
		for _, size := range []int{4, 1100} {
			t.Run(name, func(t *testing.T) {
				p := newPeer(t, serverUDP)
				before := heapBytes()
				seq, sent := uint64(1), 0
				for range 200 {
					for in := 0; in+size+32 <= 60<<10; in += size + 32 {
						if err := p.receive(rel(0, seq, "whole", size)); err != nil {
							requireCode(t, err, wire.CloseFlow)
							if p.Held() > reliable.HeldMax || sent+size+32 <= reliable.HeldMax {
								t.Errorf("closed with %d bytes held of %d sent", p.Held(), sent+size+32)
							}
							if got := heapBytes() - before; got > 5<<20 {
								t.Errorf("one user takes %d KiB of memory", got>>10)
							}
							runtime.KeepAlive(p)
							return
						}
						sent += size + 32
						seq++
					}
					p.packets()
					resume(p, serverUDP)
				}
				t.Errorf("%d bytes held after 200 resumes", sent)
			})
		}
	}
}

// TestBudgetCountsAllKinds fills the budget with half messages and closes with a
// fragment beyond a hole, which has a window of its own.
func TestBudgetCountsAllKinds(t *testing.T) {
	p := newPeer(t, serverUDP)
	held := 0
	for channel := uint8(0); channel < 4; channel++ {
		for seq := uint64(0); seq < 460; seq++ {
			p.mustReceive(rel(channel, seq, map[bool]string{true: "first", false: "middle"}[seq == 0], 1100))
			held += 1132
		}
	}
	for seq := uint64(1); ; seq++ {
		err := p.receive(rel(255, seq, "first", 1100), rel(255, seq+1, "last", 0))
		if err != nil {
			t.Fatalf("with %d bytes held: %v", held, err)
		}
		// Delivered early: only that it is done is remembered.
		if seq++; p.Held() != held+int(seq)*32 {
			t.Fatalf("%d bytes held, want %d", p.Held(), held+int(seq)*32)
		}
		if seq > 20 {
			held = p.Held()
			break
		}
	}
	for seq := uint64(1); ; seq++ {
		err := p.receive(rel(9, seq, "whole", 1100))
		if held += 1132; held > reliable.HeldMax {
			requireCode(t, err, wire.CloseFlow)
			return
		}
		if err != nil || p.Held() != held {
			t.Fatalf("%d bytes held, want %d: %v", p.Held(), held, err)
		}
	}
}

// TestIncompleteTooLong has peers that are there and never complete what they began.
func TestIncompleteTooLong(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  reliable.Config
		in   [][]byte
	}{
		{"half a message", serverUDP, [][]byte{rel(0, 0, "first", 9)}},
		{"half a message on TCP", serverTCP, [][]byte{rel(0, 0, "first", 9)}},
		{"whole beyond a hole", serverUDP, [][]byte{rel(3, 1, "whole", 9)}},
		{"part beyond a hole", serverUDP, [][]byte{rel(255, 5, "middle", 9)}},
		{"done beyond a hole", serverUDP, [][]byte{rel(255, 5, "whole", 9)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPeer(t, tt.cfg)
			p.mustReceive(tt.in...)
			at, err := pings(p, time.Minute, time.Second, func(at time.Duration) {
				if at == 20*time.Second { // something whole arrives on another channel, and more beyond the hole
					if !tt.cfg.Stream {
						p.mustReceive(rel(7, 0, "whole", 9), rel(3, 7, "whole", 9))
					}
				}
			})
			if at != 30*time.Second {
				t.Errorf("%v after %v, want flow after 30s", err, at)
			}
			requireCode(t, err, wire.CloseFlow)
		})
	}
}

// TestAgeOfWhatIsHeld moves the clock in ways that count for the age of an incomplete
// message, and in ways that don't.
func TestAgeOfWhatIsHeld(t *testing.T) {
	half := func(t *testing.T) *peer {
		p := newPeer(t, serverUDP)
		p.mustReceive(rel(0, 0, "first", 9))
		if at, err := pings(p, 20*time.Second, time.Second, nothing); err != nil {
			t.Fatalf("after %v: %v", at, err)
		}
		return p
	}
	left := func(t *testing.T, p *peer, want time.Duration) {
		t.Helper()
		at, err := pings(p, time.Minute, time.Second, nothing)
		if at != want {
			t.Errorf("%v after %v more, want flow after %v", err, at, want)
		}
		requireCode(t, err, wire.CloseFlow)
	}
	t.Run("it grows", func(t *testing.T) {
		p := half(t)
		p.mustReceive(rel(0, 1, "middle", 1))
		left(t, p, 30*time.Second)
	})
	t.Run("it becomes whole", func(t *testing.T) {
		p := half(t)
		p.mustReceive(rel(0, 1, "last", 1))
		if at, err := pings(p, time.Minute, time.Second, nothing); err != nil {
			t.Errorf("after %v: %v", at, err)
		}
	})
	t.Run("frozen", func(t *testing.T) {
		p := half(t)
		p.now = p.now.Add(time.Hour)
		p.Thaw(p.now)
		left(t, p, 10*time.Second)
	})
	t.Run("without a connection", func(t *testing.T) {
		p := half(t)
		p.now = p.now.Add(time.Hour)
		p.resume(serverUDP)
		left(t, p, 10*time.Second) // it goes on: coming back is no way to keep it for ever
	})
	t.Run("moved", func(t *testing.T) {
		p := half(t)
		p.now = p.now.Add(time.Hour)
		p.carryOver(serverUDP)
		left(t, p, 10*time.Second)
	})
	t.Run("often resumed", func(t *testing.T) {
		p := half(t)
		for range 9 {
			p.resume(serverUDP)
			if at, err := pings(p, time.Second, time.Second, nothing); err != nil {
				t.Fatalf("after %v: %v", at, err)
			}
			p.carryOver(serverUDP)
		}
		left(t, p, time.Second)
	})
	t.Run("silent", func(t *testing.T) {
		p := half(t)
		p.mustTick(time.Hour) // of the silence, which began a second ago, 5 s count
		p.packets()
		left(t, p, 6*time.Second)
	})
	t.Run("wakes for it", func(t *testing.T) {
		p := half(t)
		p.mustReceive(wire.AppendPing(nil, 1))
		p.packets()
		p.mustTick(4 * time.Second)
		p.mustReceive(wire.AppendPing(nil, 1))
		p.packets()
		p.mustTick(4 * time.Second)
		p.mustReceive(wire.AppendPing(nil, 1))
		p.packets()
		p.mustTick(20 * ms) // the ACK
		p.packets()
		if wait := p.WakeAt().Sub(p.now); wait != 2*time.Second-20*ms {
			t.Errorf("wakes in %v, want 1.98s", wait)
		}
	})
}

// TestSenderKeepsToTheBudget has a peer with a large window that gets all but the end
// of every message: it would have to hold all that.
func TestSenderKeepsToTheBudget(t *testing.T) {
	p := newPeer(t, reliable.Config{Server: true, QueueBytesMax: 64 << 20})
	p.mustReceive(wire.AppendWindow(nil, 1<<30))
	for range 4 {
		for channel := range uint8(4) {
			p.send(700_000, reliable.Reliable, channel)
		}
	}
	held, most := map[[2]uint64]int{}, 0
	for sent := true; sent; {
		sent = false
		packets := p.frames()
		for i, packet := range packets {
			pn := p.pn - uint64(len(packets)-1-i)
			sent = true
			kept := false
			for _, f := range packet {
				if f.Type == wire.FrameReliable {
					held[[2]uint64{uint64(f.Channel), f.Seq}] = len(f.Data) + 32
					kept = kept || f.Last
				}
			}
			if !kept {
				p.mustReceive(ack(wire.Range{Lo: pn, Hi: pn}))
			}
		}
		p.mustTick(ms)
	}
	for _, n := range held {
		most += n
	}
	if most > reliable.HeldMax {
		t.Errorf("the peer holds %d bytes, more than %d", most, reliable.HeldMax)
	}
	if most < reliable.HeldMax/3 {
		t.Errorf("only %d bytes sent", most)
	}
}

// TestLongMessageGetsItsTurn sends 1 MiB on one channel while on twelve others one
// message follows another, which together take all there is.
func TestLongMessageGetsItsTurn(t *testing.T) {
	a := newPeer(t, reliable.Config{Server: true, QueueBytesMax: 64 << 20})
	b := newPeer(t, reliable.Config{Window: 2 << 20})
	waits, total := [13]int{}, 0
	more := func() {
		for channel := 1; channel <= 12; channel++ {
			for ; waits[channel] < 3; waits[channel]++ {
				size := 100_000 + 9_000*channel // they don't end all at once
				a.send(size, reliable.Reliable, uint8(channel))
				total += size
			}
		}
	}
	more()
	for total < 100<<20 {
		ab := a.packets()
		a.mustTick(20 * ms)
		b.mustTick(20 * ms)
		for i, packet := range ab {
			b.in = a.pn - uint64(len(ab)-i)
			b.mustReceive(packet)
			for _, d := range b.got.Messages {
				if d.Channel == 15 {
					return
				}
				waits[d.Channel]--
			}
		}
		for _, packet := range b.packets() {
			a.mustReceive(packet)
		}
		if more(); total > 8<<20 && waits[0] == 0 {
			waits[0]++
			a.send(1<<20, reliable.Reliable, 15)
		}
	}
	t.Errorf("1 MiB did not get through beside %d MiB of other messages", total>>20)
}

// stateWith is an encoded State that holds n fragments of size bytes beyond a hole.
func stateWith(n, size int) []byte {
	b := []byte{1, 1, 0, 0, 0, 0, 0} // version, one channel: id, flags, next, partial cost, partial
	b = wire.AppendVarint(b, uint64(n))
	for seq := range n {
		b = append(wire.AppendVarint(b, uint64(seq+1)), 3) // first and last
		b = append(wire.AppendVarint(b, uint64(size)), make([]byte, size)...)
	}
	return append(b, 0, 0) // nothing sent, nothing waits
}

func TestParseStateKeepsToTheBudget(t *testing.T) {
	const most = reliable.HeldMax / (1000 + 32)
	st, err := reliable.ParseState(stateWith(most, 1000))
	if err != nil || st.Held() != most*(1000+32) {
		t.Fatalf("ParseState: %v, holds %d", err, st.Held())
	}
	if _, err := reliable.ParseState(stateWith(most+1, 1000)); !errors.Is(err, reliable.ErrState) {
		t.Errorf("ParseState of more than the budget: %v, want %v", err, reliable.ErrState)
	}
}

// TestShortHalvesTakeLittleMemory has the first bytes of messages follow long ones:
// they must not keep the memory of these.
func TestShortHalvesTakeLittleMemory(t *testing.T) {
	var got reliable.Received
	var machines []*reliable.Machine
	before := heapBytes()
	for range 24 {
		m := reliable.New(epoch, serverUDP, nil)
		pn, seq := uint64(0), uint64(0)
		for n := 0; n < 1_000_000; n += 1000 { // a message that gets whole
			flags := "middle"
			if seq == 0 {
				flags = "first"
			} else if n == 999_000 {
				flags = "last"
			}
			pn++
			if err := m.Receive(epoch, pn, rel(0, seq, flags, 1000), &got); err != nil {
				t.Fatal(err)
			}
			seq++
		}
		if err := m.Receive(epoch, pn+1, rel(1, 0, "first", 10), &got); err != nil {
			t.Fatal(err)
		}
		machines = append(machines, m)
	}
	got = reliable.Received{}
	if each := (heapBytes() - before) / int64(len(machines)); each > 16<<10 {
		t.Errorf("10 bytes of a message keep %d KiB of memory", each>>10)
	}
	runtime.KeepAlive(machines)
}
