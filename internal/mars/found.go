package mars

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// When a new generation is founded, counted from the last sign of an authority.
const (
	foundHome   = 10 * time.Second
	foundOther  = 14 * time.Second
	foundSpread = 3 * time.Second // further, by chance, for who is not home
	// foundAnyway is how much later it happens although a majority of the council
	// answers: voters of sibling generations can't elect anyone.
	foundAnyway = 12 * time.Second
	pollFor     = 1500 * time.Millisecond
	foundRetry  = 3 * time.Second
	foundVoters = 5
	// foundProvision is how long an authority that did not hear everybody yields to
	// any that did.
	foundProvision = 10 * time.Minute
)

// contactsMax is how many nodes of a cluster that it does not know a home remembers.
const contactsMax = 64

// contact notes that a node knows of a cluster which we, a home without memory, do
// not. Others may be asked through it.
func (m *Machine) contact(h Header) {
	if m.cfg.Home && !m.observer.everJoined && !h.Epoch.IsZero() && h.From != m.seat().Node &&
		len(m.contacts) < contactsMax && !slices.Contains(m.contacts, h.From) {
		m.contacts = append(m.contacts, h.From)
		m.observer.homes = append(m.observer.homes, h.From)
	}
}

// poll asks everybody we know whether there is an authority.
type poll struct {
	round   uint64
	until   time.Time
	replies []FoundReply // one a sender
}

// reroll draws what keeps two nodes from founding at the same moment.
func (m *Machine) reroll() {
	m.jitter = time.Duration(m.cfg.Rand() * float64(foundSpread))
}

// foundAt is when to found, unless somebody is heard from before. The zero time
// means never.
func (m *Machine) foundAt() (at time.Time) {
	o := m.observer
	switch {
	case m.leaving || o.left:
		return time.Time{}
	case m.recover:
		return m.heard.Add(promiseFor)
	case m.cfg.Home && !o.everJoined && len(m.contacts) == 0:
		return m.heard.Add(max(m.cfg.ColdBoot, 0))
	case m.cfg.Home && !o.everJoined: // there was a cluster: its voters may elect
		return m.heard.Add(foundHome)
	case !o.everJoined || m.cfg.Recovery == RecoveryManual:
		return time.Time{}
	case m.cfg.Home:
		return m.heard.Add(foundHome)
	}
	return m.heard.Add(foundOther + m.jitter)
}

func (m *Machine) foundWake() time.Time {
	if m.poll != nil {
		return m.poll.until
	}
	at := m.foundAt()
	if !at.IsZero() && at.Before(m.foundHold) {
		return m.foundHold
	}
	return at
}

// found polls, and founds, when it is time to.
func (m *Machine) found(now time.Time) {
	if p := m.poll; p != nil {
		if !now.Before(p.until) {
			m.decide(now)
		}
		return
	}
	at := m.foundAt()
	if at.IsZero() || now.Before(at) || now.Before(m.foundHold) {
		return
	}
	if m.leader(now) != "" {
		m.foundHold = now.Add(searchEvery)
		return
	}
	m.round++
	m.poll = &poll{round: m.round, until: now.Add(pollFor)}
	msg := FoundPoll{Header: m.header(), Round: m.round}
	asked := map[id.Node]bool{m.seat().Node: true}
	var nodes []id.Node
	for _, s := range m.observer.council.Seats {
		nodes = append(nodes, s.Node)
	}
	for _, n := range append(nodes, m.known()...) {
		if !asked[n] {
			asked[n] = true
			m.queue = append(m.queue, Envelope{To: n, Message: msg})
		}
	}
	if len(asked) == 1 { // nobody to ask: a first start
		m.decide(now)
		return
	}
	m.poll.until = m.poll.until.Add(time.Duration(len(asked)) * time.Second / paceRate)
	m.event(Event{Kind: PollStarted, Count: len(asked) - 1, Silence: now.Sub(m.heard)})
}

