package mars

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// Bounds of the registry's memory.
const (
	// goneMax is how many ended incarnations are remembered, goneTTL for how long.
	goneMax = 1 << 16
	goneTTL = 10 * time.Minute
	// tickMax is the longest the registry sleeps, stallMax the gap between two
	// steps after which it was not the members who were silent.
	tickMax  = 250 * time.Millisecond
	stallMax = 2 * time.Second
	// reepochMin is the shortest time between two raises above a foreign epoch.
	reepochMin = time.Minute
	// massMin and massShare are when silence counts as a fault of the network
	// rather than of the members: at least so many, more than this share.
	massMin   = 3
	massShare = 0.3
)

// RegistryConfig says who the authority is.
type RegistryConfig struct {
	Node        id.Node
	Incarnation id.Incarnation
	// FullSyncRoles get the values and load of everybody. Nil means http.
	FullSyncRoles []string
}

// Registry is the authority's side: who is in the cluster, by namespace.
type Registry struct {
	cfg       RegistryConfig
	epoch     Epoch
	started   time.Time
	last      time.Time // of the last step
	reepoched time.Time
	spaces    map[Namespace]*space
	order     []Namespace // keys of spaces, sorted: map order would make two replays differ
	byNode    map[id.Node]*record
	gone      map[id.Incarnation]time.Time // when each ended
	goneOrder []id.Incarnation             // oldest first
	expired   []time.Time                  // silences within the last TTL, oldest first
	guard     bool                         // self-preservation is on
}

// record is what the registry holds of one member.
type record struct {
	Entry        // always Full
	space        *space
	seq          uint64 // of the last heartbeat
	heard        time.Time
	ttl          time.Duration // as told in the last ack
	silent       bool          // expired, kept hidden by self-preservation
	suspected    map[id.Node]time.Time
	briefVersion uint64 // last change of what everybody sees
	fullVersion  uint64 // last change of anything
	briefDigest  uint64
	fullDigest   uint64
}

// NewRegistry founds an authority at now, in an epoch above every one that a
// clock that never jumped back gave out before.
func NewRegistry(now time.Time, cfg RegistryConfig) *Registry {
	if cfg.FullSyncRoles == nil {
		cfg.FullSyncRoles = []string{"http"}
	}
	return &Registry{
		cfg:     cfg,
		epoch:   Epoch{Generation: uint64(max(now.Unix(), 1)), Founder: cfg.Incarnation, Term: 1},
		started: now,
		last:    now,
		spaces:  make(map[Namespace]*space),
		byNode:  make(map[id.Node]*record),
		gone:    make(map[id.Incarnation]time.Time),
	}
}

// RegistryInput is one of [Received] and [RegistryTick].
type RegistryInput interface{ registryInput() }

// Received is a [Heartbeat] or [Leave] that arrived.
type Received struct{ Message Message }

// RegistryTick lets time pass.
type RegistryTick struct{}

func (Received) registryInput()     {}
func (RegistryTick) registryInput() {}

// RegistryOutput is what the caller does before the next Step, in field order.
type RegistryOutput struct {
	Events []Event   // what changed, oldest first
	Reply  *Ack      // answer to Received, nil for a tick or a message of the wrong kind
	WakeAt time.Time // step a RegistryTick by then
}

// Step tells the registry what happened at now and returns what to do about it.
func (r *Registry) Step(now time.Time, in RegistryInput) (out RegistryOutput) {
	r.forgive(now)
	switch in := in.(type) {
	case Received:
		switch m := in.Message.(type) {
		case Heartbeat:
			out.Reply = r.heartbeat(now, m, &out)
		case Leave:
			out.Reply = r.leave(now, m, &out)
		}
	case RegistryTick:
		r.expire(now, &out)
		r.forget(now)
	}
	out.WakeAt = now.Add(tickMax)
	return out
}

// Epoch returns the epoch the registry gives out.
func (r *Registry) Epoch() Epoch { return r.epoch }

// Len returns the number of members in all namespaces, silent ones included.
func (r *Registry) Len() int { return len(r.byNode) }

// forgive excuses everybody's silence while this process itself did not run, as
// after a suspended machine: their heartbeats are waiting to be read.
func (r *Registry) forgive(now time.Time) {
	if gap := now.Sub(r.last); gap > stallMax {
		for _, rec := range r.byNode {
			rec.heard = rec.heard.Add(gap)
		}
	}
	r.last = now
}

func (r *Registry) interval() time.Duration {
	return HeartbeatInterval(len(r.byNode)).Truncate(time.Millisecond)
}

// settling tells whether members of a previous authority may still be on their way.
func (r *Registry) settling(now time.Time) bool {
	return now.Sub(r.started) < TTL(r.interval())+GraceExtra
}

