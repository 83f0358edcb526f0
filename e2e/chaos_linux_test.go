package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var (
	shortChaos = chaosSize{
		bots: 40, crowds: 2,
		env: []string{ // whoever is lost is forgotten sooner
			"DIARKIS_UDP_CONNECTION_TTL=4", "DIARKIS_TCP_CONNECTION_TTL=4",
			"DIARKIS_UDP_RESUME_TTL=8", "DIARKIS_TCP_RESUME_TTL=8",
		},
	}
	longChaos = chaosSize{
		bots: 200, crowds: 4, clocks: true,
		rounds: [][]int{{1, 1, 2, 3}, {1, 2, 1, 2}, {1, 1, 1, 3}, {2, 1, 3}, {1, 5}, {3, 1, 4}},
	}
)

// binary is which build of diarkisd is played on.
func (s chaosSize) binary(t *testing.T) string {
	if s.clocks {
		return binaryWithClock(t)
	}
	return ""
}

// TestChaos has players play on a cluster of eight processes while a schedule of faults
// made from a seed befalls it. By default one short schedule is played; `make chaos`
// plays many long ones. See docs/chaos.md.
func TestChaos(t *testing.T) {
	seeds, err := strconv.Atoi(cmp.Or(os.Getenv("DIARKIS_CHAOS"), "0"))
	if err != nil {
		t.Fatalf("DIARKIS_CHAOS: %v", err)
	}
	first, err := strconv.ParseUint(cmp.Or(os.Getenv("DIARKIS_CHAOS_SEED"), "1"), 10, 64)
	if err != nil {
		t.Fatalf("DIARKIS_CHAOS_SEED: %v", err)
	}
	size := longChaos
	if size.only = os.Getenv("DIARKIS_CHAOS_KIND"); size.only != "" {
		if size.rounds = [][]int{{1, 1, 1, 1}}; len(size.kinds()) == 0 {
			t.Fatalf("DIARKIS_CHAOS_KIND: no kind of fault has %q in its name", size.only)
		}
	}
	if seeds == 0 {
		t.Parallel()
	}
	if !privileged(t) {
		return
	}
	if seeds == 0 {
		t.Logf("\n%v", playChaos(t, first, shortChaos))
		return
	}
	rows := make(outageRows)
	for i := range uint64(seeds) {
		t.Run(fmt.Sprintf("seed-%d", first+i), func(t *testing.T) {
			rows.add(playChaos(t, first+i, size))
		})
	}
	t.Logf("\n%v", rows)
}

// playChaos plays one seed.
func playChaos(t *testing.T, seed uint64, size chaosSize) outageRows {
	plan := schedule(seed, size)
	t.Logf("the schedule of seed %d:\n%s", seed, printed(plan))
	w := newChaos(t, seed, size)
	w.ctx, w.cancel = context.WithCancel(context.Background())
	defer w.tell()
	defer w.stop()
	w.watchLeases()
	w.watchStalls()
	w.newBots()
	calm := w.calm(true)
	if calm {
		w.waitVoters(5) // a cluster that was started just now can't do without mars
	}
	for i := 0; calm && i < len(plan); i++ {
		w.play(i, plan[i])
		calm = w.calm(i == len(plan)-1)
		w.judgeNodes()
	}
	w.judgeGaps()
	w.stop()
	if calm {
		w.empty()
		w.shutDown()
	}
	w.judgeLogs()
	rows := w.outageRows()
	w.event("outages:\n%v", rows)
	return rows
}

// shutDown has all nodes go in peace, mars last.
func (w *chaos) shutDown() {
	for _, n := range append(w.but(w.mars), w.mars) {
		n.terminate(w)
	}
}

func (n *node) terminate(w *chaos) {
	n.signal(syscall.SIGTERM)
	if code := n.waitExit(); code != 0 {
		w.problem("%s %s exited with %d after SIGTERM", n.name, n.Mesh, code)
	}
}

// tell prints what happened when something was wrong, and fails the test.
func (w *chaos) tell() {
	w.mu.Lock()
	events, problems := strings.Join(w.events, "\n"), w.problems
	w.mu.Unlock()
	if len(problems) == 0 && !w.t.Failed() {
		w.t.Logf("what happened:\n%s", events)
		return
	}
	dir, err := w.keepLogs(events)
	if err != nil {
		w.t.Logf("keep logs: %v", err)
	}
	w.t.Logf("what happened is in %s", dir)
	if len(problems) == 0 {
		return // what failed was said
	}
	w.t.Errorf("seed %d: %d problems:\n%s", w.seed, len(problems), strings.Join(problems[:min(len(problems), 40)], "\n"))
}

// keepLogs writes everything that helps to read a failure into a directory that stays.
func (w *chaos) keepLogs(events string) (string, error) {
	dir := filepath.Join(cmp.Or(os.Getenv("DIARKIS_CHAOS_LOGS"), os.TempDir()), fmt.Sprintf("diarkis-chaos-seed-%d-%s", w.seed, time.Now().Format("150405")))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return dir, err
	}
	text := fmt.Sprintf("seed %d, time 0 is %s\n\n%s\n%s\n", w.seed, w.start.Format(time.RFC3339Nano), printed(schedule(w.seed, w.size)), events)
	if err := os.WriteFile(filepath.Join(dir, "events.txt"), []byte(text), 0o600); err != nil {
		return dir, err
	}
	for i, n := range w.everStarted() {
		name := fmt.Sprintf("%02d-%s-%s.log", i, n.name, strings.ReplaceAll(n.Mesh, ":", "-"))
		if err := os.WriteFile(filepath.Join(dir, name), []byte(n.log()), 0o600); err != nil {
			return dir, err
		}
	}
	return dir, nil
}

func printed(plan [][]fault) string {
	var b strings.Builder
	for i, round := range plan {
		fmt.Fprintf(&b, "round %d\n", i+1)
		for _, f := range round {
			fmt.Fprintf(&b, "  %s\n", f)
		}
	}
	return b.String()
}
