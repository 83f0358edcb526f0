package reliable_test

import (
	"errors"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// TestBurstIsNotSlow sends at once what a room may send within a moment: whoever takes
// it gets all of it, whatever the number of messages.
func TestBurstIsNotSlow(t *testing.T) {
	for _, tt := range []struct {
		name    string
		n, size int
		stream  bool
	}{
		{"many small", 5000, 40, false},
		{"many small on TCP", 5000, 40, true},
		{"some long", 14, 64 << 10, false},
		{"some long on TCP", 14, 64 << 10, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newPeer(t, reliable.Config{Server: true, Stream: tt.stream, IdleTimeout: 10 * time.Second})
			b := newPeer(t, reliable.Config{Stream: tt.stream, KeepAlive: time.Second})
			for range tt.n {
				a.send(tt.size, reliable.Reliable, 0)
			}
			got := 0
			for range 600 { // a minute, at 100 ms one way
				if got += exchange(a, b, 100*ms); got == tt.n {
					return
				}
				a.mustTick(100 * ms)
				b.mustTick(100 * ms)
			}
			t.Errorf("%d of %d messages arrived", got, tt.n)
		})
	}
}

// backlog is a server with more than 256 KiB behind the message being sent.
func backlog(t *testing.T, stream bool) *peer {
	p := newPeer(t, reliable.Config{Server: true, Stream: stream})
	for range 7 {
		p.send(60_000, reliable.Reliable, 0)
	}
	if stream { // its window takes all of it at once
		for range 20 {
			p.send(60_000, reliable.Reliable, 0)
			p.packets()
		}
		for range 5 {
			p.send(60_000, reliable.Reliable, 0)
		}
	}
	p.packets()
	return p
}

// pings lets the peer be heard every step, for d, doing do besides, and returns the
// error that ended it and when.
func pings(p *peer, d, step time.Duration, do func(at time.Duration)) (time.Duration, error) {
	for at := time.Duration(0); at < d; at += step {
		p.mustReceive(wire.AppendPing(nil, 1))
		do(at)
		p.packets()
		if err := p.tick(step); err != nil {
			return at + step, err
		}
		p.packets()
	}
	return d, nil
}

func nothing(time.Duration) {}

// TestNoProgressIsSlow has a peer that is there and acknowledges nothing.
func TestNoProgressIsSlow(t *testing.T) {
	for _, stream := range []bool{false, true} {
		p := backlog(t, stream)
		if at, err := pings(p, 1500*ms, 100*ms, nothing); err != nil {
			t.Fatalf("stream %v: %v after %v", stream, err, at)
		}
		p.mustReceive(wire.AppendPing(nil, 1))
		p.packets()
		if wait := p.WakeAt().Sub(p.now); wait <= 0 || wait > 500*ms {
			t.Errorf("wakes in %v, want within 500 ms", wait)
		}
		at, err := pings(p, 10*time.Second, 100*ms, nothing)
		if at != 500*ms || !errors.Is(err, reliable.ErrSlow) {
			t.Errorf("stream %v: %v after %v more, want %v after 500ms", stream, err, at, reliable.ErrSlow)
		}
	}
}

// TestProgressIsNotSlow has peers that are none of those.
func TestProgressIsNotSlow(t *testing.T) {
	t.Run("takes little", func(t *testing.T) {
		p := backlog(t, false)
		pn := uint64(0)
		if at, err := pings(p, 20*time.Second, 100*ms, func(at time.Duration) {
			if at%(1900*ms) == 0 {
				pn++
				p.mustReceive(ack(wire.Range{Lo: pn, Hi: pn}))
			}
		}); err != nil {
			t.Errorf("after %v: %v", at, err)
		}
	})
	t.Run("takes little on TCP", func(t *testing.T) {
		p := backlog(t, true)
		seq := uint64(0)
		if at, err := pings(p, 20*time.Second, 100*ms, func(at time.Duration) {
			if at%(1900*ms) == 0 {
				seq++
				p.mustReceive(wire.AppendResume(nil, 0, seq))
			}
		}); err != nil {
			t.Errorf("after %v: %v", at, err)
		}
	})
	t.Run("heard no more for a while", func(t *testing.T) { // a tunnel
		p := newPeer(t, reliable.Config{Server: true, MaxRetry: 100})
		for range 7 {
			p.send(60_000, reliable.Reliable, 0)
		}
		p.packets()
		for range 8 {
			p.mustTick(time.Second)
			p.packets()
		}
		if at, err := pings(p, 900*ms, 100*ms, nothing); err != nil {
			t.Errorf("%v after it is heard again: %v", at, err)
		}
		at, err := pings(p, 10*time.Second, 100*ms, nothing)
		if !errors.Is(err, reliable.ErrSlow) {
			t.Errorf("%v after %v more without progress, want %v", err, at, reliable.ErrSlow)
		}
	})
	t.Run("frozen", func(t *testing.T) {
		p := backlog(t, false)
		p.now = p.now.Add(10 * time.Second)
		p.Thaw(p.now)
		at, err := pings(p, 10*time.Second, 100*ms, nothing)
		if at != 2*time.Second || !errors.Is(err, reliable.ErrSlow) {
			t.Errorf("%v after %v, want %v after 2s", err, at, reliable.ErrSlow)
		}
	})
	t.Run("resumed", func(t *testing.T) {
		p := backlog(t, false)
		p.now = p.now.Add(20 * time.Second)
		p.resume(serverUDP)
		at, err := pings(p, 10*time.Second, 100*ms, nothing)
		if at != 2*time.Second || !errors.Is(err, reliable.ErrSlow) {
			t.Errorf("%v after %v, want %v after 2s", err, at, reliable.ErrSlow)
		}
	})
	t.Run("less waits", func(t *testing.T) {
		p := newPeer(t, serverUDP)
		for range 1 + 256<<10/(1000+32) {
			p.send(1000, reliable.Reliable, 0)
		}
		if at, err := pings(p, 5*time.Second, 100*ms, nothing); err != nil {
			t.Errorf("after %v: %v", at, err)
		}
	})
	t.Run("to a client's machine no server is slow", func(t *testing.T) {
		p := newPeer(t, clientUDP)
		for range 7 {
			p.send(60_000, reliable.Reliable, 0)
		}
		if at, err := pings(p, 5*time.Second, 100*ms, nothing); err != nil {
			t.Errorf("after %v: %v", at, err)
		}
	})
}

// TestSlowEnds checks that progress which makes room ends the matter.
func TestSlowEnds(t *testing.T) {
	a, b := newPeer(t, serverUDP), newPeer(t, clientUDP)
	for range 8 {
		a.send(60_000, reliable.Reliable, 0)
	}
	got := 0
	for a.Unacked() {
		got += exchange(a, b, 20*ms)
		a.mustTick(20 * ms)
		b.mustTick(20 * ms)
	}
	for range 50 {
		a.mustTick(100 * ms)
	}
	if at := a.WakeAt(); got != 8 || !at.IsZero() {
		t.Errorf("%d messages arrived, wakes at %v", got, at)
	}
}
