package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/rundir"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

const (
	// TaskWait is how long `diarkisd task` waits for what comes of a task.
	TaskWait = 30 * time.Second
	// taskTime is how long a task may take, so that who asked still hears of its failure.
	taskTime = TaskWait - 5*time.Second
)

// errTerminating is why a node that drains changes nothing any more.
var errTerminating = errors.New("the process is terminating")

// task is what SIGUSR1 or SIGUSR2 can ask of a running process.
type task struct {
	help string
	// run does it and says in one line what was done. It returns a taskUsageError when the
	// parameters are wrong, and gives up when ctx ends.
	run func(ctx context.Context, params []string) (did string, err error)
}

// taskUsageError says that there is no such task, or not with these parameters: exit 64.
type taskUsageError struct{ text string }

func (e *taskUsageError) Error() string { return e.text }

func taskUsage(format string, args ...any) error {
	return &taskUsageError{fmt.Sprintf(format, args...)}
}

// Tasks returns the names of the built-in tasks with a line on each, sorted.
func Tasks() []string {
	n := &Node{}
	t := n.builtinTasks()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(t)) {
		out = append(out, fmt.Sprintf("%-15s %s", name, t[name].help))
	}
	return out
}

func (n *Node) builtinTasks() map[string]task {
	return map[string]task{
		"ChangeLogLevel": {"LEVEL: trace, debug, info, warn, error or fatal", n.changeLogLevel},
		"Offline":        {"take no new players; those here are told and play on", n.setStateTask(mars.Offline)},
		"Online":         {"take new players again, after Offline or Taken", n.setStateTask(mars.Online)},
		"Taken":          {"take no new players: reserved for those here", n.setStateTask(mars.Taken)},
		"DumpDirectory":  {"log every node this one knows", withoutParams(n.dumpDirectory)},
		"DumpRooms":      {"log every room on this node", withoutParams(n.dumpRooms)},
		"Goroutines":     {"log the stack of every goroutine", withoutParams(n.dumpGoroutines)},
		"MarsRecover":    {"found the cluster anew if nobody has an authority", withoutParams(n.marsRecover)},
		"MarsTransfer":   {"NODE: hand the office of the authority to the node at this mesh address", n.marsTransfer},
	}
}

