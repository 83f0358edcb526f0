//go:build unix

package e2e

import (
	"cmp"
	"context"
	bin "encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// crew is honest players who share rooms and talk while others attack. What each of
// them hears is held to exactly once and in order, per sender.
type crew struct {
	t       *testing.T
	opts    crewOptions
	start   time.Time
	players []*honest
	stop    context.CancelFunc // of the speakers
	talking sync.WaitGroup
}

// crewOptions says how many play and how.
type crewOptions struct {
	typ      string        // of node; empty is UDP
	players  int           // 0 is none
	room     int           // players in a room; 0 is 4
	seats    int           // of a room; 0 is as many as players
	merge    time.Duration // over which a room merges broadcasts
	rate     float64       // messages a second; 0 is 10
	speakers int           // in a room; 0 is all
	ramp     int           // how many enter at once; 0 is 16
}

func (o crewOptions) withDefaults() crewOptions {
	o.typ = cmp.Or(o.typ, "UDP")
	o.room = cmp.Or(o.room, 4)
	o.seats = cmp.Or(o.seats, o.room)
	o.rate = cmp.Or(o.rate, 10)
	o.speakers = cmp.Or(o.speakers, o.room)
	o.ramp = cmp.Or(o.ramp, 16)
	return o
}

// honest is one player of a crew.
type honest struct {
	*client.Client
	crew   *crew
	number uint32
	room   client.RoomID

	mu         sync.Mutex // guards the fields below
	sent       uint64
	heard      map[uint32]*heardOf
	closed     string // why the node ended the connection, "" if it never did
	reconnects int
	refused    string // the first answer other than ok
	latencies  []time.Duration
}

// heardOf is what a player got of one sender.
type heardOf struct {
	next                  uint64 // lowest number above all heard
	missing               map[uint64]struct{}
	duplicated, reordered int
}

// The payload of a crew's message: magic ‖ sender u32 ‖ number u64 ‖ µs since the start u64.
const (
	crewMagic = "crew"
	crewBytes = 4 + 4 + 8 + 8
)

// startCrew has the players enter, fill their rooms and begin to talk.
func startCrew(a *arena, o crewOptions) *crew {
	a.t.Helper()
	w := &crew{t: a.t, opts: o.withDefaults(), start: time.Now()}
	for i := range o.players {
		w.players = append(w.players, &honest{crew: w, number: uint32(i), heard: make(map[uint32]*heardOf)})
	}
	a.t.Cleanup(w.close)
	w.each(func(h *honest) error { return h.enter(a) })
	for first := 0; first < len(w.players); first += w.opts.room {
		host := w.players[first]
		r, err := host.CreateRoom(a.ctx, client.RoomOptions{MembersMax: w.opts.seats, Interval: w.opts.merge})
		if err != nil {
			a.t.Fatalf("honest player %d creates a room: %v", first, err)
		}
		host.room = r.ID
	}
	w.each(func(h *honest) error {
		host := w.players[int(h.number)/w.opts.room*w.opts.room]
		if h == host {
			return nil
		}
		h.room = host.room
		_, err := h.JoinRoom(a.ctx, h.room, nil)
		return err
	})
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	for i, h := range w.players {
		if i%w.opts.room < w.opts.speakers {
			w.talking.Go(func() { h.talk(ctx) })
		}
	}
	return w
}

// each calls f for all players, some at once, and fails the test at the first error.
func (w *crew) each(f func(*honest) error) {
	w.t.Helper()
	var wg sync.WaitGroup
	slots := make(chan struct{}, w.opts.ramp)
	errs := make([]error, len(w.players))
	for i, h := range w.players {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(h)
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			w.t.Fatalf("honest player %d before the attack: %v", i, err)
		}
	}
}

func (h *honest) uid() string { return fmt.Sprintf("honest-%d", h.number) }

func (h *honest) enter(a *arena) (err error) {
	o := client.Options{
		UID: h.uid(), Type: h.crew.opts.typ, OnPush: h.push,
		OnResponse: func(r client.Response) {
			if r.Status != client.StatusOK {
				h.note(&h.refused, fmt.Sprintf("command %d: status %d %s", r.Cmd, r.Status, strings.TrimLeft(string(r.Payload), "\x00")))
			}
		},
		OnReconnect: func(bool) {
			h.mu.Lock()
			h.reconnects++
			h.mu.Unlock()
		},
		OnDisconnect: func(d client.Disconnect) { h.note(&h.closed, cmp.Or(d.Code.String()+" "+d.Reason, "?")) },
	}
	h.Client, err = a.connect(a.ctx, o)
	return err
}

// note keeps the first text.
func (h *honest) note(dst *string, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*dst = cmp.Or(*dst, text)
}

