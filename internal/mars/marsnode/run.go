package marsnode

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

const (
	resolveTimeout = 5 * time.Second
	// resolveGap is the shortest time between two look-ups. An authority that is not
	// home looks home up every homeGap: it may come back at another address.
	resolveGap = time.Second
	homeGap    = 5 * time.Second
	// lastWords is how long messages of a node that left may still take.
	lastWords = 200 * time.Millisecond
	sleepMin  = 100 * time.Microsecond
	// leaseMax bounds how far ahead a lease is published. A voter alone always has its own.
	leaseMax = time.Hour
)

func defaultRand() float64 { return rand.Float64() }

// loop is what Run keeps beside the machine.
type loop struct {
	n         *Node
	ctx       context.Context // ends requests and look-ups under way
	wg        sync.WaitGroup  // of those
	outcomes  chan mars.Input
	resolved  chan mars.Targets
	resolving bool
	resolveAt time.Time // when to look the addresses up next
	wakeAt    time.Time // when to step a Tick
	outbox    outbox
	sendCtx   context.Context // ends one-way messages under way
	asked     id.Node         // whom the last heartbeat went to
	kept      []id.Node
	campaign  bool // one is under way
	story     story
	replaced  id.Node // whose place a newer process took, and has not said so itself
	errands   errands
}

// Run joins the cluster and keeps this node in it until ctx ends; it returns nil
// then. To leave properly, call Leave before ending ctx. No other goroutine
// touches the machine.
func (n *Node) Run(ctx context.Context) error {
	defer close(n.done)
	defer n.leaseEnd.Store(0)
	defer n.current.Store(0)
	sendCtx, cancelSends := context.WithCancel(context.WithoutCancel(ctx))
	ctx, cancel := context.WithCancel(ctx)
	l := &loop{
		n: n, ctx: ctx, sendCtx: sendCtx, resolveAt: n.cfg.now(), wakeAt: n.cfg.now(),
		// One request and one look-up are under way at a time.
		outcomes: make(chan mars.Input, 1), resolved: make(chan mars.Targets, 1),
		outbox: outbox{mesh: n.mesh, cmd: n.cfg.MessageCommand, byPeer: make(map[id.Node]int)},
	}
	defer l.wg.Wait()
	defer cancel()
	defer l.drain(cancelSends)
	defer l.endErrands()
	l.wg.Go(l.stirring)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if !l.turn(timer.C) {
			return nil
		}
		timer.Reset(l.sleep())
	}
}

// turn waits for something to happen and deals with it. It returns false when the loop
// is to end.
func (l *loop) turn(timer <-chan time.Time) bool {
	n := l.n
	var c call
	var m mars.Message
	var in mars.Input
	var answer chan<- mars.Report
	select {
	case <-l.ctx.Done():
		return false
	case c = <-n.inbox:
	case m = <-n.arrived:
	case in = <-l.outcomes:
	case t := <-l.resolved:
		l.resolving = false
		if len(t.Nodes) == 0 {
			l.lookUpIn(resolveGap)
		}
		in = t
	case answer = <-n.asked:
	case <-n.noted:
	case <-timer:
	}
	n.stir() // before anything is judged by how long ago it was
	switch {
	case c.message != nil:
		c.reply <- l.step(mars.Request{Message: c.message})
	case m != nil:
		l.step(mars.Received{Message: m})
	case in != nil:
		l.step(in)
	case answer != nil:
		answer <- n.machine.Status(n.cfg.now())
	default:
		l.takeNotes()
		l.tick()
	}
	l.errands.mind(l, n.cfg.now())
	l.story.tell(l, n.cfg.now())
	return true
}

// stirring notes again and again that the process runs.
func (l *loop) stirring() {
	ticker := time.NewTicker(stirEvery)
	defer ticker.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-ticker.C:
			l.n.stir()
		}
	}
}

// drain waits for one-way messages under way: a moment for those of a node that
// left in order, such as the one that hands its office over.
func (l *loop) drain(cancel context.CancelFunc) {
	defer cancel()
	if !l.n.machine.Left() {
		cancel()
	}
	timer := time.AfterFunc(lastWords, cancel)
	defer timer.Stop()
	l.outbox.wg.Wait()
}

