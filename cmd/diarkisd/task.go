package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/Diarkis/diarkis/internal/config"
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
			to, err := sendTask(cfg.Env.RunDir, pid, args[0], args[1:])
			if err != nil {
				return &lifecycle.Error{Code: lifecycle.CodeOf(err), Err: err}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "asked process %d to run %s: see its log\n", to, args[0])
			return nil
		},
	}
	cmd.Flags().IntVar(&pid, "pid", 0, "process `id` of the node (needed when several run here)")
	return cmd
}

// sendTask asks one node, the only one when pid is 0, and returns whom it asked.
func sendTask(runDir string, pid int, name string, params []string) (int, error) {
	if pid == 0 {
		dir, err := rundir.Open(runDir)
		if err != nil {
			return 0, err
		}
		nodes, err := dir.Nodes()
		if err != nil {
			return 0, err
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
	if err := rundir.WriteTask(runDir, 1, pid, rundir.Task{Name: name, Params: params}); err != nil {
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
