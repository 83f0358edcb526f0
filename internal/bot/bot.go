// Package bot plays against a cluster from outside: many clients in one process, in
// rooms of a few, who broadcast to each other and check what arrives.
//
// Every message names its sender, the sender's stay in the room, a sequence number
// and when it was sent. Receivers hold the reliable ones to exactly once and in
// order (see tracker); latency is by one clock, as all run in one process.
package bot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Options says who plays, where and how. URL is required, the rest has defaults.
type Options struct {
	// URL of the HTTP role.
	URL string
	// Count is how many bots play. Zero means 100.
	Count int
	// Type of server to play on: "UDP", "TCP", another type of the cluster, or "mixed" for
	// UDP and TCP in turn. Empty means "UDP".
	Type string
	// Rate is how many messages a bot sends per second. Zero means 10.
	Rate float64
	// Size of a message in bytes. Zero means 64; less than a message's head takes is raised to it.
	Size int
	// Loss is the percentage of datagrams that get lost, each way, in the bots' own sockets.
	Loss float64
	// Duration is how long they play once all have joined. Zero means until ctx ends.
	Duration time.Duration
	// ClientKey of the deployment.
	ClientKey string
	// Ticket makes the ticket of a bot, see [client.Options.Ticket]. Nil means none.
	Ticket func(ctx context.Context, uid string) (string, error)
	// RoomSize is how many bots share a room. Zero means 4.
	RoomSize int
	// Ramp is how many bots may be connecting or joining at once. Zero means 32.
	Ramp int
	// ConnectTimeout is how long all of that may take before play starts without the
	// missing ones. Zero means 2 min.
	ConnectTimeout time.Duration
	// DrainTimeout is how long the end waits for what is on its way. Zero means 10 s.
	DrainTimeout time.Duration
	// Status is called each second with one line on how it goes, from a goroutine of
	// Run. It should not block. Nil means nobody wants to know.
	Status func(line string)
	// Prefix starts the user ids, which have to be unique in the cluster. Empty means "bot-".
	Prefix string
}

func (o Options) withDefaults() Options {
	o.Count = cmp.Or(o.Count, 100)
	o.Type = cmp.Or(o.Type, "UDP")
	o.Rate = cmp.Or(o.Rate, 10)
	o.Size = max(cmp.Or(o.Size, 64), headBytes)
	o.RoomSize = cmp.Or(o.RoomSize, 4)
	o.Ramp = cmp.Or(o.Ramp, 32)
	o.ConnectTimeout = cmp.Or(o.ConnectTimeout, 2*time.Minute)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, 10*time.Second)
	o.Prefix = cmp.Or(o.Prefix, "bot-")
	return o
}

// LossMax is the largest Options.Loss.
const LossMax = 50

// unreliableMax is the longest message that fits a datagram with all that is around it.
const unreliableMax = 1024

func (o Options) validate() error {
	var errs []error
	if o.URL == "" {
		errs = append(errs, errors.New("url is missing"))
	}
	if o.Count < 1 || o.Count > 100_000 {
		errs = append(errs, errors.New("count must be 1 to 100000"))
	}
	if o.Rate < 0 || o.Rate > 1000 {
		errs = append(errs, errors.New("rate must be up to 1000 messages/s"))
	}
	if o.Size > unreliableMax {
		errs = append(errs, fmt.Errorf("size must be up to %d bytes", unreliableMax))
	}
	if o.Loss < 0 || o.Loss > LossMax {
		errs = append(errs, fmt.Errorf("loss must be 0 to %d %%", LossMax))
	}
	if o.RoomSize < 2 || o.RoomSize > 1000 {
		errs = append(errs, errors.New("room size must be 2 to 1000"))
	}
	return errors.Join(errs...)
}

