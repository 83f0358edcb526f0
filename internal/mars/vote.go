package mars

import (
	"slices"
	"time"
)

// campaign is a voter's attempt to get the office.
type campaign struct {
	pre     bool // only asks whether it would be elected
	epoch   Epoch
	council Council // whose voters decide
	prior   Seat    // who gave the office up in our favour, zero otherwise
	sent    time.Time
	until   time.Time
	votes   []Seat // without our own
}

// mandate is the wish of an authority that gave its office up in our favour.
type mandate struct {
	from  Seat
	until time.Time
}

// termMax bounds what a denial can make a candidate skip.
const termMax = 1 << 20

// turn is how long after the end of its promise a voter campaigns: one after the
// other, home first.
func (m *Machine) turn() time.Duration {
	d := time.Duration(m.cfg.Rand() * float64(campaignStep))
	if m.cfg.Home {
		return d
	}
	i := slices.Index(m.observer.council.Seats, m.seat())
	d += time.Duration(max(i, 0)) * campaignStep
	if m.observer.status.State == Offline {
		d += time.Second
	}
	return d
}

// owe promises a seat not to grant anybody else for a while.
func (m *Machine) owe(now time.Time, to Seat) {
	m.promise = promise{to: to, epoch: m.observer.epoch, until: now.Add(promiseFor)}
	m.electAt = m.promise.until.Add(m.turn())
	m.hear(now)
}

// endCampaign forgets a campaign. Its own vote was for nothing, so it binds no more.
func (m *Machine) endCampaign() {
	if m.campaign != nil && m.promise.to == m.seat() {
		m.promise = promise{}
	}
	m.campaign = nil
}

// stand campaigns when it is time to.
func (m *Machine) stand(now time.Time) {
	if c := m.campaign; c != nil && !now.Before(c.until) {
		m.endCampaign()
		m.electAt = now.Add(retryCampaign + time.Duration(m.cfg.Rand()*float64(retryCampaign)))
	}
	if !m.observer.council.Has(m.seat()) {
		m.electAt, m.mandate = time.Time{}, mandate{}
		return
	}
	if m.electAt.IsZero() { // a seat of which no authority has told us yet
		m.electAt = now.Add(promiseFor + m.turn())
	}
	forced := now.Before(m.mandate.until)
	if m.campaign != nil || m.leaving && !forced || now.Before(m.electAt) && !forced {
		return
	}
	if !forced && (m.promise.bound(now, m.seat()) || now.Sub(m.observer.lastLive) < 2*time.Second) {
		m.electAt = now.Add(campaignStep)
		return
	}
	if m.nextEpoch().Compare(m.observer.epoch) <= 0 { // our council is of a generation that is over
		m.electAt = now.Add(time.Second)
		return
	}
	c := &campaign{pre: !forced, council: m.observer.council, sent: now, until: now.Add(campaignFor), epoch: m.nextEpoch()}
	if forced {
		c.prior = m.mandate.from
	}
	m.campaign = c
	m.canvass(now)
}

// nextEpoch is the one to campaign for. It belongs to the founding of the council:
// voters of another one must never decide in it.
func (m *Machine) nextEpoch() Epoch {
	e := m.observer.council.Epoch
	for _, seen := range [...]Epoch{m.observer.epoch, m.termSeen} {
		if sameFounding(seen, e) {
			e.Term = max(e.Term, seen.Term)
		}
	}
	e.Term++
	return e
}

// canvass asks for what the campaign needs, and ends it when that is there already.
func (m *Machine) canvass(now time.Time) {
	c := m.campaign
	if !c.pre {
		m.observer.epoch = c.epoch
		m.promise = promise{to: m.seat(), until: now.Add(promiseFor)}
		m.event(Event{Kind: Campaigned, Epoch: c.epoch, Count: len(c.council.Seats)})
	}
	for _, s := range c.council.Seats {
		if s != m.seat() {
			m.send(s.Node, Vote{
				Header: m.header(), Pre: c.pre, Force: c.prior != Seat{}, Prior: c.prior,
				For: c.epoch, Clock: m.clock(c.sent), Council: c.council,
			})
		}
	}
	m.count(now)
}

// count goes on when a majority has said yes.
func (m *Machine) count(now time.Time) {
	c := m.campaign
	switch {
	case len(c.votes)+1 < c.council.Majority():
	case c.pre:
		m.campaign = &campaign{council: c.council, sent: now, until: now.Add(campaignFor), epoch: m.nextEpoch()}
		m.canvass(now)
	default:
		m.win(now, c)
	}
}

