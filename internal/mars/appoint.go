package mars

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// How the authority chooses voters and who follows it.
const (
	councilMax       = 5
	councilMaxBig    = 7 // above bigCluster members
	bigCluster       = 500
	voterSilence     = 5 * time.Second  // after which another is appointed
	healthyVoter     = 10 * time.Second // registered, before it becomes a voter
	healthyHome      = 30 * time.Second // registered, before it gets the office back
	transferGap      = time.Minute      // between two transfers
	flapsMax         = 3                // hand-backs in flapWindow before home has to wait
	flapWindow       = 10 * time.Minute
	freshGrant       = time.Second     // of who gets the office
	currentDirectory = 3 * time.Second // since its last heartbeat, unless those are rarer
	homeRole         = "mars"
)

// fitness is how a member stands as a voter.
type fitness struct {
	rec  *record
	seat Seat
	ripe bool // long enough here to be appointed
}

// appoint takes the next step towards the best council: one voter in or out, when
// the last step is committed.
func (m *Machine) appoint(now time.Time) {
	r := m.reign
	if !r.committed() || now.Before(r.appointAt) || r.yield != nil {
		return
	}
	r.appointAt = now.Add(tickMax)
	c, wish := m.census(now), m.wished(now)
	next, ok := m.addition(now, c, wish)
	r.awaited = len(c.going) > 0
	switch {
	case ok && len(c.dead) > 0 && len(r.council.Seats) >= c.want:
		// First the dead one: it would only make the next majority larger.
		m.change(now, r.council.without(c.dead[0]), "removed "+c.dead[0].Node.String())
	case ok && m.learn(now, next.seat):
	case ok && (len(c.going) == 0 || now.Sub(r.learnFrom) < freshGrant):
		// It has yet to answer. Who wants to leave does not wait for it forever.
	default:
		r.learner = Seat{}
		m.shrink(now, c, wish)
	}
}

// census is how the council stands.
type census struct {
	fit   []fitness // who could be a voter
	want  int       // how many voters there should be
	good  int       // how many of those there are do
	dead  []Seat    // voters that are gone
	going []Seat    // voters that are about to
}

func (m *Machine) census(now time.Time) census {
	c := census{fit: m.fit(now)}
	settling := m.registry.settling(now)
	for _, s := range m.reign.council.Seats {
		switch {
		case m.goodSeat(now, s, c.fit, settling):
			c.good++
		case s == m.seat():
		case m.silentSeat(now, s) || m.replaced(s):
			c.dead = append(c.dead, s)
		default:
			c.going = append(c.going, s)
		}
	}
	c.want = m.wanted(m.heardOf(c.fit))
	if settling { // not everybody had time to register
		c.want = max(c.want, c.good-1+c.good%2)
	}
	return c
}

// addition is who should become a voter now, if anybody should.
func (m *Machine) addition(now time.Time, c census, wish func(Seat) bool) (next fitness, ok bool) {
	r := m.reign
	urgent := c.good < r.council.Majority() // a few more, and nobody can be appointed
	if !urgent && !m.leaving && len(c.dead)+len(c.going) == 0 && c.good%2 == 1 && c.good < c.want && r.wish.to == "" && m.mature(c.fit) < 2 {
		return next, false // two together: an even number of voters survives no more losses than one less
	}
	next, ok = m.nextVoter(c.fit, wish, urgent)
	if !ok && len(c.going) > 0 {
		// A young voter is worth more than none, and a voter that wants to leave can't wait
		// until another is ripe: in a rolling update all are young.
		next, ok = m.nextVoter(c.fit, wish, true)
	}
	if !ok || len(r.council.Seats) >= seatsMax {
		return next, false
	}
	return next, c.good < c.want || wish(next.seat) || next.home() && (c.want > 1 || m.homeDue(now, next))
}

// shrink takes a voter out when there is one too many, or one that wants to leave and
// that nobody can take the place of.
func (m *Machine) shrink(now time.Time, c census, wish func(Seat) bool) {
	r := m.reign
	if len(r.council.Seats) <= max(c.want, 1) && len(c.going) == 0 {
		return
	}
	out, ok := m.leastNeeded(now, c.fit, wish)
	if m.leaving {
		ok = false // whoever has a seat may be the heir
	}
	if bad := append(c.dead, c.going...); len(bad) > 0 {
		out, ok = bad[0], true
	}
	if ok {
		m.change(now, r.council.without(out), "removed "+out.Node.String())
	}
}

