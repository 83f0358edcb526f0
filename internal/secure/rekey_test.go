package secure

import (
	"errors"
	"testing"
	"time"
)

// rekeying is one direction of a connection whose sender takes its next key after
// 4 packets.
type rekeying struct {
	t   *testing.T
	now time.Time
	s   *Sealer
	o   *Opener
}

func newRekeying(t *testing.T, stream bool) *rekeying {
	o := KeyOptions{Suite: AES128GCM, Stream: stream, Rekey: RekeyPolicy{Packets: 4}}
	r := &rekeying{t: t, now: testStart}
	r.s, r.o = pairOf(o)
	return r
}

// seal returns the next packet and says which phase it has.
func (r *rekeying) seal() (b []byte, phase int) {
	b = pack(r.s, r.now, "frames")
	return b, int(b[0] & 1)
}

func (r *rekeying) open(b []byte, want error) {
	r.t.Helper()
	if _, got, err := r.o.Open(r.now, []byte(string(b))); !errors.Is(err, want) || err == nil && string(got) != "frames" {
		r.t.Errorf("open: %q, %v, want %v", got, err, want)
	}
}

// send seals n packets, opens and acknowledges them.
func (r *rekeying) send(n int) {
	r.t.Helper()
	for range n {
		b, _ := r.seal()
		r.open(b, nil)
		r.s.Acked(r.s.NextPN() - 1)
	}
}

func (r *rekeying) wantFlips(n uint64) {
	r.t.Helper()
	if r.s.Flips() != n {
		r.t.Errorf("sender flipped %d times, want %d", r.s.Flips(), n)
	}
}

func TestSenderFlipsByCount(t *testing.T) {
	r := newRekeying(t, false)
	r.send(3) // with packet 0 of the handshake that makes 4
	r.wantFlips(0)
	b, phase := r.seal()
	if phase != 1 {
		t.Errorf("packet 4 has phase %d", phase)
	}
	r.open(b, nil)
	if r.o.Flips() != 1 {
		t.Errorf("receiver flipped %d times, want 1", r.o.Flips())
	}
	if r.s.NextPN() != 5 {
		t.Errorf("next packet is %d, want 5: numbers go on", r.s.NextPN())
	}
}

func TestSenderFlipsByTime(t *testing.T) {
	r := newRekeying(t, false)
	r.s.rekey = RekeyPolicy{}.withDefaults()
	r.send(2)
	r.now = testStart.Add(time.Hour - time.Millisecond)
	r.send(1)
	r.wantFlips(0)
	r.now = testStart.Add(time.Hour)
	r.send(1)
	r.wantFlips(1)
	r.now = r.now.Add(time.Hour)
	r.send(1)
	r.wantFlips(2)
}

func TestDefaultPolicy(t *testing.T) {
	if p := (RekeyPolicy{}).withDefaults(); p.Packets != 1<<22 || p.Interval != time.Hour {
		t.Errorf("default policy = %+v", p)
	}
}

func TestNoFlipWithoutAck(t *testing.T) {
	r := newRekeying(t, false)
	for range 10 {
		b, _ := r.seal()
		r.open(b, nil)
	}
	r.now = r.now.Add(24 * time.Hour)
	r.seal()
	r.wantFlips(0)

	r.s.Acked(r.s.NextPN()) // never sent: no acknowledgement
	r.seal()
	r.wantFlips(0)
	r.s.Acked(3)
	r.seal()
	r.wantFlips(1)

	r.now = r.now.Add(24 * time.Hour)
	r.s.Acked(3) // of the phase before
	r.seal()
	r.wantFlips(1)
	r.s.Acked(r.s.NextPN() - 1)
	r.seal()
	r.wantFlips(2)
}

func TestTenSecondsBetweenFlips(t *testing.T) {
	for _, stream := range []bool{false, true} {
		r := newRekeying(t, stream)
		r.send(4)
		r.wantFlips(1)
		r.now = r.now.Add(flipGap - time.Millisecond)
		r.send(20)
		r.wantFlips(1)
		r.now = r.now.Add(time.Millisecond)
		r.send(1)
		r.wantFlips(2)
	}
}

func TestStreamFlipsWithoutAck(t *testing.T) {
	r := newRekeying(t, true)
	for range 3 {
		for range 5 {
			b, _ := r.seal()
			r.open(b, nil)
		}
		r.now = r.now.Add(flipGap)
		if r.s.WantsPing(r.now) {
			t.Error("a stream wants a PING")
		}
	}
	r.wantFlips(3)
}

