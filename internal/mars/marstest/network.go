package marstest

import (
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// Link is how messages travel. The zero value delivers all of them in about a millisecond.
type Link struct {
	// Min and Max bound the time a message takes. Zero means 0.2 and 2 ms.
	Min, Max time.Duration
	// Loss, Late and Duplicate are the shares of messages that get lost, that take
	// up to LateMax longer, and that arrive twice.
	Loss, Late, Duplicate float64
	// LateMax is how late a late message or a second copy is. Zero means 400 ms.
	LateMax time.Duration
}

func (l Link) withDefaults() Link {
	if l.Max == 0 {
		l.Min, l.Max = 200*time.Microsecond, 2*time.Millisecond
	}
	if l.LateMax == 0 {
		l.LateMax = 400 * time.Millisecond
	}
	return l
}

// network is the state of all links.
type network struct {
	link Link
	// side is the part of a partition each process is in, cut the links that
	// carry nothing in one direction; nil while there is no such fault.
	side   []uint8
	cut    map[[2]int]bool
	mended instant // when a cut was last healed
}

// whole tells whether every link carries messages.
func (w *network) whole() bool { return w.side == nil && len(w.cut) == 0 }

// open tells whether messages get from one process to another.
func (w *network) open(from, to *process) bool {
	if w.whole() || from == to {
		return true
	}
	return (w.side == nil || w.side[from.index] == w.side[to.index]) && !w.cut[[2]int{from.index, to.index}]
}

// selfDelay is how long a message of a process to itself takes.
const selfDelay = 20 * time.Microsecond

// carry puts a message on its way: it arrives once, twice or never.
func (c *Cluster) carry(from, to *process, e event) {
	e.msg = c.recode(e.msg)
	if from == to {
		e.at = c.now.after(selfDelay)
		c.queue.push(e)
		return
	}
	c.load.count(c, from)
	l := &c.net.link
	if !c.net.open(from, to) || l.Loss > 0 && c.rnd.Float64() < l.Loss {
		return
	}
	e.at = c.now.after(c.travel())
	c.queue.push(e)
	if l.Duplicate > 0 && c.rnd.Float64() < l.Duplicate {
		e.at = e.at.after(time.Duration(c.rnd.Float64() * float64(l.LateMax)))
		c.queue.push(e)
	}
}

// travel draws how long a message takes.
func (c *Cluster) travel() time.Duration {
	l := &c.net.link
	r := c.rnd.Float64()
	d := l.Min + time.Duration(r*float64(l.Max-l.Min))
	if l.Late > 0 && c.rnd.Float64() < l.Late {
		d += time.Duration(c.rnd.Float64() * float64(l.LateMax))
	}
	return d
}

// recode sends a message through its encoding in the histories that do so. What
// comes out must be what went in.
func (c *Cluster) recode(m mars.Message) mars.Message {
	if !c.opt.Codec {
		return m
	}
	c.bytes = m.AppendTo(c.bytes[:0])
	back, err := mars.ParseMessage(c.bytes)
	if err != nil {
		c.fail("codec", "%T of %s can't be parsed: %v", m, mars.SenderOf(m), err)
		return m
	}
	if n := len(c.bytes); string(back.AppendTo(c.bytes)[n:]) != string(c.bytes[:n]) {
		c.fail("codec", "%T of %s changes when parsed and encoded again", m, mars.SenderOf(m))
	}
	return back
}

// Partition splits the cluster: processes of different sides do not reach each other.
func (c *Cluster) Partition(side func(i int) int) {
	c.net.side = make([]uint8, len(c.procs))
	for i := range c.procs {
		c.net.side[i] = uint8(side(i))
	}
	c.disturbAll()
	c.note(nil, "partitioned %v", c.net.side)
}

// Cut stops messages from one process to another, but not back.
func (c *Cluster) Cut(from, to int) {
	if c.net.cut == nil {
		c.net.cut = make(map[[2]int]bool)
	}
	c.net.cut[[2]int{from, to}] = true
	c.procs[from].disturbed, c.procs[to].disturbed = c.now, c.now
	c.note(c.procs[from], "cut to %s", c.procs[to].name)
}

// Heal opens all links.
func (c *Cluster) Heal() {
	if c.net.whole() {
		return
	}
	c.disturbCut()
	if len(c.net.cut) > 0 {
		c.net.mended = c.now
	}
	c.net.side, c.net.cut = nil, nil
	c.note(nil, "healed")
}

// disturbAll notes that everybody missed messages.
func (c *Cluster) disturbAll() {
	for _, p := range c.procs {
		p.disturbed = c.now
	}
}

// disturbCut notes that whoever a fault of the network concerned missed messages until now.
func (c *Cluster) disturbCut() {
	if c.net.side != nil {
		c.disturbAll()
	}
	for pair := range c.net.cut {
		c.procs[pair[0]].disturbed, c.procs[pair[1]].disturbed = c.now, c.now
	}
}

// SetLink changes how messages travel.
func (c *Cluster) SetLink(l Link) { c.net.link = l.withDefaults() }
