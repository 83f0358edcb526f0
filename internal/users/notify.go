package users

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/users/exchange"
)

const (
	// noticesMax is how many notices wait for the goroutine that tells the others. When more
	// do, the others are told everything.
	noticesMax    = 4096
	noticeTimeout = 2 * time.Second
	// directoryPoll is how often that goroutine looks who is in the cluster.
	directoryPoll = 250 * time.Millisecond
)

// noticeInbox is what opened and the machine has not been told.
type noticeInbox struct {
	wake chan struct{} // holds a token while there may be something

	mu    sync.Mutex // guards the fields below; taken before a user's
	facts []exchange.Fact
	more  bool
}

// notify has the other nodes told that u is open.
func (r *Registry) notify(u *User) {
	q := &r.notices
	q.mu.Lock()
	switch {
	case u.isRevoked(): // by one that is in the queue already, and has to be the last of the user id
	case len(q.facts) < noticesMax:
		q.facts = append(q.facts, exchange.Fact{UID: u.ID, Order: u.order})
	default:
		q.more = true
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *noticeInbox) take() exchange.Opened {
	q.mu.Lock()
	defer q.mu.Unlock()
	in := exchange.Opened{Facts: q.facts, More: q.more}
	q.facts, q.more = nil, false
	return in
}

// announcer is the goroutine that tells other nodes who is open here, and what it owns.
type announcer struct {
	r         *Registry
	machine   *exchange.Machine
	directory *mars.Directory // what the machine was told of
	answers   chan answer
	sending   sync.WaitGroup
	clocks    clockWatch
}

// answer is what became of a message, and the other node's wall clock, zero when that is
// not known, at the time when it came.
type answer struct {
	exchange.Answered
	wall int64
	at   time.Time
}

// announce tells the other nodes who is open here, until ctx ends.
func (r *Registry) announce(ctx context.Context) {
	a := &announcer{
		r: r, answers: make(chan answer), clocks: newClockWatch(r.cfg.Self.Node, time.Now(), r.cfg.Wall(), r.log),
		machine: exchange.New(exchange.Config{Parts: shards, Open: r.users.openIn}),
	}
	defer a.sending.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var in exchange.Input = exchange.Tick{}
		select {
		case <-ctx.Done():
			return
		case <-r.notices.wake:
			in = r.notices.take()
		case got := <-a.answers:
			in = got.Answered
			a.clocks.hear(got)
		case <-timer.C:
		}
		wake := a.step(ctx, in)
		if d := r.cfg.Directory(); d != a.directory {
			a.directory = d
			peers := r.peers(d)
			wake = a.step(ctx, exchange.Members{Peers: peers})
			a.clocks.walls.Keep(peers)
		}
		a.clocks.judge(time.Now(), r.cfg.Wall())
		wait := directoryPoll
		if !wake.IsZero() {
			wait = min(wait, time.Until(wake))
		}
		timer.Reset(wait)
	}
}

// peers are the other nodes that can have users.
func (r *Registry) peers(d *mars.Directory) (peers []exchange.Peer) {
	if d == nil {
		return nil
	}
	for _, m := range d.Members {
		if m.Node != r.cfg.Self.Node && (m.Role == "udp" || m.Role == "tcp") {
			peers = append(peers, exchange.Peer{Node: m.Node, Life: m.Incarnation})
		}
	}
	return peers
}

// step steps the machine and sends what comes out. Each node has one message under way at
// most, so that there are no more goroutines than nodes.
func (a *announcer) step(ctx context.Context, in exchange.Input) (wake time.Time) {
	out := a.machine.Step(time.Now(), in)
	a.r.metrics.noticesDropped.Add(float64(out.Missed))
	a.r.metrics.exchanges.Add(float64(out.Passes))
	a.r.metrics.noticesWaiting.Set(float64(a.machine.Waiting()))
	for _, m := range out.Send {
		a.sending.Go(func() {
			in := a.r.tell(ctx, m)
			select {
			case a.answers <- in:
			case <-ctx.Done():
			}
		})
	}
	return out.WakeAt
}

// tell sends a message and waits for the answer of the handler.
func (r *Registry) tell(ctx context.Context, m exchange.Message) (in answer) {
	ctx, cancel := context.WithTimeout(ctx, noticeTimeout)
	defer cancel()
	in.Answered = exchange.Answered{To: m.To, Attempt: m.Attempt}
	asked := time.Now()
	n := notices{clock: r.now(), facts: m.Facts}
	b, err := r.mesh.Request(ctx, m.To, mesh.CmdUserOpened, n.marshal(told))
	var remote *mesh.RemoteError
	if errors.As(err, &remote) && remote.Code == mesh.CodeHandler {
		// A node of a version that says everything once. It answers nothing.
		_, err = r.mesh.Request(ctx, m.To, mesh.CmdUserOpened, n.marshalOld())
		in.OK = err == nil
	} else if err == nil {
		if n, _, err = parseNotices(b, answered); err == nil {
			_, err = r.hear(m.To, n)
		}
		in.OK, in.Nobody = err == nil, n.nobody
		// Later than that, this process stood still, and the answer is old.
		if in.at = time.Now(); in.at.Sub(asked) <= noticeTimeout {
			in.wall = n.wall
		}
	}
	if err != nil && ctx.Err() != context.Canceled {
		r.metrics.noticesFailed.Inc()
		r.log.Debug().Err(err).Stringer("peer", m.To).Msg("notices of opened users were not delivered")
	}
	return in
}
