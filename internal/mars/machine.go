package mars

import (
	"cmp"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// Recovery says what happens when the council is gone for good.
type Recovery uint8

const (
	RecoveryAuto   Recovery = iota // a new generation is founded
	RecoveryManual                 // an operator has to ask for that, see [Recover]
)

// Config says which node a machine is.
type Config struct {
	Self          Instance // as it starts; the incarnation moves on when the node is evicted alive
	Home          bool     // started to keep the registry: preferred as authority
	Endpoint      string
	State         State    // zero means Online
	FullSyncRoles []string // get load and values of everybody; nil means http
	Recovery      Recovery
	// ColdBoot is how long a home that never joined listens and asks before it founds
	// a cluster. Zero means 3 s, negative not at all.
	ColdBoot time.Duration
	// Rand returns numbers in [0, 1): it keeps nodes from doing things all at once.
	Rand func() float64
}

// Machine is one node's part in the cluster: an [Observer], a voter while it has a
// seat in the council, and a [Registry] while it is the authority.
type Machine struct {
	cfg      Config
	born     time.Time
	observer *Observer
	registry *Registry // nil unless crowned, see reign
	dir      *Directory
	out      *Output // of the Step under way

	// The voter.
	promise   promise
	electAt   time.Time   // to campaign by then, zero while there is no seat
	campaign  *campaign   // nil while it does not
	mandate   mandate     // of an authority that handed its office over
	termSeen  Epoch       // the highest that a denial named
	reign     *reign      // nil without the office
	handBacks []time.Time // when an office was handed to home, within flapWindow
	handover  *handover   // nil unless we just gave the office away
	errand    *errand     // nil unless an operator wants the office moved

	// The founder.
	heard     time.Time // last sign of a live authority
	jitter    time.Duration
	foundHold time.Time // nothing is founded before
	poll      *poll     // nil while nobody is asked
	round     uint64    // of the newest poll
	recover   bool      // an operator asked for it

	contacts  []id.Node  // nodes of a cluster that were heard before we joined it
	homes     []id.Node  // addresses of home and seeds, without our own
	queue     []Envelope // what is sent at a measured pace
	paced     time.Time
	announced Epoch     // by us, for an authority in another namespace
	searchAt  time.Time // of the next question who the authority is
	leaving   bool
	leaveBy   time.Time // an office that nobody takes is given up then
}

// Envelope is a one-way message to send. Nobody waits for it to arrive.
type Envelope struct {
	To      id.Node
	Message Message
}

// Output is what the caller does before the next Step, in field order.
type Output struct {
	Events    []Event    // what changed, oldest first
	Directory *Directory // the new picture, nil when it is still the last one
	Reply     Message    // answer to [Request], nil when that was neither a heartbeat nor a leave
	Send      *Send      // a request to start, nil for none; one is under way at a time
	Messages  []Envelope
	Resolve   bool      // look the addresses up again and step Targets
	WakeAt    time.Time // step a Tick by then
}

func (o *Output) event(e Event) { o.Events = append(o.Events, e) }

// New returns the machine of a node that starts now. Its clock must go on while
// the computer sleeps; the times given to Step never go back.
func New(now time.Time, cfg Config) *Machine {
	cfg.ColdBoot = cmp.Or(cfg.ColdBoot, 3*time.Second)
	m := &Machine{cfg: cfg, born: now, heard: now, dir: &Directory{}}
	m.observer = NewObserver(now, ObserverConfig{Self: cfg.Self, Endpoint: cfg.Endpoint, State: cfg.State, Rand: cfg.Rand})
	m.reroll()
	return m
}

// Step tells the machine what happened at now and returns what to do about it.
func (m *Machine) Step(now time.Time, in Input) (out Output) {
	m.out = &out
	observed := Input(Tick{})
	switch in := in.(type) {
	case Request:
		m.request(now, in.Message)
	case Received:
		m.received(now, in.Message)
	case Targets:
		observed = m.lookedUp(in)
	case Go:
		if !m.leaving {
			m.leaving, m.leaveBy = true, now.Add(promiseFor)
			observed = SetState{State: Offline}
		}
	case Recover:
		m.recover = true
	case Transfer:
		m.ask(now, in.To)
	default:
		observed = in
	}
	m.observe(now, observed)
	if m.reign != nil {
		m.rule(now)
	}
	if m.reign == nil {
		m.stand(now)
		m.found(now)
		m.search(now)
	}
	m.handOver(now)
	m.runErrand(now)
	m.leave(now)
	m.pace(now)
	out.WakeAt = m.wakeAt(now)
	m.out = nil
	return out
}

// lookedUp keeps the addresses at which others may be.
func (m *Machine) lookedUp(in Targets) Targets {
	self := m.seat().Node
	in.Nodes = slices.DeleteFunc(slices.Clone(in.Nodes), func(n id.Node) bool { return n == self })
	if len(in.Nodes) > 0 {
		m.homes = in.Nodes
	}
	return in
}

// observe steps the observer and minds what it found out.
func (m *Machine) observe(now time.Time, in Input) {
	o := m.observer
	epoch, council := o.epoch, o.council
	out := o.Step(now, in)
	m.out.Events = append(m.out.Events, out.Events...)
	if out.Directory != nil {
		m.dir, m.out.Directory = out.Directory, out.Directory
	}
	if out.Send != nil {
		m.out.Send = out.Send
	}
	m.out.Resolve = m.out.Resolve || out.Resolve
	if o.spoken.After(m.heard) {
		m.hear(o.spoken)
	}
	if o.epoch != epoch {
		m.outranked(now, o.tryTo, "the members follow another authority")
	}
	if o.council.Compare(council) != 0 {
		m.endCampaign() // it was for another council
	}
}

// hear notes a sign of a live authority.
func (m *Machine) hear(now time.Time) {
	m.heard, m.poll, m.recover = now, nil, false
}

// outranked gives up what was done in an epoch that is over.
func (m *Machine) outranked(now time.Time, by id.Node, why string) {
	m.endCampaign()
	if r := m.reign; r != nil && r.council.Epoch.Compare(m.observer.epoch) < 0 {
		m.stepDown(now, by, why)
	}
}

// seat is what this node votes as.
func (m *Machine) seat() Seat {
	return SeatOf(m.observer.self.Node, m.observer.self.Incarnation)
}

func (m *Machine) header() Header {
	s := m.seat()
	return Header{Epoch: m.observer.epoch, From: s.Node, Incarnation: s.Incarnation}
}

func (m *Machine) send(to id.Node, msg Message) {
	m.out.Messages = append(m.out.Messages, Envelope{To: to, Message: msg})
}

func (m *Machine) event(e Event) { m.out.event(e) }

// clock is a time as messages carry it.
func (m *Machine) clock(at time.Time) uint64 { return uint64(max(at.Sub(m.born), 0)) }

func (m *Machine) timeOf(clock uint64) time.Time { return m.born.Add(time.Duration(clock)) }

// leader is the authority this node believes to be live, or "".
func (m *Machine) leader(now time.Time) id.Node {
	switch {
	case m.reign != nil:
		if m.Lease(now) > 0 {
			return m.seat().Node
		}
	case now.Before(m.promise.until) && m.promise.to != m.seat() && !(m.observer.live && m.observer.dir.epoch.Compare(m.promise.epoch) > 0):
		return m.promise.to.Node
	case m.observer.live:
		return m.observer.dir.authority
	}
	return ""
}

// request answers a heartbeat or leave.
func (m *Machine) request(now time.Time, msg Message) {
	h := msg.header()
	m.contact(h)
	beat, isBeat := msg.(Heartbeat)
	_, isLeave := msg.(Leave)
	switch {
	case !isBeat && !isLeave:
		return
	case m.reign == nil:
		m.out.Reply = Ack{Header: m.header(), Status: StatusNotAuthority, Authority: m.leader(now)}
		return
	case m.Lease(now) <= 0 || m.registry == nil:
		m.out.Reply = Ack{Header: m.header(), Status: StatusNoLease}
		return
	}
	m.outrank(now, h)
	if s := SeatOf(h.From, h.Incarnation); isLeave && s != m.seat() && m.reign.needs(s) {
		m.registry.drain(now, s)
		m.reign.appointAt = time.Time{} // it waits for nothing but that
		a := m.registry.ack(now, StatusStay)
		m.out.Reply = *a
		return
	}
	out := m.registry.Step(now, Request{msg})
	m.out.Events = append(m.out.Events, out.Events...)
	a := *out.Reply
	if isBeat && beat.CouncilMark != m.reign.mark {
		a.Council, a.Around = m.observer.council, m.around(now)
	}
	m.out.Reply = a
}

// received takes a one-way message.
func (m *Machine) received(now time.Time, msg Message) {
	h := msg.header()
	m.contact(h)
	from := SeatOf(h.From, h.Incarnation)
	if from.Node == m.seat().Node {
		return
	}
	switch msg := msg.(type) {
	case Renew:
		m.onRenew(now, from, msg)
	case Grant:
		m.onGrant(now, from, msg)
	case Vote:
		m.onVote(now, from, msg)
	case VoteReply:
		m.onVoteReply(now, from, msg)
	case TransferGo:
		m.onTransferGo(now, from, msg)
	case TransferAsk:
		m.onTransferAsk(now, from.Node, msg.To)
	case TransferReply:
		m.onTransferReply(from.Node, msg)
	case Announce:
		m.onAnnounce(now, msg)
	case FoundPoll:
		m.onFoundPoll(now, from, msg)
	case FoundReply:
		m.onFoundReply(now, from, msg)
	case Probe:
		m.onProbe(now, from, msg)
	case ProbeReply:
		m.onStanding(now, from, msg.Standing)
	case Yield:
		m.onYield(now, from, msg)
	case Yielded:
		m.onYielded(now, from, msg)
	}
}

// onAnnounce follows the hint that there is a new authority, when we need one.
func (m *Machine) onAnnounce(now time.Time, msg Announce) {
	o := m.observer
	if m.reign != nil {
		m.meet(now, msg.Authority)
		return
	}
	if msg.Epoch.Compare(o.epoch) < 0 || o.live && msg.Epoch == o.epoch {
		return
	}
	o.follow(now, msg.Authority, o.spreadFor())
	if _, ours := o.dir.lookup(msg.From); ours || msg.Epoch.Compare(m.announced) <= 0 {
		return
	}
	// It comes from another namespace, whose members don't know ours.
	m.announced = msg.Epoch
	m.announce(msg.Authority, msg.Epoch, msg.Council)
}

// paceRate is how many hints and questions to everybody are sent a second.
const paceRate = 2000

// pace sends from the queue.
func (m *Machine) pace(now time.Time) {
	if len(m.queue) == 0 {
		return
	}
	n := min(int(now.Sub(m.paced).Seconds()*paceRate)+1, paceRate/10, len(m.queue))
	m.out.Messages = append(m.out.Messages, m.queue[:n]...)
	if m.queue = m.queue[n:]; len(m.queue) == 0 {
		m.queue = nil
	}
	m.paced = now
}

// wakeAt says until when nothing happens by itself.
func (m *Machine) wakeAt(now time.Time) time.Time {
	at := m.observer.wakeAt(now)
	sooner := func(t time.Time) {
		if !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if len(m.queue) > 0 {
		sooner(m.paced.Add(10 * time.Millisecond))
	}
	if m.leaving && !m.observer.leaving {
		sooner(now.Add(50 * time.Millisecond))
	}
	if m.handover != nil {
		sooner(m.handover.next)
	}
	if m.errand != nil {
		m.errand.wake(sooner)
	}
	if r := m.reign; r != nil {
		r.wake(sooner)
	} else {
		if m.campaign != nil {
			sooner(m.campaign.until)
		} else if !m.leaving {
			sooner(m.electAt)
		}
		sooner(m.foundWake())
		sooner(m.searchAt)
	}
	if at.Before(now) {
		at = now
	}
	return at
}

// leave passes [Go] on to the observer once nothing keeps this node.
func (m *Machine) leave(now time.Time) {
	if !m.leaving || m.observer.leaving {
		return
	}
	if m.reign != nil && m.registry != nil && now.Before(m.leaveBy) && m.heirs() {
		if to, ok := m.heir(now); ok && m.Lease(now) > 0 {
			m.transfer(now, to, "leaving")
		}
		return // the council is being changed for one who could take over, or it was just handed
	}
	m.observe(now, Go{})
}
