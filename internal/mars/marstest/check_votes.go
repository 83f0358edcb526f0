package marstest

import (
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// promiseFor is for how long a voter grants nobody else.
const promiseFor = 3 * time.Second

// promise is what a voter owes.
type promise struct {
	to    mars.Seat
	until time.Time // by its own clock
}

// campaign is a candidate's attempt to get the office.
type campaign struct {
	epoch   mars.Epoch // voted for
	council mars.Council
	broken  bool       // the council changed since
	asked   mars.Epoch // pre-voted for
	clock   uint64     // of those requests
	pres    []mars.Seat
}

// pre notes who would vote.
func (g *campaign) pre(m mars.VoteReply, s mars.Seat) {
	if m.For == g.asked && m.Clock == g.clock && !slices.Contains(g.pres, s) {
		g.pres = append(g.pres, s)
	}
}

// checkMessage checks the messages with which machines bind themselves.
func (c *Cluster) checkMessage(p *process, now time.Time, in mars.Input, out *mars.Envelope) {
	switch m := out.Message.(type) {
	case mars.Grant:
		if m.OK {
			c.checkGrant(p, now, in)
		}
	case mars.VoteReply:
		if m.OK {
			c.checkVote(p, now, in, m)
		}
	case mars.FoundPoll:
		p.watch.round = m.Round
	case mars.Vote:
		if m.Pre {
			if g := &p.watch.campaign; m.For != g.asked || m.Clock != g.clock {
				g.asked, g.clock, g.pres = m.For, m.Clock, nil
			}
		} else {
			c.checkCampaign(p, m)
		}
	}
}

// checkGrant is the voter's half of I7: it promises itself to one at a time.
func (c *Cluster) checkGrant(p *process, now time.Time, in mars.Input) {
	r, ok := in.(mars.Received)
	if !ok {
		c.fail("contract", "%s granted a renewal that it was not asked for", p.name)
		return
	}
	m, ok := r.Message.(mars.Renew)
	if !ok {
		c.fail("contract", "%s granted %T", p.name, r.Message)
		return
	}
	c.bind(p, now, mars.SeatOf(m.From, m.Incarnation), "granted a renewal to")
}

// bind notes a promise, unless an earlier one forbids it.
func (c *Cluster) bind(p *process, now time.Time, to mars.Seat, did string) {
	w := &p.watch
	if w.promise.to != to && now.Before(w.promise.until) {
		c.fail("I7", "%s %s %s while bound to %s", p.name, did, c.named(string(to.Node)), c.named(string(w.promise.to.Node)))
	}
	w.promise = promise{to, now.Add(promiseFor)}
}

// checkVote is I4 and the voter's half of I7: one vote an epoch, and neither a vote
// nor a pre-vote against a promise, unless who it was made to handed over.
func (c *Cluster) checkVote(p *process, now time.Time, in mars.Input, reply mars.VoteReply) {
	w := &p.watch
	r, _ := in.(mars.Received)
	m, ok := r.Message.(mars.Vote)
	if !ok {
		c.fail("contract", "%s voted without being asked", p.name)
		return
	}
	to := mars.SeatOf(m.From, m.Incarnation)
	if m.Force && m.Prior == w.promise.to {
		w.promise = promise{}
	}
	if reply.Pre {
		if w.promise.to != to && now.Before(w.promise.until) {
			c.fail("I7", "%s would vote for %s while bound to %s", p.name, c.named(string(to.Node)), c.named(string(w.promise.to.Node)))
		}
		return
	}
	if !m.Council.Has(p.seat()) {
		c.fail("I4", "%s voted for %s without a seat in its council", p.name, c.named(string(to.Node)))
	}
	c.castVote(p, reply.For, to)
	c.bind(p, now, to, "voted for")
}

// castVote is I4: at most one vote in an epoch.
func (c *Cluster) castVote(p *process, e mars.Epoch, to mars.Seat) {
	w := &p.watch
	if was, ok := w.votes[e]; ok && was != to {
		c.fail("I4", "%s voted for %s and %s in epoch %s", p.name, c.named(string(was.Node)), c.named(string(to.Node)), c.epoch(e))
	}
	w.votes[e] = to
}

// checkCampaign is the candidate's half of I7: nobody raises the term without
// the pre-votes of a majority, or the word of who reigned before.
func (c *Cluster) checkCampaign(p *process, m mars.Vote) {
	w := &p.watch
	g := &w.campaign
	if g.epoch == m.For {
		return // the same request to another voter
	}
	g.epoch, g.council, g.broken = m.For, m.Council, false
	if !m.Council.Has(p.seat()) {
		c.fail("I7", "%s asks for votes without a seat", p.name)
	}
	if k := p.machine.Council(); !p.machine.Reigns() && k.Compare(m.Council) != 0 {
		c.fail("I8", "%s asks for votes of %s and holds %s", p.name, c.council(m.Council), c.council(k))
	}
	c.castVote(p, m.For, p.seat())
	if m.Force {
		if m.Prior == w.promise.to {
			w.promise = promise{} // who it was made to has handed over
		}
		return
	}
	n := 1
	for _, s := range g.pres {
		if m.Council.Has(s) && s != p.seat() {
			n++
		}
	}
	if founding(g.asked) != founding(m.For) || g.asked.Term > m.For.Term || n < majority(m.Council) {
		c.fail("I7", "%s raised the term with %d pre-votes of %s", p.name, n, c.council(m.Council))
	}
}

// checkElected is I8 and the core of I1: who was elected had a majority of votes
// in this epoch, from the council that it asked.
func (c *Cluster) checkElected(p *process, e *mars.Event) {
	w := &p.watch
	g := &w.campaign
	epoch := e.Epoch
	if g.epoch != epoch || g.council.IsZero() {
		return // founded, alone in the council, or raised above others: checkFounding and checkCouncil see to it
	}
	k := p.machine.Council()
	if g.broken || !sameSeats(g.council.Seats, k.Seats) {
		c.fail("I8", "%s was elected in %s although its council changed from %s to %s", p.name, c.epoch(epoch), c.council(g.council), c.council(k))
	}
	n := 0
	for _, s := range g.council.Seats {
		// Who ended since may have voted: the benefit of the doubt.
		if v := c.at[s.Node]; v == nil || v.seat() != s || v.watch.votes[epoch] == p.seat() {
			n++
		}
	}
	if n < majority(g.council) {
		c.fail("I1", "%s was elected in %s with %d votes of %s", p.name, c.epoch(epoch), n, c.council(g.council))
	}
}

// majority is how many voters decide. The machine's own idea of it is what is tested.
func majority(k mars.Council) int { return len(k.Seats)/2 + 1 }

func sameSeats(a, b []mars.Seat) bool {
	if len(a) != len(b) {
		return false
	}
	for _, s := range a {
		if !slices.Contains(b, s) {
			return false
		}
	}
	return true
}
