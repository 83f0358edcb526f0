package mars

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// reign is the office of the authority, from the votes for it to its end.
type reign struct {
	since    time.Time
	why      string // how it came
	council  Council
	previous Council  // before the last change, until that is committed; then zero
	backers  []backer // who answered, in order of appearance
	mark     uint64   // of the council and what goes with it, as of the last tick
	crowned  bool     // it had a lease, so there is a registry
	lostAt   time.Time

	renewAt, tickAt, probeAt time.Time
	appointAt                time.Time
	raised                   []time.Time // when the epoch was raised above a foreign one, within raiseWindow
	probes                   int
	hintAt                   time.Time // when a hint at another authority may be followed
	provisional              time.Time // founded without having heard everybody: until then
	learner                  Seat      // about to be appointed, if it answers; zero for none
	learnFrom                time.Time // since when that is asked
	awaited                  bool      // by a voter that wants to leave
	wish                     wish
	yield                    *yield // nil unless another authority gets our members
}

// backer is what the authority knows of a voter.
type backer struct {
	seat    Seat
	at      time.Time // when the newest renewal it granted was sent
	held    uint64    // version of the council it holds in this epoch
	leaving bool
}

func (r *reign) backer(s Seat) *backer {
	for i := range r.backers {
		if r.backers[i].seat == s {
			return &r.backers[i]
		}
	}
	r.backers = append(r.backers, backer{seat: s})
	return &r.backers[len(r.backers)-1]
}

// needs tells whether the lease may depend on a voter.
func (r *reign) needs(s Seat) bool { return r.council.Has(s) || r.previous.Has(s) }

func (r *reign) committed() bool { return r.previous.IsZero() }

// backedUntil is when the lease ends that a majority of c gives; self counts always.
func (r *reign) backedUntil(now time.Time, c Council, self Seat) time.Time {
	need := c.Majority()
	if c.Has(self) {
		need--
	}
	if need == 0 {
		return now.Add(leaseFor)
	}
	var newest [seatsMax]time.Time
	n := 0
	for _, b := range r.backers {
		if b.seat != self && !b.at.IsZero() && c.Has(b.seat) && n < len(newest) {
			newest[n] = b.at
			n++
		}
	}
	if n < need {
		return time.Time{}
	}
	slices.SortFunc(newest[:n], func(a, b time.Time) int { return b.Compare(a) })
	return newest[need-1].Add(leaseFor)
}

// Reigns tells whether this node has the office, with a lease or without.
func (m *Machine) Reigns() bool { return m.reign != nil }

// Lease returns for how long this node may write without hearing from another
// voter; 0 when it may not.
func (m *Machine) Lease(now time.Time) time.Duration {
	r := m.reign
	if r == nil || r.yield != nil {
		return 0
	}
	end := r.backedUntil(now, r.council, m.seat())
	if !r.committed() {
		if e := r.backedUntil(now, r.previous, m.seat()); e.Before(end) {
			end = e
		}
	}
	return max(end.Sub(now), 0)
}

// unbacked is how long ago a majority of the voters granted the newest renewal of this
// authority, when that is too long; 0 while there is a lease.
func (m *Machine) unbacked(now time.Time) time.Duration {
	r := m.reign
	if m.Lease(now) > 0 {
		return 0
	}
	since := r.backedUntil(now, r.council, m.seat())
	if since.IsZero() {
		return now.Sub(r.since)
	}
	return max(now.Sub(since.Add(-leaseFor)), 0)
}

// rule does what is due in office.
func (m *Machine) rule(now time.Time) {
	r := m.reign
	if m.mindLease(now) {
		m.govern(now)
	}
	if m.reign == r {
		m.yielding(now)
	}
	if m.reign == r && !now.Before(r.renewAt) {
		m.renew(now)
	}
}

// mindLease notices a lease that came, went or came back, and gives the office up
// when it stays away. It returns whether there is one.
func (m *Machine) mindLease(now time.Time) (leased bool) {
	r := m.reign
	leased = m.Lease(now) > 0
	switch {
	case leased && !r.crowned:
		m.crown(now)
	case leased && !r.lostAt.IsZero():
		m.registry.excuse(now.Sub(r.lostAt))
		m.event(Event{Kind: LeaseBack, Silence: now.Sub(r.lostAt), Epoch: r.council.Epoch})
		r.lostAt = time.Time{}
	case !leased && r.crowned && r.lostAt.IsZero():
		r.lostAt = now
		if r.yield == nil {
			m.event(Event{
				Kind: LeaseLost, Epoch: r.council.Epoch, Count: len(r.council.Seats),
				Text: fmt.Sprintf("a majority of %d voters did not answer", len(r.council.Seats)),
			})
		}
	}
	if leased {
		m.promise = promise{to: m.seat(), until: now.Add(promiseFor)}
		m.hear(now)
		return true
	}
	if now.Sub(cmp.Or(r.lostAt, r.since)) >= abdicateAfter && r.yield == nil {
		m.stepDown(now, "", "it got no answer from a majority of the voters")
		return false
	}
	r.tickAt, r.probeAt = now.Add(tickMax), now.Add(tickMax) // nothing of that is due before it is back
	return false
}

