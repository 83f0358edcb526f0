package transport

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
)

// deadlines notes who takes the deadline for writes away.
type deadlines struct {
	streamSocket
	conn                  *Conn
	set, taken, unguarded atomic.Int32
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	if !t.IsZero() {
		d.set.Add(1)
	} else {
		if d.conn.mu.TryLock() { // so it may be the next writer's
			d.conn.mu.Unlock()
			d.unguarded.Add(1)
		}
		d.taken.Add(1)
	}
	return d.streamSocket.SetWriteDeadline(t)
}

// The deadline of a write that had to wait goes before anybody else may write: without its
// own deadline a write to a client that takes nothing would last for ever.
func TestWriteDeadlineIsTakenBackInTime(t *testing.T) {
	r := start(t, "TCP", func(c *Config) { c.Limits.QueueBytesMax = 64 << 20 }, nil)
	c := r.join("u")
	r.h.waitLog(t, "opened u resumed=false")
	conn := r.h.last()
	d := &deadlines{conn: conn}
	conn.mu.Lock()
	d.streamSocket = conn.stream.socket
	conn.stream.socket = d
	conn.mu.Unlock()
	for sent := 0; d.set.Load() == 0; sent++ { // until the sockets hold no more
		if err := conn.Send(nil, request(1, make([]byte, 1000)), reliable.Unreliable); err != nil {
			t.Fatal(err)
		}
		if sent > 100_000 {
			t.Skip("the sockets here hold more than 100 MB")
		}
	}
	c.pump("what waited", func() bool { return d.taken.Load() > 0 })
	if d.unguarded.Load() > 0 {
		t.Error("the deadline was taken away when somebody else could write")
	}
}
