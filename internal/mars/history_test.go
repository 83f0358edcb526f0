package mars

import (
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite testdata/histories; read the diff")

// TestHistories plays the script above the line of dashes and compares what
// happened with what stands below. "nodes 4" starts mars and three others,
// numbered 1 to 3: http, udp, tcp.
func TestHistories(t *testing.T) {
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
			got := play(t, script)
			if *update {
				if err := os.WriteFile(f, []byte(script+"----\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("history differs, run with -update and read the diff:\n%s", got)
			}
		})
	}
}

func play(t *testing.T, script string) string {
	var s *sim
	for line := range strings.Lines(script) {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if verb == "" || verb == "#" {
			continue
		}
		if verb == "nodes" {
			s = newSim(t, 1, number(t, rest))
			s.trace = true
			s.startHome()
			for i := 1; i < len(s.nodes); i++ {
				s.start(i)
			}
			continue
		}
		act(t, s, verb, strings.Fields(rest))
	}
	return strings.Join(s.history, "\n") + "\n"
}

func act(t *testing.T, s *sim, verb string, args []string) {
	t.Helper()
	arg := func(i int) string {
		if i >= len(args) {
			t.Fatalf("%s: argument %d is missing", verb, i+1)
		}
		return args[i]
	}
	mars := len(args) > 0 && args[0] == "mars"
	switch {
	case verb == "run":
		s.run(duration(t, arg(0)))
	case verb == "kill" && mars:
		s.killHome()
	case verb == "start" && mars:
		s.startHome()
	case verb == "kill":
		s.kill(number(t, arg(0)))
	case verb == "start":
		s.start(number(t, arg(0)))
	case verb == "pause":
		s.pause(number(t, arg(0)), duration(t, arg(1)))
	case verb == "leave":
		s.step(s.nodes[number(t, arg(0))], Go{})
	case verb == "suspect":
		s.step(s.nodes[number(t, arg(0))], Suspect{Node: s.nodes[number(t, arg(1))].node})
	case verb == "show":
		n := s.nodes[number(t, arg(0))]
		var b strings.Builder
		for _, m := range n.dir.Members {
			b.WriteString(" " + strings.ToLower(m.Type))
			if m.Hidden {
				b.WriteString("(hidden)")
			}
		}
		s.say(string(n.node), "directory live=%v:%s", n.dir.Live, b.String())
	default:
		t.Fatalf("unknown line %q", verb)
	}
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func duration(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
