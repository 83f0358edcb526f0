package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// carry hands the state over as the mesh does: as bytes.
func carry(t *testing.T, st *reliable.State) *reliable.State {
	t.Helper()
	st, err := reliable.ParseState(st.AppendTo(nil))
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestMoveLosesNothing(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			h := newRecorder() // one for both nodes, so that the order shows
			from, to := start(t, proto, nil, h), start(t, proto, nil, h)
			c := from.join("u")
			for i := range 30 {
				c.send(cmdEcho, counter(i), reliable.Reliable)
			}
			c.pump("some answers", func() bool { return len(c.got) >= 10 })

			sid := c.creds.SID
			st, err := from.srv.Places().Freeze(context.Background(), sid)
			if err != nil {
				t.Fatal(err)
			}
			if err := h.last().Send(nil, request(1, nil), reliable.Reliable); !errors.Is(err, ErrFrozen) {
				t.Errorf("Send while frozen = %v, want ErrFrozen", err)
			}
			if _, err := from.srv.Places().Freeze(context.Background(), sid); !errors.Is(err, ErrFrozen) {
				t.Errorf("second Freeze = %v, want ErrFrozen", err)
			}
			var asked atomic.Int32
			_, err = to.srv.Places().Reserve(Reservation{
				Credentials: c.creds, UID: "u", State: carry(t, st),
				Release: func(context.Context) error {
					if asked.Add(1) == 1 && proto == "UDP" {
						return errors.New("the mesh is slow today")
					}
					if !from.srv.Places().Released(sid) {
						return errors.New("not there any more")
					}
					return nil
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			for i := range 30 {
				c.send(cmdEcho, counter(30+i), reliable.Reliable) // into the frozen node
			}
			move := wire.Move{Deadline: 5 * time.Second, Host: "127.0.0.1", Port: to.addr.Port()}
			if err := from.srv.Places().Move(sid, move); err != nil {
				t.Fatal(err)
			}
			c.pump("two MOVEs", func() bool { return len(c.moved) >= 2 })
			if m := c.moved[1]; m.Host != move.Host || m.Port != move.Port || m.Deadline >= c.moved[0].Deadline {
				t.Errorf("MOVEs = %+v: must repeat with the time that remains", c.moved)
			}
			c.open(to.addr, true)
			if !c.accept.Resumed {
				t.Fatal("not resumed on the other node")
			}
			for i := range 30 {
				c.send(cmdEcho, counter(60+i), reliable.Reliable)
			}
			c.pump("all answers", func() bool { return len(c.got) == 90 })
			for i, m := range c.got {
				if !bytes.Equal(m.Payload, counter(i)) {
					t.Fatalf("answer %d is %x", i, m.Payload)
				}
			}
			h.waitLog(t, "opened u resumed=false", "opened u resumed=true")
			if from.srv.Places().Get(sid) != nil {
				t.Error("the old node still knows the user")
			}
		})
	}
}

func TestThawGoesOn(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			r := start(t, proto, func(c *Config) { c.IdleTimeout = 300 * time.Millisecond }, nil)
			c := r.join("u")
			ps := r.srv.Places()
			if _, err := ps.Freeze(context.Background(), c.creds.SID); err != nil {
				t.Fatal(err)
			}
			if err := ps.Move(c.creds.SID, wire.Move{Deadline: 10 * time.Second, Host: "h", Port: 1}); err != nil {
				t.Fatal(err)
			}
			for i := range 20 {
				c.send(cmdEcho, counter(i), reliable.Reliable)
			}
			// The second MOVE comes 250 ms after the first, the third after the idle
			// timeout would have struck.
			c.pump("three MOVEs", func() bool { return len(c.moved) >= 3 })
			if len(c.got) != 0 {
				t.Error("a frozen node answered")
			}
			if !ps.Thaw(c.creds.SID) || ps.Thaw(c.creds.SID) {
				t.Error("Thaw must be true once")
			}
			c.send(cmdEcho, counter(20), reliable.Reliable)
			c.pump("all answers", func() bool { return len(c.got) == 21 })
			for i, m := range c.got {
				if !bytes.Equal(m.Payload, counter(i)) {
					t.Fatalf("answer %d is %x", i, m.Payload)
				}
			}
			r.h.waitLog(t, "opened u resumed=false")
		})
	}
}

