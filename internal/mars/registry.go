package mars

import (
	"fmt"
	"iter"
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
	// lostMax is how many evicted members are remembered as the other side of a
	// partition.
	lostMax = 1024
	// tickMax is the longest the registry sleeps, stallMax the gap between two
	// steps after which it was not the members who were silent.
	tickMax  = 250 * time.Millisecond
	stallMax = 2 * time.Second
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
	// Epoch is what it reigns in. Zero means one above every one that a clock which
	// never jumped back gave out before.
	Epoch Epoch
	// Presumed are the members of namespace Of that the authority before this one had.
	// They count as alive until they had time to register again.
	Presumed []Entry
	Of       Namespace
	Gone     []id.Incarnation // are known to have ended
	Shared   []Shared
	Homes    []id.Node // where home was
}

// Registry is the authority's side: who is in the cluster, by namespace.
type Registry struct {
	cfg       RegistryConfig
	epoch     Epoch
	started   time.Time
	last      time.Time // of the last step
	spaces    map[Namespace]*space
	order     []Namespace // keys of spaces, sorted: map order would make two replays differ
	byNode    map[id.Node]*record
	gone      map[id.Incarnation]time.Time // when each ended
	goneOrder []id.Incarnation             // oldest first
	expired   []time.Time                  // silences within the last TTL, oldest first
	guard     bool                         // self-preservation is on
	lost      []id.Node                    // evicted for their silence, oldest first
	homes     []id.Node                    // where members of the home role were
	shared    sharedData
}

// record is what the registry holds of one member.
type record struct {
	Entry        // always Full
	space        *space
	host         string        // part of Node
	seq          uint64        // of the last heartbeat
	heard        time.Time     // later than last when nobody could be heard for a while
	last         time.Time     // when it was heard in truth, zero for never by this authority
	since        time.Time     // of the registration
	ttl          time.Duration // as told in the last ack
	presumed     bool          // of the authority before, not registered here yet
	inherited    bool          // was presumed
	silent       bool          // expired, kept hidden by self-preservation
	parting      bool          // it said goodbye, and is a member only because it votes
	suspected    map[id.Node]time.Time
	briefVersion uint64 // last change of what everybody sees
	fullVersion  uint64 // last change of anything
	briefDigest  uint64
	fullDigest   uint64
}

// NewRegistry returns the registry of an authority that begins at now.
func NewRegistry(now time.Time, cfg RegistryConfig) *Registry {
	if cfg.FullSyncRoles == nil {
		cfg.FullSyncRoles = []string{"http"}
	}
	if cfg.Epoch.IsZero() {
		cfg.Epoch = Epoch{Generation: uint64(max(now.Unix(), 1)), Founder: cfg.Incarnation, Term: 1}
	}
	r := &Registry{
		cfg:     cfg,
		epoch:   cfg.Epoch,
		started: now,
		last:    now,
		spaces:  make(map[Namespace]*space),
		byNode:  make(map[id.Node]*record),
		gone:    make(map[id.Incarnation]time.Time),
		shared:  cfg.Shared,
		homes:   slices.Clone(cfg.Homes),
	}
	for _, inc := range cfg.Gone {
		r.bury(now, inc)
	}
	r.presume(now)
	return r
}

// presume takes the members of the authority before over.
func (r *Registry) presume(now time.Time) {
	ttl := TTL(HeartbeatInterval(len(r.cfg.Presumed))) + GraceExtra
	for _, e := range r.cfg.Presumed {
		if _, gone := r.gone[e.Incarnation]; gone || r.byNode[e.Node] != nil {
			continue
		}
		sp := r.space(r.cfg.Of)
		rec := &record{space: sp, suspected: make(map[id.Node]time.Time), presumed: true, inherited: true, heard: now, since: now.Add(-healthyVoter), ttl: ttl}
		rec.Entry = e
		rec.AppName, rec.AppVersion, rec.Full = r.cfg.Of.App, r.cfg.Of.Version, true
		r.byNode[e.Node] = rec
		r.noteHome(rec)
		sp.insert(rec)
		sp.change(rec, rec.Entry)
	}
}

// SetEpoch raises the epoch; what members hold stays good.
func (r *Registry) SetEpoch(e Epoch) { r.epoch = e }

// RegistryInput is one of [Received] and [RegistryTick].
type RegistryInput interface{ registryInput() }

// RegistryTick lets time pass.
type RegistryTick struct{}

func (Request) registryInput()      {}
func (RegistryTick) registryInput() {}

// RegistryOutput is what the caller does before the next Step, in field order.
type RegistryOutput struct {
	Events []Event   // what changed, oldest first
	Reply  *Ack      // answer to Request, nil for a tick or a message of the wrong kind
	WakeAt time.Time // step a RegistryTick by then
}