func TestWantsPing(t *testing.T) {
	r := newRekeying(t, false)
	r.s.rekey.Packets = 100
	for range 48 {
		r.seal()
	}
	if r.s.WantsPing(r.now) {
		t.Error("wants a PING before half of the packets")
	}
	r.seal()
	if !r.s.WantsPing(r.now) {
		t.Error("wants no PING after half of the packets")
	}
	if r.s.WantsPing(r.now.Add(pingGap - time.Millisecond)) {
		t.Error("wants a second PING within a second")
	}
	if !r.s.WantsPing(r.now.Add(pingGap)) {
		t.Error("wants no second PING after a second")
	}
	r.s.Acked(1)
	if r.s.WantsPing(r.now.Add(time.Hour)) {
		t.Error("wants a PING in an acknowledged phase")
	}

	r = newRekeying(t, false)
	r.s.rekey = RekeyPolicy{}.withDefaults()
	if r.s.WantsPing(testStart.Add(30*time.Minute - 1)) {
		t.Error("wants a PING before half of the interval")
	}
	if !r.s.WantsPing(testStart.Add(30 * time.Minute)) {
		t.Error("wants no PING after half of the interval")
	}
}

func TestLatePacketsOfTheOldPhaseOpen(t *testing.T) {
	r := newRekeying(t, false)
	late, _ := r.seal()
	later, _ := r.seal()
	latest, _ := r.seal()
	r.s.Acked(3)
	first, phase := r.seal()
	second, _ := r.seal()
	if phase != 1 {
		t.Fatal("the sender did not flip")
	}
	r.open(second, nil)
	r.open(late, nil)
	r.open(first, nil) // below the lowest so far, but of the current phase
	r.now = r.now.Add(flipGap)
	r.open(later, nil)
	r.open(late, ErrReplay)
	r.now = r.now.Add(time.Millisecond)
	r.open(latest, ErrOldKey)
	if r.o.prev != nil {
		t.Error("the old key is still there")
	}
	if r.o.Forged() != 0 {
		t.Errorf("forged = %d for late packets", r.o.Forged())
	}
}

// TestForgedFlipChangesNothing: a phase bit alone moves no key.
func TestForgedFlipChangesNothing(t *testing.T) {
	r := newRekeying(t, false)
	r.send(2)
	forged, _ := r.seal()
	good := []byte(string(forged))
	forged[0] ^= 1
	r.open(forged, ErrAuth)
	if r.o.upcoming == nil {
		t.Error("the next key was not kept")
	}
	r.open(good, nil)
	r.send(1)
	r.wantFlips(1)
	if r.o.Flips() != 1 || r.o.upcoming != nil {
		t.Errorf("receiver flipped %d times", r.o.Flips())
	}
	// The bit of the phase before, above what the current one opened: the next key.
	forged, _ = r.seal()
	forged[0] ^= 1
	r.open(forged, ErrAuth)
	r.send(1)
}

// TestEachDirectionRekeysAlone runs both through one handshake.
func TestEachDirectionRekeysAlone(t *testing.T) {
	h := newHand(t, ClientOptions{X25519: true, Rekey: RekeyPolicy{Packets: 3}})
	e := h.finish(RekeyPolicy{Packets: 50})
	now := h.now
	for range 100 {
		now = now.Add(time.Second)
		if _, _, err := e.serverOpen.Open(now, pack(e.clientSeal, now, "up")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := e.clientOpen.Open(now, pack(e.serverSeal, now, "down")); err != nil {
			t.Fatal(err)
		}
		e.clientSeal.Acked(e.clientSeal.NextPN() - 1)
		e.serverSeal.Acked(e.serverSeal.NextPN() - 1)
	}
	if c, s := e.clientSeal.Flips(), e.serverSeal.Flips(); c != e.serverOpen.Flips() || s != e.clientOpen.Flips() || c != 10 || s != 2 {
		t.Errorf("client flipped %d times, server %d", c, s)
	}
}

// TestAcceptAcknowledgesPacketZero: the client may flip before any ACK came.
func TestAcceptAcknowledgesPacketZero(t *testing.T) {
	h := newHand(t, ClientOptions{Rekey: RekeyPolicy{Packets: 2}})
	e := h.finish(RekeyPolicy{Packets: 2})
	for range 3 {
		pack(e.clientSeal, h.now, "x")
		pack(e.serverSeal, h.now, "x")
	}
	if e.clientSeal.Flips() != 1 || e.serverSeal.Flips() != 0 {
		t.Errorf("flips: client %d, want 1; server %d, want 0", e.clientSeal.Flips(), e.serverSeal.Flips())
	}
}