// What was received before the freeze is handled before Freeze returns.
func TestFreezeWaitsForTheHandler(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			h := newRecorder()
			entered, leave := make(chan struct{}), make(chan struct{})
			var once sync.Once
			h.handle = func(*Batch, *Conn, wire.Message) {
				once.Do(func() { close(entered); <-leave })
			}
			r := start(t, proto, nil, h)
			c := r.join("u")
			c.send(cmdKeep, []byte("a"), reliable.Reliable)
			c.send(cmdKeep, []byte("b"), reliable.Reliable)
			c.flush()
			<-entered
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if _, err := r.srv.Places().Freeze(ctx, c.creds.SID); !errors.Is(err, context.Canceled) {
				t.Errorf("Freeze whose time is over = %v", err)
			}
			frozen := make(chan error)
			go func() {
				_, err := r.srv.Places().Freeze(context.Background(), c.creds.SID)
				frozen <- err
			}()
			select {
			case <-frozen:
				t.Error("Freeze returned while the Handler was at it")
			case <-time.After(20 * time.Millisecond):
			}
			close(leave)
			if err := <-frozen; err != nil {
				t.Fatal(err)
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			if len(h.kept) != 2 {
				t.Errorf("%d messages handled before Freeze returned, want 2", len(h.kept))
			}
		})
	}
}

func TestFreezeOfALostPlace(t *testing.T) {
	r := start(t, "UDP", func(c *Config) {
		c.IdleTimeout, c.ResumeTTL = 50*time.Millisecond, 100*time.Millisecond
	}, nil)
	ps := r.srv.Places()
	c := r.join("u")
	r.h.waitLog(t, "opened u resumed=false", "lost u")
	st, err := ps.Freeze(context.Background(), c.creds.SID)
	if err != nil || st == nil {
		t.Fatalf("Freeze = %v, %v", st, err)
	}
	if err := ps.Move(c.creds.SID, wire.Move{Host: "h"}); !errors.Is(err, ErrNoPlace) {
		t.Errorf("Move of a lost user = %v, want ErrNoPlace", err)
	}
	before := r.figure("packets_dropped_total", "frozen")
	c.dial(r.addr)
	c.tries = 1
	if c.tryHandshake(true) {
		t.Error("connected to a frozen place")
	}
	r.requireFigure("packets_dropped_total", "frozen", before+1)
	ps.Thaw(c.creds.SID)
	r.h.waitLog(t, "opened u resumed=false", "lost u", "ended u idle")
	if _, err := ps.Freeze(context.Background(), id.SID{1}); !errors.Is(err, ErrNoPlace) {
		t.Errorf("Freeze of a stranger = %v, want ErrNoPlace", err)
	}
}

func TestRelease(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto+" revoked", func(t *testing.T) {
			r := start(t, proto, nil, nil)
			c := r.reserve("u", func(q *Reservation) {
				q.Release = func(context.Context) error { return fmt.Errorf("kept: %w", ErrRevoked) }
			})
			c.dial(r.addr)
			c.tries = 1
			if c.tryHandshake(false) {
				t.Error("accepted")
			}
			r.h.waitLog(t, "ended u normal")
		})
		t.Run(proto+" held", func(t *testing.T) {
			r := start(t, proto, nil, nil)
			asked, let := make(chan struct{}), make(chan struct{})
			c := r.reserve("u", func(q *Reservation) {
				q.Release = func(context.Context) error { close(asked); <-let; return nil }
			})
			c.dial(r.addr)
			done := make(chan bool, 1)
			go func() { done <- c.tryHandshake(false) }()
			<-asked
			if r.srv.Places().Cancel(c.creds.SID) {
				t.Error("cancelled while it is being released")
			}
			if len(r.h.log) != 0 {
				t.Errorf("told %q before the release", r.h.log)
			}
			close(let)
			if !<-done {
				t.Error("not accepted after the release")
			}
			r.h.waitLog(t, "opened u resumed=false")
		})
	}
	t.Run("ended meanwhile", func(t *testing.T) {
		r := start(t, "UDP", nil, nil)
		asked := make(chan struct{})
		c := r.reserve("u", func(q *Reservation) {
			q.Release = func(ctx context.Context) error { close(asked); <-ctx.Done(); return ctx.Err() }
		})
		c.dial(r.addr)
		c.tries = 1
		c.tryHandshake(false)
		<-asked
		if !r.srv.Places().End(c.creds.SID, wire.CloseKicked, "") {
			t.Error("End of a place that is being released = false")
		}
		r.h.waitLog(t, "ended u kicked")
		r.stop() // ends Release
	})
}

func TestReleasedVanishes(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.join("u")
	if !r.srv.Places().Released(c.creds.SID) || r.srv.Places().Released(c.creds.SID) {
		t.Error("Released must be true once")
	}
	c.send(cmdEcho, nil, reliable.Reliable)
	c.flush()
	r.requireFigure("packets_dropped_total", "unknown_scid", 1)
	r.stop()
	r.h.waitLog(t, "opened u resumed=false")
	if c.pumpFor(50*time.Millisecond, func() bool { return c.closed != nil }) {
		t.Error("the client was sent a CLOSE")
	}
}
