package transport

import (
	"fmt"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
)

// BenchmarkKeepAlive is one PING and its answer on a connection that has said nothing
// else for a while, each time on another of many.
func BenchmarkKeepAlive(b *testing.B) {
	r := startFast(b, "UDP")
	all := make([]*pinger, 2000)
	for i := range all {
		c := r.join(id.UID(fmt.Sprint("u", i)))
		_ = c.socket.SetDeadline(time.Now().Add(time.Hour))
		all[i] = newPinger(c, 64)
	}
	for _, c := range r.core.live() { // as if that had been a while ago
		c.mu.Lock()
		c.active -= int64(time.Minute)
		c.mu.Unlock()
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		p := all[i%len(all)]
		now := time.Now()
		p.machine.SendPing(now)
		if err := p.drain(now); err != nil {
			b.Fatal(err)
		}
		for !p.rx.Pong.Has {
			if _, err := p.next(); err != nil {
				b.Fatal(err)
			}
		}
		p.rx.Pong.Has = false
	}
}

// TestSilentConnIsTrimmed has a connection say nothing at all after its first message.
func TestSilentConnIsTrimmed(t *testing.T) {
	r := startFast(t, "UDP")
	c := r.join("u")
	c.send(cmdEcho, []byte("x"), reliable.Reliable)
	c.pump("answer", func() bool { return len(c.got) == 1 })
	conn := r.core.places.Get(c.creds.SID).Conn()
	for deadline := time.Now().Add(patience); ; <-time.After(time.Millisecond) {
		conn.mu.Lock()
		asleep := conn.opener.Asleep() && conn.sealer.Asleep()
		conn.mu.Unlock()
		if asleep {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("its keys are still awake")
		}
	}
}