// learn makes sure that a voter to be answers before the lease depends on it, then
// appoints it. It returns whether it did.
func (m *Machine) learn(now time.Time, s Seat) (appointed bool) {
	r := m.reign
	if r.learner != s {
		r.learner, r.learnFrom, r.renewAt = s, now, now
		r.backer(s).at = time.Time{}
		return false
	}
	next := r.council.with(s)
	fresh := 0
	for _, v := range next.Seats {
		if v == m.seat() || now.Sub(r.backer(v).at) <= freshGrant {
			fresh++
		}
	}
	if now.Sub(r.backer(s).at) > freshGrant || fresh < next.Majority() {
		return false
	}
	return m.change(now, next, "added "+s.Node.String())
}

// mature counts the members that may be appointed now.
func (m *Machine) mature(fit []fitness) (n int) {
	for _, f := range fit {
		if f.ripe && !m.reign.council.Has(f.seat) {
			n++
		}
	}
	return n
}

// heardOf counts those that registered or vote: who is only presumed alive is no
// reason to want more voters.
func (m *Machine) heardOf(fit []fitness) (n int) {
	for _, f := range fit {
		if !f.rec.presumed || m.reign.council.Has(f.seat) {
			n++
		}
	}
	return n
}

// fit are the members that could be voters, sorted by node: this node, and those
// that are heard and not about to leave.
func (m *Machine) fit(now time.Time) []fitness {
	var fs []fitness
	for rec := range m.registry.all() {
		if rec.State == Offline || rec.silent || now.Sub(rec.heard) >= voterSilence && !rec.presumed {
			continue
		}
		seat := SeatOf(rec.Node, rec.Incarnation)
		if m.reign.isLeaving(seat) { // which the registry may not have heard
			continue
		}
		ripe := !rec.presumed && (now.Sub(rec.since) >= healthyVoter || m.leaving)
		fs = append(fs, fitness{rec: rec, seat: seat, ripe: ripe})
	}
	return fs
}

func (f fitness) home() bool { return strings.EqualFold(f.rec.Role, homeRole) }

// silentSeat tells whether a voter has not answered for long.
func (m *Machine) silentSeat(now time.Time, s Seat) bool {
	return now.Sub(cmp.Or(m.reign.backer(s).at, m.reign.since)) >= voterSilence
}

// replaced tells whether another run is registered at the address of a voter.
func (m *Machine) replaced(s Seat) bool {
	rec := m.registry.byNode[s.Node]
	return rec != nil && SeatOf(rec.Node, rec.Incarnation) != s
}

// wanted is how many voters there should be for so many fit members: an odd number.
func (m *Machine) wanted(fit int) int {
	most := councilMax
	if m.registry.Len() > bigCluster {
		most = councilMaxBig
	}
	n := min(most, fit)
	return max(n-1+n%2, 1)
}

// goodSeat tells whether a voter is fit for it. A registry that is settling may not
// know it yet, but knows who is about to leave.
func (m *Machine) goodSeat(now time.Time, s Seat, fit []fitness, settling bool) bool {
	if s == m.seat() {
		return !m.leaving
	}
	fine := slices.ContainsFunc(fit, func(f fitness) bool { return f.seat == s }) || settling && m.registry.byNode[s.Node] == nil
	return fine && !m.reign.backer(s).leaving && !m.silentSeat(now, s)
}

// nextVoter is who should be appointed: whom an operator wishes, home, then who is
// alone on its host, has been here longest and is least loaded.
func (m *Machine) nextVoter(fit []fitness, wish func(Seat) bool, urgent bool) (next fitness, ok bool) {
	rank := m.rank(wish)
	for _, f := range fit {
		if m.reign.council.Has(f.seat) || !f.ripe && !wish(f.seat) && (!urgent || f.rec.presumed) {
			continue
		}
		if !ok || rank(f, next) < 0 {
			next, ok = f, true
		}
	}
	return next, ok
}

