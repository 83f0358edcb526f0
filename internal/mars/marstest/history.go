package marstest

import (
	"fmt"
	"strings"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// Trace is how much of a history is written down. The zero value writes nothing.
type Trace uint8

// What is written down.
const (
	Silent   Trace = iota
	Events         // what machines tell and what is done to them
	Messages       // and what they send each other about succession
)

// history is what happened: a hash of everything and, on demand, lines of text.
type history struct {
	keep  Trace
	lines []string
	hash  uint64
}

// mix folds x into the hash of the history.
func (h *history) mix(x uint64) {
	x ^= h.hash
	x *= 0x9e3779b97f4a7c15
	h.hash = x ^ x>>29
}

// note writes down what is done to a process, or with nil to the cluster.
func (c *Cluster) note(p *process, format string, args ...any) {
	if c.violation != nil && !c.violation.noted {
		c.violation.noted = true
	} else if c.violation != nil {
		return // what a script still does means nothing
	}
	c.log.mix(uint64(c.now))
	c.log.mix(uint64(len(format)))
	if c.log.keep >= Events {
		c.line(p, "> "+fmt.Sprintf(format, args...))
	}
}

func (c *Cluster) line(p *process, text string) {
	who := "*"
	if p != nil {
		who = p.name
	}
	c.log.lines = append(c.log.lines, fmt.Sprintf("%8.3f %-5s %s", c.Seconds(), who, text))
}

// History is what was written down.
func (c *Cluster) History() []string { return c.log.lines }

// Hash identifies the history: equal seeds give equal hashes.
func (c *Cluster) Hash() uint64 { return c.log.hash }

// record folds a step into the hash and writes down what it told.
func (c *Cluster) record(p *process, in mars.Input, out *mars.Output) {
	h := &c.log
	h.mix(uint64(c.now))
	h.mix(uint64(p.index)<<32 | uint64(len(out.Messages))<<16 | uint64(len(out.Events)))
	for i := range out.Events {
		h.mix(uint64(out.Events[i].Kind))
	}
	if h.keep == Silent {
		return
	}
	if h.keep >= Messages {
		c.recordMessages(p, in, out)
	}
	for i := range out.Events {
		if c.opt.Heartbeats || told(out.Events[i].Kind) {
			c.line(p, c.describe(&out.Events[i]))
		}
	}
}

// told keeps the coming and going at every single node out of histories: the
// authority tells the same.
func told(k mars.Kind) bool {
	return k != mars.MemberAppeared && k != mars.MemberVanished
}

// describe writes an event as one line, with places instead of addresses.
func (c *Cluster) describe(e *mars.Event) string {
	var b strings.Builder
	b.WriteString(e.Kind.String())
	if e.Node != "" {
		b.WriteString(" " + c.named(string(e.Node)))
	}
	if !e.Epoch.IsZero() {
		b.WriteString(" in " + c.epoch(e.Epoch))
	}
	if e.Silence > 0 {
		fmt.Fprintf(&b, " after %.1fs", e.Silence.Seconds())
	}
	if e.Count > 0 {
		fmt.Fprintf(&b, " (%d)", e.Count)
	}
	if e.Text != "" {
		b.WriteString(": " + c.named(e.Text))
	}
	return b.String()
}

// epoch is short for reading: generations count from the beginning of the history.
func (c *Cluster) epoch(e mars.Epoch) string {
	who := "?"
	if p := c.check.lives[e.Founder]; p != nil {
		who = p.place.name
	}
	return fmt.Sprintf("%+d/%s.%d", int64(e.Generation)-epochStart/int64(time.Second), who, e.Term)
}

// named replaces addresses in a text by the names of places.
func (c *Cluster) named(s string) string {
	for i := len(c.procs) - 1; i >= 0; i-- {
		s = strings.ReplaceAll(s, string(c.procs[i].node), c.procs[i].name)
	}
	return s
}

// recordMessages writes down what a step received and sent.
func (c *Cluster) recordMessages(p *process, in mars.Input, out *mars.Output) {
	switch in := in.(type) {
	case mars.Received:
		if c.opt.Heartbeats || !routine(in.Message) {
			c.line(p, "< "+c.message(in.Message))
		}
	case mars.Request:
		if c.opt.Heartbeats {
			c.line(p, "< "+c.message(in.Message))
		}
	case mars.Answered:
		if c.opt.Heartbeats {
			c.line(p, "< "+c.message(in.Message))
		}
	}
	for _, e := range out.Messages {
		if c.opt.Heartbeats || !routine(e.Message) {
			c.line(p, "  to "+c.named(string(e.To))+" "+c.message(e.Message))
		}
	}
}

// routine tells whether a message is of those that are sent all the time.
func routine(m mars.Message) bool {
	switch m := m.(type) {
	case mars.Renew:
		return true
	case mars.Grant:
		return m.OK
	}
	return false
}

// message writes what decides an election in a message, and for the rest its kind.
func (c *Cluster) message(m mars.Message) string {
	from := c.named(string(mars.SenderOf(m)))
	switch m := m.(type) {
	case mars.Renew:
		return fmt.Sprintf("renew of %s in %s, %s", from, c.epoch(m.Epoch), c.council(m.Council))
	case mars.Grant:
		return fmt.Sprintf("grant of %s ok=%v of %s held=%d, seen %s", from, m.OK, c.epoch(m.Of), m.Held, c.epoch(m.Epoch))
	case mars.Vote:
		return fmt.Sprintf("vote for %s pre=%v force=%v in %s, %s", from, m.Pre, m.Force, c.epoch(m.For), c.council(m.Council))
	case mars.VoteReply:
		return fmt.Sprintf("vote of %s pre=%v ok=%v in %s", from, m.Pre, m.OK, c.epoch(m.For))
	case mars.TransferGo:
		return fmt.Sprintf("transfer of %s, %s", from, c.council(m.Council))
	case mars.Announce:
		return fmt.Sprintf("announce of %s: %s in %s, %s", from, c.named(string(m.Authority)), c.epoch(m.Epoch), c.council(m.Council))
	case mars.FoundReply:
		return fmt.Sprintf("found reply of %s live=%v home=%v, %s", from, m.Live, m.Home, c.council(m.Council))
	case mars.Ack:
		return fmt.Sprintf("ack of %s status=%d live=%v settling=%v in %s", from, m.Status, m.Live, m.Settling, c.epoch(m.Epoch))
	case mars.Heartbeat:
		return fmt.Sprintf("heartbeat of %s register=%v in %s", from, m.Register != nil, c.epoch(m.Epoch))
	case mars.Probe:
		return fmt.Sprintf("probe of %s: %s live=%v in %s", from, c.named(string(m.Standing.Authority)), m.Standing.Live, c.epoch(m.Standing.Epoch))
	case mars.ProbeReply:
		return fmt.Sprintf("probe reply of %s: %s live=%v in %s", from, c.named(string(m.Standing.Authority)), m.Standing.Live, c.epoch(m.Standing.Epoch))
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", m), "mars.") + " of " + from
}

// council writes a council with the places of its seats.
func (c *Cluster) council(k mars.Council) string {
	var b strings.Builder
	fmt.Fprintf(&b, "council %s v%d", c.epoch(k.Epoch), k.Version)
	for _, s := range k.Seats {
		b.WriteString(" " + c.named(string(s.Node)))
		if p := c.at[s.Node]; p == nil || p.seat() != s || !p.up {
			b.WriteString("†")
		}
	}
	return b.String()
}
