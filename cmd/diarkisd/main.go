// Command diarkisd is a node of a real-time server cluster for multiplayer games:
// a registry (mars), the public door (http), or a node that players talk to (udp, tcp).
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/Diarkis/diarkis/internal/healthcheck"
	"github.com/Diarkis/diarkis/internal/lifecycle"
)

// commit is what the binary was built from; the Makefile sets it.
var commit = "unknown"

func main() { os.Exit(run(os.Args)) }

// run is main without the exit, so that deferred calls happen.
func run(args []string) int {
	name := strings.TrimSuffix(filepath.Base(args[0]), ".exe")
	if name == "health-check" || (len(args) > 1 && args[1] == "health-check") {
		rest := args[1:]
		if name != "health-check" {
			rest = args[2:]
		}
		return healthcheck.Main(context.Background(), rest, os.Stdout, os.Stderr)
	}
	root := rootCommand()
	root.SetArgs(args[1:])
	err := root.ExecuteContext(context.Background())
	if err == nil {
		return lifecycle.ExitOK
	}
	code := lifecycle.CodeOf(err)
	if _, ok := errors.AsType[*usageError](err); ok {
		code = lifecycle.ExitUsage
	}
	text := err.Error()
	if lines := strings.Count(text, "\n") + 1; lines > 1 {
		fmt.Fprintln(os.Stderr, text)
		text = fmt.Sprintf("%d problems, listed above", lines)
	}
	fmt.Fprintf(os.Stderr, "diarkisd: %s (exit %d)\n", text, code)
	return code
}

// usageError marks what is wrong with the command line itself.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func rootCommand() *cobra.Command {
	root := nodeCommand()
	root.SilenceUsage, root.SilenceErrors = true, true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(devCommand(), botCommand(), taskCommand(), marsCommand(), configCommand(), healthCheckCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintln(cmd.OutOrStdout(), lifecycle.BuildText(commit))
		},
	}
}

// noArgs refuses arguments as a usage error, which exits with 64.
func noArgs(cmd *cobra.Command, args []string) error {
	if err := cobra.NoArgs(cmd, args); err != nil {
		return &usageError{err}
	}
	return nil
}

// healthCheckCommand shows up in the help; run parses its arguments itself, because
// its exit codes and its older calling form are a contract with existing scripts.
func healthCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "health-check in|out|mars",
		Short:              "Tell whether the node on this machine is healthy (see health-check --help)",
		DisableFlagParsing: true,
		Run:                func(*cobra.Command, []string) {},
	}
}