// rank orders members by how much they should be voters.
func (m *Machine) rank(wish func(Seat) bool) func(a, b fitness) int {
	var hosts [seatsMax]string
	for i, s := range m.reign.council.Seats {
		if rec := m.registry.byNode[s.Node]; rec != nil {
			hosts[i] = rec.host
		}
	}
	shared := func(f fitness) int {
		n := 0
		for i, s := range m.reign.council.Seats {
			if s != f.seat && hosts[i] == f.rec.host {
				n++
			}
		}
		return n
	}
	return func(a, b fitness) int {
		return cmp.Or(
			-compareBool(wish(a.seat), wish(b.seat)),
			-compareBool(a.home(), b.home()),
			cmp.Compare(shared(a), shared(b)),
			cmp.Compare(a.rec.Started, b.rec.Started),
			cmp.Compare(a.rec.Load, b.rec.Load),
			a.seat.Compare(b.seat),
		)
	}
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// leastNeeded is the voter to go when there is one too many.
func (m *Machine) leastNeeded(now time.Time, fit []fitness, wish func(Seat) bool) (Seat, bool) {
	rank := m.rank(wish)
	var worst fitness
	found := false
	for _, f := range fit {
		if f.seat == m.seat() || !m.reign.council.Has(f.seat) || wish(f.seat) || m.homeDue(now, f) {
			continue
		}
		if !found || rank(f, worst) > 0 {
			worst, found = f, true
		}
	}
	return worst.seat, found
}

// heirs tells whether there is any member that could have the office after us.
func (m *Machine) heirs() bool {
	for rec := range m.registry.all() {
		if rec.Node != m.seat().Node && rec.State != Offline && !rec.silent && !m.reign.isLeaving(SeatOf(rec.Node, rec.Incarnation)) {
			return true
		}
	}
	return false
}

// heir is the best voter to have the office after us.
func (m *Machine) heir(now time.Time) (Seat, bool) {
	fit := m.fit(now)
	fit = slices.DeleteFunc(fit, func(f fitness) bool { return f.seat == m.seat() || !m.ready(now, f.seat) })
	if len(fit) == 0 {
		return Seat{}, false
	}
	rank := m.rank(func(Seat) bool { return false })
	return slices.MinFunc(fit, rank).seat, true
}

// ready tells whether a voter could take over at once.
func (m *Machine) ready(now time.Time, s Seat) bool {
	r := m.reign
	b := r.backer(s)
	rec := m.registry.byNode[s.Node] // its directory is what it will begin with
	if rec == nil || now.Sub(rec.heard) > max(currentDirectory, 2*m.registry.interval()) {
		return false
	}
	return r.committed() && r.council.Has(s) && !b.leaving && b.held >= r.council.Version && now.Sub(b.at) < freshGrant
}

// handBack gives the office to a healthy home, or to whom an operator wishes.
func (m *Machine) handBack(now time.Time) {
	r := m.reign
	if m.leaving || r.yield != nil {
		return
	}
	m.handBacks = slices.DeleteFunc(m.handBacks, func(at time.Time) bool { return now.Sub(at) > flapWindow })
	wish := m.wished(now)
	for _, f := range m.fit(now) {
		if f.seat == m.seat() || !m.ready(now, f.seat) {
			continue
		}
		if wish(f.seat) {
			m.transfer(now, f.seat, "asked for by an operator")
			return
		}
		if m.homeDue(now, f) {
			m.transfer(now, f.seat, "home is healthy")
			return
		}
	}
}

// homeDue tells whether a member is home and has been healthy for long enough to
// get the office back.
func (m *Machine) homeDue(now time.Time, f fitness) bool {
	if f.rec.inherited && now.Sub(m.reign.since) < transferGap {
		return false // it may just have had the office and lost it
	}
	return !m.cfg.Home && f.home() && f.rec.State == Online && !f.rec.presumed && now.Sub(f.rec.since) >= healthyHome &&
		len(m.handBacks) < flapsMax && (m.observer.transferred.IsZero() || now.Sub(m.observer.transferred) >= transferGap)
}

// isLeaving tells what a voter said of itself.
func (r *reign) isLeaving(s Seat) bool {
	for _, b := range r.backers {
		if b.seat == s {
			return b.leaving
		}
	}
	return false
}
