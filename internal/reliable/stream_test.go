package reliable_test

import (
	"errors"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

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
	p.mustTick(5 * time.Second) // which it is to be heard in
	if got := p.WakeAt().Sub(p.now); got != 5*time.Second {
		t.Errorf("WakeAt in %v, want 5s", got)
	}
	p.mustTick(5*time.Second - 1)
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