// Step tells the registry what happened at now and returns what to do about it.
func (r *Registry) Step(now time.Time, in RegistryInput) (out RegistryOutput) {
	r.forgive(now)
	switch in := in.(type) {
	case Request:
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

// all yields the members of every namespace, in a fixed order.
func (r *Registry) all() iter.Seq[*record] {
	return func(yield func(*record) bool) {
		for _, ns := range r.order {
			for _, rec := range r.spaces[ns].records {
				if !yield(rec) {
					return
				}
			}
		}
	}
}

// Len returns the number of members in all namespaces, silent ones included.
func (r *Registry) Len() int { return len(r.byNode) }

// excuse forgets that nobody could be heard for a while.
func (r *Registry) excuse(d time.Duration) {
	for _, rec := range r.byNode {
		rec.heard = rec.heard.Add(d)
	}
}

// drain marks a member that wants to leave while its vote is still needed.
func (r *Registry) drain(now time.Time, s Seat) {
	rec := r.byNode[s.Node]
	if rec == nil || SeatOf(rec.Node, rec.Incarnation) != s {
		return
	}
	e := rec.Entry
	e.State = Offline
	rec.heard, rec.last, rec.parting = now, now, true
	rec.space.change(rec, e)
}

// forgive excuses everybody's silence while this process itself did not run, as
// after a suspended machine: their heartbeats are waiting to be read.
func (r *Registry) forgive(now time.Time) {
	if gap := now.Sub(r.last); gap > stallMax {
		r.excuse(gap)
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

func (r *Registry) heartbeat(now time.Time, m Heartbeat, out *RegistryOutput) *Ack {
	if _, ok := r.gone[m.Incarnation]; ok {
		return r.ack(now, StatusGone)
	}
	rec := r.byNode[m.From]
	if rec != nil && rec.presumed && rec.Incarnation == m.Incarnation {
		rec.heard, rec.last = now, now // alive, as was thought
	}
	if rec == nil || rec.Incarnation != m.Incarnation || rec.presumed {
		// A registration is for the epoch it was written in, so that a late copy
		// of one can't bring back a node that died under an earlier authority.
		if m.Register == nil || m.Epoch != r.epoch {
			return r.ack(now, StatusRegister)
		}
		if reason := r.objection(m, rec); reason != "" {
			return r.refuse(now, m.Header, reason, out)
		}
		rec = r.register(now, rec, m, out)
	}
	a := r.ack(now, StatusOK)
	if m.Seq > rec.seq { // older ones are copies
		r.renew(now, rec, m, out)
		rec.ttl = a.TTL
		r.suspect(now, rec, m.Suspects)
		r.exorcise(now, m, out)
		for _, v := range m.Shared {
			v.Stamp = max(uint64(max(now.UnixMilli(), 0)), r.shared.newest()+1)
			r.shared = r.shared.put(v)
		}
	}
	if r.shared.digest() != m.SharedMark {
		a.HasShared, a.Shared = true, r.shared
	}
	a.Delta = rec.space.delta(m, m.Epoch == r.epoch, a.Settling, r.full(rec.Role))
	return a
}

// exorcise ends incarnations that a member knows to have ended under an authority
// before this one.
func (r *Registry) exorcise(now time.Time, m Heartbeat, out *RegistryOutput) {
	for _, inc := range m.Ghosts {
		for rec := range r.all() {
			if rec.Incarnation == inc {
				r.remove(now, rec, Expired, out)
				out.Events[len(out.Events)-1].Text = "it ended under the authority before, says " + m.From.String()
				break
			}
		}
	}
}

// objection says why a registration is refused, or "".
func (r *Registry) objection(m Heartbeat, old *record) string {
	if _, err := m.From.AddrPort(); err != nil {
		return "mesh address is not an IP address and port"
	}
	if m.Register.Role == "" || m.Register.Type == "" {
		return "role or type is empty"
	}
	if old != nil && !old.presumed && old.Incarnation != m.Incarnation && old.Started > m.Register.Started {
		return fmt.Sprintf("a process started later is registered at %s", m.From)
	}
	return ""
}

// register makes the record of a member. old is what stands at its address: nil,
// itself presumed, or another incarnation, which it replaces.
func (r *Registry) register(now time.Time, old *record, m Heartbeat, out *RegistryOutput) *record {
	sp := r.space(m.Register.Namespace())
	switch {
	case old == nil:
	case old.Incarnation != m.Incarnation:
		r.remove(now, old, Replaced, out)
	case old.space == sp && old.Role == m.Register.Role && old.Type == m.Register.Type && old.Started == m.Register.Started && old.Version == m.Register.Version:
		old.presumed, old.seq = false, 0
		out.member(MemberConfirmed, old, 0)
		return old
	default: // what was presumed of it is wrong
		delete(r.byNode, old.Node)
		old.space.drop(old)
		old.space.removed(Removal{Node: old.Node, Incarnation: old.Incarnation, Reason: Replaced})
	}
	rec := &record{space: sp, suspected: make(map[id.Node]time.Time), since: now}
	rec.Instance, rec.Full = *m.Register, true
	r.byNode[m.From] = rec
	r.noteHome(rec)
	sp.insert(rec)
	out.member(MemberJoined, rec, 0)
	return rec
}

// homesMax is how many addresses of home are remembered.
const homesMax = 16

// noteHome remembers where home is: it may come back without knowing anything.
func (r *Registry) noteHome(rec *record) {
	if strings.EqualFold(rec.Role, homeRole) && !slices.Contains(r.homes, rec.Node) {
		r.homes = append(slices.Clone(r.homes), rec.Node) // messages hold the former
		r.homes = r.homes[max(0, len(r.homes)-homesMax):]
	}
}

// renew applies what a heartbeat says about its sender.
func (r *Registry) renew(now time.Time, rec *record, m Heartbeat, out *RegistryOutput) {
	if rec.silent {
		rec.silent = false
		out.member(MemberReturned, rec, r.silence(now, rec))
	}
	rec.heard, rec.last, rec.seq, rec.parting = now, now, m.Seq, false
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

func (r *Registry) leave(now time.Time, m Leave, out *RegistryOutput) *Ack {
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
