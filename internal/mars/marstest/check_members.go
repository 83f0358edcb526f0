package marstest

import (
	"fmt"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// checkJoin is I11 and I14 at the authority. I11: no incarnation is registered
// that it removed itself, nor one that ended before it took office. I14: no more
// registrations a second than it was promised.
func (c *Cluster) checkJoin(p *process, e *mars.Event) {
	w := &p.watch
	if w.gone[e.Incarnation] {
		c.fail("I11", "%s registered an incarnation of %s that it had removed", p.name, c.named(string(e.Node)))
	}
	l := c.check.lives[e.Incarnation]
	switch {
	case l == nil:
		c.fail("I11", "%s registered an incarnation of %s that never was", p.name, c.named(string(e.Node)))
	case l.ended != 0 && l.ended < w.reignSince:
		c.fail("I11", "%s registered an incarnation of %s that ended before its reign", p.name, l.place.name)
	}
	if c.now.since(w.joinSecond) > time.Second {
		w.joinSecond, w.joins = c.now, 0
	}
	w.joins++
	if most := 1000 + len(c.procs)/10; w.joins > most {
		c.fail("I14", "%s registered more than %d members within a second", p.name, most)
	}
}

// checkVanished is I13: no node loses sight of a live one unless an authority
// evicted it for its silence. A change of authority is no reason. Whoever was
// paused or cut off lately does not count, nor what they saw.
func (c *Cluster) checkVanished(p *process, e *mars.Event) {
	l := c.check.lives[e.Incarnation]
	if l == nil || l.ended != 0 {
		p.watch.vanished[e.Incarnation] = founding(p.machine.Directory().Epoch)
		return
	}
	if l.evicted || !p.watch.joined || p.leaving {
		return
	}
	if len(c.net.cut) > 0 || c.net.mended != 0 && c.now.since(c.net.mended) < undisturbedFor {
		return // two authorities that can't hear each other keep their members apart
	}
	if c.undisturbed(p, undisturbedFor) && c.undisturbed(l.place, undisturbedFor) {
		c.fail("I13", "%s lost %s, which is alive and was never silent", p.name, l.place.name)
	}
}

// founding is what the terms of one founding have in common.
func founding(e mars.Epoch) mars.Epoch {
	e.Term = 0
	return e
}

// checkAppeared is I11 in directories: what vanished and ended stays away, as long
// as nobody else's registry is looked at.
func (c *Cluster) checkAppeared(p *process, e *mars.Event) {
	l := c.check.lives[e.Incarnation]
	if l == nil {
		c.fail("I11", "%s sees an incarnation of %s that never was", p.name, c.named(string(e.Node)))
		return
	}
	if from, ok := p.watch.vanished[e.Incarnation]; ok && l.ended != 0 && from == founding(p.machine.Directory().Epoch) {
		c.fail("I11", "%s sees %s again, which ended", p.name, l.place.name)
	}
}

// checkDirectory is I3 and I18. A machine can't touch a client's connection, so
// what I18 comes to here is what a handler asks it for: once a node knows others,
// no change of authority leaves it with an empty directory, and a picture of an
// older authority never replaces a newer one.
func (c *Cluster) checkDirectory(p *process, d *mars.Directory) {
	w := &p.watch
	if d.Epoch.Compare(w.directory) < 0 {
		c.fail("I3", "%s went back to a directory of %s from %s", p.name, c.epoch(d.Epoch), c.epoch(w.directory))
	}
	w.directory = d.Epoch
	if len(d.Members) == 0 && w.members > 0 && !p.leaving {
		c.fail("I18", "%s has an empty directory after one of %d", p.name, w.members)
	}
	w.members = len(d.Members)
	c.checkEnded(p, d)
}

// checkEnded is I19: of no run that lives it is said that it is over, for its players would
// be told to leave it. One that leaves has seen to them.
func (c *Cluster) checkEnded(p *process, d *mars.Directory) {
	if n := len(d.Ended); n == 0 || d.Ended[n-1] == p.watch.ended {
		return
	}
	p.watch.ended = d.Ended[len(d.Ended)-1]
	for _, o := range c.procs {
		if o.up && !o.leaving && slices.Contains(d.Ended, mars.Run(o.watch.incarnation)) {
			c.fail("I19", "%s says that the run of %s is over", p.name, o.name)
		}
	}
}

// checkReads is I18 for what handlers ask: lookups agree with the directory, and
// reading changes nothing.
func (c *Cluster) checkReads(p *process) {
	d := p.machine.Directory()
	for i := range d.Members {
		m := &d.Members[i]
		if got, ok := d.Lookup(m.Node); !ok || got.Incarnation != m.Incarnation {
			c.fail("I18", "%s can't look %s up, which is in its directory", p.name, c.named(string(m.Node)))
		}
		if len(d.Available(m.Type)) > len(d.ByType(m.Type)) || len(d.ByRole(m.Role)) == 0 {
			c.fail("I18", "%s knows more members to hand out than members", p.name)
		}
	}
	s := p.machine.Status(p.clock.at(c.now))
	if s.Reigns != p.machine.Reigns() || s.Epoch != p.machine.Epoch() || p.machine.Self().Node != p.node {
		c.fail("I18", "%s says of itself what is not so", p.name)
	}
	if shared := p.machine.Shared(); len(shared) > mars.SharedMax {
		c.fail("I18", "%s holds %d shared values", p.name, len(shared))
	}
}

// Problem is I12: it says how the cluster differs from one in which everybody
// follows one authority and sees exactly who runs, or "".
func (c *Cluster) Problem() string {
	a := c.Authority()
	if a < 0 {
		return fmt.Sprintf("%d processes have a lease", len(c.check.holders))
	}
	epoch := c.procs[a].machine.Epoch()
	live := make(map[string]int)
	for _, p := range c.procs {
		if p.up {
			live[p.version]++
		}
	}
	digests := make(map[string]uint64)
	for _, p := range c.procs {
		if !p.up {
			continue
		}
		if p.machine.Epoch() != epoch {
			return fmt.Sprintf("%s is in epoch %s, the authority %s in %s", p.name, c.epoch(p.machine.Epoch()), c.procs[a].name, c.epoch(epoch))
		}
		if p.index != a && p.machine.Reigns() {
			return fmt.Sprintf("%s believes to have the office of %s", p.name, c.procs[a].name)
		}
		if s := c.directoryProblem(p, live[p.version]); s != "" {
			return s
		}
		sum := digest(p.machine.Directory())
		if was, ok := digests[p.version]; ok && was != sum {
			return fmt.Sprintf("%s sees another directory than those before", p.name)
		}
		digests[p.version] = sum
	}
	return ""
}

func (c *Cluster) directoryProblem(p *process, want int) string {
	d := p.machine.Directory()
	if !d.Live {
		return fmt.Sprintf("%s has no live directory", p.name)
	}
	if len(d.Members) != want {
		return fmt.Sprintf("%s sees %d members, %d run", p.name, len(d.Members), want)
	}
	for i := range d.Members {
		m := &d.Members[i]
		o := c.at[m.Node]
		switch {
		case o == nil || !o.up || o.watch.incarnation != m.Incarnation:
			return fmt.Sprintf("%s sees %s, which does not run", p.name, c.named(string(m.Node)))
		case m.Hidden:
			return fmt.Sprintf("%s sees %s hidden", p.name, o.name)
		}
	}
	return ""
}

// digest of what every node sees of the members, whatever its role.
func digest(d *mars.Directory) uint64 {
	var h history
	for i := range d.Members {
		m := &d.Members[i]
		h.mix(text(string(m.Node)))
		h.mix(text(string(m.Incarnation[:])))
		h.mix(text(m.Endpoint))
		h.mix(uint64(m.State))
	}
	return h.hash
}

func text(s string) uint64 {
	var h history
	for i := range len(s) {
		h.mix(uint64(s[i]))
	}
	return h.hash
}

// load counts what processes send, for I14.
type load struct {
	messages uint64 // all of them
	octets   uint64 // in the histories with encoding
	sent     []sent
	busiest  int // most messages of one process other than the authority in a second
}

type sent struct {
	second int64
	n      int
}

// messagesMax is how many messages a process without the office sends in a second
// at most: heartbeats, a campaign, the search for an authority.
const messagesMax = 200

// count counts a message of p that is on its way.
func (l *load) count(c *Cluster, p *process) {
	l.messages++
	if c.opt.Codec {
		l.octets += uint64(len(c.bytes))
	}
	if l.sent == nil {
		l.sent = make([]sent, len(c.procs))
	}
	s := &l.sent[p.index]
	if now := int64(c.now) / int64(time.Second); now != s.second {
		s.second, s.n = now, 0
	}
	if !p.watch.reign.IsZero() || c.now.since(p.disturbed) < 2*time.Second {
		return // it may be answering what waited during a pause
	}
	s.n++
	l.busiest = max(l.busiest, s.n)
	if c.now.since(p.disturbed) < 2*time.Second {
		return // it answers what waited for it
	}
	if s.n == messagesMax+3*len(c.procs) {
		c.fail("I14", "%s sent %d messages in a second without having the office", p.name, s.n)
	}
}