// Summary is what came of a run. Lost, duplicated and reordered count reliable
// messages per receiver; anything but zero there is a mistake of the cluster, unless
// a bot had to start over (see Reconnects).
type Summary struct {
	Bots       int     `json:"bots"`
	Connected  int     `json:"connected"`  // connected and in a room when play ended
	Sent       int64   `json:"sent"`       // broadcasts
	Delivered  int64   `json:"delivered"`  // broadcasts that arrived, each receiver counted
	Lost       int64   `json:"lost"`       // reliable deliveries that never came
	Duplicated int64   `json:"duplicated"` // reliable deliveries that came again
	Reordered  int64   `json:"reordered"`  // reliable deliveries that came after a later one
	Errors     int64   `json:"errors"`     // refused connections, requests and messages
	Reconnects int64   `json:"reconnects"` // connections that replaced a lost one
	P50        float64 `json:"p50_ms"`     // from a sender's call to the receiver's callback, of play
	P99        float64 `json:"p99_ms"`
	Seconds    float64 `json:"seconds"` // of play
	FirstError error   `json:"-"`       // what Errors began with, nil if there were none
}

func (s Summary) String() string {
	text := fmt.Sprintf("bots %d connected %d sent %d delivered %d lost %d duplicated %d reordered %d errors %d reconnects %d p50 %.2f ms p99 %.2f ms in %.1f s",
		s.Bots, s.Connected, s.Sent, s.Delivered, s.Lost, s.Duplicated, s.Reordered, s.Errors, s.Reconnects, s.P50, s.P99, s.Seconds)
	if s.FirstError != nil {
		text += fmt.Sprintf("\nfirst error: %v", s.FirstError)
	}
	return text
}

// Faulty reports whether a reliable message was lost, duplicated or reordered.
func (s Summary) Faulty() bool { return s.Lost != 0 || s.Duplicated != 0 || s.Reordered != 0 }

// Clean reports whether all bots played and nothing reliable went wrong.
func (s Summary) Clean() bool {
	return s.Connected == s.Bots && !s.Faulty() && s.Errors == 0
}

// run is one call of Run.
type run struct {
	opts  Options
	start time.Time
	http  *http.Client
	bots  []*bot
	joins chan *bot // who wants into a room; a bot is in it at most once

	tally                               tally
	latency                             histogram
	sent, delivered, errors, reconnects atomic.Int64
	inRoom                              atomic.Int64
	joining                             atomic.Int64  // bots that are queued or being worked on
	changed                             chan struct{} // a hint that inRoom, joining or a last message changed
	playing                             atomic.Bool   // new joins are taken
	firstErr                            atomic.Pointer[error]
}

// Run lets bots play until Options.Duration is over or ctx ends, then waits for what
// is on its way and says what came of it. The error is nil unless nobody could play.
func Run(ctx context.Context, o Options) (Summary, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return Summary{}, fmt.Errorf("bot options: %w", err)
	}
	r := newRun(o)
	defer r.http.CloseIdleConnections()

	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var background sync.WaitGroup
	for range o.Ramp {
		background.Go(func() { r.join(inner) })
	}
	background.Go(func() { r.report(inner) })

	for _, b := range r.bots {
		r.enqueue(b)
	}
	drivers, stopDrivers := context.WithCancel(inner)
	defer stopDrivers()
	var driving sync.WaitGroup
	for i := range runtime.GOMAXPROCS(0) {
		driving.Go(func() { r.drive(drivers, i, runtime.GOMAXPROCS(0)) })
	}
	r.awaitJoined(ctx)
	r.latency.reset() // handshakes compete with messages only while they join
	began := time.Now()
	r.play(ctx)
	s := r.summary()
	s.Seconds = time.Since(began).Seconds()

	stopDrivers()
	driving.Wait()
	r.playing.Store(false)
	r.drain(ctx)
	stop()
	background.Wait()
	r.closeAll()
	s = r.total(s)
	if s.Delivered == 0 && s.Connected == 0 {
		if s.FirstError != nil {
			return s, fmt.Errorf("no bot could play: %w", s.FirstError)
		}
	}
	return s, nil
}

func newRun(o Options) *run {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.MaxIdleConnsPerHost, t.MaxConnsPerHost = nil, o.Ramp, o.Ramp
	r := &run{
		opts: o, start: time.Now(), http: &http.Client{Transport: t},
		joins: make(chan *bot, o.Count), changed: make(chan struct{}, 1),
	}
	r.playing.Store(true)
	for i := range o.Count {
		r.bots = append(r.bots, newBot(r, uint32(i)))
	}
	return r
}

