package transport

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// A place that ends while Opened runs is told after it, and the reader goes on.
func TestEndDuringOpened(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			h := &openHook{recorder: newRecorder()}
			r := startHandler(t, proto, nil, h)
			h.opened = func(c *Conn) {
				r.srv.Places().End(c.Place().SID(), wire.CloseKicked, "")
				r.core.alarm.wake()
				h.add("in opened")
			}
			c := r.join("u")
			c.requireClose(wire.CloseKicked)
			h.waitLog(t, "in opened", "opened u resumed=false", "ended u kicked")
			if r.srv.Connected() != 0 {
				t.Error("still connected")
			}
		})
	}
}

// openHook does something in Opened.
type openHook struct {
	*recorder
	opened func(c *Conn)
}

func (h *openHook) Opened(b *Batch, c *Conn, resumed bool) {
	h.opened(c)
	h.recorder.Opened(b, c, resumed)
}

// Many clients come, talk, go and are stopped and let go while others send to all
// of them: for the race detector.
func TestManyAtOnce(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, func(c *Config) { c.Limits.HelloPerSec, c.Limits.AddressPerSec = -1, -1 }, nil)
			ctx, cancel := context.WithCancel(context.Background())
			var noise sync.WaitGroup
			for range 2 {
				noise.Go(func() {
					b := r.srv.NewBatch()
					msg := request(9, []byte("to all"))
					for ctx.Err() == nil {
						r.srv.Places().Each(func(p *Place) bool {
							if c := p.Conn(); c != nil {
								_ = c.Send(b, msg, reliable.Unreliable)
							}
							return true
						})
						b.Flush()
					}
				})
			}
			var clients sync.WaitGroup
			for i := range 6 {
				c := r.reserve(id.UID(fmt.Sprint("u", i)), nil)
				clients.Go(func() {
					for round := range 3 {
						r.comeAndTalk(c, round)
					}
				})
			}
			clients.Wait()
			cancel()
			noise.Wait()
		})
	}
}

// comeAndTalk connects c again, for the first time in round 0, and has it talk
// while everybody's connection is frozen and thawed.
func (r *rig) comeAndTalk(c *client, round int) {
	c.dial(r.addr)
	for late := time.Now().Add(patience); !c.tryHandshake(round > 0); {
		if time.Now().After(late) {
			c.t.Error("no answer to the handshake")
			return
		}
		c.dial(r.addr) // on TCP, a frozen place closes the door
	}
	echoes := 0
	for n := range 5 {
		c.send(cmdEcho, counter(n), reliable.Reliable)
		c.flush()
		r.srv.Places().Each(func(p *Place) bool {
			if _, err := r.srv.Places().Freeze(context.Background(), p.SID()); err == nil {
				r.srv.Places().Thaw(p.SID())
			}
			return true
		})
		answered := c.pumpFor(patience, func() bool {
			for _, m := range c.got {
				if m.Kind == wire.Response {
					echoes++
				}
			}
			c.got = nil
			return echoes > n
		})
		if !answered {
			c.t.Errorf("no answer %d in round %d, closed %v", n, round, c.closed)
			return
		}
	}
}
