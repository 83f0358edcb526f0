package secure

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/Diarkis/diarkis/internal/wire"
)

// pairOf returns the two ends of one direction.
func pairOf(o KeyOptions) (*Sealer, *Opener) { return NewSealer(o, testStart), NewOpener(o) }

func TestRebuildPN(t *testing.T) {
	for _, c := range []struct {
		largest uint64
		low     uint32
		want    uint64
	}{
		{0, 1, 1},
		{0, 0, 0},
		{0, 0xffffffff, 0xffffffff}, // nothing lies below 0
		{1000, 1001, 1001},
		{1000, 3, 3},
		{0xffffffff, 0, 1 << 32},
		{0xfffffff0, 5, 1<<32 + 5},
		{1<<32 + 5, 0xfffffff0, 0xfffffff0},
		{1<<32 + 1<<31, 2, 1<<32 + 2},
		{1<<32 + 1<<31, 1, 2<<32 + 1}, // as far ahead as behind: ahead
		{1<<32 + 1<<31 - 2, 0, 1 << 32},
		{5<<32 + 7, 9, 5<<32 + 9},
		{1<<62 - 2, 0xffffffff, 1<<62 - 1},
		{1<<62 - 2, 0, 1<<62 - 1<<32}, // not beyond 62 bits
	} {
		if got := rebuildPN(c.largest, c.low); got != c.want {
			t.Errorf("rebuildPN(%#x, %#x) = %#x, want %#x", c.largest, c.low, got, c.want)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		largest := r.Uint64N(1<<62 - 1<<32)
		pn := largest + 1 - min(largest+1, 1<<31-1) + r.Uint64N(1<<32-1)
		if got := rebuildPN(largest, uint32(pn)); largest >= 1<<31 && got != pn {
			t.Fatalf("rebuildPN(%#x, %#x) = %#x, want %#x", largest, uint32(pn), got, pn)
		}
	}
}

// TestReplayWindow compares with a set that forgets nothing.
func TestReplayWindow(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for seed := range 50 {
		var w replayWindow
		seen := map[uint64]bool{0: true}
		w.mark(0)
		var largest uint64
		for range 3000 {
			var pn uint64
			switch r.IntN(10) {
			case 0:
				pn = largest + r.Uint64N(3*replayBits)
			case 1, 2, 3:
				pn = largest - min(largest, r.Uint64N(2*replayBits))
			default:
				pn = largest + r.Uint64N(4)
			}
			want := seen[pn] || pn+replayBits <= largest
			if got := w.refuses(pn); got != want {
				t.Fatalf("seed %d: refuses(%d) = %v with largest %d, want %v", seed, pn, got, largest, want)
			}
			if !want {
				w.mark(pn)
				seen[pn] = true
				largest = max(largest, pn)
			}
		}
	}
	if n := unsafe.Sizeof(replayWindow{}.bits); n != 128 {
		t.Errorf("the window takes %d bytes, want 128", n)
	}
}

func TestOpenRefusals(t *testing.T) {
	for _, suite := range []Suite{ChaCha20Poly1305, AES128GCM} {
		for _, fromClient := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v fromClient=%v", suite, fromClient), func(t *testing.T) {
				s, o := pairOf(KeyOptions{Suite: suite, FromClient: fromClient})
				first := pack(s, testStart, "first")
				for i := range first {
					b := []byte(string(first))
					b[i] ^= 0x02
					if _, _, err := o.Open(testStart, b); err == nil {
						t.Errorf("a packet changed at %d opened", i)
					}
				}
				if o.Forged() == 0 || o.Largest() != 0 {
					t.Errorf("forged %d, largest %d after changed packets", o.Forged(), o.Largest())
				}
				want := func(name string, b []byte, want error) {
					t.Helper()
					if _, _, err := o.Open(testStart, []byte(string(b))); !errors.Is(err, want) {
						t.Errorf("%s: error = %v, want %v", name, err, want)
					}
				}
				want("empty", nil, ErrType)
				want("handshake packet", append([]byte{byte(wire.PacketHello)}, first[1:]...), ErrType)
				want("short", first[:s.Overhead()-1], ErrShort)
				want("cut", first[:len(first)-1], ErrAuth)
				want("good", first, nil)
				want("repeated", first, ErrReplay)
				old := pack(s, testStart, "old")
				for range replayBits {
					want("next", pack(s, testStart, ""), nil)
				}
				want("below the window", old, ErrReplay)
			})
		}
	}
}

// TestPacketZeroIsSpent: number 0 went to the handshake under the same key.
func TestPacketZeroIsSpent(t *testing.T) {
	o := KeyOptions{Suite: AES128GCM}
	open := NewOpener(o)
	if _, _, err := open.Open(testStart, pack(newSealer(o, testStart), testStart, "x")); !errors.Is(err, ErrReplay) {
		t.Errorf("data packet 0: error %v", err)
	}
}

