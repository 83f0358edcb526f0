package marsnode

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

const (
	resolveTimeout = 5 * time.Second
	resolveGap     = time.Second // between two look-ups after failures
)

func defaultRand() float64 { return rand.Float64() }

// loop is what Run keeps beside the machines.
type loop struct {
	n         *Node
	ctx       context.Context // ends requests and look-ups under way
	wg        sync.WaitGroup  // of those
	outcomes  chan mars.ObserverInput
	resolved  chan mars.Targets
	resolving bool
	// when to look the addresses up next, to step the observer, the registry
	resolveAt, observeAt, registerAt time.Time
	kept                             id.Node
}

// Run joins the cluster and keeps this node in it until ctx ends; it returns nil
// then. To leave properly, call Leave before ending ctx. No other goroutine
// touches the machines.
func (n *Node) Run(ctx context.Context) error {
	defer close(n.done)
	ctx, cancel := context.WithCancel(ctx)
	l := &loop{
		n: n, ctx: ctx,
		// One request and one look-up are under way at a time.
		outcomes: make(chan mars.ObserverInput, 1), resolved: make(chan mars.Targets, 1),
	}
	defer l.wg.Wait()
	defer cancel()
	if n.cfg.Authority {
		n.metrics.authority.Set(1)
		n.metrics.epoch.Set(float64(n.registry.Epoch().Generation))
		l.observe(mars.Targets{Nodes: []id.Node{n.cfg.Self.Node}})
		l.register(mars.RegistryTick{})
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-n.inbox:
			c.reply <- l.register(mars.Received{Message: c.message})
		case in := <-l.outcomes:
			l.observe(in)
		case t := <-l.resolved:
			l.resolving = false
			if len(t.Nodes) == 0 {
				l.resolveAt = time.Now().Add(resolveGap)
			}
			l.observe(t)
		case <-n.noted:
			l.takeNotes()
		case <-timer.C:
			l.tick()
		}
		timer.Reset(time.Until(l.wakeAt()))
	}
}

