package marstest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

// process is one place of the cluster: an address at which processes run, one
// after the other, and the host's clock, which outlives them.
type process struct {
	// Set by New, then constant.
	index   int
	name    string // for histories
	node    id.Node
	home    bool
	role    string
	version string // of the application: the second half of the namespace

	clock   clock
	machine *mars.Machine // of the running process, or of the last one
	rnd     *rand.Rand    // its dice
	run     uint32        // counts starts and ends
	up      bool
	paused  bool
	leaving bool
	mute    bool    // while down: connecting to it brings no refusal
	started instant // of this run
	held    []event // arrived during a pause
	queued  instant // of the earliest wake in the queue, 0: none
	wakeAt  instant // when the machine wants to be woken
	asked   uint64  // the request under way, 0: none
	lookAt  instant // of the next look-up, 0: none
	spins   int     // wakes in a row without anything to do
	// disturbed is when the process last was paused, cut off or started: before
	// then it may have missed something without anybody's fault.
	disturbed instant

	watch watch // what the checks know of this run
}

// newProcess returns the i-th place. Neighbours share hosts when hosts is above one.
func newProcess(i, hosts int, seed uint64) *process {
	p := &process{index: i, home: i == 0, rnd: rand.New(rand.NewPCG(seed, uint64(i)+1000))}
	h := 1 + i/hosts
	a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(h >> 8), byte(h)}), uint16(6779+i%hosts))
	p.node = id.NodeOf(a)
	p.role = [...]string{"http", "udp", "tcp"}[i%3]
	p.name = fmt.Sprintf("n%d", i)
	if p.home {
		p.role, p.name = "mars", "home"
	}
	return p
}

func (p *process) incarnation() (inc id.Incarnation) {
	binary.BigEndian.PutUint64(inc[:], p.rnd.Uint64())
	binary.BigEndian.PutUint64(inc[8:], p.rnd.Uint64())
	return mars.Run(inc) // so that it names the seat as well
}

// seat is the instance that runs.
func (p *process) seat() mars.Seat { return mars.SeatOf(p.node, p.watch.incarnation) }

// running tells whether the process exists and is scheduled.
func (p *process) running() bool { return p.up && !p.paused }

// Start starts a process without any memory at place i, unless one runs there.
func (c *Cluster) Start(i int) {
	p := c.procs[i]
	if p.up {
		return
	}
	now := p.clock.at(c.now)
	p.up, p.paused, p.leaving, p.lookAt = true, false, false, 0
	p.run++
	p.held, p.asked, p.queued, p.wakeAt = nil, 0, 0, 0
	p.started, p.disturbed = c.now, c.now
	cfg := mars.Config{
		Self: mars.Instance{
			Node: p.node, Incarnation: p.incarnation(), Started: now.UnixMilli(),
			Role: p.role, Type: strings.ToUpper(p.role), AppName: "game", AppVersion: p.version, Version: "1.0.0",
		},
		Home: p.home, Recovery: c.opt.Recovery, Rand: p.rnd.Float64,
	}
	if !p.home {
		cfg.Endpoint = fmt.Sprintf("203.0.113.%d:7000", p.index%250)
	}
	p.machine = mars.New(now, cfg)
	c.newWatch(p, cfg.Self.Incarnation)
	p.watch.born = now
	c.note(p, "started")
	c.step(p, mars.Tick{})
	c.lookUp(p, 0)
}

// Kill ends the process at place i without a word.
func (c *Cluster) Kill(i int) {
	p := c.procs[i]
	if !p.up {
		return
	}
	c.note(p, "killed")
	c.end(p)
}

func (c *Cluster) end(p *process) {
	p.up = false
	p.run++
	p.held = nil
	p.mute = c.opt.Mute
	c.release(p)
	c.died(p)
}

// Pause stops the process at place i from running for d. Its clock goes on, and
// what is sent to it waits.
func (c *Cluster) Pause(i int, d time.Duration) {
	p := c.procs[i]
	if !p.running() {
		return
	}
	c.note(p, "paused for %.1fs", d.Seconds())
	p.paused, p.disturbed = true, c.now
	run := p.run
	c.After(d, func() {
		if p.run == run && p.paused {
			c.resume(p)
		}
	})
}

// resume lets a paused process run again. Which of the timer and the waiting
// messages it sees first is anybody's guess.
func (c *Cluster) resume(p *process) {
	c.note(p, "resumed")
	p.paused, p.disturbed = false, c.now
	c.resumed(p)
	held := p.held
	p.held = nil
	if c.rnd.IntN(2) == 0 {
		c.step(p, mars.Tick{})
	}
	run := p.run
	for k := range held {
		if p.run != run {
			return
		}
		c.deliver(&held[k])
	}
	if p.run == run {
		c.step(p, mars.Tick{})
	}
}

// termWait is how long a process that was told to end is given to leave.
const termWait = 10 * time.Second

// Term tells the process at place i to leave and ends it when it has, or after
// ten seconds, as an orchestrator does.
func (c *Cluster) Term(i int) {
	p := c.procs[i]
	if !p.running() || p.leaving {
		return
	}
	c.note(p, "told to leave")
	p.leaving = true
	run := p.run
	c.After(termWait, func() {
		if p.run == run {
			c.note(p, "killed, it did not leave in time")
			c.end(p)
		}
	})
	c.step(p, mars.Go{})
}

// Between two look-ups of a process: after one that found nothing, and in general.
const (
	lookAgain = time.Second
	lookEvery = 10 * time.Second
)

// lookUp resolves the addresses of home and the seeds after a while, unless that
// happens sooner anyway.
func (c *Cluster) lookUp(p *process, wait time.Duration) {
	at := c.now.after(wait + time.Millisecond)
	if p.lookAt != 0 && p.lookAt <= at+instant(20*time.Millisecond) {
		return
	}
	p.lookAt = at.after(time.Duration(c.rnd.Int64N(int64(20 * time.Millisecond))))
	c.queue.push(event{at: p.lookAt, kind: looked, to: p, run: p.run})
}

// addresses is what a look-up finds: home and a few seeds, or a reason.
func (c *Cluster) addresses(p *process) mars.Targets {
	var t mars.Targets
	if c.procs[0].up || !c.opt.Vanishing {
		t.Nodes = append(t.Nodes, c.procs[0].node)
	}
	for i := 1; i <= min(c.opt.Seeds, len(c.procs)-1); i++ {
		t.Nodes = append(t.Nodes, c.procs[i].node)
	}
	if len(t.Nodes) == 0 {
		t.Text = "no such host"
	}
	return t
}
