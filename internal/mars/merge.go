package mars

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// How two authorities find and join each other.
const (
	// A home that restarted without memory waits for less than the sum of these two.
	probeEvery   = time.Second
	homeSilence  = 1500 * time.Millisecond // after which home is asked
	probeLost    = 3                       // lost members asked each time
	probeLostGap = 2                       // in multiples of probeEvery
	yieldEvery   = 500 * time.Millisecond
	yieldFor     = 5 * time.Second // then the other one is given up and we go on
)

// hintEvery is how often hints at another authority are followed at most.
const hintEvery = 250 * time.Millisecond

// yield is a reign's end in favour of another authority.
type yield struct {
	to    Seat
	next  time.Time // to ask again
	until time.Time
}

// How a node without an authority looks for one, besides asking in turn with its
// heartbeats: those wait for the dead.
const (
	searchAfter = 2 * time.Second // of silence
	searchEvery = 400 * time.Millisecond
	searchSeats = 2
	searchHomes = 4
)

// search asks home, a few voters and another member who the authority is.
func (m *Machine) search(now time.Time) {
	o := m.observer
	at := o.lastLive.Add(searchAfter)
	switch {
	case o.left:
		m.searchAt = time.Time{}
		return
	case now.Before(at):
		m.searchAt = at
		return
	case now.Before(m.searchAt):
		return
	case m.leader(now) != "":
		m.searchAt = now.Add(searchEvery)
		return
	}
	pause := searchEvery
	if now.Sub(o.lastLive) > foundHome { // nobody will turn up at once any more
		pause *= 2
	}
	m.searchAt = now.Add(pause + time.Duration(m.cfg.Rand()*float64(pause)/2))
	msg := Probe{Header: m.header(), Standing: m.standing(now), Council: m.observer.council}
	asked := make([]id.Node, 0, 8)
	ask := func(n id.Node) {
		if n != "" && n != m.seat().Node && !slices.Contains(asked, n) {
			asked = append(asked, n)
			m.send(n, msg)
		}
	}
	chance := func(n int) int { return min(int(m.cfg.Rand()*float64(n)), n-1) }
	for _, n := range o.homes[:min(len(o.homes), searchHomes)] {
		ask(n)
	}
	for _, n := range o.around.Homes {
		ask(n)
	}
	if seats := o.council.Seats; len(seats) > 0 {
		for range searchSeats {
			ask(seats[chance(len(seats))].Node)
		}
	}
	if peers := m.dir.Members; len(peers) > 0 {
		ask(peers[chance(len(peers))].Node)
	}
}

// standing is what this node knows of the authority.
func (m *Machine) standing(now time.Time) Standing {
	if r := m.reign; r != nil && m.registry != nil && m.Lease(now) > 0 {
		return Standing{
			Authority: m.seat().Node, Epoch: r.council.Epoch, Live: true, Home: m.cfg.Home,
			Provisional: now.Before(r.provisional), Members: uint64(m.registry.Len()),
		}
	}
	leader := m.leader(now)
	return Standing{Authority: leader, Epoch: m.observer.epoch, Live: leader != ""}
}

// probe asks lost members and home what they know: that is how the two sides of a
// healed partition meet.
func (m *Machine) probe(now time.Time) {
	r := m.reign
	if now.Before(r.probeAt) {
		return
	}
	r.probeAt = now.Add(probeEvery)
	msg := Probe{Header: m.header(), Standing: m.standing(now), Council: m.observer.council}
	asked := make(map[id.Node]bool, 8)
	ask := func(n id.Node) {
		rec := m.registry.byNode[n]
		if !asked[n] && n != m.seat().Node && (rec == nil || now.Sub(rec.heard) >= homeSilence) {
			asked[n] = true
			m.send(n, msg)
		}
	}
	for _, n := range m.homes {
		ask(n)
	}
	for _, n := range m.registry.homes {
		ask(n)
	}
	if r.probes++; r.probes%probeLostGap != 0 {
		return
	}
	for _, n := range m.observer.around.Elsewhere { // other namespaces may have founded by themselves
		ask(n)
	}
	if lost := m.registry.lost; len(lost) > 0 {
		for range probeLost {
			ask(lost[min(int(m.cfg.Rand()*float64(len(lost))), len(lost)-1)])
		}
	}
}

