package marstest

import (
	"slices"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

// checkCouncil checks a node's new voter list: I3, it never goes back; I5, the
// lists of one version are the same everywhere, and who has the office changes
// them step by step.
func (c *Cluster) checkCouncil(p *process, now time.Time, k mars.Council, office bool) {
	w := &p.watch
	was := w.council
	if k.Compare(was) < 0 {
		c.fail("I3", "%s went back from %s to %s", p.name, c.council(was), c.council(k))
	}
	h := c.check.councils[versionOf(k)]
	if h == nil {
		h = &holding{seats: k.Seats}
		c.check.councils[versionOf(k)] = h
	}
	if !slices.Equal(h.seats, k.Seats) {
		c.fail("I5", "%s holds %s, but others hold that version with %v", p.name, c.council(k), h.seats)
	}
	if !slices.Contains(h.by, p.seat()) {
		h.by = append(h.by, p.seat())
	}
	if asked := w.campaign.council; !office && k.Epoch != w.campaign.epoch && (k.Epoch != asked.Epoch || k.Version != asked.Version) {
		w.campaign.broken = true
	}
	if !w.reign.IsZero() && p.machine.Reigns() {
		c.checkSuccession(p, now, was, k)
	} else {
		w.before = mars.Council{}
	}
	w.council = k
}

// checkSuccession is I5 at who has the office: one voter in or out at a time, the
// next only when a majority holds the last, and none without a lease.
func (c *Cluster) checkSuccession(p *process, now time.Time, was, k mars.Council) {
	w := &p.watch
	w.before = was
	if d := different(was.Seats, k.Seats); d > 1 {
		c.fail("I5", "%s changed %d voters at once, from %s to %s", p.name, d, c.council(was), c.council(k))
	}
	if was.Epoch != k.Epoch || sameSeats(was.Seats, k.Seats) {
		return // the same voters in a later epoch
	}
	if w.backed(p.seat(), was, now) <= 0 {
		c.fail("I5", "%s changed the council without a lease, to %s", p.name, c.council(k))
	}
	if n := c.holders(was); n < majority(was) {
		c.fail("I5", "%s went on to %s while %d only hold %s", p.name, c.council(k), n, c.council(was))
	}
}

// different counts the voters that are in one of the lists only.
func different(a, b []mars.Seat) (n int) {
	for _, s := range a {
		if !slices.Contains(b, s) {
			n++
		}
	}
	for _, s := range b {
		if !slices.Contains(a, s) {
			n++
		}
	}
	return n
}

// holders counts the voters of a council that ever held it.
func (c *Cluster) holders(k mars.Council) (n int) {
	h := c.check.councils[versionOf(k)]
	if h == nil {
		return 0
	}
	for _, s := range k.Seats {
		if slices.Contains(h.by, s) {
			n++
		}
	}
	return n
}

// sitting is the council that last was in charge: that of the newest lease. Its
// generation has been in charge since then.
type sitting struct {
	council mars.Council
	since   instant
}

// lateMax is how late messages may be without a council losing its majority.
const lateMax = 400 * time.Millisecond

// sittingFor is how long a generation must have been in charge before nobody may
// found against it: two may be founded at the same time.
const sittingFor = 5 * time.Second

// undisturbedFor is how long a council must have sat in peace before nobody may
// found against it.
const undisturbedFor = 30 * time.Second

// sits notes the council of a process that may write, once a majority confirmed it.
func (c *Cluster) sits(p *process) {
	k := p.machine.Council()
	if was := c.check.sitting.council; k.Version == was.Version && k.Epoch == was.Epoch {
		return
	}
	if p.watch.confirmed(p.seat(), k) {
		s := &c.check.sitting
		if founding(s.council.Epoch) != founding(k.Epoch) {
			s.since = c.now
		}
		s.council = k
	}
}

// checkFounding is I9 and I10. I9: nobody founds who heard that there is an
// authority, nor who never joined, but home and who was told to. I10: nobody founds while a majority
// of the last council in charge is up, connected and unpaused all along. A home
// that starts cold and that nobody tells of the council can't know of it.
func (c *Cluster) checkFounding(p *process, e *mars.Event) {
	w := &p.watch
	if w.liveReply != "" {
		c.fail("I9", "%s founded although %s has an authority", p.name, c.named(w.liveReply))
	}
	if !w.joined && !p.home && !w.recovers {
		c.fail("I9", "%s founded without ever having joined", p.name)
	}
	if w.recovers || p.home && !w.told || c.net.link.LateMax > lateMax || c.check.sitting.since == 0 || c.now.since(c.check.sitting.since) < sittingFor {
		return
	}
	k := c.check.sitting.council
	next := k // a change that was under way may be held by some, who then elect by it alone
	n := 0
	for _, s := range k.Seats {
		if o := c.at[s.Node]; o != nil && o.seat() == s && c.undisturbed(o, undisturbedFor) {
			n++
			if held := o.watch.council; held.Compare(next) > 0 && founding(held.Epoch) == founding(k.Epoch) {
				next = held
			}
		}
	}
	if n >= majority(k) && (next.Version == k.Version && next.Epoch == k.Epoch || c.upright(next) >= majority(next)) {
		c.fail("I10", "%s founded %s while %d of %s were up and connected", p.name, c.epoch(e.Epoch), n, c.council(k))
	}
}

// upright counts the voters of a council that are up, connected and unpaused.
func (c *Cluster) upright(k mars.Council) (n int) {
	for _, s := range k.Seats {
		if o := c.at[s.Node]; o != nil && o.seat() == s && c.undisturbed(o, undisturbedFor) {
			n++
		}
	}
	return n
}

// undisturbed tells whether p ran and was reachable for the last d.
func (c *Cluster) undisturbed(p *process, d time.Duration) bool {
	if c.net.side != nil {
		return false
	}
	for pair := range c.net.cut {
		if pair[0] == p.index || pair[1] == p.index {
			return false
		}
	}
	return p.running() && !p.leaving && c.now.since(p.disturbed) >= d
}

// transferGap is the shortest time between two transfers of the office, a little
// less than the design says for the clocks that run fast.
const transferGap = 56 * time.Second

// moved is a transfer of the office.
type moved struct {
	at instant
	to id.Incarnation
}

// checkTransfer is I16: the office is not handed to and fro, to the same instance
// twice within a minute. One that leaves hands over whenever it has to, and an
// operator may ask for it.
func (c *Cluster) checkTransfer(p *process, e *mars.Event) {
	k := &c.check
	p.watch.transfers++
	if p.leaving || c.opt.Operator {
		return
	}
	if k.moved.to == e.Incarnation && c.now.since(k.moved.at) < transferGap {
		c.fail("I16", "%s hands the office over %v after the last time", p.name, c.now.since(k.moved.at))
	}
	k.moving = moved{c.now, e.Incarnation}
}

// arrived notes that a transfer reached its end: one that was lost on the way does
// not keep the office from being handed over again.
func (c *Cluster) arrived(p *process, e *mars.Event) {
	if k := &c.check; k.moving.to == p.seat().Incarnation && strings.HasPrefix(e.Text, "took over") {
		k.moved, k.moving = k.moving, moved{}
	}
}

// damped tells whether somebody handed the office over so often that home has to
// wait for it longer than usual.
func (c *Cluster) damped() bool {
	for _, p := range c.procs {
		if p.up && p.watch.transfers >= 3 {
			return true
		}
	}
	return false
}
