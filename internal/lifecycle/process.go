package lifecycle

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

// Version is the version of this source tree.
const Version = "0.1.0"

// errSecondSignal is why waiting for clients ended early.
var errSecondSignal = errors.New("second signal")

// ProcessOptions says what to load and run.
type ProcessOptions struct {
	Role      config.Role
	ConfigDir string            // --config-dir
	File      string            // --config
	Flags     map[string]string // settings given as flags: "udp.port" → "7101"
	Commit    string            // what the binary was built from
}

// RunProcess loads the settings and runs one node until a signal asks it to stop.
// The first SIGTERM or SIGINT drains, a second ends at once. The error says which
// exit code to use: see [CodeOf].
func RunProcess(ctx context.Context, o ProcessOptions) error {
	signals := catchSignals()
	defer signal.Stop(signals)
	ignoreBrokenPipe()
	cfg, err := config.Load(config.Options{Role: o.Role, Dir: o.ConfigDir, File: o.File, Flags: o.Flags})
	if err != nil {
		return err
	}
	log, level, err := newLogger(cfg)
	if err != nil {
		return &Error{ExitConfig, err}
	}
	for _, w := range cfg.Warnings {
		log.Warn().Str("role", string(cfg.Role)).Str("warning", w).Msg("settings have a warning")
	}
	if _, err := Check(ctx, cfg); err != nil {
		return err
	}
	boundMemory(ctx, log)
	n := New(Options{Config: cfg, Log: log, Level: level, Build: buildInfo(o.Commit)})
	log = log.With().Str("role", string(cfg.Role)).Logger()
	return serve(ctx, signals, log, cfg.Env.StopOnSIGHUP, []*Node{n}, untilDone)
}

func newLogger(cfg *config.Config) (zerolog.Logger, *telemetry.Level, error) {
	return telemetry.NewLogger(telemetry.LogOptions{
		Level: cfg.Log.Level, Color: cfg.Log.Color, JSON: cfg.Log.JSON || cfg.Env.JSONLog, Flat: cfg.Log.Flat,
	})
}

func buildInfo(commit string) telemetry.BuildInfo {
	return telemetry.BuildInfo{Version: Version, Commit: commit}
}

// BuildText is what `diarkisd version` prints.
func BuildText(commit string) string {
	goVersion := runtime.Version()
	if bi, ok := debug.ReadBuildInfo(); ok {
		goVersion = bi.GoVersion
	}
	return "diarkisd " + Version + " (" + commit + ", " + goVersion + " " + runtime.GOOS + "/" + runtime.GOARCH + ")"
}

// untilDone is the work of a process that only serves.
func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// catchSignals has the process get signals from ch from here on, before there is
// anything to clean up after one. Undo it with signal.Stop.
func catchSignals() (ch chan os.Signal) {
	ch = make(chan os.Signal, 4)
	signal.Notify(ch, append([]os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP}, taskSignals...)...)
	return ch
}

// serve runs nodes and, on top of them, work under the process's signals.
func serve(ctx context.Context, signals <-chan os.Signal, log zerolog.Logger, stopOnHUP bool, nodes []*Node, work func(context.Context) error) error {
	soft, stop := context.WithCancel(ctx)
	defer stop()
	hard, kill := context.WithCancelCause(context.WithoutCancel(ctx))
	defer kill(nil)
	var watch sync.WaitGroup
	tasks := newTaskQueue()
	watch.Go(func() { watchSignals(soft, hard, signals, signalActions{log, stopOnHUP, stop, kill, tasks}) })
	watch.Go(func() { runTasks(hard, tasks, nodes) })
	err := runAll(soft, hard, nodes, work)
	kill(nil)
	watch.Wait()
	return err
}

// runAll starts nodes in order, each when the one before it listens, then does work
// until that ends, ctx ends or a node fails. It stops in reverse: work first, so
// that its players have left when the nodes begin to wait for them.
func runAll(ctx, hard context.Context, nodes []*Node, work func(context.Context) error) error {
	if len(nodes) == 0 {
		return work(ctx)
	}
	n := nodes[0]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	own, stopOwn := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOwn()
	up, ended := make(chan struct{}), make(chan error, 1)
	onUp := n.onUp
	n.onUp = func(n *Node) {
		if onUp != nil {
			onUp(n)
		}
		close(up)
	}
	go func() {
		err := n.Run(own, hard)
		cancel() // a node that failed takes down what stands on it
		ended <- err
	}()
	var err error
	select {
	case <-up:
		err = runAll(ctx, hard, nodes[1:], work)
	case <-ctx.Done():
	}
	stopOwn()
	return errors.Join(err, <-ended)
}

// signalActions is what watchSignals may do.
type signalActions struct {
	log       zerolog.Logger
	stopOnHUP bool
	stop      context.CancelFunc
	kill      context.CancelCauseFunc
	tasks     taskQueue
}

// taskQueue holds that SIGUSR1, and that SIGUSR2, asks for tasks. More of the same wait as one:
// it takes all the tasks there are.
type taskQueue [2]chan struct{}

func newTaskQueue() taskQueue { return taskQueue{make(chan struct{}, 1), make(chan struct{}, 1)} }

// add notes signal 1 or 2.
func (q taskQueue) add(signal int) {
	select {
	case q[signal-1] <- struct{}{}:
	default: // one that waits finds this one's tasks too
	}
}

// watchSignals acts on signals until hard ends.
func watchSignals(soft, hard context.Context, signals <-chan os.Signal, a signalActions) {
	for {
		select {
		case <-hard.Done():
			return
		case s := <-signals:
			a.act(soft, s)
		}
	}
}

// runTasks runs the tasks that signals ask for, one after another, until ctx ends.
// It is apart from watchSignals: a task may take its time, and a signal to stop must not
// wait for it.
func runTasks(ctx context.Context, q taskQueue, nodes []*Node) {
	for {
		signal := 0
		select {
		case <-ctx.Done():
			return
		case <-q[0]:
			signal = 1
		case <-q[1]:
			signal = 2
		}
		for _, n := range nodes {
			n.runTasks(ctx, signal)
		}
	}
}

func (a signalActions) act(soft context.Context, s os.Signal) {
	switch {
	case taskSignal(s) > 0:
		a.tasks.add(taskSignal(s))
	case s == syscall.SIGHUP && !a.stopOnHUP:
		a.log.Info().Msg("hangup ignored")
	case soft.Err() == nil:
		a.log.Info().Str("signal", signalText(s)).Msg("stop requested")
		a.stop()
	default:
		a.log.Warn().Str("signal", signalText(s)).Msg("stop requested again, not waiting for clients")
		a.kill(errSecondSignal)
	}
}

// signalText names a signal as kill(1) does.
func signalText(s os.Signal) string {
	switch s {
	case syscall.SIGTERM:
		return "SIGTERM"
	case syscall.SIGINT:
		return "SIGINT"
	case syscall.SIGHUP:
		return "SIGHUP"
	}
	return s.String()
}

// signalName names the signal of a task.
func signalName(task int) string { return "SIGUSR" + strconv.Itoa(task) }
