package marstest

import (
	"runtime"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// safety are the rules that hold whatever anybody says who has no seat.
var safety = map[string]bool{
	"I1": true, "I2": true, "I3": true, "I4": true, "I5": true, "I6": true, "I7": true, "I8": true,
	"panic": true, "codec": true, "contract": true,
}

// Messages of outsiders, and those of members again and late, break no safety rule.
func TestForgedMessagesBreakNothing(t *testing.T) {
	for seed := range seeds(t, 60) {
		c := New(Options{Seed: seed, Nodes: 3 + int(seed%5), Drift: 0.05, Link: Link{Loss: 0.01, Late: 0.05, Duplicate: 0.05}, Trace: Messages})
		c.only = safety
		f := newForger(seed, c)
		c.seated()
		for range 1500 {
			p := c.procs[f.rnd.IntN(len(c.procs))]
			f.learn(p.machine)
			m := f.message(f.outsider())
			if len(f.seen) > 0 && f.yes() {
				m = pick(f.rnd, f.seen)
			}
			if p.up {
				hear(c, p, m)
			}
			c.Run(time.Duration(f.rnd.ExpFloat64() * float64(20*time.Millisecond)))
			for k := range min(len(c.queue.heap), 4) {
				if e := c.queue.heap[k]; e.msg != nil {
					f.see(e.msg)
				}
			}
			if f.rnd.IntN(200) == 0 {
				i := f.rnd.IntN(len(c.procs))
				c.Kill(i)
				c.After(time.Second, func() { c.Start(i) })
			}
		}
		if v := c.Violation(); v != nil {
			h := c.History()
			for _, l := range h[max(0, len(h)-80):] {
				t.Log(l)
			}
			t.Fatalf("seed %d: %v", seed, v)
		}
	}
}

// hear lets a message arrive that nobody sent.
func hear(c *Cluster, p *process, m mars.Message) {
	c.After(0, func() {
		switch m.(type) {
		case mars.Heartbeat, mars.Leave:
			c.step(p, mars.Request{Message: m})
		case mars.Ack: // answers come back to requests only
		default:
			c.step(p, mars.Received{Message: m})
		}
	})
}

// One machine survives anything, in bounded memory: it never panics, never goes
// back, never votes twice in an epoch.
func TestMachineSurvivesAnything(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const steps = 40_000
	for seed := range seeds(t, 6) {
		c := New(Options{Seed: seed, Nodes: 5})
		c.only = map[string]bool{"I3": true, "I4": true, "panic": true}
		f := newForger(seed, c)
		i := int(seed % 2) // home, or another
		c.Start(i)
		p := c.procs[i]
		for range steps {
			if f.rnd.IntN(8) == 0 {
				f.learn(p.machine)
			}
			f.incs[1] = p.watch.incarnation // now and then it is named itself
			f.nodes[0] = p.node
			in := f.input()
			if f.rnd.IntN(6) == 0 {
				in = f.damaged()
			}
			c.After(0, func() { c.step(p, in) })
			c.Run(time.Duration(f.rnd.ExpFloat64() * float64(50*time.Millisecond)))
			if v := c.Violation(); v != nil {
				t.Fatalf("seed %d: %v after %T %+v", seed, v, in, in)
			}
		}
		clear(p.watch.votes)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
			t.Fatalf("seed %d: %d MB after %d inputs", seed, grown>>20, steps)
		}
	}
}

// Bytes that parse may be handed to a machine, whatever they say.
func FuzzMachine(f *testing.F) {
	c := New(Options{Nodes: 3})
	fo := newForger(1, c)
	for range 40 {
		f.Add(fo.message(fo.outsider()).AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := mars.ParseMessage(b)
		if err != nil {
			return // bad bytes may be refused
		}
		c := New(Options{Nodes: 3})
		c.only = map[string]bool{"I3": true, "I4": true, "panic": true}
		c.Start(0)
		c.Run(5 * time.Second)
		for _, in := range []mars.Input{mars.Received{Message: m}, mars.Request{Message: m}, mars.Answered{Try: 1, Message: m}, mars.Received{Message: m}} {
			c.After(0, func() { c.step(c.procs[0], in) })
			c.Run(time.Second)
		}
		if v := c.Violation(); v != nil {
			t.Errorf("%v after %T %+v", v, m, m)
		}
	})
}