// govern is what an authority with a lease does.
func (m *Machine) govern(now time.Time) {
	r, o := m.reign, m.observer
	if o.to() != m.seat().Node && o.try == 0 {
		o.aim(m.seat().Node) // whom else it asked while there was no lease
		o.failures, o.nextAt = 0, now
	}
	if !now.Before(r.tickAt) {
		r.tickAt = now.Add(tickMax)
		out := m.registry.Step(now, RegistryTick{})
		m.out.Events = append(m.out.Events, out.Events...)
		r.mark = r.council.mark(m.around(now))
		m.mindWish(now)
		if m.handBack(now); m.reign != r {
			return
		}
	}
	m.appoint(now)
	m.probe(now)
}

// crown begins to keep the registry.
func (m *Machine) crown(now time.Time) {
	r, o := m.reign, m.observer
	r.crowned, r.tickAt, r.probeAt = true, now, now.Add(probeEvery)
	m.registry = NewRegistry(now, RegistryConfig{
		Node: m.seat().Node, Incarnation: m.seat().Incarnation, FullSyncRoles: m.cfg.FullSyncRoles, Epoch: r.council.Epoch,
		Presumed: o.dir.entries(), Of: o.self.Namespace(), Gone: o.gone.order, Shared: o.shared, Homes: o.around.Homes,
	})
	m.event(Event{Kind: Elected, Node: m.seat().Node, Incarnation: m.seat().Incarnation, Epoch: r.council.Epoch, Text: r.why, Count: len(r.council.Seats), Silence: now.Sub(o.lastLive)})
	m.announce(m.seat().Node, r.council.Epoch, r.council)
	o.failures = 0
	o.aim(m.seat().Node)
	o.nextAt = now
}

// announce tells every node we know who the authority is, voters first.
func (m *Machine) announce(authority id.Node, e Epoch, c Council) {
	h := m.header()
	h.Epoch = e
	msg := Announce{Header: h, Authority: authority, Council: c}
	told := map[id.Node]bool{m.seat().Node: true, authority: true}
	m.queue = nil
	tell := func(n id.Node) {
		if !told[n] {
			told[n] = true
			m.queue = append(m.queue, Envelope{To: n, Message: msg})
		}
	}
	for _, s := range m.observer.council.Seats {
		tell(s.Node)
	}
	for _, n := range m.known() {
		tell(n)
	}
}

// known are the nodes we know, in a fixed order.
func (m *Machine) known() []id.Node {
	var ns []id.Node
	if m.registry != nil {
		for rec := range m.registry.all() {
			ns = append(ns, rec.Node)
		}
	}
	for _, e := range m.observer.dir.entries() {
		ns = append(ns, e.Node)
	}
	a := m.observer.around
	return slices.Concat(ns, m.homes, m.contacts, a.Homes, a.Elsewhere)
}

// elsewhereMax bounds, and elsewhereEach is, how many members of each namespace a
// successor gets to know.
const (
	elsewhereMax  = 48
	elsewhereEach = 8
)

// around is what a successor would not know by itself.
func (m *Machine) around(now time.Time) Around {
	if m.registry == nil {
		return m.observer.around
	}
	a := Around{Homes: m.registry.homes}
	if at := m.observer.transferred; !at.IsZero() {
		a.Transferred = uint64(max(now.Sub(at), 0)/time.Millisecond) + 1
	}
	if len(m.registry.order) < 2 {
		return a
	}
	for _, name := range m.registry.order {
		n := 0
		for _, rec := range m.registry.spaces[name].records {
			if n < elsewhereEach && len(a.Elsewhere) < elsewhereMax && !rec.silent {
				a.Elsewhere, n = append(a.Elsewhere, rec.Node), n+1
			}
		}
	}
	return a
}

// renew asks the voters to go on backing this node.
func (m *Machine) renew(now time.Time) {
	r := m.reign
	r.renewAt = now.Add(renewEvery)
	msg := Renew{Header: m.header(), Clock: m.clock(now), Council: r.council, Around: m.around(now)}
	for _, s := range r.council.Seats {
		if s != m.seat() {
			m.send(s.Node, msg)
		}
	}
	for _, s := range r.previous.Seats {
		if s != m.seat() && !r.council.Has(s) {
			m.send(s.Node, msg)
		}
	}
	if r.learner != (Seat{}) {
		m.send(r.learner.Node, msg)
	}
	m.commit()
}

