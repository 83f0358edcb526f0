package marstest

import (
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// leaseFor is for how long an authority may rely on a grant, from when it asked.
const leaseFor = 2500 * time.Millisecond

// grant is the newest word of a voter: it was asked at clock, counted from the
// birth of who asked, and held that version of the council.
type grant struct {
	seat  mars.Seat
	clock int64
	of    mars.Epoch
	held  uint64
}

// heard notes the promises and refusals that a message brings, and whether it
// tells of a cluster at all.
func (c *Cluster) heard(p *process, m mars.Message) {
	w := &p.watch
	if !w.told {
		w.told = tells(m)
	}
	switch m := m.(type) {
	case mars.Grant:
		if m.OK {
			w.granted(m.Header, int64(m.Clock), m.Of, m.Held)
		}
	case mars.VoteReply:
		if !m.OK {
			return
		}
		if m.Pre {
			w.campaign.pre(m, mars.SeatOf(m.From, m.Incarnation))
			return
		}
		w.granted(m.Header, int64(m.Clock), m.For, 0)
	case mars.FoundReply:
		if m.Live && m.Round == w.round {
			w.liveReply = string(m.From)
		}
	}
}

// tells tells whether the sender of a message has seen an epoch. Of the kinds that
// do not have one before there is a cluster, the others do not matter.
func tells(m mars.Message) bool {
	switch m := m.(type) {
	case mars.Heartbeat:
		return !m.Epoch.IsZero()
	case mars.Probe:
		return !m.Epoch.IsZero()
	case mars.ProbeReply:
		return !m.Epoch.IsZero()
	case mars.FoundPoll:
		return !m.Epoch.IsZero()
	case mars.FoundReply:
		return !m.Epoch.IsZero()
	case mars.Vote:
		return !m.Epoch.IsZero()
	case mars.Ack:
		return !m.Epoch.IsZero()
	}
	return true
}

// granted keeps the newest grant of every voter.
func (w *watch) granted(h mars.Header, clock int64, of mars.Epoch, held uint64) {
	s := mars.SeatOf(h.From, h.Incarnation)
	for i := range w.grants {
		g := &w.grants[i]
		if g.seat == s {
			g.clock = max(g.clock, clock)
			if c := of.Compare(g.of); c > 0 || c == 0 && held > g.held {
				g.of, g.held = of, held
			}
			return
		}
	}
	w.grants = append(w.grants, grant{s, clock, of, held})
}

// checkReign checks who has the office, and whether it may write.
func (c *Cluster) checkReign(p *process, now time.Time) {
	w := &p.watch
	if !p.machine.Reigns() {
		w.reign = mars.Epoch{}
		c.release(p)
		return
	}
	if e := p.machine.Council().Epoch; e != w.reign {
		c.checkOffice(p, e)
	}
	lease := min(p.machine.Lease(now), time.Hour)
	if lease <= 0 {
		c.release(p)
		return
	}
	if end := now.Add(lease); !end.Equal(w.leaseEnd) || w.leaseUntil <= c.now {
		c.checkQuorum(p, now, lease)
		w.leaseEnd = end
		c.hold(p, c.now.after(p.clock.lasts(lease)))
		c.sits(p)
	}
}

// checkOffice is I1: at most one instance ever has the office in one epoch.
func (c *Cluster) checkOffice(p *process, e mars.Epoch) {
	w := &p.watch
	if r, ok := c.check.reigns[e]; ok && r != (reigning{p, p.run}) {
		c.fail("I1", "%s and %s both had the office in epoch %s", r.place.name, p.name, c.epoch(e))
	}
	c.check.reigns[e] = reigning{p, p.run}
	w.reign, w.reignSince = e, c.now
}

// checkQuorum is I6: who may write was granted that by a majority of the council,
// and of the one before it until that is replaced, asked within the lease by its
// own clock. The grants are counted here from the messages alone.
func (c *Cluster) checkQuorum(p *process, now time.Time, lease time.Duration) {
	w := &p.watch
	k := p.machine.Council()
	if end := w.backed(p.seat(), k, now); end < lease {
		c.fail("I6", "%s has a lease of %v, but grants for %v only of %s", p.name, lease, end, c.council(k))
	}
	if w.before.IsZero() || w.before.Version >= k.Version || w.before.Epoch != k.Epoch || w.confirmed(p.seat(), k) {
		return
	}
	if end := w.backed(p.seat(), w.before, now); end < lease {
		c.fail("I6", "%s has a lease of %v, but grants for %v only of the council before, %s", p.name, lease, end, c.council(w.before))
	}
}

// backed is for how much longer a majority of a council stands behind self.
func (w *watch) backed(self mars.Seat, k mars.Council, now time.Time) time.Duration {
	var buf [16]time.Duration
	lasts := buf[:0]
	for _, s := range k.Seats {
		if s == self {
			lasts = append(lasts, time.Hour)
			continue
		}
		for i := range w.grants {
			if w.grants[i].seat == s {
				lasts = append(lasts, leaseFor-now.Sub(w.born)+time.Duration(w.grants[i].clock))
			}
		}
	}
	if len(lasts) < majority(k) {
		return 0
	}
	slices.Sort(lasts)
	return lasts[len(lasts)-majority(k)]
}

// confirmed tells whether a majority of a council said that it holds it.
func (w *watch) confirmed(self mars.Seat, k mars.Council) bool {
	n := 0
	for _, s := range k.Seats {
		if s == self {
			n++
			continue
		}
		for i := range w.grants {
			if g := &w.grants[i]; g.seat == s && g.of == k.Epoch && g.held >= k.Version {
				n++
			}
		}
	}
	return n >= majority(k)
}

// hold notes that p may write until an instant, and checks I2.
func (c *Cluster) hold(p *process, until instant) {
	w, k := &p.watch, &c.check
	if w.leaseUntil > c.now {
		w.leaseUntil = until
		return
	}
	c.expireHolders()
	w.leaseUntil = until
	if len(k.holders) == 0 && k.covered > 0 {
		k.gap = max(k.gap, c.now.since(k.covered))
	}
	c.checkAlone(p)
	k.holders = append(k.holders, p)
}

// checkAlone is I2: at any instant at most one process that runs and is not
// paused has a lease of the same generation and founder.
func (c *Cluster) checkAlone(p *process) {
	e := p.watch.reign
	for _, o := range c.check.holders {
		if o == p || o.paused || o.watch.leaseUntil <= c.now {
			continue
		}
		if f := o.watch.reign; f.Generation == e.Generation && f.Founder == e.Founder {
			c.fail("I2", "%s in %s and %s in %s may both write", p.name, c.epoch(e), o.name, c.epoch(f))
		}
	}
}

// resumed checks I2 again for a process whose lease outlived its pause.
func (c *Cluster) resumed(p *process) {
	if p.watch.leaseUntil > c.now {
		c.checkAlone(p)
	}
}

// release notes that p can't write any more.
func (c *Cluster) release(p *process) {
	w := &p.watch
	if w.leaseUntil > c.now {
		c.check.covered = max(c.check.covered, c.now)
		w.leaseUntil = c.now
	}
	if slices.Contains(c.check.holders, p) {
		c.expireHolders()
	}
}

// expireHolders forgets the leases that ran out.
func (c *Cluster) expireHolders() {
	k := &c.check
	k.holders = slices.DeleteFunc(k.holders, func(p *process) bool {
		if p.watch.leaseUntil > c.now {
			return false
		}
		k.covered = max(k.covered, p.watch.leaseUntil)
		return true
	})
}

// Authority returns the place of the running process that may write, or -1 when
// there is none or, after a partition, more than one.
func (c *Cluster) Authority() int {
	found := -1
	for _, p := range c.check.holders {
		if p.running() && p.watch.leaseUntil > c.now {
			if found >= 0 {
				return -1
			}
			found = p.index
		}
	}
	return found
}

// Gap is the longest time in which nobody could write since ClearGap, the
// present one included.
func (c *Cluster) Gap() time.Duration {
	c.expireHolders()
	if len(c.check.holders) == 0 && c.check.covered > 0 {
		return max(c.check.gap, c.now.since(c.check.covered))
	}
	return c.check.gap
}

// ClearGap begins to measure Gap.
func (c *Cluster) ClearGap() { c.check.gap = 0 }