func (r *Registry) ack(now time.Time, s Status) *Ack {
	interval := r.interval()
	return &Ack{
		Header: Header{Epoch: r.epoch, From: r.cfg.Node, Incarnation: r.cfg.Incarnation},
		Status: s, Live: true, Settling: r.settling(now), Interval: interval, TTL: TTL(interval),
	}
}

func (r *Registry) refuse(now time.Time, h Header, reason string, out *RegistryOutput) *Ack {
	out.event(Event{Kind: MemberRefused, Node: h.From, Incarnation: h.Incarnation, Text: reason})
	a := r.ack(now, StatusRefused)
	a.Reason = reason
	return a
}

// outrank raises the epoch above a higher one that a member has seen, which
// happens when this node's clock jumped back between two runs. Otherwise members
// would ignore every ack.
func (r *Registry) outrank(now time.Time, h Header, out *RegistryOutput) {
	if h.Epoch.Compare(r.epoch) <= 0 || !r.reepoched.IsZero() && now.Sub(r.reepoched) < reepochMin {
		return
	}
	if h.Epoch.Generation >= 1<<62 {
		return // nobody honest gets there, and there is no room above it
	}
	r.reepoched = now
	r.epoch = Epoch{Generation: max(h.Epoch.Generation+1, uint64(max(now.Unix(), 1))), Founder: r.cfg.Incarnation, Term: 1}
	out.event(Event{Kind: EpochRaised, Node: h.From, Incarnation: h.Incarnation, Epoch: r.epoch})
}

func (r *Registry) heartbeat(now time.Time, m Heartbeat, out *RegistryOutput) *Ack {
	r.outrank(now, m.Header, out)
	if _, ok := r.gone[m.Incarnation]; ok {
		return r.ack(now, StatusGone)
	}
	rec := r.byNode[m.From]
	if rec == nil || rec.Incarnation != m.Incarnation {
		// A registration is for the epoch it was written in, so that a late copy
		// of one can't bring back a node that died under an earlier authority.
		if m.Register == nil || m.Epoch != r.epoch {
			return r.ack(now, StatusRegister)
		}
		if reason := r.objection(m, rec); reason != "" {
			return r.refuse(now, m.Header, reason, out)
		}
		if rec != nil {
			r.remove(now, rec, Replaced, out)
		}
		rec = r.register(m, out)
	}
	a := r.ack(now, StatusOK)
	if m.Seq > rec.seq { // older ones are copies
		r.renew(now, rec, m, out)
		rec.ttl = a.TTL
		r.suspect(now, rec, m.Suspects)
	}
	a.Delta = rec.space.delta(m.Have, m.Epoch == r.epoch, a.Settling, r.full(rec.Role))
	return a
}

// objection says why a registration is refused, or "".
func (r *Registry) objection(m Heartbeat, old *record) string {
	if _, err := m.From.AddrPort(); err != nil {
		return "mesh address is not an IP address and port"
	}
	if m.Register.Role == "" || m.Register.Type == "" {
		return "role or type is empty"
	}
	if old != nil && old.Started > m.Register.Started {
		return fmt.Sprintf("a process started later is registered at %s", m.From)
	}
	return ""
}

func (r *Registry) register(m Heartbeat, out *RegistryOutput) *record {
	sp := r.space(m.Register.Namespace())
	rec := &record{space: sp, suspected: make(map[id.Node]time.Time)}
	rec.Instance, rec.Full = *m.Register, true
	r.byNode[m.From] = rec
	sp.insert(rec)
	out.member(MemberJoined, rec, 0)
	return rec
}

// renew applies what a heartbeat says about its sender.
func (r *Registry) renew(now time.Time, rec *record, m Heartbeat, out *RegistryOutput) {
	if rec.silent {
		rec.silent = false
		out.member(MemberReturned, rec, now.Sub(rec.heard))
	}
	rec.heard, rec.seq = now, m.Seq
	e := rec.Entry
	e.Seq = m.Seq
	e.Endpoint, e.State = m.Status.Endpoint, m.Status.State
	e.Users, e.Load = m.Status.Users, m.Status.Load
	if m.Status.HasValues {
		e.Values = m.Status.Values
	}
	e.Hidden = rec.hidden(now)
	rec.space.change(rec, e)
}

func (rec *record) hidden(now time.Time) bool {
	return rec.silent || rec.suspect(now)
}

// suspect tells whether two peers on different hosts reported rec lately.
func (rec *record) suspect(now time.Time) bool {
	hosts := make(map[string]bool)
	for n, at := range rec.suspected {
		if now.Sub(at) >= SuspicionMax {
			delete(rec.suspected, n)
			continue
		}
		hosts[host(n)] = true
	}
	return len(hosts) >= 2
}

func host(n id.Node) string {
	a, err := n.AddrPort()
	if err != nil {
		return string(n)
	}
	return a.Addr().String()
}

