package lifecycle

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/rundir"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

// lines is a log that may be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// taskNode is a node that runs tasks, and nothing else.
func taskNode(t *testing.T, level string) (*Node, *lines) {
	t.Helper()
	log := &lines{}
	logger, lv, err := telemetry.NewLogger(telemetry.LogOptions{Level: level, JSON: true, Out: log})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := rundir.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{cfg: &config.Config{Role: config.RoleUDP}, log: logger, level: lv, dir: dir}
	n.started.Store(true)
	return n, log
}

// TestOutcomesAreAlwaysLogged: the level an operator asks for hides everything but
// that they asked.
func TestOutcomesAreAlwaysLogged(t *testing.T) {
	for _, level := range []string{"trace", "info", "warn", "error", "fatal"} {
		n, log := taskNode(t, "info")
		for _, to := range []string{level, "loud"} {
			n.outcome(t.Context(), rundir.Task{Name: "ChangeLogLevel", Params: []string{to}}, nil)
		}
		n.outcome(t.Context(), rundir.Task{Name: "Goroutines"}, nil)
		n.runTasks(t.Context(), 1) // without a task file
		for _, want := range []string{`"task done"`, `"level":"info"`, "log level is " + level, `"task refused"`, `"level":"warn"`, `"goroutines dumped"`, `"signal":"SIGUSR1"`, `"task file refused"`} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("at level %s no %s in:\n%s", level, want, log)
			}
		}
		for line := range strings.Lines(log.String()) {
			if !json.Valid([]byte(line)) {
				t.Errorf("no JSON: %s", line)
			}
		}
	}
}

// TestASignalForAnAskedTaskRunsNoOther: the plain file may be there since months.
func TestASignalForAnAskedTaskRunsNoOther(t *testing.T) {
	n, log := taskNode(t, "info")
	plain := filepath.Join(n.dir.Path(), "DIARKIS_SIGUSR1")
	if err := os.WriteFile(plain, []byte("ChangeLogLevel\nerror\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	self := rundir.Node{Role: "udp", PID: os.Getpid()}
	ask := func(name string, params ...string) *rundir.Request {
		t.Helper()
		r, err := n.dir.Ask(self, rundir.Task{Name: name, Params: params})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	one, two := ask("ChangeLogLevel", "debug"), ask("changeloglevel", "warn")
	n.runTasks(t.Context(), 1)
	for _, r := range []*rundir.Request{one, two} {
		if o, err := r.Wait(t.Context()); err != nil || o.Code != ExitOK {
			t.Errorf("outcome = %+v, %v", o, err)
		}
	}
	n.runTasks(t.Context(), 1) // the second one's signal
	r := ask("ChangeLogLevel", "debug")
	if !r.Withdraw() {
		t.Fatal("not withdrawn")
	}
	n.runTasks(t.Context(), 1)
	if got := n.level.String(); got != "warn" {
		t.Errorf("level is %s: a task that was withdrawn, or the plain file's, was run", got)
	}
	if strings.Contains(log.String(), "refused") {
		t.Errorf("complaints:\n%s", log)
	}
	// One sent by hand may have been merged with them: it is not lost without a word.
	if got := strings.Count(log.String(), "task file not run"); got != 3 {
		t.Errorf("%d lines say that the plain file was not run, want one for each signal:\n%s", got, log)
	}
	n.runTasks(t.Context(), 1) // by hand
	if got := n.level.String(); got != "error" {
		t.Errorf("level is %s: the plain file was not read", got)
	}
}

func TestCrowdNamesWhoIsWaitedFor(t *testing.T) {
	log := &lines{}
	l := zerolog.New(log)
	crowd{present: 7, away: 2, some: []string{"ann", "bob"}}.fields(l.Info()).Send()
	crowd{}.fields(l.Info()).Send()
	if got, want := log.String(), `{"level":"info","users":7,"not_waited_for":2,"such_as":["ann","bob"]}`+"\n"+`{"level":"info","users":0}`+"\n"; got != want {
		t.Errorf("lines %s, want %s", got, want)
	}
}
