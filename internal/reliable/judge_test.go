package reliable_test

import (
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// owes returns for how long the peer has owed a sign of life; -1 when it owes none.
func (p *peer) owes() time.Duration {
	since, ok := p.Owes()
	if !ok {
		return -1
	}
	return p.now.Sub(since)
}

// TestOwes: the debt begins with the first packet that asks for an answer after the last
// one that came, whatever is sent or lost since, and ends with any that comes.
func TestOwes(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  reliable.Config
		ask  func(*peer)
	}{
		{"message", clientUDP, func(p *peer) { p.send(50, reliable.Reliable, 0) }},
		{"unreliable message", clientUDP, func(p *peer) { p.send(50, reliable.Unreliable, 0) }},
		{"ping", clientUDP, func(p *peer) { p.SendPing(p.now) }},
		{"ping over TCP", clientTCP, func(p *peer) { p.SendPing(p.now) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPeer(t, tt.cfg)
			want := func(d time.Duration) {
				t.Helper()
				if got := p.owes(); got != d {
					t.Fatalf("owes since %v, want %v", got, d)
				}
			}
			ping := wire.AppendPing(nil, 1)
			want(-1)
			p.now = p.now.Add(time.Second)
			tt.ask(p)
			p.packets()
			want(0)
			p.mustTick(300 * ms)
			tt.ask(p)
			p.packets()
			want(300 * ms)
			p.now = p.now.Add(ms)
			p.mustReceive(ping) // of its own: it lives
			want(-1)
			p.packets()
			p.now = p.now.Add(ms)
			tt.ask(p)
			if p.packets(); !p.Spoke() {
				t.Error("what left is not told")
			}
			want(0)
			p.mustTick(500 * ms)
			p.packets() // a probe, over UDP
			want(500 * ms)
		})
	}
	t.Run("what TCP does not answer", func(t *testing.T) {
		p := newPeer(t, clientTCP)
		p.now = p.now.Add(ms)
		p.send(50, reliable.Reliable, 0)
		p.packets()
		if d := p.owes(); d != -1 || !p.Spoke() {
			t.Errorf("owes since %v", d)
		}
	})
}