// suspect notes which members the peer by can't reach. A peer that fails to
// reach more than a fifth of its namespace is likely the one with the problem.
func (r *Registry) suspect(now time.Time, by *record, suspects []id.Node) {
	if len(suspects) > max(1, len(by.space.records)/5) {
		return
	}
	for _, n := range suspects {
		rec := r.byNode[n]
		if rec == nil || rec == by || rec.space != by.space {
			continue
		}
		rec.suspected[by.Node] = now
		r.rehide(now, rec)
	}
}

func (r *Registry) rehide(now time.Time, rec *record) {
	e := rec.Entry
	e.Hidden = rec.hidden(now)
	rec.space.change(rec, e)
}

func (r *Registry) leave(now time.Time, m Leave, out *RegistryOutput) *Ack {
	r.outrank(now, m.Header, out)
	if _, ok := r.gone[m.Incarnation]; ok {
		return r.ack(now, StatusOK)
	}
	if rec := r.byNode[m.From]; rec != nil && rec.Incarnation == m.Incarnation {
		r.remove(now, rec, Left, out)
		return r.ack(now, StatusOK)
	}
	// It registered with the authority before this one: observers that still
	// keep it hear of its leave, and no late copy brings it back.
	r.bury(now, m.Incarnation)
	r.space(m.Namespace).removed(Removal{Node: m.From, Incarnation: m.Incarnation, Reason: Left})
	return r.ack(now, StatusOK)
}

func (r *Registry) remove(now time.Time, rec *record, why Reason, out *RegistryOutput) {
	delete(r.byNode, rec.Node)
	rec.space.drop(rec)
	rec.space.removed(Removal{Node: rec.Node, Incarnation: rec.Incarnation, Reason: why})
	r.bury(now, rec.Incarnation)
	kind := map[Reason]Kind{Left: MemberLeft, Expired: MemberExpired, Replaced: MemberReplaced}[why]
	out.member(kind, rec, now.Sub(rec.heard))
}

// bury remembers that an incarnation must not return.
func (r *Registry) bury(now time.Time, inc id.Incarnation) {
	r.gone[inc] = now
	r.goneOrder = append(r.goneOrder, inc)
	if len(r.goneOrder) > goneMax {
		delete(r.gone, r.goneOrder[0])
		r.goneOrder = r.goneOrder[1:]
	}
}

func (r *Registry) forget(now time.Time) {
	for len(r.goneOrder) > 0 && now.Sub(r.gone[r.goneOrder[0]]) > goneTTL {
		delete(r.gone, r.goneOrder[0])
		r.goneOrder = r.goneOrder[1:]
	}
}

// expire evicts who was silent for its TTL. When many fall silent together it
// is more likely the network: they are hidden at once and evicted after 3 TTL.
func (r *Registry) expire(now time.Time, out *RegistryOutput) {
	window := TTL(r.interval())
	r.expired = slices.DeleteFunc(r.expired, func(at time.Time) bool { return now.Sub(at) > window })
	type silence struct {
		rec   *record
		lasts time.Duration
	}
	var silent []silence
	before := len(r.byNode) + len(r.expired) // members at the start of the window
	for _, ns := range r.order {
		for _, rec := range r.spaces[ns].records {
			if d := now.Sub(rec.heard); d >= rec.ttl {
				silent = append(silent, silence{rec, d})
				if rec.silent {
					before-- // counted as a member and as expired
				} else {
					r.expired = append(r.expired, now)
				}
			} else if rec.Hidden {
				r.rehide(now, rec) // a suspicion may have run out
			}
		}
	}
	mass := len(r.expired) >= massMin && float64(len(r.expired)) > massShare*float64(before)
	if mass != r.guard {
		r.guard = mass
		out.event(Event{Kind: map[bool]Kind{true: GuardOn, false: GuardOff}[mass], Count: len(r.expired)})
	}
	for _, s := range silent {
		switch {
		case s.lasts >= 3*s.rec.ttl, !mass && !s.rec.silent:
			r.remove(now, s.rec, Expired, out)
		case !s.rec.silent:
			s.rec.silent = true
			r.rehide(now, s.rec)
			out.member(MemberSilent, s.rec, s.lasts)
		}
	}
}

func (r *Registry) full(role string) bool {
	return slices.ContainsFunc(r.cfg.FullSyncRoles, func(s string) bool { return strings.EqualFold(s, role) })
}

func (r *Registry) space(ns Namespace) *space {
	sp := r.spaces[ns]
	if sp == nil {
		sp = &space{name: ns}
		r.spaces[ns] = sp
		i, _ := slices.BinarySearchFunc(r.order, ns, Namespace.Compare)
		r.order = slices.Insert(r.order, i, ns)
	}
	return sp
}
