package marstest

import (
	"time"
)

// Scenario is a kind of history.
type Scenario string

// The scenarios.
const (
	Swarm    Scenario = "swarm"    // random faults, then recovery
	Failover Scenario = "failover" // the authority is killed
	Shutdown Scenario = "shutdown" // the authority is told to leave
	Vanish   Scenario = "vanish"   // 60 % are killed at once
	MassTerm Scenario = "massterm" // 60 % are told to leave at once
	Stable   Scenario = "stable"   // nothing happens, for long
	Flap     Scenario = "flap"     // one node comes and goes, for ten minutes
	HandBack Scenario = "handback" // home is killed and comes back
	Surge    Scenario = "surge"    // every node but home is replaced by one that has just come
	Manual   Scenario = "manual"   // most are killed, and only an operator may found again
	// The traps in which other designs of succession were caught.
	TrapCouncil Scenario = "trap-council" // a candidate hears of a smaller council while it campaigns
	TrapMerge   Scenario = "trap-merge"   // a majority lives, but one side of a merge dies in it
	TrapHome    Scenario = "trap-home"    // home restarts without memory and reaches nobody
)

// scenarios plays them; each says why it failed through Cluster.fail and returns
// what it measured.
var scenarios = map[Scenario]func(c *Cluster) []Figure{
	Swarm: playSwarm, Failover: playFailover, Shutdown: playShutdown, Vanish: playVanish, MassTerm: playMassTerm,
	Surge: playSurge, Stable: playStable, Flap: playFlap, HandBack: playHandBack, Manual: playManual,
	TrapCouncil: playTrapCouncil, TrapMerge: playTrapMerge, TrapHome: playTrapHome,
}

// Valid tells whether there is such a scenario.
func (s Scenario) Valid() bool { return scenarios[s] != nil }

// Figure is something a history measured.
type Figure struct {
	Name  string
	Value time.Duration
}

// limits are the promises about figures: the 99th percentile may be this long.
var limits = map[string]time.Duration{
	"failover":           5 * time.Second,
	"shutdown gap":       time.Second,
	"massterm gap":       time.Second,
	"vanish":             20 * time.Second,
	"vanish with home":   20 * time.Second,
	"hand-back":          35 * time.Second,
	"surge leave":        1500 * time.Millisecond, // a message that is lost costs a second
	"surge of several":   2 * time.Second,
	"recovery of a mess": recoveryMax,
}

// How long a cluster may take to find together.
const (
	recoveryMax = 60 * time.Second
	// homeMax is recoveryMax, and the time for which home has to wait after an
	// earlier transfer.
	homeMax = recoveryMax + 65*time.Second
)

// boot starts home and then everybody else within three seconds.
func (c *Cluster) boot() {
	c.Start(0)
	for i := 1; i < len(c.procs); i++ {
		c.After(c.between(0, 3*time.Second), func() { c.Start(i) })
	}
	c.Run(3 * time.Second)
}

// seated boots a cluster and waits until its council has its full size.
func (c *Cluster) seated() {
	c.boot()
	c.recover(recoveryMax)
	c.Run(c.between(20*time.Second, 25*time.Second))
}

// recover is I12: it waits until everybody follows one authority and sees exactly
// who runs, and returns how long that took.
func (c *Cluster) recover(limit time.Duration) time.Duration {
	const look = 500 * time.Millisecond
	from := c.now
	for c.violation == nil {
		problem := c.Problem()
		d := c.now.since(from)
		if problem == "" {
			return d
		}
		if d >= limit {
			c.fail("I12", "%v after the faults: %s", d, problem)
		}
		c.Run(look)
	}
	return limit
}

// homeReigns is the rest of I12: home, if it is up, has the office in the end. A
// home that came and went too often has to wait longer, so it gets no deadline.
func (c *Cluster) homeReigns(limit time.Duration) {
	if !c.procs[0].up || c.opt.Operator || c.damped() {
		return
	}
	if !c.Until(limit, func() bool { return c.Authority() == 0 }) {
		c.fail("I12", "home is up for %v and does not reign", c.now.since(c.procs[0].started))
	}
}

// doubtMax is how long members may be hidden after the faults: a suspicion is
// repeated for ten seconds and believed for ten more.
const doubtMax = 20 * time.Second

// quiet is the end of a history: for a while everything stays as it is.
func (c *Cluster) quiet() {
	c.Run(5 * time.Second) // what the last fault set going, such as a transfer to who just died, comes to its end
	c.recover(doubtMax)
	elected := c.check.elected
	c.Run(10 * time.Second)
	if c.check.elected != elected && !c.procs[0].up && !c.opt.Operator {
		c.fail("I15", "the authority changed although nothing happened")
	}
	c.recover(doubtMax)
	for _, p := range c.procs {
		if p.up {
			c.checkReads(p)
		}
	}
}