func (m *Machine) onGrant(now time.Time, from Seat, msg Grant) {
	r := m.reign
	if r == nil || !r.needs(from) && r.learner != from {
		return
	}
	if !msg.OK {
		m.meet(now, from.Node)
		m.outrank(now, msg.Header)
		return
	}
	at := m.timeOf(msg.Clock)
	if msg.Of != r.council.Epoch || at.After(now) {
		return
	}
	b := r.backer(from)
	if at.After(b.at) {
		b.at = at
	}
	if from == r.learner && r.awaited || msg.Leaving && !b.leaving {
		r.appointAt = time.Time{}
	}
	b.held, b.leaving = max(b.held, min(msg.Held, r.council.Version)), msg.Leaving
	m.commit()
}

// commit forgets the council before this one, once a majority of this one holds it.
func (m *Machine) commit() {
	r := m.reign
	if r.committed() {
		return
	}
	holders := 0
	for _, s := range r.council.Seats {
		if s == m.seat() || r.backer(s).held >= r.council.Version {
			holders++
		}
	}
	if holders < r.council.Majority() {
		return
	}
	r.previous, r.appointAt = Council{}, time.Time{}
	r.backers = slices.DeleteFunc(r.backers, func(b backer) bool { return !r.council.Has(b.seat) && b.seat != r.learner })
}

// change takes the next step from one council to another, unless that would cost the
// lease at once. It returns whether it did.
func (m *Machine) change(now time.Time, c Council, text string) (changed bool) {
	r := m.reign
	if !r.backedUntil(now, c, m.seat()).After(now.Add(renewEvery)) {
		return false
	}
	r.previous, r.council, r.renewAt = r.council, c, now
	r.learner = Seat{}
	m.observer.council = c
	m.event(Event{Kind: CouncilChanged, Epoch: c.Epoch, Count: len(c.Seats), Text: text})
	m.commit()
	return true
}

// raisesMax is how often within raiseWindow the epoch is raised above a foreign one:
// everybody has to hear of it. generationMax is how high an honest generation, a
// number of seconds, can be.
const (
	raisesMax     = 3
	raiseWindow   = time.Minute
	generationMax = 1 << 40
)

// outrank raises the epoch above a higher one that a node has seen, as after an
// attempt to found. Otherwise that node would ignore us for good.
func (m *Machine) outrank(now time.Time, h Header) {
	r := m.reign
	r.raised = slices.DeleteFunc(r.raised, func(at time.Time) bool { return now.Sub(at) >= raiseWindow })
	if h.Epoch.Compare(m.observer.epoch) <= 0 || h.Epoch.Generation >= generationMax ||
		len(r.raised) >= raisesMax || m.registry == nil || m.Lease(now) <= 0 || !r.committed() {
		return
	}
	r.raised = append(r.raised, now)
	m.reepoch(now, h.Epoch)
	m.event(Event{Kind: EpochRaised, Node: h.From, Incarnation: h.Incarnation, Epoch: r.council.Epoch})
}

// reepoch goes on in a new generation, with the same voters.
func (m *Machine) reepoch(now time.Time, above Epoch) {
	r := m.reign
	e := Epoch{Generation: max(above.Generation+1, uint64(max(now.Unix(), 1))), Founder: m.seat().Incarnation, Term: 1}
	r.previous, r.renewAt, r.learner = r.council, now, Seat{}
	r.council = Council{Epoch: e, Version: 1, Seats: r.council.Seats}
	for i := range r.backers {
		r.backers[i].held = 0
	}
	m.observer.epoch, m.observer.council = e, r.council
	m.registry.SetEpoch(e)
	m.commit()
}

// stepDown gives the office up.
// by is who has the office now, as far as that is known.
func (m *Machine) stepDown(now time.Time, by id.Node, why string) {
	r := m.reign
	alone := m.unbacked(now)
	if m.registry != nil { // which our own observer may not have heard of
		for _, inc := range m.registry.goneOrder[max(0, len(m.registry.goneOrder)-gravesMax):] {
			m.observer.gone.add(now, inc)
		}
	}
	m.reign, m.registry, m.queue = nil, nil, nil
	if m.promise.to == m.seat() {
		m.promise = promise{} // it was for this reign
	}
	m.electAt = cmp.Or(m.electAt, now)
	if at := now.Add(retryCampaign + m.turn()); m.electAt.Before(at) {
		m.electAt = at
	}
	m.observer.aim("")
	if r.crowned {
		m.event(Event{Kind: SteppedDown, Node: by, Epoch: r.council.Epoch, Silence: alone, Text: why})
	} else {
		m.event(Event{Kind: FoundingRefused, Node: by, Epoch: r.council.Epoch, Text: why})
		m.foundHold = now.Add(foundRetry + m.jitter)
		m.reroll()
	}
}

// wake tells when something is due.
func (r *reign) wake(sooner func(time.Time)) {
	sooner(r.renewAt)
	if r.crowned && r.lostAt.IsZero() { // without a lease nothing of this is done
		sooner(r.tickAt)
		sooner(r.probeAt)
	}
	if r.yield != nil {
		sooner(r.yield.next)
	}
}
