package marstest

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// fault is one kind of bad luck.
type fault struct {
	name   string
	strike func(c *Cluster)
}

// faults is everything that happens to clusters, in the order it is drawn in.
var faults = []fault{
	{"kill", func(c *Cluster) { c.some(1, c.Kill) }},
	{"kill the authority", func(c *Cluster) {
		if a := c.Authority(); a >= 0 {
			c.Kill(a)
		}
	}},
	{"start", func(c *Cluster) { c.Start(c.rnd.IntN(len(c.procs))) }},
	{"restart", func(c *Cluster) {
		c.some(1, func(i int) {
			c.Kill(i)
			c.jumpBack(i)
			c.Start(i)
		})
	}},
	{"restart home", func(c *Cluster) {
		c.Kill(0)
		c.startLater(0, c.between(0, 5*time.Second))
	}},
	{"pause", func(c *Cluster) { c.some(1, c.pauseSome) }},
	{"pause the authority", func(c *Cluster) {
		if a := c.Authority(); a >= 0 {
			c.pauseSome(a)
		}
	}},
	{"partition in two", func(c *Cluster) { c.partition(2) }},
	{"partition in three", func(c *Cluster) { c.partition(3) }},
	{"cut one way", (*Cluster).cutSome},
	{"mass vanish", func(c *Cluster) { c.some(c.part(0.3, 0.8), c.Kill) }},
	{"mass term", func(c *Cluster) { c.some(c.part(0.3, 0.8), c.Term) }},
	{"term", func(c *Cluster) { c.some(1, c.roll) }},
	{"term the authority", func(c *Cluster) {
		if a := c.Authority(); a >= 0 {
			c.roll(a)
		}
	}},
	{"chatter", (*Cluster).chatter},
	{"suspect", (*Cluster).suspect},
	{"operator", (*Cluster).operate},
}

// swarm is which faults a history has, and how often. Leaving kinds out makes
// histories differ more than playing all of them every time.
type swarm struct {
	weights []float64
	sum     float64
	gap     time.Duration // between two faults, on average
}

func drawSwarm(rnd *rand.Rand) swarm {
	s := swarm{weights: make([]float64, len(faults)), gap: time.Second + time.Duration(rnd.Float64()*float64(9*time.Second))}
	for i := range faults {
		if rnd.Float64() < 0.45 {
			s.weights[i] = 0.5 + 2*rnd.Float64()
			s.sum += s.weights[i]
		}
	}
	return s
}

// strike lets one fault happen.
func (s *swarm) strike(c *Cluster) {
	r := c.rnd.Float64() * s.sum
	for i, w := range s.weights {
		if r -= w; r < 0 {
			c.note(nil, "fault: %s", faults[i].name)
			faults[i].strike(c)
			return
		}
	}
}

// between draws a duration.
func (c *Cluster) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(c.rnd.Float64()*float64(hi-lo))
}

// part draws a number of places, as a share of all.
func (c *Cluster) part(lo, hi float64) int {
	return int((lo + (hi-lo)*c.rnd.Float64()) * float64(len(c.procs)))
}

// some does something to n running processes.
func (c *Cluster) some(n int, do func(i int)) {
	var up []int
	for _, p := range c.procs {
		if p.running() {
			up = append(up, p.index)
		}
	}
	c.rnd.Shuffle(len(up), func(i, j int) { up[i], up[j] = up[j], up[i] })
	for _, i := range up[:min(n, len(up))] {
		do(i)
	}
}

// pauseMax is the longest pause.
const pauseMax = 12 * time.Second

func (c *Cluster) pauseSome(i int) { c.Pause(i, c.between(0, pauseMax)) }

// partition splits the cluster for a while.
func (c *Cluster) partition(sides int) {
	c.Partition(func(int) int { return c.rnd.IntN(sides) })
	c.After(c.between(time.Second, 45*time.Second), c.Heal)
}