// sleep is how long nothing happens by itself, and long enough not to spin.
func (l *loop) sleep() time.Duration {
	now := l.n.cfg.now()
	at := l.wakeAt
	if at.IsZero() { // nothing to wait for, as after a leave
		at = now.Add(l.n.cfg.AddressTTL)
	}
	if !l.resolving && l.n.cfg.Addresses != nil && l.resolveAt.Before(at) {
		at = l.resolveAt
	}
	for _, due := range [...]time.Time{l.story.warnAt, l.errands.until} {
		if !due.IsZero() && due.Before(at) {
			at = due
		}
	}
	return max(at.Sub(now), sleepMin)
}

func (l *loop) tick() {
	now := l.n.cfg.now()
	if !l.wakeAt.IsZero() && !now.Before(l.wakeAt) {
		l.step(mars.Tick{})
	}
	if !l.resolving && l.n.cfg.Addresses != nil && !now.Before(l.resolveAt) {
		l.resolve(now)
	}
}

// lookUpIn has the addresses looked up after d at the latest.
func (l *loop) lookUpIn(d time.Duration) {
	if at := l.n.cfg.now().Add(d); at.Before(l.resolveAt) {
		l.resolveAt = at
	}
}

func (l *loop) takeNotes() {
	n := l.n
	n.mu.Lock()
	note := n.notes
	n.notes = notes{}
	n.mu.Unlock()
	// What does not send at once goes first, so that one heartbeat carries all.
	if note.load != nil {
		l.step(*note.load)
	}
	for _, s := range note.shared {
		l.step(s)
	}
	if note.values != nil {
		l.step(*note.values)
	}
	if note.endpoint != nil {
		l.step(mars.SetEndpoint{Endpoint: *note.endpoint})
	}
	if note.state != nil {
		l.step(mars.SetState{State: *note.state})
	}
	for _, s := range note.suspects {
		l.step(mars.Suspect{Node: s})
	}
	for _, t := range note.transfers {
		l.startTransfer(t)
	}
	for _, done := range note.recover {
		l.startRecovery(done)
	}
	if note.leave {
		l.step(mars.Go{})
	}
}

// step tells the machine what happened, does what it asks for and returns its
// answer to a request.
func (l *loop) step(in mars.Input) mars.Message {
	n, now := l.n, l.n.cfg.now()
	if f, ok := in.(mars.Failed); ok {
		n.metrics.failures.Inc()
		n.log.Debug().Str("cause", f.Text).Msg("heartbeat failed")
	}
	out := n.machine.Step(now, in)
	n.stand(now)
	for _, e := range out.Events {
		l.event(e)
	}
	// What is current no more must not be taken for it, nor what is not published yet.
	until := n.machine.CurrentUntil()
	if until.IsZero() {
		n.current.Store(0)
	}
	if out.Directory != nil {
		l.publish(out.Directory)
	}
	if !until.IsZero() {
		n.current.Store(until.UnixNano())
	}
	n.publishShared()
	if out.Reply != nil {
		name, _ := open(out.Reply)
		n.metrics.message(name, sent)
	}
	if out.Send != nil {
		l.send(*out.Send)
	}
	for _, e := range out.Messages {
		l.sendOneWay(e)
	}
	if out.Send != nil || len(out.Messages) > 0 {
		l.keep()
	}
	switch {
	case out.Resolve:
		l.lookUpIn(resolveGap)
	case !n.cfg.Home && n.machine.Reigns():
		l.lookUpIn(homeGap)
	}
	l.wakeAt = out.WakeAt
	return out.Reply
}

// publishShared lets other goroutines read what the machine has.
func (n *Node) publishShared() {
	s := n.machine.Shared()
	if old := n.Shared(); len(old) != len(s) || len(s) > 0 && &old[0] != &s[0] { // it is never changed in place
		n.shared.Store(&s)
	}
}

// send makes a request on a goroutine of its own and brings its outcome back.
func (l *loop) send(s mars.Send) {
	l.asked = s.To
	name, _ := open(s.Message)
	l.n.metrics.message(name, sent)
	l.wg.Go(func() {
		ctx, cancel := context.WithTimeout(l.ctx, s.Timeout)
		defer cancel()
		begin := time.Now()
		m, err := l.n.ask(ctx, s)
		var in mars.Input = mars.Answered{Try: s.Try, Message: m}
		if err != nil {
			in = mars.Failed{Try: s.Try, Text: err.Error()}
		} else {
			l.n.metrics.heartbeat.Observe(time.Since(begin).Seconds())
		}
		l.outcomes <- in // has room: one request is under way at a time
	})
}

