package reliable_test

import (
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// tickUntil ticks whenever the machine asks for it, sends what it has, and returns after
// how long it found its peer gone; 0 when it did not within d.
func (p *peer) tickUntil(d time.Duration) time.Duration {
	p.t.Helper()
	start := p.now
	for turns := 0; p.now.Sub(start) < d; turns++ {
		if turns > 10_000 {
			p.t.Fatal("WakeAt goes on and on")
		}
		p.packets()
		at := p.WakeAt()
		if at.IsZero() || at.Sub(start) > d {
			break
		}
		p.mustTick(max(0, at.Sub(p.now)))
		if p.Unanswered() {
			return p.now.Sub(start)
		}
	}
	p.now = start.Add(d)
	return 0
}

func TestUnanswered(t *testing.T) {
	udp := reliable.Config{Server: true, RTT: 50 * time.Millisecond, MaxRetry: 100}
	far := reliable.Config{Server: true, RTT: time.Second, MaxRetry: 100}
	tcp := reliable.Config{Server: true, Stream: true, RTT: 50 * time.Millisecond}
	heard := func(p *peer) { p.mustReceive(wire.AppendPong(nil, 1, 0)) }
	for _, tc := range []struct {
		name string
		cfg  reliable.Config
		do   func(p *peer)
		want time.Duration // 0: never within a minute
	}{
		{"nothing was sent", udp, func(*peer) {}, 0},
		{"only answers were sent", udp, func(p *peer) { p.mustReceive(wire.AppendPing(nil, 1)) }, 0},
		{"a reliable message", udp, func(p *peer) { p.send(10, reliable.Reliable, 0) }, 2 * time.Second},
		{"an unreliable message", udp, func(p *peer) { p.send(10, reliable.Unreliable, 0) }, 2 * time.Second},
		{"a PING", udp, func(p *peer) { p.SendPing(p.now) }, 2 * time.Second},
		{"far away", far, func(p *peer) { p.send(10, reliable.Reliable, 0) }, 3 * (time.Second + 2*time.Second + 20*time.Millisecond)},
		{"heard, without an acknowledgement", udp, func(p *peer) {
			p.send(10, reliable.Reliable, 0)
			p.packets()
			p.tickUntil(1900 * time.Millisecond)
			heard(p) // what the last probe asked for is asked anew by the next
		}, 2 * time.Second},
		{"acknowledged", udp, func(p *peer) {
			p.send(10, reliable.Reliable, 0)
			p.packets()
			p.mustReceive(ack(wire.Range{Lo: 0, Hi: p.pn}))
		}, 0},
		{"tcp: nothing was sent", tcp, func(*peer) {}, 0},
		{"tcp: what nobody acknowledges", tcp, func(p *peer) {
			p.send(10, reliable.Unreliable, 0)
			p.SendOffline(wire.OfflineOperator)
		}, 0},
		{"tcp: our own acknowledgement", tcp, func(p *peer) { p.mustReceive(rel(0, 0, "whole", 4)) }, 0},
		{"tcp: a reliable message", tcp, func(p *peer) { p.send(10, reliable.Reliable, 0) }, 5 * time.Second},
		{"tcp: a PING", tcp, func(p *peer) { p.SendPing(p.now) }, 5 * time.Second},
		{"tcp: acknowledged", tcp, func(p *peer) {
			p.send(10, reliable.Reliable, 0)
			p.packets()
			p.mustReceive(wire.AppendResume(nil, 0, 1))
		}, 0},
		{"frozen and thawed", udp, func(p *peer) {
			p.send(10, reliable.Reliable, 0)
			p.packets()
			p.now = p.now.Add(time.Minute)
			p.Thaw(p.now)
		}, 2 * time.Second},
		{"the process did not run", udp, func(p *peer) {
			p.send(10, reliable.Reliable, 0)
			p.packets()
			p.now = p.now.Add(time.Minute)
			p.Woke(p.now)
		}, 2 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t, tc.cfg)
			tc.do(p)
			got := p.tickUntil(time.Minute)
			if got < tc.want || got > tc.want+tc.want/4 || tc.want == 0 && got != 0 {
				t.Fatalf("found gone after %v, want %v", got, tc.want)
			}
			if tc.want == 0 {
				return
			}
			p.Thaw(p.now)
			if p.mustTick(0); !p.Unanswered() {
				t.Error("time alone brought the peer back")
			}
			if heard(p); p.Unanswered() {
				t.Error("still gone when it was heard")
			}
			if p.mustTick(0); p.Unanswered() {
				t.Error("gone at once")
			}
		})
	}
}

// A process that was stopped finds nobody idle, nor stalled, before it has had the time to
// read what came meanwhile.
func TestWokeExcuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		cfg  reliable.Config
		do   func(p *peer)
		want error
	}{
		{"idle", reliable.Config{Server: true, IdleTimeout: 10 * time.Second}, func(*peer) {}, reliable.ErrIdle},
		{"stalled", reliable.Config{Server: true, Stream: true, SlowAfter: time.Hour, QueueBytesMax: 4 << 20}, func(p *peer) {
			for range 40 {
				p.send(60_000, reliable.Reliable, 0)
			}
			p.packets()
		}, reliable.ErrSlow},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPeer(t, tc.cfg)
			tc.do(p)
			p.now = p.now.Add(20 * time.Second)
			p.Woke(p.now)
			p.mustTick(0)
			if at := p.WakeAt(); !at.IsZero() && !at.After(p.now) && tc.name == "idle" {
				t.Errorf("to be woken at once, %v ago", p.now.Sub(at))
			}
			p.mustTick(time.Second)
			if err := p.tick(10 * time.Second); err != tc.want {
				t.Errorf("after a while more: %v, want %v", err, tc.want)
			}
		})
	}
}