// playSwarm lets random faults happen and then has the cluster recover.
func playSwarm(c *Cluster) []Figure {
	s := drawSwarm(c.rnd)
	c.boot()
	c.Run(c.between(0, 40*time.Second))
	end := c.now.after(c.between(25*time.Second, 75*time.Second))
	for c.now < end && c.violation == nil {
		c.Run(time.Duration(c.rnd.ExpFloat64() * float64(s.gap)))
		s.strike(c)
	}
	c.calm()
	d := c.recover(recoveryMax)
	c.homeReigns(homeMax)
	c.quiet()
	return []Figure{{"recovery of a mess", d}}
}

// nextLease waits for an authority and returns how long that took.
func (c *Cluster) nextLease(limit time.Duration) time.Duration {
	from := c.now
	if !c.Until(limit, func() bool { return c.Authority() >= 0 }) {
		c.fail("figures", "no authority within %v", limit)
	}
	return c.now.since(from)
}

func playFailover(c *Cluster) []Figure {
	c.seated()
	if a := c.Authority(); a >= 0 {
		c.Kill(a)
	}
	d := c.nextLease(recoveryMax)
	c.recover(recoveryMax)
	return []Figure{{"failover", d}}
}

func playShutdown(c *Cluster) []Figure {
	c.seated()
	c.ClearGap()
	if a := c.Authority(); a >= 0 {
		c.Term(a)
	}
	c.Run(15 * time.Second)
	gap := c.Gap()
	c.recover(recoveryMax)
	return []Figure{{"shutdown gap", gap}}
}

// sixty is 60 % of the places, drawn at random.
func (c *Cluster) sixty(do func(i int)) {
	c.some(max(1, len(c.procs)*6/10), do)
}

func playVanish(c *Cluster) []Figure {
	c.seated()
	c.sixty(c.Kill)
	name := "vanish"
	if !c.procs[0].up {
		name = "vanish with home"
	}
	d := c.nextLease(recoveryMax)
	c.recover(recoveryMax)
	return []Figure{{name, d}}
}

func playMassTerm(c *Cluster) []Figure {
	c.seated()
	c.ClearGap()
	c.sixty(c.Term)
	c.Run(15 * time.Second)
	gap := c.Gap()
	c.recover(recoveryMax)
	return []Figure{{"massterm gap", gap}}
}

// playStable is I15: while nothing but a little loss happens, nothing changes.
func playStable(c *Cluster) []Figure {
	c.seated()
	elected, epoch := c.check.elected, c.procs[0].machine.Epoch()
	c.ClearGap()
	for end := c.now.after(c.opt.Length); c.now < end && c.violation == nil; {
		c.Run(time.Minute)
		if c.check.elected != elected || c.procs[0].machine.Epoch() != epoch {
			c.fail("I15", "the authority changed although nothing happened")
		}
	}
	if g := c.Gap(); g > 0 {
		c.fail("I15", "nobody could write for %v although nothing happened", g)
	}
	return nil
}

// playFlap is I15 with a node that comes and goes.
func playFlap(c *Cluster) []Figure {
	c.seated()
	elected := c.check.elected
	flapping := 1 + c.rnd.IntN(len(c.procs)-1)
	for range 60 {
		switch c.rnd.IntN(3) {
		case 0:
			c.Kill(flapping)
		case 1:
			c.Pause(flapping, c.between(time.Second, 8*time.Second))
		case 2:
			c.Term(flapping)
		}
		c.Run(c.between(5*time.Second, 15*time.Second))
		c.Start(flapping)
		c.Run(c.between(0, 5*time.Second))
		if c.check.elected != elected {
			c.fail("I15", "%s came and went, and the authority changed", c.procs[flapping].name)
		}
	}
	return nil
}

// playHandBack is the second half of I16: home gets the office back.
func playHandBack(c *Cluster) []Figure {
	c.seated()
	c.Kill(0)
	c.nextLease(recoveryMax)
	c.Run(c.between(0, 2*time.Minute))
	c.Start(0)
	home := c.procs[0]
	c.Until(15*time.Second, func() bool { return home.watch.joined })
	from := c.now
	if !c.Until(homeMax, func() bool { return c.Authority() == 0 }) {
		c.fail("I16", "home is healthy for %v and does not reign", homeMax)
	}
	d := c.now.since(from)
	c.recover(recoveryMax)
	return []Figure{{"hand-back", d}}
}
