package marstest

import (
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// playSurge is a rolling update with a surge: each node is replaced by one that has just
// joined, so that none of the new ones is ripe to vote. Nobody who leaves has to wait, nor
// is missed, and the council bears the loss of one at any time.
func playSurge(c *Cluster) (figures []Figure) {
	olds := (len(c.procs) - 1) / 2
	c.Start(0)
	for i := 1; i <= olds; i++ {
		c.After(c.between(0, 3*time.Second), func() { c.Start(i) })
	}
	c.Run(3 * time.Second)
	c.recover(recoveryMax)
	c.Run(c.between(20*time.Second, 25*time.Second))
	c.hook = func(p *process, e *mars.Event) {
		switch {
		case e.Kind == mars.MemberExpired || e.Kind == mars.GuardOn:
			c.fail("figures", "%s says %v of %s, and all left in order", p.name, e.Kind, c.named(string(e.Node)))
		case e.Kind == mars.Founded:
			c.fail("figures", "%s founded in a rolling update", p.name)
		}
	}
	together := 1
	if c.rnd.IntN(4) == 0 {
		together = 2 + c.rnd.IntN(3)
	}
	for i := 1; i <= olds && c.violation == nil; i += together {
		figures = append(figures, c.surge(i, min(i+together, olds+1), olds)...)
	}
	c.hook = nil
	if a := c.Authority(); a >= 0 && len(c.procs[a].machine.Council().Seats) > 2 {
		c.Kill(a)
		figures = append(figures, Figure{"failover", c.nextLease(recoveryMax)})
	}
	c.recover(recoveryMax)
	return figures
}

// surge starts the successors of the places from to, to excluded, and lets those leave.
func (c *Cluster) surge(from, to, olds int) (figures []Figure) {
	all := func(has func(i int) bool) func() bool {
		return func() bool {
			for i := from; i < to; i++ {
				if !has(i) {
					return false
				}
			}
			return true
		}
	}
	for i := from; i < to; i++ {
		c.Start(i + olds)
	}
	c.Until(10*time.Second, all(func(i int) bool { return c.procs[i+olds].watch.joined }))
	c.Run(c.between(0, 2*time.Second))
	began := c.now
	for i := from; i < to; i++ {
		c.Term(i)
	}
	if !c.Until(termWait/2, all(func(i int) bool { return !c.procs[i].up })) {
		c.fail("figures", "a voter can't leave in order within %v", termWait/2)
	}
	name := "surge leave"
	if to-from > 1 {
		name = "surge of several" // one after the other takes its place
	}
	return []Figure{{name, c.now.since(began)}}
}
