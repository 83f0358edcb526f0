package marstest

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

// Cluster is a simulated cluster. Place 0 is home. Its methods do nothing any
// more once a rule was broken.
type Cluster struct {
	opt   Options
	rnd   *rand.Rand
	now   instant
	queue queue
	net   network
	procs []*process
	at    map[id.Node]*process
	bytes []byte // scratch of recode

	hook  func(p *process, e *mars.Event) // of a scenario: sees every event
	only  map[string]bool                 // the rules that count, nil for all
	check checks
	load  load
	log   history

	calmed    bool // the faults have stopped
	steps     uint64
	violation *Violation
}

// New returns a cluster of opt.Nodes places at which nothing runs yet.
func New(opt Options) *Cluster {
	opt = opt.withDefaults()
	c := &Cluster{opt: opt, rnd: rand.New(rand.NewPCG(opt.Seed, 1)), at: make(map[id.Node]*process)}
	c.now = 1 // 0 means never
	c.log.keep = opt.Trace
	c.SetLink(opt.Link)
	for i := range opt.Nodes {
		p := newProcess(i, opt.PerHost, opt.Seed)
		if opt.Versions > 1 && !p.home {
			p.version = fmt.Sprint(i % opt.Versions)
		}
		if opt.Drift > 0 {
			p.clock.ppm = int64((2*c.rnd.Float64() - 1) * opt.Drift * 1e6)
			p.clock.offset = c.rnd.Int64N(int64(20*time.Second)) - int64(10*time.Second)
		}
		c.procs = append(c.procs, p)
		c.at[p.node] = p
	}
	c.check.init()
	return c
}

// Seconds is how long the history is so far.
func (c *Cluster) Seconds() float64 { return time.Duration(c.now).Seconds() }

// Violation is the first broken rule, nil while there is none.
func (c *Cluster) Violation() *Violation { return c.violation }

// After lets do happen after d.
func (c *Cluster) After(d time.Duration, do func()) {
	c.queue.push(event{at: c.now.after(d), kind: act, do: do})
}

// Run lets d pass.
func (c *Cluster) Run(d time.Duration) { c.Until(d, nil) }

// Until lets time pass until done says so, at most d. It tells whether done did.
// A panic of a machine is a violation like any other.
func (c *Cluster) Until(d time.Duration, done func() bool) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			c.fail("panic", "%v\n%s", r, debug.Stack())
			ok = false
		}
	}()
	end := c.now.after(d)
	for c.violation == nil {
		if done != nil && done() {
			return true
		}
		if len(c.queue.heap) == 0 || c.queue.heap[0].at > end {
			c.now = end
			return false
		}
		e := c.queue.pop()
		c.now = e.at
		c.happen(&e)
	}
	return false
}

// happen carries an event out.
func (c *Cluster) happen(e *event) {
	switch e.kind {
	case act:
		e.do()
		return
	case wake:
		c.wake(e)
		return
	case request, oneWay:
		if !c.net.open(e.from, e.to) {
			return // it was on its way when the link broke
		}
		if !e.to.up {
			c.refuse(e)
			return
		}
	case reply:
		if e.to.run != e.run || !c.net.open(e.from, e.to) {
			return
		}
	default:
		if e.to.run != e.run {
			return
		}
	}
	if e.to.paused {
		e.to.held = append(e.to.held, *e)
		return
	}
	c.deliver(e)
}

// deliver steps the machine that an event is for.
func (c *Cluster) deliver(e *event) {
	p := e.to
	switch e.kind {
	case looked:
		if p.lookAt != e.at {
			return // another one came first
		}
		p.lookAt = 0
		t := c.addresses(p)
		if len(t.Nodes) > 0 {
			c.lookUp(p, lookEvery)
		} else {
			c.lookUp(p, lookAgain)
		}
		c.step(p, t)
	case request:
		answer := c.step(p, mars.Request{Message: e.msg})
		if answer != nil {
			c.carry(p, e.from, event{kind: reply, from: p, to: e.from, run: e.run, try: e.try, msg: answer})
		}
	case reply:
		if p.asked == e.try {
			p.asked = 0
			c.step(p, mars.Answered{Try: e.try, Message: e.msg})
		}
	case expiry, refusal:
		if p.asked == e.try {
			p.asked = 0
			text := "timeout"
			if e.kind == refusal {
				text = "connection refused"
			}
			c.step(p, mars.Failed{Try: e.try, Text: text})
		}
	case oneWay:
		c.step(p, mars.Received{Message: e.msg})
	}
}

// refuse answers a request to a place where nothing runs, if the host is still there.
func (c *Cluster) refuse(e *event) {
	if e.kind != request || e.to.mute {
		return
	}
	c.queue.push(event{at: c.now.after(c.travel()), kind: refusal, to: e.from, run: e.run, try: e.try})
}

// wake ticks a machine that asked for it. Only one wake of a process is in the
// queue most of the time: one that comes too early is queued again.
func (c *Cluster) wake(e *event) {
	p := e.to
	if p.run != e.run || p.queued != e.at {
		return
	}
	p.queued = 0
	if p.paused {
		return // resume ticks
	}
	if p.wakeAt > c.now {
		c.sleep(p)
		return
	}
	c.step(p, mars.Tick{})
}

func (c *Cluster) sleep(p *process) {
	if p.queued != 0 && p.queued <= p.wakeAt {
		return
	}
	p.queued = p.wakeAt
	c.queue.push(event{at: p.wakeAt, kind: wake, to: p, run: p.run})
}

// step tells a machine what happened, checks what it does and carries it out.
func (c *Cluster) step(p *process, in mars.Input) mars.Message {
	if c.violation != nil {
		return nil
	}
	now := p.clock.at(c.now)
	out := p.machine.Step(now, in)
	c.steps++
	c.record(p, in, &out)
	c.checkStep(p, now, in, &out)
	if c.violation != nil {
		return nil
	}
	if out.Send != nil {
		c.send(p, out.Send)
	}
	for i := range out.Messages {
		if to := c.at[out.Messages[i].To]; to != nil {
			c.carry(p, to, event{kind: oneWay, from: p, to: to, msg: out.Messages[i].Message})
		}
	}
	if out.Resolve {
		c.lookUp(p, 0)
	}
	if !out.WakeAt.IsZero() {
		c.checkSpin(p, now, &out)
		p.wakeAt = max(p.clock.reaches(out.WakeAt), c.now.after(50*time.Microsecond))
		c.sleep(p)
	}
	if p.leaving && p.machine.Left() {
		c.note(p, "ended")
		c.end(p)
	}
	return out.Reply
}

// spinsMax is how many times in a row a machine may ask to be woken at once and
// then have nothing to do.
const spinsMax = 20

// checkSpin finds machines that would keep a processor busy.
func (c *Cluster) checkSpin(p *process, now time.Time, out *mars.Output) {
	if out.WakeAt.After(now) || len(out.Messages)+len(out.Events) > 0 || out.Send != nil {
		p.spins = 0
		return
	}
	if p.spins++; p.spins > spinsMax {
		c.fail("contract", "%s asks to be woken at once, again and again", p.name)
	}
}

// send carries a request to its target, and sets the time for its answer.
func (c *Cluster) send(p *process, s *mars.Send) {
	p.asked = s.Try
	c.queue.push(event{at: c.now.after(p.clock.lasts(s.Timeout)), kind: expiry, to: p, run: p.run, try: s.Try})
	if to := c.at[s.To]; to != nil {
		c.carry(p, to, event{kind: request, from: p, to: to, run: p.run, try: s.Try, msg: s.Message})
	}
}
