package marstest

import (
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// playTrapCouncil changes the council all the time while messages are late, and
// kills or stops whoever has the office. A candidate that took a smaller council
// from a late message and counted its votes against it would be elected beside
// another in the same epoch.
func playTrapCouncil(c *Cluster) []Figure {
	c.seated()
	c.SetLink(Link{Min: time.Millisecond, Max: 30 * time.Millisecond, Late: 0.3, LateMax: time.Second})
	for range 4 {
		c.some(1+c.rnd.IntN(2), func(i int) {
			if i != c.Authority() {
				c.roll(i)
			}
		})
		c.Run(c.between(0, 8*time.Second))
		switch a := c.Authority(); {
		case a < 0:
		case c.rnd.IntN(2) == 0:
			c.Kill(a)
			c.startLater(a, c.between(time.Second, 20*time.Second))
		default:
			c.Pause(a, c.between(3*time.Second, 8*time.Second))
		}
		c.Run(c.between(4*time.Second, 12*time.Second))
	}
	c.calm()
	c.recover(recoveryMax)
	return nil
}

// playTrapMerge lets both sides of a partition have an authority, heals it, and
// kills one of the two in the middle of their merge. The voters of the living may
// have gone over to the dead one's generation: they have to get out of it.
func playTrapMerge(c *Cluster) []Figure {
	c.seated()
	a := c.Authority()
	if a < 0 {
		return nil
	}
	voter := make(map[int]bool)
	for _, s := range c.procs[a].machine.Council().Seats {
		voter[c.at[s.Node].index] = true
	}
	c.Partition(func(i int) int {
		if i == a || voter[i] && c.rnd.IntN(4) > 0 {
			return 0
		}
		return 1
	})
	c.Run(c.between(40*time.Second, 60*time.Second))
	struck := false
	c.hook = func(p *process, e *mars.Event) {
		if struck || e.Kind != mars.MergeYielded && e.Kind != mars.MergeWon && e.Kind != mars.EpochRaised {
			return
		}
		struck = true
		i := p.index
		if o := c.at[e.Node]; o != nil && c.rnd.IntN(2) == 0 {
			i = o.index
		}
		c.After(c.between(0, 300*time.Millisecond), func() { c.Kill(i) })
	}
	c.Heal()
	c.Run(20 * time.Second)
	c.calm()
	c.recover(recoveryMax)
	return nil
}

// playTrapHome restarts home without memory while it reaches nobody, for long
// enough to found a generation of its own. Back in the network it has to merge.
func playTrapHome(c *Cluster) []Figure {
	c.seated()
	c.Kill(0)
	c.nextLease(recoveryMax)
	c.Run(c.between(0, 20*time.Second))
	alone := c.rnd.IntN(2) == 0
	if alone {
		c.Partition(func(i int) int { return min(i, 1) })
	}
	founded := 0
	c.hook = func(_ *process, e *mars.Event) {
		if e.Kind == mars.Founded {
			founded++
		}
	}
	c.Start(0)
	c.Run(c.between(5*time.Second, 30*time.Second))
	if !alone && founded > 0 && c.opt.Seeds > 0 {
		c.fail("I10", "home founded although it could ask the others")
	}
	c.Heal()
	c.recover(recoveryMax)
	c.homeReigns(homeMax)
	return nil
}

// playManual kills the council but for one voter where only an operator may found:
// nothing happens until one asks for it.
func playManual(c *Cluster) []Figure {
	c.seated()
	a := c.Authority()
	if a < 0 {
		return nil
	}
	seats := c.procs[a].machine.Council().Seats
	for i, s := range seats {
		if p := c.at[s.Node]; i+1 < len(seats) || p.index == a {
			c.Kill(p.index)
		}
	}
	if len(seats) < 3 {
		return nil // who is left is a majority, or nobody is
	}
	c.Run(c.between(30*time.Second, 90*time.Second))
	if c.Authority() >= 0 {
		c.fail("manual", "somebody reigns although nobody may found")
	}
	c.some(1, func(i int) { c.step(c.procs[i], mars.Recover{}) })
	d := c.nextLease(recoveryMax)
	c.recover(recoveryMax)
	return []Figure{{"manual recovery", d}}
}