// findTask looks a task up by name, in any case of letters: it is typed by hand.
func (n *Node) findTask(name string) (string, task, error) {
	tasks := n.builtinTasks()
	for known, t := range tasks {
		if strings.EqualFold(known, name) {
			return known, t, nil
		}
	}
	return name, task{}, taskUsage("no task is called %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(tasks)), ", "))
}

// runTasks does what a signal, 1 or 2, asks for: the tasks somebody waits for at the
// other end, and else the one in the task file that goes with the signal.
func (n *Node) runTasks(ctx context.Context, signal int) {
	starting, cancel := context.WithTimeout(ctx, taskTime)
	defer cancel()
	if !waitFor(starting, n.started.Load) {
		n.noteTask(zerolog.WarnLevel).Str("signal", signalName(signal)).Msg("task not run, the node is not started")
		return
	}
	signalled := signal == 1 && n.runAsked(ctx)
	t, err := n.fileTask(signal, !signalled)
	switch {
	case errors.Is(err, rundir.ErrNoTask) && signalled:
		return // the signal was for those above
	case err != nil:
		n.noteTask(zerolog.WarnLevel).Err(err).Str("signal", signalName(signal)).Msg("task file refused")
		return
	}
	n.outcome(ctx, t, nil)
}

// fileTask reads the task in the file for this process, else, when the signal was sent by
// hand, in the plain one.
func (n *Node) fileTask(signal int, byHand bool) (rundir.Task, error) {
	t, err := rundir.ReadPIDTask(n.dir.Path(), signal, os.Getpid())
	if errors.Is(err, rundir.ErrForeignTask) {
		n.noteTask(zerolog.WarnLevel).Err(err).Str("signal", signalName(signal)).Msg("task file passed over")
		err = rundir.ErrNoTask
	}
	if !errors.Is(err, rundir.ErrNoTask) {
		return t, err
	}
	if byHand {
		return rundir.ReadTask(n.dir.Path(), signal)
	}
	if rundir.HasTask(n.dir.Path(), signal) {
		n.noteTask(zerolog.InfoLevel).Str("signal", signalName(signal)).
			Msg("task file not run, the signal was taken for that of a task asked for: if you sent one too, send it again")
	}
	return rundir.Task{}, rundir.ErrNoTask
}

// signalLate is how long after its task was run a signal may come that was sent for it.
const signalLate = 2 * time.Second

// signalDebt is how many signals are still to come for tasks that were run already: the signal
// of one asker has the node take the tasks of all.
type signalDebt struct {
	signals int
	until   time.Time // the system may have merged them, so that they never come
}

// runAsked runs the tasks that somebody waits for, and tells whether a SIGUSR1 was for them.
func (n *Node) runAsked(ctx context.Context) (signalled bool) {
	asked, signals := n.dir.TakeTasks(string(n.cfg.Role), os.Getpid())
	if time.Now().After(n.owed.until) {
		n.owed.signals = 0
	}
	due := n.owed.signals + signals
	n.owed.signals = max(0, due-1)
	for _, a := range asked {
		o := n.outcome(ctx, a.Task, a.Err)
		if err := a.Finish(o); err != nil {
			n.noteTask(zerolog.ErrorLevel).Err(err).Str("task", a.Task.Name).Msg("outcome of a task not written")
		}
	}
	if signals > 0 {
		n.owed.until = time.Now().Add(signalLate)
	}
	return due > 0
}

// outcome runs one task and logs what came of it, at whatever level the log is: an
// operator asked.
func (n *Node) outcome(ctx context.Context, t rundir.Task, err error) rundir.Outcome {
	name, did := t.Name, ""
	var known task
	if err == nil {
		name, known, err = n.findTask(t.Name)
	}
	switch {
	case err != nil:
	case ctx.Err() != nil:
		err = errTerminating
	default:
		ctx, cancel := context.WithTimeout(ctx, taskTime)
		did, err = known.run(ctx, t.Params)
		cancel()
	}
	if err == nil {
		n.noteTask(zerolog.InfoLevel).Str("task", name).Str("outcome", did).Msg("task done")
		return rundir.Outcome{Code: ExitOK, Text: did}
	}
	code, message := ExitFailed, "task failed"
	if _, ok := errors.AsType[*taskUsageError](err); ok {
		code, message = ExitUsage, "task refused"
	}
	n.noteTask(zerolog.WarnLevel).Err(err).Str("task", name).Msg(message)
	return rundir.Outcome{Code: code, Text: strings.ReplaceAll(err.Error(), "\n", "; ")}
}

// noteTask begins a line that is logged whatever the level: who asks for something is
// to see what came of it, also after asking for silence.
func (n *Node) noteTask(level zerolog.Level) *zerolog.Event {
	return n.log.Log().Str(zerolog.LevelFieldName, level.String())
}

// dump begins a line of what a task was asked to log.
func (n *Node) dump() *zerolog.Event { return n.noteTask(zerolog.InfoLevel) }

func withoutParams(run func(context.Context) (string, error)) func(context.Context, []string) (string, error) {
	return func(ctx context.Context, params []string) (string, error) {
		if len(params) != 0 {
			return "", taskUsage("takes no parameter, got %q", params)
		}
		return run(ctx)
	}
}

func (n *Node) changeLogLevel(_ context.Context, params []string) (string, error) {
	if len(params) != 1 {
		return "", taskUsage("give one level, such as debug: there are %d parameters", len(params))
	}
	was, level := n.level.String(), strings.TrimSpace(params[0])
	if err := n.level.Set(level); err != nil {
		return "", &taskUsageError{err.Error()}
	}
	return fmt.Sprintf("log level is %s, was %s", n.level, was), nil
}

func (n *Node) setStateTask(s mars.State) func(context.Context, []string) (string, error) {
	return withoutParams(func(context.Context) (string, error) {
		was := n.marsNode.Self().State
		if was == s && !n.draining.Load() {
			return fmt.Sprintf("state was %v already", s), nil
		}
		if err := n.SetState(s); err != nil {
			return "", err
		}
		text := fmt.Sprintf("state is %v, was %v", s, was)
		if n.users != nil {
			text += fmt.Sprintf(", %d users here", n.users.CCU())
		}
		if joined, reason := n.marsNode.Joined(); !joined {
			text += "; nobody else knows of this node: " + reason
		}
		return text, nil
	})
}

func (n *Node) dumpDirectory(context.Context) (string, error) {
	d := n.marsNode.Directory()
	n.dump().Uint64("version", d.Version).Bool("live", d.Live).Stringer("authority", d.Authority).
		Int("members", len(d.Members)).Msg("directory dumped")
	for _, m := range d.Members {
		n.dump().Stringer("peer", m.Node).Str("role", m.Role).Str("type", m.Type).Stringer("state", m.State).
			Str("endpoint", m.Endpoint).Bool("hidden", m.Hidden).Int("users", m.Users).Msg("directory member")
	}
	return fmt.Sprintf("%d members logged", len(d.Members)), nil
}

func (n *Node) dumpRooms(context.Context) (string, error) {
	if n.rooms == nil {
		return "", fmt.Errorf("a %s node has no rooms", n.cfg.Role)
	}
	infos := n.rooms.Rooms()
	n.dump().Int("rooms", len(infos)).Msg("rooms dumped")
	for _, r := range infos {
		b, err := json.Marshal(r)
		if err != nil {
			return "", fmt.Errorf("dump rooms: %w", err)
		}
		n.dump().RawJSON("room", b).Msg("room")
	}
	return fmt.Sprintf("%d rooms logged", len(infos)), nil
}

func (n *Node) dumpGoroutines(context.Context) (string, error) {
	var b bytes.Buffer
	profile := pprof.Lookup("goroutine")
	if err := profile.WriteTo(&b, 1); err != nil {
		return "", fmt.Errorf("dump goroutines: %w", err)
	}
	n.dump().Str("stacks", b.String()).Msg("goroutines dumped")
	return fmt.Sprintf("%d goroutines logged", profile.Count()), nil
}

// waitFor looks every now and then whether something has come to pass, until ctx ends.
func waitFor(ctx context.Context, happened func() bool) bool {
	const look = 50 * time.Millisecond
	t := time.NewTicker(look)
	defer t.Stop()
	for !happened() {
		select {
		case <-ctx.Done():
			return happened()
		case <-t.C:
		}
	}
	return true
}

// after says how long something took, for an outcome.
func after(began time.Time) string { return "after " + telemetry.Span(time.Since(began)) }
