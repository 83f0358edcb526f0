package transport

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// askEnded says Hello until it is told that the stay is over; false when nothing is said
// of that.
func (c *client) askEnded(addr netip.AddrPort) (wire.CloseCode, bool) {
	c.t.Helper()
	hs, err := secure.NewClient(c.creds, "key", c.options, rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	c.dial(addr)
	pkt := c.exchange(hs.Hello(), wire.PacketEnded)
	if pkt == nil {
		return 0, false
	}
	code, err := hs.Ended(pkt)
	if err != nil {
		c.t.Fatalf("told %x, which is refused: %v", pkt, err)
	}
	if c.proto == "TCP" && (c.read(time.Now().Add(patience)) != nil || !c.eof) {
		c.t.Error("the stream goes on after Ended")
	}
	return code, true
}

// timeIsOver is what the keeper does when the time of a place is over.
func timeIsOver(r *rig, sid id.SID) {
	ps := r.srv.Places()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.endLocked(ps.bySID[sid], wire.CloseIdle)
}

// A client that missed its CLOSE hears what it would have said; one that was never here,
// or lives on another node, hears nothing.
func TestEndedIsTold(t *testing.T) {
	const silence = wire.CloseCode(99)
	gone := func(code wire.CloseCode) func(*rig) *client {
		return func(r *rig) *client {
			c := r.join("u")
			c.place(r).Conn().Close(code, "")
			return c
		}
	}
	moved := func(r *rig, release error) *client {
		c := r.reserve("u", func(q *Reservation) {
			q.Release = func(context.Context) error { return release }
		})
		c.tries = 1
		c.dial(r.addr)
		c.tryHandshake(false)
		return c
	}
	for _, tc := range []struct {
		name string
		play func(*rig) *client
		want wire.CloseCode
	}{
		{"slow", gone(wire.CloseSlow), wire.CloseSlow},
		{"rate", gone(wire.CloseRate), wire.CloseRate},
		{"flow", gone(wire.CloseFlow), wire.CloseFlow},
		{"protocol error", gone(wire.CloseProtocol), wire.CloseProtocol},
		{"shutdown", gone(wire.CloseShutdown), wire.CloseShutdown},
		{"a code of later", gone(77), wire.CloseInternal},
		{"kicked", func(r *rig) *client {
			c := r.join("u")
			r.srv.Places().End(c.creds.SID, wire.CloseKicked, "")
			return c
		}, wire.CloseKicked},
		{"kicked while it was lost", func(r *rig) *client {
			c := r.join("u")
			c.place(r).Conn().Close(wire.CloseIdle, "")
			r.srv.Places().End(c.creds.SID, wire.CloseKicked, "")
			return c
		}, wire.CloseKicked},
		{"replaced by a newer sid", func(r *rig) *client {
			c := r.join("u")
			r.srv.Places().End(c.creds.SID, wire.CloseReplaced, "")
			return c
		}, wire.CloseReplaced},
		{"replaced before it was opened", func(r *rig) *client {
			c := r.reserve("u", nil)
			if ps := r.srv.Places(); !ps.Replaced(c.creds.SID) || ps.Replaced(c.creds.SID) {
				t.Error("Replaced must be true once")
			}
			return c
		}, wire.CloseReplaced},
		{"it left by itself", func(r *rig) *client {
			c := r.join("u")
			pkt := wire.Close{Code: wire.CloseKicked}.AppendTo(c.sealer.Begin(nil))
			c.write(c.sealer.Finish(time.Now(), pkt, 0))
			r.h.wait(t, "its end", func(log []string) bool { return len(log) == 2 })
			return c
		}, wire.CloseNormal},
		{"its time was over", func(r *rig) *client {
			c := r.join("u")
			c.place(r).Conn().Close(wire.CloseIdle, "")
			timeIsOver(r, c.creds.SID)
			return c
		}, wire.CloseIdle},
		{"nobody opened it in time", func(r *rig) *client {
			c := r.reserve("u", nil)
			timeIsOver(r, c.creds.SID)
			return c
		}, silence},
		{"cancelled unopened", func(r *rig) *client {
			c := r.reserve("u", nil)
			r.srv.Places().Cancel(c.creds.SID)
			return c
		}, silence},
		{"kicked unopened", func(r *rig) *client {
			c := r.reserve("u", nil)
			r.srv.Places().End(c.creds.SID, wire.CloseKicked, "")
			return c
		}, silence},
		{"a MOVE took it away", func(r *rig) *client {
			c := r.join("u")
			r.srv.Places().Released(c.creds.SID)
			return c
		}, silence},
		{"its old node kept the user", func(r *rig) *client {
			return moved(r, fmt.Errorf("kept: %w", ErrRevoked))
		}, silence},
		{"its old node lost the user to a newer sid", func(r *rig) *client {
			return moved(r, fmt.Errorf("kept: %w: %w", ErrReplaced, ErrRevoked))
		}, wire.CloseReplaced},
		{"nobody came after a MOVE", func(r *rig) *client {
			c := moved(r, errors.New("no answer"))
			timeIsOver(r, c.creds.SID)
			return c
		}, silence},
		{"moved back, and cancelled there", func(r *rig) *client {
			c := gone(wire.CloseKicked)(r)
			q := Reservation{Credentials: c.creds, UID: "u"}
			if _, err := r.srv.Places().Reserve(q); err != nil {
				t.Fatal(err)
			}
			r.srv.Places().Cancel(c.creds.SID)
			return c
		}, silence},
		{"moved back, and kicked again", func(r *rig) *client {
			c := gone(wire.CloseKicked)(r)
			q := Reservation{Credentials: c.creds, UID: "u"}
			if _, err := r.srv.Places().Reserve(q); err != nil {
				t.Fatal(err)
			}
			c.open(r.addr, false)
			c.place(r).Conn().Close(wire.CloseRate, "")
			return c
		}, wire.CloseRate},
	} {
		for _, proto := range protocols {
			t.Run(tc.name+" "+proto, func(t *testing.T) {
				t.Parallel()
				r := start(t, proto, nil, nil)
				c := tc.play(r)
				c.tries = 0
				if tc.want == silence {
					c.tries = 1 // it can't come later
				}
				switch code, told := c.askEnded(r.addr); {
				case tc.want == silence && told:
					t.Errorf("told %v, want silence", code)
				case tc.want == silence:
					r.requireFigure("packets_dropped_total", "cid", 1)
				case !told || code != tc.want:
					t.Errorf("told %v, %v; want %v", code, told, tc.want)
				default:
					r.requireFigure("ended_told_total", tc.want.String(), 1)
				}
			})
		}
	}
}

// Who lost a place in a burst of Hellos, or tries to use the answer, pays for it alone.
func TestEndedIsLimited(t *testing.T) {
	d := newDesk(t, Limits{HelloPerSec: 1, HelloBurst: 5})
	src := netip.MustParseAddrPort("192.0.2.1:1")
	creds := d.reserve("u", nil)
	other := d.reserve("v", nil)
	for _, c := range []secure.Credentials{creds, other} {
		if !d.u.Places().Replaced(c.SID) {
			t.Fatal("not replaced")
		}
	}
	hello := func(c secure.Credentials) []byte {
		hs, err := secure.NewClient(c, "key", secure.ClientOptions{}, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return hs.Hello()
	}
	if answer, err := d.send(flipped(hello(creds), 250), src); answer != nil || err != secure.RefusedMac {
		t.Errorf("a Hello of who does not know the keys: %x, %v", answer, err)
	}
	told := 0
	for range 20 {
		answer, err := d.send(hello(creds), src)
		if err == nil && len(answer) == wire.EndedBytes {
			told++
		} else if err != dropCID {
			t.Fatalf("%x, %v", answer, err)
		}
	}
	if told != 5 {
		t.Errorf("told %d of 20 times, want 5", told)
	}
	if _, err := d.send(hello(other), src); err != nil {
		t.Errorf("another place pays for it: %v", err)
	}
	d.now = d.now.Add(d.u.cfg.ResumeTTL + time.Second)
	if _, err := d.send(hello(other), src); err != secure.RefusedCID {
		t.Errorf("told after ResumeTTL: %v", err)
	}
}

func TestMemoryForgetsTheOldest(t *testing.T) {
	var m memory
	entry := func(n byte, at int64) departed {
		base := secure.Derive(secure.Credentials{SID: id.SID{n}}, "")
		return departed{base: base.EndedBase, at: at, told: true}
	}
	cid0 := func(n byte) wire.CID {
		d := entry(n, 0)
		return d.base.CID0()
	}
	has := func(n byte) bool {
		_, ok := m.entries[cid0(n)]
		return ok
	}
	m.add(entry(1, 10), 3)
	m.add(entry(2, 20), 3)
	if _, ok := m.take(cid0(1)); !ok || has(1) {
		t.Error("not taken")
	}
	m.add(entry(1, 30), 3) // it came back, and left again
	m.add(entry(3, 40), 3)
	if !has(1) || !has(2) || !has(3) {
		t.Error("what was taken counts")
	}
	m.add(entry(4, 50), 3)
	if has(2) || !has(1) || len(m.order) > 3 {
		t.Errorf("past the bound, not the oldest was forgotten: %d", len(m.order))
	}
	m.forgetBefore(40)
	if has(1) || !has(3) || !has(4) {
		t.Error("not forgotten by age")
	}
	m.forgetBefore(100)
	if m.entries != nil || m.order != nil {
		t.Error("keeps room for what is forgotten")
	}
}
