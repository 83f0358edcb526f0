package transport

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// cmdStay stays in the Handler until the test lets it go.
const cmdStay = 4

// stays is a recorder whose Handler stays where a test wants it.
type stays struct {
	*recorder
	entered chan struct{} // told when it does
	leave   chan struct{} // closed to let it go
}

func newStays() *stays {
	s := &stays{newRecorder(), make(chan struct{}, 100), make(chan struct{})}
	s.handle = func(_ *Batch, c *Conn, m wire.Message) {
		if m.Cmd == cmdStay {
			s.entered <- struct{}{}
			<-s.leave
			s.add("stayed %s %d", c.Place().UID(), m.Payload)
		}
	}
	return s
}

func (s *stays) awaitEntered(t *testing.T) {
	t.Helper()
	select {
	case <-s.entered:
	case <-time.After(patience):
		t.Fatal("the Handler was not called")
	}
}

// joinApart joins a user whose connection another goroutine reads than that of c.
func (r *rig) joinApart(uid id.UID, c *Conn) *client {
	r.t.Helper()
	for i := range 100 {
		other := r.join(uid + id.UID(fmt.Sprint(i)))
		if c.stream != nil || r.h.last().shard != c.shard {
			return other
		}
	}
	r.t.Skip("this system gives us one socket")
	return nil
}

// A reader that sends to others does not say that their Handlers have returned.
func TestFreezeWaitsWhileOthersSend(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			h := newStays()
			var conn atomic.Pointer[Conn]
			stay := h.handle
			h.handle = func(b *Batch, c *Conn, m wire.Message) {
				stay(b, c, m)
				if m.Cmd == cmdKeep { // a broadcast, to x only
					_ = conn.Load().Send(b, wire.Message{Kind: wire.Push, Cmd: cmdKeep}.AppendTo(nil), reliable.Reliable)
				}
			}
			r := start(t, proto, func(c *Config) { c.Sockets = 4 }, h.recorder)
			x := r.join("x")
			conn.Store(h.last())
			other := r.joinApart("other", h.last())
			x.send(cmdStay, []byte{1}, reliable.Reliable)
			x.flush()
			h.awaitEntered(t)
			other.send(cmdKeep, nil, reliable.Reliable)
			other.flush()
			x.pump("the broadcast", func() bool { return len(x.got) == 1 })

			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if st, err := r.srv.Places().Freeze(ctx, x.creds.SID); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Freeze while the Handler runs = %v, %v", st, err)
			}
			close(h.leave)
			st, err := r.srv.Places().Freeze(t.Context(), x.creds.SID)
			if err != nil || st == nil {
				t.Fatalf("Freeze afterwards: %v", err)
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			if got := h.log[len(h.log)-1]; got != "stayed x [1]" {
				t.Errorf("last told when Freeze returned: %q", got)
			}
		})
	}
}

// watched is a Handler that sends what it gets to everyone, and notes a call for a user
// who is frozen.
type watched struct {
	*recorder
	users   sync.Map // of *watchedUser by uid
	handled atomic.Int64
	wrong   atomic.Int64
}

type watchedUser struct {
	conn   atomic.Pointer[Conn]
	frozen atomic.Bool
}

func (w *watched) user(uid id.UID) *watchedUser {
	u, _ := w.users.LoadOrStore(uid, &watchedUser{})
	return u.(*watchedUser)
}

func (w *watched) Opened(b *Batch, c *Conn, resumed bool) {
	w.user(c.Place().UID()).conn.Store(c)
	w.recorder.Opened(b, c, resumed)
}

func (w *watched) Handle(b *Batch, c *Conn, m wire.Message, _ reliable.Reliability) {
	me := w.user(c.Place().UID())
	push := wire.Message{Kind: wire.Push, Cmd: m.Cmd, Payload: m.Payload}.AppendTo(nil)
	w.users.Range(func(_, u any) bool {
		if me.frozen.Load() {
			w.wrong.Add(1)
		}
		if to := u.(*watchedUser).conn.Load(); to != nil {
			_ = to.Send(b, push, reliable.Unreliable)
		}
		return true
	})
	w.handled.Add(1)
}