func (l *loop) wakeAt() time.Time {
	at := time.Now().Add(l.n.cfg.AddressTTL)
	for _, t := range []time.Time{l.observeAt, l.registerAt} {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	if !l.n.cfg.Authority && !l.resolving && l.resolveAt.Before(at) {
		at = l.resolveAt
	}
	return at
}

func (l *loop) tick() {
	now := time.Now()
	if !l.registerAt.IsZero() && !now.Before(l.registerAt) {
		l.register(mars.RegistryTick{})
	}
	if !l.observeAt.IsZero() && !now.Before(l.observeAt) {
		l.observe(mars.Tick{})
	}
	if !l.n.cfg.Authority && !l.resolving && !now.Before(l.resolveAt) {
		l.resolve(now)
	}
}

func (l *loop) takeNotes() {
	n := l.n
	n.mu.Lock()
	notes := n.notes
	n.notes.state, n.notes.endpoint, n.notes.load, n.notes.values, n.notes.suspects = nil, nil, nil, nil, nil
	n.mu.Unlock()
	// What does not send at once goes first, so that one heartbeat carries all.
	if notes.load != nil {
		l.observe(*notes.load)
	}
	if notes.values != nil {
		l.observe(*notes.values)
	}
	if notes.endpoint != nil {
		l.observe(mars.SetEndpoint{Endpoint: *notes.endpoint})
	}
	if notes.state != nil {
		l.observe(mars.SetState{State: *notes.state})
	}
	for _, s := range notes.suspects {
		l.observe(mars.Suspect{Node: s})
	}
	if notes.leave {
		l.observe(mars.Go{})
	}
}

// register steps the registry and returns its answer.
func (l *loop) register(in mars.RegistryInput) *mars.Ack {
	if l.n.registry == nil {
		return nil
	}
	out := l.n.registry.Step(time.Now(), in)
	for _, e := range out.Events {
		l.n.logRegistry(e)
		l.n.metrics.count(e.Kind)
		if e.Kind == mars.EpochRaised {
			l.n.metrics.epoch.Set(float64(e.Epoch.Generation))
		}
	}
	l.registerAt = out.WakeAt
	return out.Reply
}

// observe steps the observer and does what it asks for.
func (l *loop) observe(in mars.ObserverInput) {
	n := l.n
	if f, ok := in.(mars.Failed); ok {
		n.metrics.failures.Inc()
		n.log.Debug().Str("cause", f.Text).Msg("heartbeat failed")
	}
	out := n.observer.Step(time.Now(), in)
	for _, e := range out.Events {
		n.logObserver(e)
		n.metrics.count(e.Kind)
		if e.Kind == mars.Evicted {
			n.mu.Lock()
			n.self.Instance = n.observer.Self().Instance
			n.mu.Unlock()
		}
	}
	n.stand()
	if out.Directory != nil {
		n.publish(out.Directory)
	}
	if out.Send != nil {
		l.send(*out.Send)
	}
	if out.Resolve {
		if at := time.Now().Add(resolveGap); at.Before(l.resolveAt) {
			l.resolveAt = at
		}
	}
	l.observeAt = out.WakeAt
}

// send makes a request on a goroutine of its own and brings its outcome back.
func (l *loop) send(s mars.Send) {
	if l.kept != s.To && !l.n.cfg.Authority {
		l.kept = s.To
		l.n.mesh.Keep(s.To)
	}
	l.wg.Go(func() {
		ctx, cancel := context.WithTimeout(l.ctx, s.Timeout)
		defer cancel()
		begin := time.Now()
		m, err := l.n.ask(ctx, s)
		var in mars.ObserverInput = mars.Answered{Try: s.Try, Message: m}
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
	return m, nil
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

// stand publishes the answer of Joined.
func (n *Node) stand() {
	joined, reason := n.observer.Joined()
	if s := n.standing.Load(); s == nil || s.joined != joined || s.reason != reason {
		n.standing.Store(&standing{joined: joined, reason: reason})
	}
	if joined {
		closeOnce(n.joined)
	}
	if n.observer.Left() {
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

func (n *Node) publish(d *mars.Directory) {
	n.directory.Store(d)
	n.metrics.directory(d)
	n.mu.Lock()
	fs := n.onUpdate
	n.mu.Unlock()
	for _, f := range fs {
		f(d)
	}
}

func member(ev *zerolog.Event, e mars.Event) *zerolog.Event {
	return ev.Stringer("peer", e.Node).Stringer("incarnation", e.Incarnation).Str("peer_role", e.Role).Str("type", e.Type)
}

// logRegistry writes what the authority decided, for the person on call.
func (n *Node) logRegistry(e mars.Event) {
	switch e.Kind {
	case mars.MemberJoined:
		member(n.log.Info(), e).Msg("member joined")
	case mars.MemberLeft:
		member(n.log.Info(), e).Msg("member left")
	case mars.MemberExpired:
		member(n.log.Info(), e).Dur("silent_ms", e.Silence).Msg("member expired")
	case mars.MemberReplaced:
		member(n.log.Info(), e).Msg("member replaced by a newer process")
	case mars.MemberSilent:
		member(n.log.Warn(), e).Dur("silent_ms", e.Silence).Msg("member hidden")
	case mars.MemberReturned:
		member(n.log.Info(), e).Dur("silent_ms", e.Silence).Msg("member heard again")
	case mars.MemberRefused:
		n.log.Warn().Stringer("peer", e.Node).Stringer("incarnation", e.Incarnation).Str("reason", e.Text).Msg("member refused")
	case mars.EpochRaised:
		n.log.Warn().Stringer("peer", e.Node).Stringer("epoch", e.Epoch).Msg("epoch raised above one a member had seen")
	case mars.GuardOn:
		n.log.Warn().Int("members", e.Count).Msg("many members fell silent, evictions delayed")
	case mars.GuardOff:
		n.log.Info().Msg("evictions no longer delayed")
	}
}

// logObserver writes how this node fares.
func (n *Node) logObserver(e mars.Event) {
	switch e.Kind {
	case mars.Joined, mars.Rejoined:
		msg := map[mars.Kind]string{mars.Joined: "cluster joined", mars.Rejoined: "cluster joined again"}[e.Kind]
		n.log.Info().Stringer("authority", e.Node).Stringer("incarnation", e.Incarnation).Stringer("epoch", e.Epoch).Msg(msg)
	case mars.Refused:
		n.log.Warn().Stringer("authority", e.Node).Str("reason", e.Text).Msg("registration refused")
	case mars.Evicted:
		n.log.Warn().Stringer("authority", e.Node).Stringer("incarnation", e.Incarnation).Msg("this node was evicted, joining as a new incarnation")
	case mars.AuthorityLost:
		n.log.Warn().Str("mars", n.cfg.Name).Stringer("authority", e.Node).Dur("silent_ms", e.Silence).Str("cause", e.Text).Msg("authority lost, directory kept")
	case mars.AuthoritySilent:
		n.log.Warn().Str("mars", n.cfg.Name).Dur("silent_ms", e.Silence).Str("cause", e.Text).Msg("mars did not answer, still trying")
	case mars.AuthorityBack:
		n.log.Info().Stringer("authority", e.Node).Dur("silent_ms", e.Silence).Msg("authority back")
	case mars.DirectoryRefetched:
		n.log.Warn().Stringer("authority", e.Node).Msg("directory differed, fetched again")
	case mars.MemberAppeared:
		member(n.log.Debug(), e).Msg("member appeared in the directory")
	case mars.MemberVanished:
		member(n.log.Debug(), e).Msg("member vanished from the directory")
	case mars.Gone:
		n.log.Info().Stringer("authority", e.Node).Msg("cluster left")
	}
}
