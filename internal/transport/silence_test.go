package transport

import (
	"net/netip"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// A client that vanished is told of within seconds, stays connected, and is told of again
// when it is heard; nothing sent meanwhile is lost.
func TestSilentClient(t *testing.T) {
	for _, proto := range protocols {
		t.Run(proto, func(t *testing.T) {
			t.Parallel()
			r := start(t, proto, nil, nil)
			quiet := r.join("quiet") // says nothing either, but is sent nothing
			r.h.waitLog(t, "opened quiet resumed=false")
			c := r.join("u")
			r.h.waitLog(t, "opened quiet resumed=false", "opened u resumed=false")
			conn := r.h.last()
			push := func(n int) {
				if err := conn.Send(nil, request(1, counter(n)), reliable.Reliable); err != nil {
					t.Fatal(err)
				}
			}
			push(1)
			r.h.waitLog(t, "opened quiet resumed=false", "opened u resumed=false", "silent u")
			if c.place(r).Conn() != conn || conn.Closed() || quiet.place(r).Conn() == nil {
				t.Error("a silent client is not connected any more")
			}
			push(2)
			c.pump("what waited", func() bool { return len(c.got) == 2 })
			c.write(c.ping())
			r.h.waitLog(t, "opened quiet resumed=false", "opened u resumed=false", "silent u", "heard u")
			for _, event := range []string{silenceBegan, silenceHeard} {
				if n := r.figure("silences_total", event); n != 1 {
					t.Errorf("%v silences %s, want 1", n, event)
				}
			}
		})
	}
}

// connect lets a client of the desk in.
func (d *desk) connect(uid id.UID) *Conn {
	d.t.Helper()
	src := netip.MustParseAddrPort("192.0.2.1:1")
	creds := d.reserve(uid, nil)
	_, confirm, err := d.confirm(creds, src)
	if err != nil {
		d.t.Fatal(err)
	}
	if _, err := d.send(confirm, src); err != nil {
		d.t.Fatal(err)
	}
	return d.u.Places().Get(creds.SID).Conn()
}

// ask sends the client something, and returns when the answer is due.
func (d *desk) ask(c *Conn) time.Time {
	d.t.Helper()
	b := d.r.batch
	if err := c.Send(b, request(1, nil), reliable.Reliable); err != nil {
		d.t.Fatal(err)
	}
	now := time.Now()
	for _, c := range b.conns {
		b.collect(c, now)
	}
	clear(b.conns)
	b.conns, b.out, b.slab = b.conns[:0], b.out[:0], b.slab[:0]
	return now.Add(2 * time.Second)
}

func (d *desk) tick(c *Conn, at time.Time) {
	b := d.r.batch
	c.tick(at, b)
	b.collect(c, at)
	clear(b.conns)
	b.conns, b.out, b.slab = b.conns[:0], b.out[:0], b.slab[:0]
}

func (d *desk) told() []string {
	d.u.places.tell()
	h := d.u.handler.(*recorder)
	h.mu.Lock()
	defer h.mu.Unlock()
	log := h.log
	h.log = nil
	return log
}

func requireTold(t *testing.T, got []string, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("told %q, want %q", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("told %q, want %q", got, want)
		}
	}
}

// A process that was stopped, and has yet to read what came meanwhile, finds nobody silent
// or idle at once.
func TestNobodyIsSilentBecauseTheNodeSlept(t *testing.T) {
	for _, tc := range []struct {
		slept time.Duration
		then  string
	}{{0, "silent u"}, {5 * time.Second, "silent u"}, {time.Minute, "lost u"}} {
		d := newDesk(t, Limits{})
		c := d.connect("u")
		due := d.ask(c)
		d.told()
		shard := d.u.shards[0]
		shard.noteSleep(due, due.Add(-50*time.Millisecond))
		if !shard.woke.IsZero() {
			t.Error("late by 50 ms counts as slept")
		}
		wakes := due.Add(tc.slept)
		if tc.slept > 0 {
			shard.noteSleep(wakes, due)
			d.tick(c, wakes)
			requireTold(t, d.told())
			d.tick(c, wakes.Add(time.Second))
			requireTold(t, d.told())
			wakes = wakes.Add(1100 * time.Millisecond)
		}
		d.tick(c, wakes.Add(time.Second))
		requireTold(t, d.told(), tc.then)
	}
}

// The Handler hears of a silence in order with what else becomes of the place, and of none
// that is over by then.
func TestSilenceIsToldInOrder(t *testing.T) {
	late := 2500 * time.Millisecond
	t.Run("lost", func(t *testing.T) {
		d := newDesk(t, Limits{})
		c := d.connect("u")
		d.told()
		d.tick(c, d.ask(c).Add(late))
		c.gone(wire.CloseIdle, closedLost)
		requireTold(t, d.told(), "lost u")
	})
	t.Run("told, then lost", func(t *testing.T) {
		d := newDesk(t, Limits{})
		c := d.connect("u")
		d.told()
		d.tick(c, d.ask(c).Add(late))
		requireTold(t, d.told(), "silent u")
		c.gone(wire.CloseIdle, closedLost)
		d.u.places.silenceTurned(c)
		requireTold(t, d.told(), "lost u")
	})
	t.Run("told twice", func(t *testing.T) {
		d := newDesk(t, Limits{})
		c := d.connect("u")
		d.told()
		d.tick(c, d.ask(c).Add(late))
		d.u.places.silenceTurned(c)
		requireTold(t, d.told(), "silent u")
	})
	t.Run("ended", func(t *testing.T) {
		d := newDesk(t, Limits{})
		c := d.connect("u")
		d.told()
		d.tick(c, d.ask(c).Add(late))
		c.gone(wire.CloseKicked, "kicked")
		requireTold(t, d.told(), "ended u kicked")
	})
	t.Run("heard before it was told", func(t *testing.T) {
		d := newDesk(t, Limits{})
		c := d.connect("u")
		d.told()
		d.tick(c, d.ask(c).Add(late))
		c.mu.Lock()
		c.silent = false
		c.mu.Unlock()
		requireTold(t, d.told())
	})
}
