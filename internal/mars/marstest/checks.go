package marstest

import (
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
)

// Violation is a rule that a history broke, by its number in the design of
// succession, or "panic", "codec" or "contract".
type Violation struct {
	Rule string
	Text string
	At   time.Duration // since the beginning

	noted bool
}

func (v *Violation) Error() string {
	return fmt.Sprintf("%s broken at %.3fs: %s", v.Rule, v.At.Seconds(), v.Text)
}

// fail notes a broken rule. Only the first counts: it may be what led to the others.
func (c *Cluster) fail(rule, format string, args ...any) {
	if c.violation != nil || c.only != nil && !c.only[rule] {
		return
	}
	c.violation = &Violation{Rule: rule, Text: fmt.Sprintf(format, args...), At: time.Duration(c.now)}
	c.note(nil, "%s BROKEN: %s", rule, c.violation.Text)
}

// life is one incarnation, as the simulator knows it and nobody inside does.
type life struct {
	place *process
	run   uint32
	ended instant // when its process ended or took another incarnation, 0 before
	// evicted: an authority removed it. It may still run and not know.
	evicted bool
}

// version tells councils apart.
type version struct {
	epoch   mars.Epoch
	version uint64
}

func versionOf(k mars.Council) version { return version{k.Epoch, k.Version} }

// holding is who ever held a version of the council.
type holding struct {
	seats []mars.Seat
	by    []mars.Seat
}

// checks is what the rules remember of the whole cluster.
type checks struct {
	lives    map[id.Incarnation]*life
	reigns   map[mars.Epoch]reigning // I1
	councils map[version]*holding    // I5
	holders  []*process              // processes with a lease, and some whose lease ran out
	covered  instant                 // until when a lease was held, while there is none
	gap      time.Duration           // the longest time without any since clearGap
	elected  int                     // offices taken, by vote, founding or transfer
	moving   moved                   // I16: the transfer under way
	moved    moved                   // I16: the last transfer
	sitting  sitting                 // I10: the last council that committed
}

// reigning is who had the office in an epoch.
type reigning struct {
	place *process
	run   uint32
}

// watch is what the rules remember of one run of a process.
type watch struct {
	incarnation id.Incarnation
	life        *life
	born        time.Time // by its own clock

	epoch     mars.Epoch     // I3
	council   mars.Council   // I3, I5
	before    mars.Council   // the council before it, of the same reign
	directory mars.Epoch     // I3
	members   int            // I18
	ended     id.Incarnation // I19: the last run that was said to be over

	reign      mars.Epoch // zero without the office
	reignSince instant
	leaseEnd   time.Time // by its own clock, as last verified
	leaseUntil instant
	grants     []grant // I6

	votes    map[mars.Epoch]mars.Seat // I4
	promise  promise                  // I7
	campaign campaign                 // I7, I8

	round     uint64 // I9: of its newest poll whether it may found
	liveReply string // I9: who answered that there is an authority
	joined    bool
	told      bool // I10: of a cluster, by anybody
	recovers  bool // told to by an operator

	gone     map[id.Incarnation]bool       // I11: ended here as an authority
	vanished map[id.Incarnation]mars.Epoch // I11: from the directory of that founding

	transfers  int // I16
	joins      int // I14: registrations in the second that began at joinSecond
	joinSecond instant
}

func (k *checks) init() {
	k.lives = make(map[id.Incarnation]*life)
	k.reigns = make(map[mars.Epoch]reigning)
	k.councils = make(map[version]*holding)
}

// newWatch forgets what was known of the run before.
func (c *Cluster) newWatch(p *process, inc id.Incarnation) {
	p.watch = watch{
		votes: make(map[mars.Epoch]mars.Seat),
		gone:  make(map[id.Incarnation]bool), vanished: make(map[id.Incarnation]mars.Epoch),
	}
	c.born(p, inc)
}

// born notes a new incarnation at a place.
func (c *Cluster) born(p *process, inc id.Incarnation) {
	if p.watch.life != nil {
		p.watch.life.ended = c.now
	}
	p.watch.incarnation = inc
	p.watch.life = &life{place: p, run: p.run}
	c.check.lives[inc] = p.watch.life
}

// died notes that the process at a place is no more.
func (c *Cluster) died(p *process) {
	p.watch.life.ended = c.now
}

// checkStep checks every rule that a step of p could have broken.
func (c *Cluster) checkStep(p *process, now time.Time, in mars.Input, out *mars.Output) {
	w, m := &p.watch, p.machine
	switch in := in.(type) {
	case mars.Received:
		c.heard(p, in.Message)
	case mars.Request:
		c.heard(p, in.Message)
	case mars.Answered:
		c.heard(p, in.Message)
	case mars.Recover:
		w.recovers = true
	}
	for i := range out.Messages {
		c.checkMessage(p, now, in, &out.Messages[i])
	}
	office := false
	for i := range out.Events {
		e := &out.Events[i]
		office = office || e.Kind == mars.Elected
		c.checkEvent(p, e)
		if c.hook != nil {
			c.hook(p, e)
		}
	}
	c.checkEpoch(p, m.Epoch())
	if k := m.Council(); k.Version != w.council.Version || k.Epoch != w.council.Epoch {
		c.checkCouncil(p, now, k, office)
	}
	if out.Directory != nil {
		c.checkDirectory(p, out.Directory)
	}
	if m.Reigns() || !w.reign.IsZero() {
		c.checkReign(p, now)
	}
	if !w.joined {
		w.joined, _ = m.Joined()
	}
}

// checkEvent checks what a machine tells of.
func (c *Cluster) checkEvent(p *process, e *mars.Event) {
	w := &p.watch
	switch e.Kind {
	case mars.Elected:
		c.arrived(p, e)
		c.check.elected++
		c.checkElected(p, e)
	case mars.PollStarted:
		w.liveReply = ""
	case mars.Founded:
		c.checkFounding(p, e)
	case mars.Transferring:
		c.checkTransfer(p, e)
	case mars.Evicted:
		c.born(p, e.Incarnation)
	case mars.MemberJoined:
		c.checkJoin(p, e)
	case mars.MemberLeft, mars.MemberExpired, mars.MemberReplaced:
		w.gone[e.Incarnation] = true
		if l := c.check.lives[e.Incarnation]; l != nil {
			l.evicted = true
		}
	case mars.MemberVanished:
		c.checkVanished(p, e)
	case mars.MemberAppeared:
		c.checkAppeared(p, e)
	}
}

// checkEpoch is I3: the highest epoch a node has seen never decreases.
func (c *Cluster) checkEpoch(p *process, e mars.Epoch) {
	if e == p.watch.epoch {
		return
	}
	if e.Compare(p.watch.epoch) < 0 {
		c.fail("I3", "%s went back from epoch %s to %s", p.name, c.epoch(p.watch.epoch), c.epoch(e))
	}
	p.watch.epoch = e
}
