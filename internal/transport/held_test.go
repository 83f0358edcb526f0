package transport

import (
	"fmt"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// frames sends a packet with just these frames.
func (c *client) frames(b []byte) {
	pkt := append(c.sealer.Begin(nil), b...)
	c.write(c.sealer.Finish(time.Now(), pkt, 0))
}

// hear waits for a frame, without the client's machine, which knows nothing of what
// frames sends.
func (c *client) hear(what wire.FrameType) (f wire.Frame) {
	c.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end) && !c.eof; {
		pkt := c.read(time.Now().Add(50 * time.Millisecond))
		if wire.TypeOf(pkt) != wire.PacketData {
			continue
		}
		_, b, err := c.opener.Open(time.Now(), pkt)
		for err == nil && len(b) > 0 {
			var n int
			if n, err = f.Parse(b); err == nil && f.Type == what {
				return f
			}
			b = b[n:]
		}
	}
	c.t.Fatalf("frame of type %d did not come", what)
	return f
}

// half sends n fragments of 1000 bytes of a message that never becomes whole, and waits
// until the server has them.
func (r *rig) half(c *client, from, n int) {
	r.t.Helper()
	for seq := from; seq < from+n; seq++ {
		c.frames(wire.AppendReliable(nil, 0, uint64(seq), seq == 0, false, make([]byte, 1000)))
	}
	c.frames(wire.AppendPing(nil, 1))
	c.hear(wire.FramePong)
}

func (r *rig) requireHeld(what string, ok func(n int64) bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !ok(r.core.held.Load()); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%s: %d bytes counted as held", what, r.core.held.Load())
		}
	}
}

// The node's budget is exceeded by one who holds little: who holds most goes.
func TestWhoHoldsMostGoesFirst(t *testing.T) {
	for _, proto := range protocols {
		for _, lost := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s lost=%v", proto, lost), func(t *testing.T) {
				r := start(t, proto, func(c *Config) { c.Limits.HeldBytes = 100 << 10 }, nil)
				hog, small, late := r.join("hog"), r.join("small"), r.join("late")
				r.half(hog, 0, 60)
				r.half(small, 0, 20)
				r.requireHeld("two", func(n int64) bool { return n == 60<<10+4<<10+24<<10 })
				if lost {
					hog.frames(wire.Close{Code: wire.CloseIdle}.AppendTo(nil))
					r.h.wait(t, "hog is lost", func(log []string) bool { return log[len(log)-1] == "lost hog" })
					r.requireHeld("two, one of them lost", func(n int64) bool { return n == 60<<10+4<<10+24<<10 })
				}
				r.half(late, 0, 16)
				r.h.wait(t, "hog ends", func(log []string) bool { return log[len(log)-1] == "ended hog flow" })
				if !lost {
					if f := hog.hear(wire.FrameClose); f.Close.Code != wire.CloseFlow {
						t.Errorf("closed with %v", f.Close.Code)
					}
				}
				for _, c := range []*client{small, late} {
					c.frames(wire.AppendMessage(nil, request(cmdEcho, nil)))
					c.hear(wire.FrameMessage)
				}
				r.requireHeld("two", func(n int64) bool { return n == 24<<10+20<<10 })
				if n := r.figure("held_ended_total", ""); n != 1 {
					t.Errorf("%v users ended, want 1", n)
				}
				for _, c := range []*client{small, late} {
					c.frames(wire.Close{}.AppendTo(nil))
				}
				r.requireHeld("nobody", func(n int64) bool { return n == 0 })
			})
		}
	}
}

// What is held is counted on every way a connection ends, resumes or is replaced.
func TestHeldIsCountedThroughout(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, func(c *Config) { c.ResumeTTL = 200 * time.Millisecond }, nil)
			c := r.join("u")
			r.half(c, 0, 10)
			is := func(want int64) func(int64) bool { return func(n int64) bool { return n == want } }
			r.requireHeld("connected", is(12<<10))
			c.machine = reliable.New(time.Now(), reliable.Config{Stream: proto == "TCP"}, nil)
			c.open(r.addr, true) // takes over
			r.requireHeld("resumed", is(12<<10))
			r.half(c, 10, 10)
			r.requireHeld("grown", is(24<<10))
			c.open(r.addr, false)
			r.requireHeld("started over", is(0))
			r.half(c, 0, 10)
			c.frames(wire.Close{Code: wire.CloseIdle}.AppendTo(nil))
			r.requireHeld("lost", is(12<<10))
			r.requireHeld("expired", is(0))

			st, err := reliable.ParseState(stateOf(t))
			if err != nil {
				t.Fatal(err)
			}
			moved := r.reserve("moved", func(q *Reservation) { q.State = st })
			r.requireHeld("moved here", is(4<<10))
			moved.machine = reliable.New(time.Now(), reliable.Config{Stream: proto == "TCP"}, nil)
			moved.open(r.addr, true)
			r.requireHeld("arrived", is(4<<10))
			r.srv.Places().End(moved.creds.SID, wire.CloseKicked, "")
			r.requireHeld("kicked", is(0))
			other := r.reserve("gone", func(q *Reservation) { q.State, _ = reliable.ParseState(stateOf(t)) })
			r.requireHeld("expected", is(4<<10))
			r.srv.Places().Cancel(other.creds.SID)
			r.requireHeld("cancelled", is(0))
		})
	}
}