func (m *Machine) onProbe(now time.Time, from Seat, msg Probe) {
	for _, s := range msg.Council.Seats {
		m.contact(Header{Epoch: msg.Epoch, From: s.Node})
	}
	m.send(from.Node, ProbeReply{Header: m.header(), Standing: m.standing(now)})
	m.onStanding(now, from, msg.Standing)
}

// onStanding compares this node's authority with another one.
func (m *Machine) onStanding(now time.Time, from Seat, theirs Standing) {
	o := m.observer
	switch {
	case !theirs.Live || theirs.Authority == "" || theirs.Authority == m.seat().Node:
	case m.reign == nil:
		if !o.live && m.leader(now) == "" {
			o.follow(now, theirs.Authority, o.spreadFor())
		}
	case m.reign.yield != nil || m.registry == nil || m.Lease(now) <= 0:
	case theirs.Authority != from.Node: // who may not know better than we do
		m.meet(now, theirs.Authority)
	case theirs.Epoch == m.reign.council.Epoch:
	case compareStanding(m.standing(now), m.seat(), theirs, from) < 0:
		m.reign.yield = &yield{to: from, next: now, until: now.Add(yieldFor)}
		m.event(Event{Kind: MergeYielded, Node: from.Node, Incarnation: from.Incarnation, Epoch: theirs.Epoch, Count: int(theirs.Members)})
	}
}

// meet asks a node that may be, or know, another authority how it stands.
func (m *Machine) meet(now time.Time, n id.Node) {
	r := m.reign
	if r == nil || m.registry == nil || n == m.seat().Node || now.Before(r.hintAt) {
		return
	}
	r.hintAt = now.Add(hintEvery)
	m.send(n, Probe{Header: m.header(), Standing: m.standing(now), Council: m.observer.council})
}

// compareStanding tells which of two authorities stays: who heard everybody, has
// more members, is home.
func compareStanding(a Standing, as Seat, b Standing, bs Seat) int {
	return cmp.Or(
		-compareBool(a.Provisional, b.Provisional),
		cmp.Compare(a.Members, b.Members),
		compareBool(a.Home, b.Home),
		bytes.Compare(as.Incarnation[:], bs.Incarnation[:]),
	)
}

// yielding asks the other authority to take our members over. Nothing is written
// meanwhile.
func (m *Machine) yielding(now time.Time) {
	r := m.reign
	y := r.yield
	switch {
	case y == nil:
	case !now.Before(y.until):
		r.yield = nil // it does not answer; somebody has to go on
	case !now.Before(y.next):
		y.next = now.Add(yieldEvery)
		m.send(y.to.Node, Yield{Header: m.header(), Of: r.council.Epoch, Around: m.around(now), Shared: m.registry.shared})
	}
}

// onYield goes on in an epoch above that of an authority which gives up for us,
// and tells it so once that is committed.
func (m *Machine) onYield(now time.Time, from Seat, msg Yield) {
	r := m.reign
	if r == nil || m.registry == nil {
		return
	}
	if y := r.yield; y != nil && y.to == from && m.seat().later(from) {
		r.yield = nil // both gave up: one has to go on
	}
	if m.Lease(now) <= 0 || !r.committed() || msg.Of.Generation >= generationMax {
		return
	}
	if msg.Of.Compare(r.council.Epoch) >= 0 {
		m.reepoch(now, msg.Of)
		m.registry.started = now // until all of theirs have come, they keep whom they know
		m.event(Event{Kind: MergeWon, Node: from.Node, Incarnation: from.Incarnation, Epoch: r.council.Epoch})
		m.observer.learn(now, msg.Around)
		for _, v := range msg.Shared {
			m.registry.shared = m.registry.shared.put(v)
		}
	}
	if r.committed() {
		m.send(from.Node, Yielded{Header: m.header(), Of: msg.Of, Council: r.council})
	}
}

// onYielded ends our reign: the other authority is above us.
func (m *Machine) onYielded(now time.Time, from Seat, msg Yielded) {
	r := m.reign
	if r == nil || r.yield == nil || r.yield.to != from || msg.Of != r.council.Epoch || msg.Epoch.Compare(r.council.Epoch) <= 0 {
		return
	}
	o := m.observer
	o.epoch = msg.Epoch
	m.stepDown(now, from.Node, "its members were yielded to another authority")
	m.promise = promise{}
	m.announce(from.Node, msg.Epoch, msg.Council)
	o.adopt(msg.Council)
	o.follow(now, from.Node, 0)
}
