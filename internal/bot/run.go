package bot

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// run is one call of Run.
type run struct {
	opts  Options
	id    uint64 // names the run in messages
	start time.Time
	http  *http.Client
	bots  []*bot
	joins chan *bot // who wants into a room; a bot is in it at most once

	tally                               tally
	latency                             histogram
	sent, delivered, errors, reconnects atomic.Int64
	inRoom                              atomic.Int64  // bots that play, see bot.countLocked
	changed                             chan struct{} // a hint that inRoom or a last message changed
	playing                             atomic.Bool   // new joins are taken
	counting                            atomic.Bool   // what goes with a node is counted: until goodbyes are said
	gaps, taken                         atomic.Int64
	everIn                              atomic.Bool // some bot was in a room
	causes                              causes
	end                                 context.CancelCauseFunc // of play

	mu    sync.Mutex      // guards the fields below
	types map[string]bool // of which a bot was let in
}

// Run lets bots play until Options.Duration is over or ctx ends, then waits for what
// is on its way and says what came of it. The error is nil unless an option makes no sense
// ([ErrOptions]), or nobody could play: then it says why, at once when that won't change.
func Run(ctx context.Context, o Options) (Summary, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return Summary{}, err
	}
	r := newRun(o)
	defer r.http.CloseIdleConnections()

	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	play, end := context.WithCancelCause(ctx)
	defer end(nil)
	r.end = end
	if o.Duration > 0 {
		var over context.CancelFunc
		play, over = context.WithTimeoutCause(play, o.Duration, errOver)
		defer over()
	}
	joining, stopJoining := context.WithCancel(inner)
	defer stopJoining()
	var background, joiners sync.WaitGroup
	for range o.Ramp {
		joiners.Go(func() { r.join(joining) })
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
	r.awaitJoined(play)
	r.latency.reset() // handshakes compete with messages only while they join
	if o.Play > 0 {
		enough := time.AfterFunc(o.Play, func() { end(errOver) })
		defer enough.Stop()
	}
	<-play.Done()
	r.listen(false)
	r.away()
	s := r.summary()
	s.Seconds = time.Since(r.start).Seconds()
	s.Interrupted = ctx.Err() != nil

	stopDrivers()
	driving.Wait()
	r.playing.Store(false)
	stopJoining()
	joiners.Wait()
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), o.DrainTimeout)
	defer cancel()
	r.drain(late)
	r.counting.Store(false)
	stop()
	background.Wait()
	r.closeAll(late)
	return r.total(s), r.verdict(play, s)
}

// errOver ends play when its time is over.
var errOver = errors.New("time is over")

// verdict is the error of a run that played nothing.
func (r *run) verdict(play context.Context, s Summary) error {
	if e, ok := errors.AsType[*refusal](context.Cause(play)); ok {
		return e
	}
	if s.Connected > 0 || r.delivered.Load() > 0 || r.everIn.Load() {
		return nil
	}
	if list := r.causes.list(); len(list) > 0 {
		return fmt.Errorf("no bot could play in %.1f s: %s", s.Seconds, list[0].Text)
	}
	return nil
}

func newRun(o Options) *run {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.MaxIdleConnsPerHost, t.MaxConnsPerHost = nil, o.Ramp, o.Ramp
	r := &run{
		opts: o, id: rand.Uint64(), start: time.Now(), types: make(map[string]bool), http: &http.Client{Transport: t},
		joins: make(chan *bot, o.Count), changed: make(chan struct{}, 1),
	}
	r.playing.Store(true)
	r.counting.Store(true)
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
	r.causes.add(causeOf(err))
}

// letIn notes that a bot has a place on a node of a type.
func (r *run) letIn(typ string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.types[typ] = true
}

// known tells whether a node of a type has let a bot in.
func (r *run) known(typ string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.types[typ]
}

// enqueue asks for b to be connected, if it isn't, and put into a room.
func (r *run) enqueue(b *bot) {
	if r.playing.Load() && b.queued.CompareAndSwap(false, true) {
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

// report calls Status each second, of what it looked at just before.
func (r *run) report(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	var before Summary
	looked := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			stood := time.Since(looked) > time.Second+silentAfter/4
			looked = time.Now()
			r.listen(stood)
			if r.opts.Status == nil {
				continue
			}
			s := r.summary()
			line := fmt.Sprintf("bots %d playing %d sent/s %d delivered/s %d lost %d duplicated %d reordered %d errors %d reconnects %d p50 %.2f ms p99 %.2f ms",
				s.Bots, s.Connected, s.Sent-before.Sent, s.Delivered-before.Delivered, s.Lost, s.Duplicated, s.Reordered, s.Errors, s.Reconnects, s.P50, s.P99)
			if why := r.causes.last(); why != "" && (s.Errors > before.Errors || s.Gaps > before.Gaps || s.Connected < s.Bots) {
				line += ": " + why
			}
			r.opts.Status(line)
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
	s.Gaps, s.Taken, s.Causes = r.gaps.Load(), r.taken.Load(), r.causes.list()
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