// Users are frozen and go on all the time while everyone sends to everyone: nobody's
// Handler runs while they are frozen, and nothing that was sent is missing.
func TestFreezeUnderBroadcasts(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			const users, each = 8, 150
			h := &watched{recorder: newRecorder()}
			r := startHandler(t, proto, func(c *Config) { c.Sockets = 4; c.Limits.AddressPerSec = -1 }, h)
			var all []*client
			for i := range users {
				all = append(all, r.join(id.UID(fmt.Sprint(i))))
			}
			ctx, stop := context.WithCancel(t.Context())
			var freezing, playing sync.WaitGroup
			for i, c := range all {
				freezing.Go(func() { h.freezeOften(ctx, r.srv.Places(), c, id.UID(fmt.Sprint(i))) })
				playing.Go(func() {
					for n := range each {
						if err := c.machine.Send(time.Now(), request(cmdKeep, counter(n)), reliable.Reliable); err != nil {
							t.Error(err)
						}
						c.pumpFor(time.Millisecond, func() bool { return false })
					}
					c.pumpFor(3*patience, func() bool { return h.handled.Load() == users*each })
				})
			}
			playing.Wait()
			stop()
			freezing.Wait()
			if got := h.handled.Load(); got != users*each {
				t.Errorf("%d of %d messages were handled", got, users*each)
			}
			if n := h.wrong.Load(); n > 0 {
				t.Errorf("the Handler ran %d times for a user who was frozen", n)
			}
		})
	}
}

func (w *watched) freezeOften(ctx context.Context, ps *Places, c *client, uid id.UID) {
	for u := w.user(uid); ctx.Err() == nil; <-time.After(2 * time.Millisecond) {
		if _, err := ps.Freeze(ctx, c.creds.SID); err != nil {
			continue
		}
		u.frozen.Store(true)
		<-time.After(100 * time.Microsecond)
		u.frozen.Store(false)
		ps.Thaw(c.creds.SID)
	}
}

// Messages that were acknowledged are handled although their connection is lost
// meanwhile, all of them before the next connection opens.
func TestLossDuringHandle(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			h := newStays()
			r := start(t, proto, func(c *Config) { c.IdleTimeout = 100 * time.Millisecond; c.Sockets = 1 }, h.recorder)
			c := r.join("u")
			for i := range 3 {
				c.send(cmdStay, []byte{byte(i)}, reliable.Reliable)
			}
			c.flush() // in one packet
			h.awaitEntered(t)
			if proto == "TCP" { // its reader is in the Handler, so it takes a writer to notice
				_ = c.socket.Close()
				h.last().stream.broke(h.last())
			}
			h.waitLog(t, "opened u resumed=false", "lost u")
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if _, err := r.srv.Places().Freeze(ctx, c.creds.SID); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Freeze of the lost user while the Handler runs: %v", err)
			}
			back := make(chan struct{})
			go func() {
				defer close(back)
				c.dial(r.addr)
				if !c.tryHandshake(true) {
					t.Error("did not get in again")
				}
			}()
			close(h.leave)
			<-back
			h.wait(t, "all in order", func(log []string) bool {
				return len(log) >= 6 && fmt.Sprint(log[:6]) == "[opened u resumed=false lost u stayed u [0] stayed u [1] stayed u [2] opened u resumed=true]"
			})
		})
	}
}

// slowOpening is a Handler whose Opened stays for the first connection of a user.
type slowOpening struct {
	*stays
	opening chan struct{} // closed when it does
	open    chan struct{} // closed to let it go
	once    sync.Once
}

func (s *slowOpening) Opened(b *Batch, c *Conn, resumed bool) {
	s.recorder.Opened(b, c, resumed)
	if c.Place().UID() == "moved" {
		s.once.Do(func() {
			close(s.opening)
			<-s.open
		})
	}
}

// Over UDP the reader doesn't wait for a Handler that another goroutine is in: who
// takes over does, and all others of the socket are served meanwhile.
func TestTakeoverWaitsForTheHandler(t *testing.T) {
	h := &slowOpening{stays: newStays(), opening: make(chan struct{}), open: make(chan struct{})}
	r := startHandler(t, "UDP", func(c *Config) { c.Sockets = 1 }, h)
	first := r.reserve("moved", func(q *Reservation) {
		q.Release = func(context.Context) error { return nil } // so a goroutine lets the client in
	})
	first.tries = 1
	first.dial(r.addr)
	first.tryHandshake(false, request(cmdStay, []byte{1}))
	<-h.opening

	second := newClient(t, "UDP", first.creds)
	second.tries = 2
	second.dial(r.addr)
	if second.tryHandshake(false) {
		t.Error("a newer connection opened while the older was opening")
	}
	r.join("bystander")
	close(h.open)
	h.awaitEntered(t)
	if second.exchange(second.confirm, wire.PacketAccept) != nil {
		t.Error("a newer connection opened while the Handler ran for the older")
	}
	r.join("another")
	close(h.leave)
	second.tries = 0
	if second.exchange(second.confirm, wire.PacketAccept) == nil {
		t.Fatal("no way in after the Handler returned")
	}
	h.waitLog(t, "opened moved resumed=false", "opened bystander resumed=false", "opened another resumed=false",
		"stayed moved [1]", "opened moved resumed=false")
}

