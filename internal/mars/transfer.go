package mars

import (
	"fmt"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

const (
	// wishLasts is how long an authority tries to do what an operator asked for.
	wishLasts = 20 * time.Second
	// errandEvery is how often who was asked by the operator asks the authority, until
	// that has answered.
	errandEvery = 500 * time.Millisecond
	// ErrandMax is how long a [Transfer] is given before it counts as failed.
	ErrandMax = wishLasts + 4*time.Second
)

// wish is what an operator wants an authority to do.
type wish struct {
	to    id.Node // who is to have the office, "" for nothing
	asker id.Node // who passed it on, and is told what came of it; "" for this node
	until time.Time
}

// errand is an operator's wish at the node that heard it, until it is known what came
// of it. The authority may be another node.
type errand struct {
	to          id.Node
	asked       id.Node // the authority that was told
	in          Epoch   // in which that one reigned
	taken       bool    // it tries
	next, until time.Time
}

// noteTransfer remembers a transfer, whoever made it: they are rare.
func (m *Machine) noteTransfer(now time.Time, to Seat) {
	again := now.Sub(m.observer.transferred) < promiseFor // the same one: who gave it away votes as well
	m.observer.transferred = now
	if again {
		return
	}
	if mem, ok := m.observer.dir.lookup(to.Node); ok && strings.EqualFold(mem.Role, homeRole) {
		m.handBacks = append(m.handBacks, now)
	}
}

// transfer hands the office over. The lease is given up before anything is said.
func (m *Machine) transfer(now time.Time, to Seat, why string) {
	council := m.reign.council
	m.event(Event{Kind: Transferring, Node: to.Node, Incarnation: to.Incarnation, Epoch: council.Epoch, Text: why})
	m.noteTransfer(now, to)
	w := m.reign.wish
	m.stepDown(now, to.Node, "handed over")
	m.electAt = now.Add(freshGrant + m.turn()) // should it not get there: promises to us don't bind against us
	m.handover = &handover{to: to, council: council, wish: w, next: now, until: now.Add(promiseFor / 2)}
	m.handOver(now)
	o := m.observer
	o.aim(to.Node)
	o.nextAt = now.Add(stayRetry)
}

// handover is an office on its way to another voter.
type handover struct {
	to          Seat
	council     Council
	wish        wish // of the operator, which may be for it
	next, until time.Time
}

// handOver tells the new authority of its luck until there is one, and the operator who
// wished for it when it did not take the office: most likely it had just died.
func (m *Machine) handOver(now time.Time) {
	h := m.handover
	switch {
	case h == nil:
	case m.promise.to != (Seat{}) || !now.Before(h.until):
		m.handover = nil
		if m.promise.to != h.to && h.wish.to == h.to.Node {
			m.disappoint(h.wish, "it did not take the office that was handed to it")
		}
	case !now.Before(h.next):
		h.next = now.Add(stayRetry)
		m.send(h.to.Node, TransferGo{Header: m.header(), Council: h.council})
	}
}

// ask takes an operator's wish. What comes of it is a [TransferDone] or [TransferRefused].
func (m *Machine) ask(now time.Time, to id.Node) {
	if e := m.errand; e != nil {
		if e.to == to {
			return
		}
		m.endErrand(Event{Kind: TransferRefused, Text: "another node was asked for after it"})
	}
	m.errand = &errand{to: to, next: now, until: now.Add(ErrandMax)}
	if m.reign == nil && m.leader(now) == "" {
		m.endErrand(Event{Kind: TransferRefused, Text: "no authority is known"})
	}
}

// runErrand passes a wish on to the authority until that has it, and notices its end.
func (m *Machine) runErrand(now time.Time) {
	e := m.errand
	if l := m.leader(now); e != nil && l != "" && (l != e.asked || m.observer.epoch != e.in) {
		e.taken = false // there is another authority than the one that tries, or it lost the office meanwhile
	}
	switch {
	case e == nil:
	case m.leader(now) == e.to:
		m.endErrand(Event{Kind: TransferDone})
	case !now.Before(e.until):
		m.endErrand(Event{Kind: TransferRefused, Text: "nothing came of it in " + ErrandMax.String()})
	case e.taken || now.Before(e.next):
	case m.reign != nil:
		e.taken, e.asked, e.in = true, m.seat().Node, m.observer.epoch
		if why := m.wishFor(now, e.to, ""); why != "" {
			m.endErrand(Event{Kind: TransferRefused, Text: why})
		}
	default:
		e.next = now.Add(errandEvery)
		if l := m.leader(now); l != "" {
			e.asked, e.in = l, m.observer.epoch
			m.send(l, TransferAsk{Header: m.header(), To: e.to})
		}
	}
}

func (m *Machine) endErrand(e Event) {
	e.Node = m.errand.to
	m.errand = nil
	m.event(e)
}

func (e *errand) wake(sooner func(time.Time)) {
	sooner(e.until)
	if !e.taken {
		sooner(e.next)
	}
}

// onTransferAsk takes a wish that another node passes on, and answers.
func (m *Machine) onTransferAsk(now time.Time, from id.Node, to id.Node) {
	if m.reign == nil {
		return // who asks finds the authority
	}
	why := m.wishFor(now, to, from)
	if why != "" {
		m.event(Event{Kind: TransferRefused, Node: to, Text: why})
	}
	m.send(from, TransferReply{Header: m.header(), To: to, OK: why == "", Reason: why})
}

// onTransferReply is what the authority says about a wish of ours.
func (m *Machine) onTransferReply(from id.Node, msg TransferReply) {
	e := m.errand
	switch {
	case e == nil || e.to != msg.To || e.asked != from:
	case msg.OK:
		e.taken = true
	default:
		m.endErrand(Event{Kind: TransferRefused, Text: msg.Reason})
	}
}

// wishFor makes a wish the authority's, or says why it can't be.
func (m *Machine) wishFor(now time.Time, to, asker id.Node) (why string) {
	r := m.reign
	switch {
	case to == m.seat().Node:
		return "it has the office already"
	case m.registry == nil || m.registry.byNode[to] == nil:
		return "no such member"
	case m.registry.byNode[to].State == Offline:
		return "it is about to leave"
	case m.leaving || r.yield != nil:
		return "the authority is giving its office up already"
	case r.wish.to != to: // else it is the same one, repeated
		r.wish, r.appointAt = wish{to: to, asker: asker, until: now.Add(wishLasts)}, now
	}
	return ""
}

// wished tells whether a seat is the one an operator wants to have the office.
func (m *Machine) wished(now time.Time) func(Seat) bool {
	w := m.reign.wish
	if w.to == "" || !now.Before(w.until) {
		return func(Seat) bool { return false }
	}
	return func(s Seat) bool { return s.Node == w.to }
}

// mindWish says what a wish came to that could not be done in time.
func (m *Machine) mindWish(now time.Time) {
	w := m.reign.wish
	if w.to == "" || now.Before(w.until) {
		return
	}
	m.reign.wish = wish{}
	why := m.unfit(now, w.to)
	m.disappoint(w, why)
}

// disappoint says why a wish did not come true.
func (m *Machine) disappoint(w wish, why string) {
	if w.asker != "" {
		m.event(Event{Kind: TransferRefused, Node: w.to, Text: why})
		m.send(w.asker, TransferReply{Header: m.header(), To: w.to, Reason: why})
	} else if m.errand != nil && m.errand.to == w.to {
		m.endErrand(Event{Kind: TransferRefused, Text: why})
	}
}

// unfit says why a member could not get the office.
func (m *Machine) unfit(now time.Time, to id.Node) string {
	rec := m.registry.byNode[to]
	switch {
	case rec == nil:
		return "it is no member any more"
	case rec.State == Offline:
		return "it is about to leave"
	case now.Sub(rec.heard) >= voterSilence:
		return fmt.Sprintf("it was silent for %v", now.Sub(rec.heard).Round(100*time.Millisecond))
	case now.Sub(rec.since) < healthyVoter:
		return fmt.Sprintf("it is here for less than %v", healthyVoter)
	case !m.reign.council.Has(SeatOf(rec.Node, rec.Incarnation)):
		return "it did not become one of the voters"
	}
	return "it did not answer the authority in time"
}
