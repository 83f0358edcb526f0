// Command diarkisd is a node of a real-time server cluster for multiplayer games:
// a registry (mars), the public door (http), or a node that players talk to (udp, tcp).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	out := &output{to: os.Stdout}
	root.SetOut(out)
	err := root.ExecuteContext(context.Background())
	if out.err != nil && (err == nil || errors.Is(err, out.err)) {
		err = &lifecycle.Error{Code: lifecycle.ExitFailed, Err: fmt.Errorf("answer not written: %w", out.err)}
	}
	if err == nil {
		return lifecycle.ExitOK
	}
	code := lifecycle.CodeOf(err)
	if _, ok := errors.AsType[*usageError](err); ok {
		code = lifecycle.ExitUsage
	}
	if health, ok := errors.AsType[healthExit](err); ok {
		return int(health) // it has said why
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
	addVersionFlag(root)
	root.SilenceUsage, root.SilenceErrors = true, true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetHelpCommand(helpCommand(root))
	root.AddCommand(devCommand(), botCommand(), taskCommand(), marsCommand(), configCommand(), healthCheckCommand(), versionCommand())
	return root
}

// addVersionFlag adds --version. Cobra's own prints by a template, and text/template makes
// the binary a quarter larger, since it could call any method.
func addVersionFlag(root *cobra.Command) {
	asked := root.Flags().Bool("version", false, "print the version")
	start := root.RunE
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if *asked {
			return printVersion(cmd, args)
		}
		return start(cmd, args)
	}
}

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: noArgs, RunE: printVersion}
}

func printVersion(cmd *cobra.Command, _ []string) error {
	_, err := fmt.Fprintln(cmd.OutOrStdout(), lifecycle.BuildText(commit))
	return err
}

// helpCommand is cobra's, but what it does not know is a usage error.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about any command",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return &usageError{fmt.Errorf("no command is called %q: see diarkisd --help", strings.Join(args, " "))}
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
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

// healthExit is the exit code of a health check that was not well.
type healthExit int

func (healthExit) Error() string { return "health check failed" }

// healthCheckCommand parses its arguments itself, because its exit codes and its older
// calling form are a contract with existing scripts. run calls it directly; it comes
// to be here when something stands before its name.
func healthCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:                "health-check [ADDRESS] in|out|mars|ready…",
		Short:              "Tell whether the node on this machine is healthy",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if code := healthcheck.Main(cmd.Context(), args, os.Stdout, os.Stderr); code != healthcheck.ExitHealthy {
				return healthExit(code)
			}
			return nil
		},
	}
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) { fmt.Fprint(cmd.OutOrStdout(), healthcheck.Usage) })
	return cmd
}

// output is stdout, and remembers that it could not be written: a command that could
// not say what it was asked for has failed.
type output struct {
	to  io.Writer
	err error
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.to.Write(b)
	if err != nil && o.err == nil {
		o.err = err
	}
	return n, err
}