func (m *Machine) onFoundPoll(now time.Time, from Seat, msg FoundPoll) {
	leader := m.leader(now)
	m.send(from.Node, FoundReply{
		Header: m.header(), Round: msg.Round, Live: leader != "" || m.reign != nil, Authority: leader,
		Home: m.cfg.Home, Council: m.observer.council,
	})
	if m.cfg.Home {
		return
	}
	if m.poll != nil && from.Node < m.seat().Node { // one of the two has to
		m.refound(now, from.Node.String()+" asks at the same time")
	}
	if m.poll == nil { // let that one go ahead
		m.foundHold = now.Add(foundRetry)
	}
}

func (m *Machine) onFoundReply(now time.Time, from Seat, msg FoundReply) {
	p := m.poll
	if p == nil || msg.Round != p.round {
		return
	}
	switch {
	case msg.Live:
		m.refound(now, "there is an authority, says "+msg.From.String())
		m.observer.follow(now, msg.Authority, 0)
	case !slices.ContainsFunc(p.replies, func(o FoundReply) bool { return o.From == msg.From }):
		p.replies = append(p.replies, msg)
	}
}

// refound gives a poll up and has another one later.
func (m *Machine) refound(now time.Time, why string) {
	m.event(Event{Kind: FoundingRefused, Text: why})
	m.poll = nil
	m.foundHold = now.Add(foundRetry)
	m.reroll()
}

// decide founds, unless somebody else should or a council could still elect.
func (m *Machine) decide(now time.Time) {
	p := m.poll
	if now.Sub(p.until) > pollFor { // this process stood still: much may have happened
		m.refound(now, "the answers are too old")
		return
	}
	newest, highest := m.observer.council, m.observer.epoch
	home := m.cfg.Home
	for _, a := range p.replies {
		home = home || a.Home
		if a.Council.Compare(newest) > 0 && a.Council.Epoch.Generation < generationMax {
			newest = a.Council
		}
		for _, e := range [...]Epoch{a.Epoch, a.Council.Epoch} {
			if e.Compare(highest) > 0 && e.Generation < generationMax {
				highest = e
			}
		}
	}
	answered := 0
	for _, s := range newest.Seats {
		if s == m.seat() || slices.ContainsFunc(p.replies, func(a FoundReply) bool { return SeatOf(a.From, a.Incarnation) == s }) {
			answered++
		}
	}
	late := now.Sub(m.foundAt()) >= foundAnyway || m.recover
	switch {
	case !late && home && !m.cfg.Home:
		m.refound(now, "home answers and may found")
		return
	case !late && !newest.IsZero() && answered >= newest.Majority():
		m.refound(now, "a majority of the council answers and may elect")
		return
	}
	m.foundNow(now, highest)
}

// foundNow begins a new generation with who answered. It is an authority once a
// majority of them backs it.
func (m *Machine) foundNow(now time.Time, above Epoch) {
	replies := m.poll.replies
	m.poll, m.recover, m.queue = nil, false, nil
	seats := []Seat{m.seat()}
	slices.SortStableFunc(replies, func(a, b FoundReply) int {
		if a.Home != b.Home {
			return -compareBool(a.Home, b.Home)
		}
		return strings.Compare(string(a.From), string(b.From))
	})
	for _, a := range replies {
		if len(seats) < foundVoters {
			seats = append(seats, SeatOf(a.From, a.Incarnation))
		}
	}
	if len(seats)%2 == 0 {
		seats = seats[:len(seats)-1]
	}
	e := Epoch{Generation: max(above.Generation+1, uint64(max(now.Unix(), 1))), Founder: m.seat().Incarnation, Term: 1}
	r := &reign{since: now, why: "founded", council: Council{Epoch: e, Version: 1, Seats: seats}}
	if len(m.observer.dir.entries()) > len(replies)+1 {
		r.provisional = now.Add(foundProvision)
	}
	m.observer.epoch, m.observer.council = e, r.council
	m.promise = promise{to: m.seat(), until: now.Add(promiseFor)}
	m.campaign, m.reign = nil, r
	m.event(Event{Kind: Founded, Epoch: e, Count: len(seats), Text: fmt.Sprintf("no authority for %v, %d nodes answered", now.Sub(m.heard).Round(100*time.Millisecond), len(replies))})
	m.rule(now)
}