// cutSome cuts one to all links out of one process, or into it, for a while.
func (c *Cluster) cutSome() {
	n := 1 + c.rnd.IntN(len(c.procs)-1)
	i, out := c.rnd.IntN(len(c.procs)), c.rnd.IntN(2) == 0
	for _, k := range c.rnd.Perm(len(c.procs))[:n] {
		switch {
		case k == i:
		case out:
			c.Cut(i, k)
		default:
			c.Cut(k, i)
		}
	}
	c.After(c.between(time.Second, 30*time.Second), c.Heal)
}

// roll replaces a process as a rolling update does: it leaves, then another starts.
func (c *Cluster) roll(i int) {
	c.Term(i)
	c.startLater(i, c.between(time.Second, 15*time.Second))
}

// startLater starts a process unless the faults have stopped by then.
func (c *Cluster) startLater(i int, d time.Duration) {
	c.After(d, func() {
		if !c.calmed {
			c.Start(i)
		}
	})
}

// jumpBack sets the clock of a host back, sometimes.
func (c *Cluster) jumpBack(i int) {
	if c.opt.Drift > 0 && c.rnd.IntN(4) == 0 {
		c.procs[i].clock.offset -= int64(c.between(0, time.Hour))
	}
}

// chatter lets a process say something about itself.
func (c *Cluster) chatter() {
	c.some(3, func(i int) {
		p := c.procs[i]
		c.checkReads(p)
		switch c.rnd.IntN(5) {
		case 0:
			c.step(p, mars.SetState{State: mars.State(1 + c.rnd.IntN(3))})
		case 1:
			c.step(p, mars.SetLoad{Users: c.rnd.IntN(100), Load: c.rnd.Float64()})
		case 2:
			if b, err := mars.EncodeValues(map[string]any{"rooms": float64(c.rnd.IntN(100))}); err == nil {
				c.step(p, mars.SetValues{Values: b})
			}
		case 3:
			c.step(p, mars.SetShared{Key: string(rune('a' + c.rnd.IntN(12))), Value: int16(c.rnd.IntN(1000))})
		case 4:
			c.step(p, mars.SetEndpoint{Endpoint: "198.51.100.7:7000"})
		}
	})
}

// suspect lets processes report links that work.
func (c *Cluster) suspect() {
	to := c.procs[c.rnd.IntN(len(c.procs))].node
	c.some(1+c.rnd.IntN(3), func(i int) { c.step(c.procs[i], mars.Suspect{Node: to}) })
}

// operate lets an operator have a say, in the histories that have one.
func (c *Cluster) operate() {
	if !c.opt.Operator {
		return
	}
	to := c.procs[c.rnd.IntN(len(c.procs))].node
	c.some(1, func(i int) {
		if c.rnd.IntN(4) == 0 {
			c.step(c.procs[i], mars.Recover{})
			return
		}
		c.step(c.procs[i], mars.Transfer{To: to})
	})
}

// calm ends all faults. What is down stays down or starts again, but somebody is
// left who knows the cluster, at an address that the others know.
func (c *Cluster) calm() {
	c.Heal()
	c.SetLink(Link{Min: c.net.link.Min, Max: c.net.link.Max})
	c.calmed = true
	c.note(nil, "the faults stop")
	for _, p := range c.procs {
		if p.up && p.paused {
			c.resume(p)
		}
	}
	c.Until(termWait+time.Second, func() bool {
		return !slices.ContainsFunc(c.procs, func(p *process) bool { return p.up && p.leaving })
	})
	for i := 1; i < len(c.procs); i++ {
		if c.rnd.IntN(2) == 0 {
			c.Start(i)
		}
	}
	for _, p := range c.procs {
		if p.up {
			c.step(p, mars.SetState{State: mars.Online})
		}
	}
	known := c.rnd.IntN(4) == 0
	for i := 1; known && i < len(c.procs); i++ {
		if p := c.procs[i]; i <= c.opt.Seeds && p.up && p.watch.joined {
			return
		}
	}
	c.Start(0)
}