// hint wakes whoever waits for a change of the counters.
func (r *run) hint() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *run) fail(err error) {
	r.errors.Add(1)
	r.firstErr.CompareAndSwap(nil, &err)
}

// enqueue asks for b to be connected, if it isn't, and put into a room.
func (r *run) enqueue(b *bot) {
	if r.playing.Load() && b.queued.CompareAndSwap(false, true) {
		r.joining.Add(1)
		r.joins <- b // never full: as long as the bots are many
	}
}

// join works off the queue.
func (r *run) join(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case b := <-r.joins:
			b.queued.Store(false)
			if r.playing.Load() {
				if wait := b.enter(ctx); wait > 0 {
					b.retryAt.Store(int64(time.Since(r.start) + wait))
				}
			}
			r.joining.Add(-1)
			r.hint()
		}
	}
}

// awaitJoined waits until every bot is in a room.
func (r *run) awaitJoined(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.ConnectTimeout)
	defer cancel()
	r.wait(ctx, func() bool { return r.inRoom.Load() == int64(len(r.bots)) })
}

// wait returns when cond holds or ctx ended; it reports which.
func (r *run) wait(ctx context.Context, cond func() bool) bool {
	for !cond() {
		select {
		case <-ctx.Done():
			return false
		case <-r.changed:
		}
	}
	return true
}

func (r *run) play(ctx context.Context) {
	if r.opts.Duration <= 0 {
		<-ctx.Done()
		return
	}
	t := time.NewTimer(r.opts.Duration)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// report calls Status each second.
func (r *run) report(ctx context.Context) {
	if r.opts.Status == nil {
		return
	}
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var before Summary
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			s := r.summary()
			r.opts.Status(fmt.Sprintf("bots %d playing %d sent/s %d delivered/s %d lost %d duplicated %d reordered %d errors %d reconnects %d p50 %.2f ms p99 %.2f ms",
				s.Bots, s.Connected, s.Sent-before.Sent, s.Delivered-before.Delivered, s.Lost, s.Duplicated, s.Reordered, s.Errors, s.Reconnects, s.P50, s.P99))
			before = s
		}
	}
}

func (r *run) summary() Summary {
	return r.total(Summary{Bots: len(r.bots), Connected: int(r.inRoom.Load())})
}

// total fills in the counters as they are now.
func (r *run) total(s Summary) Summary {
	const ms = float64(time.Millisecond)
	s.Sent, s.Delivered, s.Errors, s.Reconnects = r.sent.Load(), r.delivered.Load(), r.errors.Load(), r.reconnects.Load()
	if err := r.firstErr.Load(); err != nil {
		s.FirstError = *err
	}
	s.Lost, s.Duplicated, s.Reordered = r.tally.lost.Load(), r.tally.duplicated.Load(), r.tally.reordered.Load()
	s.P50, s.P99 = float64(r.latency.quantile(0.50))/ms, float64(r.latency.quantile(0.99))/ms
	return s
}

// drive sends for every n-th bot, each at its own moment of the period.
func (r *run) drive(ctx context.Context, first, n int) {
	period := time.Duration(float64(time.Second) / r.opts.Rate)
	type turn struct {
		bot *bot
		at  time.Time
	}
	var turns []turn
	now := time.Now()
	for i := first; i < len(r.bots); i += n {
		turns = append(turns, turn{r.bots[i], now.Add(period * time.Duration(i) / time.Duration(len(r.bots)))})
	}
	if len(turns) == 0 {
		return
	}
	t := time.NewTimer(0)
	defer t.Stop()
	for i := 0; ; i = (i + 1) % len(turns) {
		u := &turns[i]
		if d := time.Until(u.at); d > 0 {
			t.Reset(d)
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		} else if ctx.Err() != nil {
			return
		}
		u.bot.turn()
		u.at = u.at.Add(period)
		if late := time.Since(u.at); late > period {
			u.at = u.at.Add(late) // behind for good: send less, not in bursts
		}
	}
}
