package main

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/Diarkis/diarkis/internal/healthcheck"
	"github.com/Diarkis/diarkis/internal/lifecycle"
	"github.com/Diarkis/diarkis/internal/rundir"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

func taskCommand() *cobra.Command {
	f := &nodeFlags{}
	cmd := &cobra.Command{
		Use:   "task NAME [PARAM…]",
		Short: "Ask a running node on this machine to do something",
		Long: fmt.Sprintf(`task asks a node that runs on this machine, waits for up to %s, and says what came
of it. Only nodes that the run directory knows are asked, never another process.
Case does not matter in names.

Tasks:
  %s

Exit codes: 0 done, 1 failed or not done in time, 3 no such node, 64 no such task or
not its parameters, 73 the task could not be left in the run directory, 77 that is not
this user's.`, telemetry.Span(lifecycle.TaskWait), strings.Join(lifecycle.Tasks(), "\n  ")),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{fmt.Errorf("name a task: see diarkisd task --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return f.task(cmd, args[0], args[1:]...) },
	}
	f.add(cmd.Flags())
	return cmd
}

// task has one node run a task and says what came of it. The error has the exit code.
func (f *nodeFlags) task(cmd *cobra.Command, name string, params ...string) error {
	t := rundir.Task{Name: name, Params: params}
	if err := t.Check(); err != nil {
		return &usageError{err}
	}
	dir, node, err := f.one(cmd)
	if err != nil {
		return err
	}
	// A Ctrl-C takes the task back.
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	o, err := askTask(ctx, dir, node, t)
	who := fmt.Sprintf("%s %d", node.Role, node.PID)
	switch {
	case err != nil:
		return &lifecycle.Error{Code: lifecycle.CodeOf(err), Err: fmt.Errorf("%s: %s: %w", who, name, err)}
	case o.Code != lifecycle.ExitOK:
		return &lifecycle.Error{Code: o.Code, Err: fmt.Errorf("%s: %s: %s", who, name, o.Text)}
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s done: %s\n", who, name, o.Text)
	return err
}

// askTask asks a node and waits for its outcome. No file is left behind whatever goes wrong.
func askTask(ctx context.Context, dir *rundir.Dir, node rundir.Node, t rundir.Task) (rundir.Outcome, error) {
	r, err := dir.Ask(node, t)
	if err != nil {
		return rundir.Outcome{}, err
	}
	if err := dir.Signal(node); err != nil {
		r.Forget()
		code := lifecycle.ExitFailed
		if errors.Is(err, rundir.ErrNotThisProcess) || errors.Is(err, rundir.ErrOlder) {
			code = lifecycle.ExitNoNode
		}
		return rundir.Outcome{}, &lifecycle.Error{Code: code, Err: err}
	}
	wait, cancel := context.WithTimeout(ctx, lifecycle.TaskWait)
	defer cancel()
	o, err := r.Wait(wait)
	if err == nil {
		return o, nil
	}
	switch {
	case ctx.Err() != nil:
		err = fmt.Errorf("interrupted: %w", err)
	case errors.Is(err, rundir.ErrNotTaken) && rundir.Stopped(node.PID):
		err = fmt.Errorf("%w (the process is stopped: SIGCONT lets it go on)", err)
	case wait.Err() != nil:
		err = fmt.Errorf("nothing for %s: %w", telemetry.Span(lifecycle.TaskWait), err)
	}
	return o, &lifecycle.Error{Code: lifecycle.ExitFailed, Err: err}
}

// one returns the node that is meant: the only one there is.
func (f *nodeFlags) one(cmd *cobra.Command) (*rundir.Dir, rundir.Node, error) {
	dir, nodes, err := f.find(cmd)
	if err != nil {
		return nil, rundir.Node{}, err
	}
	if len(nodes) > 1 {
		return nil, rundir.Node{}, &usageError{fmt.Errorf("%d nodes run in %s, name one with --pid or --role: %s", len(nodes), dir.Path(), listNodes(nodes))}
	}
	if nodes[0].Admin == "" {
		return nil, rundir.Node{}, &lifecycle.Error{Code: lifecycle.ExitFailed, Err: fmt.Errorf("%s %d is starting", nodes[0].Role, nodes[0].PID)}
	}
	return dir, nodes[0], nil
}

// find returns the nodes on this machine that may be meant, one at least.
func (f *nodeFlags) find(cmd *cobra.Command) (*rundir.Dir, []rundir.Node, error) {
	dir, err := f.runDir(cmd)
	if err != nil {
		return nil, nil, err
	}
	d, nodes, err := healthcheck.Find(dir, f.role, f.pid)
	if err != nil {
		return nil, nil, &lifecycle.Error{Code: lifecycle.ExitNoNode, Err: err}
	}
	return d, nodes, nil
}

func listNodes(nodes []rundir.Node) string {
	var names []string
	for _, n := range nodes {
		names = append(names, fmt.Sprintf("%s %d", n.Role, n.PID))
	}
	return strings.Join(names, ", ")
}
