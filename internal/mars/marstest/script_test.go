package marstest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// TestScripts plays the script above the line of dashes and compares what
// happened with what stands below. "nodes 4" starts home and three others,
// numbered 1 to 3: udp, tcp, http.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/histories/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("histories: %v, %v", files, err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			script, want, _ := strings.Cut(string(b), "----\n")
			got := playScript(t, script)
			if *update {
				if err := os.WriteFile(f, []byte(script+"----\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("history differs, run with -update and read the diff:\n%s", firstDifference(got, want))
			}
		})
	}
}

func playScript(t *testing.T, script string) string {
	t.Helper()
	var c *Cluster
	for line := range strings.Lines(script) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		if words[0] == "nodes" {
			c = New(Options{Seed: 1, Nodes: place(t, words[1]), Trace: Events})
			for i := range c.procs {
				c.Start(i)
			}
			c.Run(5 * time.Second) // until home has founded
			continue
		}
		if err := obey(t, c, words[0], words[1:]); err != "" {
			t.Fatalf("%s: %s", strings.TrimSpace(line), err)
		}
		if v := c.Violation(); v != nil {
			t.Fatalf("%s: %v\n%s", strings.TrimSpace(line), v, strings.Join(c.History(), "\n"))
		}
	}
	return strings.Join(c.History(), "\n") + "\n"
}

// obey carries a line of a script out.
func obey(t *testing.T, c *Cluster, verb string, args []string) string {
	t.Helper()
	if len(args) == 0 {
		return "nothing to do it to"
	}
	last := args[len(args)-1]
	switch verb {
	case "run":
		c.Run(lasting(t, last))
	case "kill":
		c.Kill(place(t, args[0]))
	case "start":
		c.Start(place(t, args[0]))
	case "pause":
		c.Pause(place(t, args[0]), lasting(t, last))
	case "leave":
		c.Term(place(t, args[0]))
	case "suspect":
		c.step(c.procs[place(t, args[0])], mars.Suspect{Node: c.procs[place(t, last)].node})
	case "show":
		p := c.procs[place(t, args[0])]
		d := p.machine.Directory()
		var b strings.Builder
		for _, m := range d.Members {
			b.WriteString(" " + c.at[m.Node].name)
			if m.Hidden {
				b.WriteString("(hidden)")
			}
		}
		c.note(p, "directory live=%v:%s", d.Live, b.String())
	default:
		return "unknown verb"
	}
	return ""
}

// place is a number, or "mars" for home.
func place(t *testing.T, s string) int {
	t.Helper()
	if s == "mars" {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func lasting(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