// A Freeze that ends early leaves the user as they were.
func TestFreezeThatFails(t *testing.T) {
	h := newStays()
	r := start(t, "UDP", func(c *Config) {
		c.IdleTimeout, c.ResumeTTL, c.Sockets = 100*time.Millisecond, 200*time.Millisecond, 1
	}, h.recorder)
	places := r.srv.Places()
	c := r.join("u")
	c.send(cmdStay, []byte{1}, reliable.Reliable)
	c.flush()
	h.awaitEntered(t)
	h.waitLog(t, "opened u resumed=false", "lost u")

	frozen := make(chan error)
	go func() {
		_, err := places.Freeze(t.Context(), c.creds.SID)
		frozen <- err
	}()
	for !places.Thaw(c.creds.SID) {
		<-time.After(time.Millisecond) // until it began
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := places.Freeze(ctx, c.creds.SID); !errors.Is(err, context.Canceled) {
		t.Errorf("Freeze with no time: %v", err)
	}
	// Neither keeps the place from its end.
	h.waitLog(t, "opened u resumed=false", "lost u", "ended u idle")
	close(h.leave)
	if err := <-frozen; !errors.Is(err, ErrThawed) && !errors.Is(err, ErrNoPlace) {
		t.Errorf("Freeze that was thawed meanwhile: %v", err)
	}
}

// Nor does one that ends early although the connection was lost while it waited.
func TestFreezeThatFailsOverALoss(t *testing.T) {
	h := newStays()
	r := start(t, "UDP", func(c *Config) {
		c.IdleTimeout, c.ResumeTTL, c.Sockets = 300*time.Millisecond, 200*time.Millisecond, 1
	}, h.recorder)
	places := r.srv.Places()
	c := r.join("u")
	c.send(cmdStay, []byte{1}, reliable.Reliable)
	c.flush()
	h.awaitEntered(t)
	ctx, cancel := context.WithCancel(t.Context())
	frozen := make(chan error)
	go func() {
		_, err := places.Freeze(ctx, c.creds.SID)
		frozen <- err
	}()
	p := places.Get(c.creds.SID)
	isFrozen := func() bool {
		places.mu.Lock()
		defer places.mu.Unlock()
		return p.more.frozen
	}
	for !isFrozen() {
		<-time.After(time.Millisecond)
	}
	p.Conn().gone(wire.CloseIdle, closedLost)
	h.waitLog(t, "opened u resumed=false", "lost u")
	cancel()
	if err := <-frozen; !errors.Is(err, context.Canceled) {
		t.Errorf("Freeze with no time: %v", err)
	}
	h.waitLog(t, "opened u resumed=false", "lost u", "ended u idle")
	close(h.leave)
}

// A Thaw in the middle of a Freeze leaves nobody frozen for good.
func TestThawDuringFreeze(t *testing.T) {
	r := start(t, "UDP", nil, nil)
	c := r.join("u")
	places, conn := r.srv.Places(), r.h.last()
	thawed := 0
	for range 5000 {
		frozen := make(chan error)
		go func() {
			_, err := places.Freeze(t.Context(), c.creds.SID)
			frozen <- err
		}()
		for !places.Thaw(c.creds.SID) {
			runtime.Gosched()
		}
		if err := <-frozen; errors.Is(err, ErrThawed) {
			thawed++
		}
		conn.mu.Lock()
		if conn.frozen {
			conn.mu.Unlock()
			t.Fatalf("still frozen, after %d that were thawed meanwhile", thawed)
		}
		conn.mu.Unlock()
	}
	c.send(cmdEcho, nil, reliable.Reliable)
	c.pump("answer", func() bool { return len(c.got) == 1 })
}
