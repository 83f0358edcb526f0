package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/healthcheck"
	"github.com/Diarkis/diarkis/internal/lifecycle"
	"github.com/Diarkis/diarkis/internal/rundir"
)

func taskCommand() *cobra.Command {
	var pid int
	cmd := &cobra.Command{
		Use:   "task NAME [PARAM…]",
		Short: "Ask a running node on this machine to do something",
		Long: `task writes the node's task file and sends it SIGUSR1. The node logs what came of it.

Tasks:
  ` + strings.Join(lifecycle.Tasks(), "\n  "),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{fmt.Errorf("name a task: see diarkisd task --help")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := config.Load(config.Options{})
			if err != nil {
				return err
			}
			return runTask(cmd, cfg.Env.RunDir, "", pid, rundir.Task{Name: args[0], Params: args[1:]})
		},
	}
	cmd.Flags().IntVar(&pid, "pid", 0, "process `id` of the node (needed when several run here)")
	return cmd
}

// runTask sends a task to one node and says whom it asked.
func runTask(cmd *cobra.Command, runDir, role string, pid int, t rundir.Task) error {
	to, err := sendTask(runDir, role, pid, t)
	if err != nil {
		return &lifecycle.Error{Code: lifecycle.CodeOf(err), Err: err}
	}
	fmt.Fprintf(cmd.OutOrStdout(), "asked process %d to run %s: see its log\n", to, t.Name)
	return nil
}

// sendTask asks one node, the only one of the role ("" for any) when pid is 0, and
// returns whom it asked.
func sendTask(runDir, role string, pid int, t rundir.Task) (int, error) {
	if pid == 0 {
		nodes, err := healthcheck.Find(runDir, role, 0)
		if err != nil {
			return 0, &lifecycle.Error{Code: lifecycle.ExitUnavailable, Err: err}
		}
		if len(nodes) != 1 {
			return 0, &lifecycle.Error{Code: lifecycle.ExitUnavailable, Err: fmt.Errorf("%d nodes run in %s: name one with --pid%s", len(nodes), runDir, listNodes(nodes))}
		}
		pid = nodes[0].PID
	}
	proc, err := os.FindProcess(pid)
	if err != nil {
		return 0, &lifecycle.Error{Code: lifecycle.ExitUnavailable, Err: fmt.Errorf("process %d: %w", pid, err)}
	}
	if err := rundir.WriteTask(runDir, 1, pid, t); err != nil {
		return 0, err
	}
	if err := signalTask(proc); err != nil {
		return 0, &lifecycle.Error{Code: lifecycle.ExitUnavailable, Err: fmt.Errorf("signal process %d: %w", pid, err)}
	}
	return pid, nil
}

func listNodes(nodes []rundir.Node) string {
	var b strings.Builder
	for _, n := range nodes {
		fmt.Fprintf(&b, "; %s %d", n.Role, n.PID)
	}
	return b.String()
}
