package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Diarkis/diarkis/client"
)

const (
	tableSeats = 4
	// requestMax is how long a request may take until it counts as never answered. It is
	// longer than a client tries to resume: after that all requests have failed.
	requestMax = 100 * time.Second
)

// table is players who meet in one room, wherever that is.
type table struct {
	bots []*bot

	mu   sync.Mutex
	room client.RoomID // "" when the next of them has to make one
}

func (t *table) where() client.RoomID {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.room
}

// change has the table meet elsewhere, unless it does already.
func (t *table) change(from, to client.RoomID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.room == from {
		t.room = to
	}
}

// move has the table meet in another room.
func (t *table) move() {
	for _, b := range t.bots {
		b.meddles()
	}
	t.change(t.where(), "")
}

// newMatch has all leave their node and ask for another.
func (t *table) newMatch() {
	t.move()
	for _, b := range t.bots {
		b.mu.Lock()
		devices := slices.Clone(b.devices)
		b.mu.Unlock()
		for _, d := range devices {
			d.Reenter()
		}
	}
}

// bot is one user, who plays with a device, or with more while it changes hands.
type bot struct {
	w        *chaos
	uid, typ string
	from     *host
	table    *table
	period   time.Duration // of what it says
	http     *http.Client

	mu      sync.Mutex // guards the fields below
	devices []*device  // that are not at their end
	played  time.Time  // when a node last answered it
	failed  time.Time  // when a device last did not get in
	node    string     // where that was
	outages []outage
	meddled []time.Time // when it did something that puts it out for a moment
}

// device is one client of a user.
type device struct {
	*client.Client
	bot  *bot
	name string
	gone atomic.Bool // nothing that it sends leaves any more, nor anything that comes in is read

	mu   sync.Mutex // guards the fields below
	stay *stay      // in a room, or on the way into it
	gaps int
	over client.Disconnect // the last
	last string            // where that was
}

func (w *chaos) newBots() {
	balancers := make(map[*host]*http.Client)
	for _, h := range w.crowds {
		balancers[h] = (&balancer{w: w, from: h, down: make(map[string]time.Time)}).client()
	}
	for i := range w.size.bots {
		typ := "UDP"
		if i/tableSeats%5 > 2 {
			typ = "TCP" // two tables of five
		}
		b := &bot{
			w: w, uid: fmt.Sprintf("bot-%d", i), typ: typ, from: w.crowds[i%len(w.crowds)],
			period: []time.Duration{time.Second, 200 * time.Millisecond}[i/tableSeats%2],
		}
		b.http = balancers[b.from]
		if i%tableSeats == 0 {
			b.table = new(table)
		} else {
			b.table = w.bots[i-1].table
		}
		b.table.bots = append(b.table.bots, b)
		w.bots = append(w.bots, b)
		b.logIn("")
	}
}

// where is the node that the bot plays on.
func (b *bot) where() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.node
}

// logIn takes a device into use. on is the node it asks a place on, "" for any.
func (b *bot) logIn(on string) {
	d := &device{bot: b, name: fmt.Sprintf("%s/%d", b.uid, b.w.stayed.number())}
	var err error
	d.Client, err = client.New(client.Options{
		URL: "http://game", UID: b.uid, Type: b.typ, HTTP: b.http, Dial: d.dial,
		OnPush: d.push, OnReconnect: d.reconnected, OnDisconnect: d.disconnected,
	})
	if err != nil {
		b.w.problem("%s: %v", d.name, err)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.devices = append(b.devices, d)
	b.w.running.Go(func() { d.play(on) })
}

// logInTwice has the user log in with two devices at once, on two nodes. What it plays
// with now is replaced by them, and the older of them by the newer.
func (b *bot) logInTwice() {
	nodes := []string{"", ""}
	for i, n := range b.w.games() {
		if strings.EqualFold(n.name, b.typ) {
			nodes[i%2] = n.Public
		}
	}
	b.w.event("%s logs in twice, on %v", b.uid, nodes)
	b.meddles()
	for _, n := range nodes {
		b.logIn(n)
	}
}

// walkAway lets the device of the user vanish without a word, and has another come in
// as if the game had been started again. Who is not at play just now stays.
func (b *bot) walkAway() {
	b.mu.Lock()
	if len(b.devices) != 1 || b.devices[0].current() == nil {
		b.mu.Unlock()
		return
	}
	d := b.devices[0]
	b.devices = nil
	b.mu.Unlock()
	d.gone.Store(true)
	d.endStay("vanished")
	b.w.event("%s vanishes", d.name)
	b.meddles()
	b.w.running.Go(d.abandon)
	b.logIn("")
}

// ended takes a device out of use. A user who has none left logs in again: that happens
// when none of them got in, or when one got in that never learned of it.
func (b *bot) ended(d *device, err error) {
	now := time.Now()
	b.mu.Lock()
	had := len(b.devices)
	b.devices = slices.DeleteFunc(b.devices, func(other *device) bool { return other == d })
	last := had == 1 && len(b.devices) == 0
	if err != nil {
		b.failed = now
	}
	excused := now.Sub(b.failed) < requestMax
	b.mu.Unlock()
	if b.w.ctx.Err() != nil || d.gone.Load() {
		return
	}
	if err != nil {
		b.w.event("%s did not get in: %v", d.name, err)
	}
	if !last {
		return
	}
	if !excused {
		b.w.problem("%s was replaced, and its user has no other device", d.name)
	}
	wait(b.w.ctx, 500*time.Millisecond)
	b.logIn("")
}

// play connects and plays to the end of the device.
func (d *device) play(on string) {
	err := d.enter(on)
	if err == nil {
		d.game()
	}
	d.endStay("ended")
	d.bot.ended(d, err)
}

func (d *device) enter(on string) error {
	b := d.bot
	ctx, cancel := context.WithTimeout(b.w.ctx, entryPatience)
	defer cancel()
	if on != "" {
		if e, err := d.placeOn(ctx, on); err == nil {
			return d.Dial(ctx, e)
		} // else on any
	}
	return d.Connect(ctx)
}

// placeOn asks for a place on one node.
func (d *device) placeOn(ctx context.Context, addr string) (e client.Endpoint, err error) {
	b := d.bot
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://game/debug/endpoint/type/"+b.typ+"/user/"+b.uid+"/address/"+addr, nil)
	if err != nil {
		return e, err
	}
	res, err := b.http.Do(r)
	if err != nil {
		return e, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return e, errors.New(res.Status)
	}
	return e, json.NewDecoder(res.Body).Decode(&e)
}

// game keeps the player at the table and has it talk.
func (d *device) game() {
	tick := time.NewTicker(d.bot.period)
	defer tick.Stop()
	for {
		if d.seated() {
			d.say()
		}
		select {
		case <-d.Done():
			return
		case <-d.bot.w.ctx.Done():
			if !d.gone.Load() {
				ctx, cancel := context.WithTimeout(context.Background(), entryPatience)
				defer cancel()
				_ = d.Close(ctx)
			}
			return
		case <-tick.C:
		}
	}
}

// abandon ends the client of a device that is gone; nothing of that leaves.
func (d *device) abandon() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = d.Close(ctx)
}