// onVote grants a vote to who may have the office.
func (m *Machine) onVote(now time.Time, from Seat, msg Vote) {
	o := m.observer
	released := msg.Force && m.promise.to == msg.Prior
	ok := (released || !m.promise.bound(now, from)) &&
		msg.Council.Compare(o.council) >= 0 && msg.Council.Has(m.seat()) && msg.Council.Has(from) &&
		sameFounding(msg.For, msg.Council.Epoch) && msg.For.Compare(msg.Council.Epoch) > 0 && msg.For.Compare(o.epoch) > 0
	if ok && !msg.Pre {
		o.epoch = msg.For
		m.outranked(now, from.Node, "another was voted for")
		m.owe(now, from)
		if msg.Force {
			m.noteTransfer(now, from)
		}
		m.event(Event{Kind: VotedFor, Node: from.Node, Incarnation: from.Incarnation, Epoch: msg.For})
	}
	if ok && msg.Pre {
		m.giveWay(now, from)
	}
	m.send(from.Node, VoteReply{Header: m.header(), OK: ok, Pre: msg.Pre, For: msg.For, Clock: msg.Clock})
}

// giveWay holds a campaign of our own back in favour of one whose turn is before
// ours, so that two who ask at the same time do not take each other's votes.
func (m *Machine) giveWay(now time.Time, to Seat) {
	seats := m.observer.council.Seats
	if m.cfg.Home || slices.Index(seats, to) > slices.Index(seats, m.seat()) || m.campaign != nil && !m.campaign.pre {
		return
	}
	m.campaign = nil
	if at := now.Add(campaignFor); m.electAt.Before(at) {
		m.electAt = at
	}
}

func (m *Machine) onVoteReply(now time.Time, from Seat, msg VoteReply) {
	c := m.campaign
	if c == nil || !now.Before(c.until) || msg.Pre != c.pre || msg.For != c.epoch || msg.Clock != m.clock(c.sent) || !c.council.Has(from) || slices.Contains(c.votes, from) {
		return
	}
	if !msg.OK {
		if e := msg.Epoch; sameFounding(e, c.epoch) && e.Term < c.epoch.Term+termMax && e.Compare(m.termSeen) > 0 {
			m.termSeen = e
		}
		return
	}
	c.votes = append(c.votes, from)
	m.count(now)
}

// win gets the office. Votes count as the first renewal, so that there is a lease
// at once.
func (m *Machine) win(now time.Time, c *campaign) {
	r := &reign{
		since: now, why: "elected", previous: c.council,
		council: Council{Epoch: c.epoch, Version: 1, Seats: c.council.Seats},
	}
	if c.prior != (Seat{}) {
		r.why = "took over from " + c.prior.Node.String()
		m.noteTransfer(now, m.seat())
	}
	for _, s := range c.votes {
		r.backer(s).at = c.sent
	}
	m.campaign, m.mandate, m.reign = nil, mandate{}, r
	m.observer.council = r.council
	if m.leaving { // it got the office of one who left at the same time: somebody has to take it
		m.observer.leaving, m.leaveBy = false, now.Add(promiseFor)
	}
}

// onTransferGo campaigns at once: the authority has given its office up.
func (m *Machine) onTransferGo(now time.Time, from Seat, msg TransferGo) {
	o := m.observer
	if c := m.campaign; c != nil && c.prior == from {
		return // it says so until it sees that we do
	}
	if m.reign != nil || o.left || m.promise.to != from || !now.Before(m.promise.until) || msg.Epoch.Compare(o.epoch) < 0 {
		return
	}
	o.adopt(msg.Council)
	m.endCampaign()
	m.mandate = mandate{from: from, until: now.Add(promiseFor / 2)}
}

// onRenew backs an authority.
func (m *Machine) onRenew(now time.Time, from Seat, msg Renew) {
	o := m.observer
	ours := m.reign != nil && m.reign.council.Epoch == msg.Epoch // nobody else can have it
	ok := msg.Epoch.Compare(o.epoch) >= 0 && !m.promise.bound(now, from) && msg.Council.Epoch == msg.Epoch &&
		msg.Council.Has(from) && !ours
	if ok {
		if msg.Epoch != o.epoch {
			o.epoch = msg.Epoch
			m.outranked(now, from.Node, "another authority was elected")
		}
		m.endCampaign()
		o.adopt(msg.Council)
		o.learn(now, msg.Around)
		m.owe(now, from)
		if o.to() != from.Node || o.failures > 0 {
			o.follow(now, from.Node, o.spreadFor())
		}
	}
	if !ok {
		m.meet(now, from.Node)
	}
	g := Grant{Header: m.header(), OK: ok, Leaving: m.leaving, Of: msg.Epoch, Clock: msg.Clock}
	if o.council.Epoch == msg.Epoch {
		g.Held = o.council.Version
	}
	m.send(from.Node, g)
}