func TestReorderedAndLostPacketsOpen(t *testing.T) {
	s, o := pairOf(KeyOptions{Suite: ChaCha20Poly1305, FromClient: true})
	var packets [][]byte
	for range 2000 {
		packets = append(packets, pack(s, testStart, "x"))
	}
	r := rand.New(rand.NewPCG(5, 6))
	for from := 0; from < len(packets); from += 500 {
		part := packets[from : from+500]
		r.Shuffle(len(part), func(i, j int) { part[i], part[j] = part[j], part[i] })
		for _, b := range part[:450] {
			if _, _, err := o.Open(testStart, b); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestOpenBeyond32Bits(t *testing.T) {
	s, o := pairOf(KeyOptions{Suite: AES128GCM})
	for _, pn := range []uint64{1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 1<<31 - 1, 2<<32 + 3, 1<<62 - 1} {
		s.next = pn
		o.seen.largest = max(o.seen.largest, pn-min(pn, 1<<31))
		if got, _, err := o.Open(testStart, pack(s, testStart, "x")); err != nil || got != pn {
			t.Errorf("packet %#x opened as %#x, %v", pn, got, err)
		}
	}
}

func TestTooManyForgedEndIt(t *testing.T) {
	s, o := pairOf(KeyOptions{Suite: AES128GCM})
	if o.forgedMax != 1<<36 {
		t.Errorf("forgedMax = %d", o.forgedMax)
	}
	o.forgedMax = 3
	forged := func() []byte {
		b := pack(s, testStart, "x")
		b[len(b)-1] ^= 1
		return b
	}
	for i, want := range []error{ErrAuth, ErrAuth, ErrForged, ErrForged} {
		if _, _, err := o.Open(testStart, forged()); !errors.Is(err, want) {
			t.Errorf("forged packet %d: error = %v, want %v", i+1, err, want)
		}
	}
	if _, _, err := o.Open(testStart, pack(s, testStart, "x")); !errors.Is(err, ErrForged) {
		t.Errorf("good packet after them: error %v", err)
	}
	if o.Forged() != 3 {
		t.Errorf("Forged = %d, want 3", o.Forged())
	}
}

func TestBeginChangesNothing(t *testing.T) {
	s, o := pairOf(KeyOptions{Suite: AES128GCM, FromClient: true})
	_ = s.Begin(nil)
	_ = s.Begin(nil)
	slab := append(make([]byte, 0, 4096), "other packet"...)
	start := len(slab)
	slab = append(s.Begin(slab), "frames"...)
	slab = s.Finish(testStart, slab, start)
	if string(slab[:start]) != "other packet" {
		t.Error("Finish changed bytes before start")
	}
	if pn, got, err := o.Open(testStart, slab[start:]); err != nil || pn != 1 || string(got) != "frames" {
		t.Errorf("opened as %d, %q, %v", pn, got, err)
	}
}

func TestNoAllocationsPerPacket(t *testing.T) {
	for _, suite := range []Suite{ChaCha20Poly1305, AES128GCM} {
		s, o := pairOf(KeyOptions{Suite: suite, FromClient: true})
		buf, frames := make([]byte, 0, 1500), make([]byte, 64)
		if n := testing.AllocsPerRun(1000, func() {
			b := s.Finish(testStart, append(s.Begin(buf), frames...), 0)
			if _, _, err := o.Open(testStart, b); err != nil {
				t.Fatal(err)
			}
			s.Acked(s.NextPN() - 1)
			_ = s.WantsPing(testStart)
		}); n != 0 {
			t.Errorf("%v: %v allocations to seal and open a packet", suite, n)
		}
		if n := testing.AllocsPerRun(1000, func() {
			b := s.Finish(testStart, append(s.Begin(buf), frames...), 0)
			b[len(b)-1] ^= 1
			if _, _, err := o.Open(testStart, b); !errors.Is(err, ErrAuth) {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%v: %v allocations to refuse a packet", suite, n)
		}
	}
}

// TestSize keeps what a connection holds in view; the AEADs come on top, 768 bytes
// each for AES until Trim drops them.
func TestSize(t *testing.T) {
	for name, c := range map[string]struct{ got, most uintptr }{
		"Sealer": {unsafe.Sizeof(Sealer{}), 224},
		"Opener": {unsafe.Sizeof(Opener{}), 320},
		"Base":   {unsafe.Sizeof(Base{}), 72},
	} {
		if c.got > c.most {
			t.Errorf("%s takes %d bytes, want at most %d", name, c.got, c.most)
		}
	}
}

func TestTrimmedConnectionGoesOn(t *testing.T) {
	s, o := pairOf(KeyOptions{Suite: AES128GCM, Rekey: RekeyPolicy{Packets: 4}})
	now := testStart
	for i := range 20 {
		now = now.Add(flipGap)
		s.Trim()
		o.Trim(now)
		if o.key.aead != nil || s.key.aead != nil || o.upcoming != nil {
			t.Fatal("Trim kept a cipher")
		}
		if _, _, err := o.Open(now, pack(s, now, "x")); err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		s.Acked(s.NextPN() - 1)
	}
	if s.Flips() != 5 || o.Flips() != 5 {
		t.Errorf("flips = %d sent, %d received, want 5", s.Flips(), o.Flips())
	}
}