// stateOf is an encoded State with half a message.
func stateOf(t *testing.T) []byte {
	m := reliable.New(time.Now(), reliable.Config{}, nil)
	var rx reliable.Received
	if err := m.Receive(time.Now(), 1, wire.AppendReliable(nil, 0, 0, true, false, make([]byte, 1000)), &rx); err != nil {
		t.Fatal(err)
	}
	return m.Export().AppendTo(nil)
}

// A burst for those who take what they get closes none of them, however many messages
// it has.
func TestBurstClosesNobody(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, nil, nil)
			c := r.join("u")
			r.h.waitLog(t, "opened u resumed=false")
			to, msg := r.h.last(), wire.Message{Kind: wire.Push, Ver: 2, Payload: make([]byte, 30)}.AppendTo(nil)
			const n = 6000
			for i := range n {
				if err := to.Send(nil, msg, reliable.Reliable); err != nil {
					t.Fatalf("message %d: %v", i, err)
				}
			}
			c.pump("all messages", func() bool { return len(c.got) == n })
			r.h.waitLog(t, "opened u resumed=false")
		})
	}
}

// A client that is there and acknowledges nothing is slow after a while, however
// little more is sent to it.
func TestNoProgressCloses(t *testing.T) {
	r := start(t, "UDP", func(c *Config) { c.MaxRetry = 100 }, nil)
	c := r.join("u")
	r.h.waitLog(t, "opened u resumed=false")
	msg := wire.Message{Kind: wire.Push, Ver: 2, Payload: make([]byte, 60_000)}.AppendTo(nil)
	for range 8 {
		if err := r.h.last().Send(nil, msg, reliable.Reliable); err != nil {
			t.Fatal(err)
		}
	}
	ended := func() bool {
		r.h.mu.Lock()
		defer r.h.mu.Unlock()
		return len(r.h.log) == 2
	}
	for end := time.Now().Add(2 * patience); !ended() && time.Now().Before(end); {
		c.frames(wire.AppendPing(nil, 1))
		c.read(time.Now().Add(50 * time.Millisecond))
	}
	r.h.waitLog(t, "opened u resumed=false", "ended u slow")
}

// Half a message of one who is there is given up for good in the end; here at once,
// because it came with a user who was there long enough.
func TestIncompleteTooLongCloses(t *testing.T) {
	m, now := reliable.New(time.Now(), reliable.Config{}, nil), time.Now()
	var rx reliable.Received
	for i := range 30 {
		frame := wire.AppendPing(nil, 1)
		if i == 0 {
			frame = wire.AppendReliable(nil, 0, 0, true, false, make([]byte, 10))
		}
		if err := m.Receive(now.Add(time.Duration(i)*time.Second), uint64(i+1), frame, &rx); err != nil {
			t.Fatal(err)
		}
	}
	_ = m.Tick(now.Add(30*time.Second - time.Millisecond))
	st, err := reliable.ParseState(m.Export().AppendTo(nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, proto := range protocols {
		r := start(t, proto, nil, nil)
		again, _ := reliable.ParseState(st.AppendTo(nil))
		c := r.reserve("u", func(q *Reservation) { q.State = again })
		c.machine = reliable.New(time.Now(), reliable.Config{Stream: proto == "TCP"}, nil)
		c.open(r.addr, true)
		if f := c.hear(wire.FrameClose); f.Close.Code != wire.CloseFlow {
			t.Errorf("closed with %v", f.Close.Code)
		}
		r.h.waitLog(t, "opened u resumed=true", "ended u flow")
	}
}

// An ACK of all numbers so far covers one that the server left out, sooner or later.
func TestAckAheadOfReceiptCloses(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	liar, honest := r.join("liar"), r.join("honest")
	r.h.wait(t, "both opened", func(log []string) bool { return len(log) == 2 })
	conns := map[id.UID]*Conn{}
	r.srv.Places().Each(func(p *Place) bool { conns[p.UID()] = p.Conn(); return true })
	msg := wire.Message{Kind: wire.Push, Ver: 2}.AppendTo(nil)
	sent := 0
	for end := time.Now().Add(6 * patience); liar.closed == nil; sent++ {
		if time.Now().After(end) {
			t.Fatalf("%d packets acknowledged ahead", sent)
		}
		for _, c := range conns {
			_ = c.Send(nil, msg, reliable.Unreliable)
		}
		honest.pump("push", func() bool { return len(honest.got) > sent })
		pkt := liar.read(time.Now().Add(patience))
		pn, frames, err := liar.opener.Open(time.Now(), pkt)
		if err != nil {
			t.Fatal(err)
		}
		if err := liar.machine.Receive(time.Now(), pn, frames, &liar.rx); err != nil {
			t.Fatal(err)
		}
		liar.closed = liar.rx.Close
		liar.frames(wire.AppendAck(nil, 0, []wire.Range{{Lo: 0, Hi: pn}}))
	}
	if liar.closed.Code != wire.CloseProtocol {
		t.Errorf("closed with %v, want %v", liar.closed.Code, wire.CloseProtocol)
	}
	for range 2000 { // numbers are left out for the honest one too
		_ = conns["honest"].Send(nil, msg, reliable.Unreliable)
		honest.pump("push", func() bool { return len(honest.got) > sent })
		sent++
	}
}
