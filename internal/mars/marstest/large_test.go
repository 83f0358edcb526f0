package marstest

import (
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// bytesMax is what one node may cost in calm, in bytes sent a second: I14.
const bytesMax = 500

// A cluster of a size at which directories are compared in parts and the council
// has seven seats: it survives its authority, and costs little in calm.
func TestLargeCluster(t *testing.T) {
	const n = 520
	c := New(Options{Seed: 1, Nodes: n, Codec: true, Trace: Events})
	c.seated()
	before := c.load.octets
	c.Run(20 * time.Second)
	if rate := float64(c.load.octets-before) / n / 20; rate > bytesMax {
		t.Errorf("%.0f bytes a second and node in calm, at most %d were promised", rate, bytesMax)
	} else {
		t.Logf("%.0f bytes a second and node in calm", rate)
	}
	if a := c.Authority(); a >= 0 {
		if k := len(c.procs[a].machine.Council().Seats); k != 7 {
			t.Errorf("%d seats among %d members, not 7", k, n)
		}
		c.Kill(a)
	}
	d := c.nextLease(recoveryMax)
	c.recover(recoveryMax)
	t.Logf("the next authority after %v", d)
	if v := c.Violation(); v != nil {
		t.Fatal(v)
	}
}

// Directories of more than 64 members are compared in parts when an authority
// takes over that has another one, and long ones come in pages. Everybody ends
// with the same.
func TestPartsAndPages(t *testing.T) {
	c := New(Options{Seed: 3, Nodes: 90, Codec: true, Trace: Events})
	c.seated()
	long := strings.Repeat("x", 14<<10)
	for _, p := range c.procs {
		b, err := mars.EncodeValues(map[string]any{"long": long, "maps": []any{"a", map[string]any{"b": 1.5}}, "open": true, "none": nil})
		if err != nil {
			t.Fatal(err)
		}
		c.step(p, mars.SetValues{Values: b})
	}
	c.Run(10 * time.Second)
	for round := range 4 {
		for i := 1; i < 12; i++ {
			c.step(c.procs[i+12*round], mars.SetState{State: mars.Taken})
		}
		c.Run(c.between(300*time.Millisecond, 700*time.Millisecond)) // some know, some do not
		if a := c.Authority(); a >= 0 {
			c.Kill(a)
		}
		c.Kill(85 - round)
		c.recover(recoveryMax)
	}
	if v := c.Violation(); v != nil {
		t.Fatal(v)
	}
	for _, p := range c.procs {
		if p.up && p.role == "http" {
			for _, m := range p.machine.Directory().Members {
				if m.Values["long"] != long {
					t.Fatalf("%s does not see the values of %s", p.name, m.Node)
				}
			}
		}
	}
}