func (n *Node) ask(ctx context.Context, s mars.Send) (mars.Message, error) {
	b, err := n.mesh.Request(ctx, s.To, n.cfg.Command, s.Message.AppendTo(nil))
	if err != nil {
		return nil, err // the mesh names the node
	}
	m, err := mars.ParseMessage(b)
	if err != nil {
		return nil, fmt.Errorf("answer of %s: %w", s.To, err)
	}
	name, h := open(m)
	if h.From != s.To {
		return nil, fmt.Errorf("answer of %s in the name of %s", s.To, h.From)
	}
	n.metrics.message(name, received)
	return m, nil
}

func (l *loop) sendOneWay(e mars.Envelope) {
	n := l.n
	name, _ := open(e.Message)
	failed := func(err error) {
		n.metrics.dropped.WithLabelValues(dropUnreachable).Inc()
		n.log.Debug().Stringer("node", e.To).Str("kind", string(name)).AnErr("cause", err).Msg("membership message not sent")
	}
	if !l.outbox.send(l.sendCtx, e.To, e.Message.AppendTo(nil), failed) {
		n.metrics.dropped.WithLabelValues(dropOutboxFull).Inc()
		return
	}
	n.metrics.message(name, sent)
}

// keep keeps the connections open over which heartbeats go and votes are cast.
func (l *loop) keep() {
	var nodes []id.Node
	add := func(to id.Node) {
		if to != "" && to != l.n.cfg.Self.Node && !slices.Contains(nodes, to) {
			nodes = append(nodes, to)
		}
	}
	add(l.asked)
	for _, s := range l.n.machine.Council().Seats {
		add(s.Node)
	}
	if !slices.Equal(nodes, l.kept) {
		l.kept = nodes
		l.n.mesh.Keep(nodes...)
	}
}

// resolve looks the addresses up on a goroutine of its own.
func (l *loop) resolve(now time.Time) {
	l.resolving = true
	l.resolveAt = now.Add(l.n.cfg.AddressTTL)
	l.wg.Go(func() {
		ctx, cancel := context.WithTimeout(l.ctx, resolveTimeout)
		defer cancel()
		nodes, err := l.n.cfg.Addresses(ctx)
		t := mars.Targets{Nodes: nodes}
		if err != nil {
			t.Text = err.Error()
		} else if len(nodes) == 0 {
			t.Text = "no address of mars known"
		}
		l.resolved <- t // has room: one look-up is under way at a time
	})
}

// stand publishes how the machine stands: whether it may write before anything
// else, because an answer may be about to leave.
func (n *Node) stand(now time.Time) {
	lease := min(max(n.machine.Lease(now), 0), leaseMax)
	if lease > 0 {
		n.leaseEnd.Store(now.Add(lease).UnixNano())
	} else {
		n.leaseEnd.Store(0)
	}
	if at := n.machine.Heard(); !at.IsZero() {
		n.heard.Store(at.UnixNano())
	}
	council, reigns := n.machine.Council(), n.machine.Reigns()
	joined, reason := n.machine.Joined()
	s := standing{joined: joined, reigns: reigns, votes: council.Has(n.seat), kept: n.machine.Kept(), reason: reason}
	if last := n.standing.Load(); last == nil || *last != s {
		n.standing.Store(&s)
	}
	n.metrics.reign(reigns, lease, len(council.Seats), n.machine.Epoch())
	if joined {
		closeOnce(n.joined)
	}
	if n.machine.Left() {
		closeOnce(n.left)
	}
}

// closeOnce closes c unless it is closed. Only Run's goroutine calls it.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

func (l *loop) publish(d *mars.Directory) {
	n := l.n
	l.story.changed(l, n.directory.Load(), d)
	n.directory.Store(d)
	n.metrics.directory(d)
	n.mu.Lock()
	fs := n.onUpdate
	n.mu.Unlock()
	for _, f := range fs {
		f(d)
	}
}