// seated brings the player to where its table meets and reports whether it is there.
func (d *device) seated() bool {
	want, s := d.bot.table.where(), d.current()
	switch {
	case s != nil && s.where() == want:
		return true
	case s != nil:
		d.leave(s)
	case want != "":
		d.join(want)
	default:
		d.create()
	}
	return false
}

func (d *device) current() *stay {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stay
}

// begin notes that the player is on the way into a room.
func (d *device) begin(r client.RoomID) (s *stay, gaps int) {
	s = d.bot.w.stayed.begin(d, r)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stay = s
	return s, d.gaps
}

// arrived notes how that ended.
func (d *device) arrived(s *stay, r client.RoomID, gaps int, err error) {
	d.mu.Lock()
	other := d.gaps != gaps
	if err != nil || other {
		d.stay = nil
	} else {
		s.arrive(r)
	}
	d.mu.Unlock()
	switch {
	case err != nil:
		s.end("not there")
	case other:
		// The connection was replaced meanwhile, before the node took the request or after.
		s.end("unclear")
		_ = d.request(func(ctx context.Context) error { return d.LeaveRoom(ctx, r, nil) })
	default:
		d.bot.w.stayed.add(s, r)
	}
}

func (d *device) join(r client.RoomID) {
	s, gaps := d.begin(r)
	err := d.request(func(ctx context.Context) error {
		_, err := d.JoinRoom(ctx, r, nil)
		return err
	})
	d.arrived(s, r, gaps, err)
	if refused, ok := errors.AsType[*client.StatusError](err); ok {
		d.bot.w.event("%s can't join %s: %v", d.name, short(r), err)
		if !strings.Contains(refused.Text, "already in a room") {
			d.bot.table.change(r, "") // its node is gone, or out of reach
		} // else that is this user's affair, or another device's
	}
}

func (d *device) create() {
	s, gaps := d.begin("")
	var r client.Room
	err := d.request(func(ctx context.Context) (err error) {
		r, err = d.CreateRoom(ctx, client.RoomOptions{})
		return err
	})
	d.arrived(s, r.ID, gaps, err)
	if _, refused := errors.AsType[*client.StatusError](err); refused {
		d.bot.w.event("%s can't create a room: %v", d.name, err)
	}
	if err == nil {
		d.bot.table.change("", r.ID)
	}
}

func (d *device) leave(s *stay) {
	err := d.request(func(ctx context.Context) error { return d.LeaveRoom(ctx, s.where(), nil) })
	if refused, ok := errors.AsType[*client.StatusError](err); ok {
		if d.current() == s {
			d.bot.w.problem("%s can't leave %s, where it never left: %v", d.name, short(s.where()), refused)
		}
		err = nil
	}
	if err == nil {
		d.endStay("left")
	}
}

// request makes a request that is answered, or that the library says is not.
func (d *device) request(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(d.bot.w.ctx, requestMax)
	defer cancel()
	err := f(ctx)
	if errors.Is(err, context.DeadlineExceeded) && !d.gone.Load() {
		d.bot.w.problem("%s: a request was not answered in %v", d.name, requestMax)
	}
	return err
}

// endStay ends the stay in a room, if there is one.
func (d *device) endStay(how string) {
	d.mu.Lock()
	s := d.stay
	d.stay = nil
	d.mu.Unlock()
	if s != nil {
		s.end(how)
	}
}

// say broadcasts the next message of the stay.
func (d *device) say() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stay != nil && !d.gone.Load() {
		d.stay.say()
	}
}

func short(r client.RoomID) string { return string(r)[max(0, len(r)-8):] }