// talk broadcasts at the crew's rate. It is always some player's turn: they speak at
// different moments of a period.
func (h *honest) talk(ctx context.Context) {
	period := time.Duration(float64(time.Second) / h.crew.opts.rate)
	first := time.NewTimer(period * time.Duration(h.number) / time.Duration(len(h.crew.players)))
	defer first.Stop()
	select {
	case <-ctx.Done():
		return
	case <-first.C:
	}
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		h.say()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (h *honest) say() {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := append(make([]byte, 0, crewBytes), crewMagic...)
	b = bin.BigEndian.AppendUint32(b, h.number)
	b = bin.BigEndian.AppendUint64(b, h.sent)
	b = bin.BigEndian.AppendUint64(b, uint64(time.Since(h.crew.start).Microseconds()))
	if err := h.Broadcast(h.room, b, client.Reliable); err != nil {
		return // not connected: that counts as closed
	}
	h.sent++
}

// push is called by the client's goroutine.
func (h *honest) push(p client.Push) {
	if p.Ver != client.VerBuiltin || p.Cmd != client.CmdRoomBroadcast {
		return
	}
	items, err := client.ParseList(p.Payload)
	if err != nil {
		h.note(&h.refused, "a push that is not a list")
		return
	}
	now := time.Since(h.crew.start)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range items {
		if len(b) != crewBytes || string(b[:4]) != crewMagic {
			continue // an attacker's
		}
		sender := bin.BigEndian.Uint32(b[4:])
		if sender == h.number {
			continue
		}
		g := h.heard[sender]
		if g == nil {
			g = &heardOf{missing: make(map[uint64]struct{})}
			h.heard[sender] = g
		}
		g.add(bin.BigEndian.Uint64(b[8:]))
		h.latencies = append(h.latencies, now-time.Duration(bin.BigEndian.Uint64(b[16:]))*time.Microsecond)
	}
}

func (g *heardOf) add(seq uint64) {
	if seq >= g.next {
		for i := g.next; i < seq; i++ {
			g.missing[i] = struct{}{}
		}
		g.next = seq + 1
		return
	}
	if _, ok := g.missing[seq]; !ok {
		g.duplicated++
		return
	}
	delete(g.missing, seq)
	g.reordered++
}

// crewReport is what came of a crew.
type crewReport struct {
	players, closed, reconnects int
	sent, delivered             int
	lost, duplicated, reordered int
	p99, slowest                time.Duration
	why                         []string // of the first that were closed
	refused                     string
}

// finish lets what was said arrive, and counts.
func (w *crew) finish() crewReport {
	if w.stop == nil {
		return crewReport{}
	}
	w.stop()
	w.talking.Wait()
	deadline := time.NewTimer(15 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for r := w.count(); r.lost > 0; r = w.count() {
		select {
		case <-deadline.C:
			return w.count()
		case <-tick.C:
		}
	}
	return w.count()
}

func (w *crew) count() crewReport {
	r := crewReport{players: len(w.players)}
	sent := make([]uint64, len(w.players))
	for i, h := range w.players {
		h.mu.Lock()
		sent[i] = h.sent
		h.mu.Unlock()
		r.sent += int(sent[i])
	}
	var all []time.Duration
	for i, h := range w.players {
		first := i / w.opts.room * w.opts.room
		h.mu.Lock()
		for j := first; j < min(first+w.opts.room, len(w.players)); j++ {
			if i == j {
				continue
			}
			g := cmp.Or(h.heard[uint32(j)], &heardOf{})
			got := int(g.next) - len(g.missing)
			r.delivered += got
			r.lost += int(sent[j]) - got
			r.duplicated += g.duplicated
			r.reordered += g.reordered
		}
		if h.closed != "" {
			r.closed++
			r.why = append(r.why, h.closed)
		}
		r.reconnects += h.reconnects
		r.refused = cmp.Or(r.refused, h.refused)
		all = append(all, h.latencies...)
		h.mu.Unlock()
	}
	r.p99, r.slowest = quantiles(all)
	return r
}

// gone is how many were closed so far.
func (w *crew) gone() (n int) {
	for _, h := range w.players {
		h.mu.Lock()
		if h.closed != "" {
			n++
		}
		h.mu.Unlock()
	}
	return n
}

// quantiles returns the p99 and the largest.
func quantiles(all []time.Duration) (p99, most time.Duration) {
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	return all[min(len(all)*99/100, len(all)-1)], all[len(all)-1]
}

func (w *crew) close() {
	if w.stop != nil {
		w.stop()
		w.talking.Wait()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // no wait for acknowledgements
	for _, h := range w.players {
		if h.Client != nil {
			_ = h.Close(ctx)
		}
	}
}
