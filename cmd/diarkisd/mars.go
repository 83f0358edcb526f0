package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/healthcheck"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/lifecycle"
	"github.com/Diarkis/diarkis/internal/rundir"
)

// marsFlags choose the node on this machine that is asked.
type marsFlags struct {
	pid  int
	role string
}

// runDir returns where the nodes of this machine keep their files.
func (f *marsFlags) runDir() (string, error) {
	if f.role != "" {
		if _, ok := config.ParseRole(f.role); !ok {
			return "", &usageError{fmt.Errorf("unknown role %q; roles are mars, http, udp, tcp", f.role)}
		}
	}
	cfg, err := config.Load(config.Options{})
	if err != nil {
		return "", err
	}
	return cfg.Env.RunDir, nil
}

// task sends a task to the chosen node.
func (f *marsFlags) task(cmd *cobra.Command, name string, params ...string) error {
	dir, err := f.runDir()
	if err != nil {
		return err
	}
	return runTask(cmd, dir, f.role, f.pid, rundir.Task{Name: name, Params: params})
}

func marsCommand() *cobra.Command {
	f := &marsFlags{}
	cmd := &cobra.Command{
		Use:   "mars status|recover|transfer",
		Short: "Show who leads the cluster, or change it",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return &usageError{errors.New("say status, recover or transfer")}
		},
	}
	cmd.PersistentFlags().IntVar(&f.pid, "pid", 0, "ask the node with this process `id`")
	cmd.PersistentFlags().StringVar(&f.role, "role", "", "ask the node of this `role`")
	cmd.AddCommand(marsStatusCommand(f), &cobra.Command{
		Use:   "recover",
		Short: "Found the cluster anew from a node on this machine, if nobody has an authority",
		Long: `recover is for a cluster that has lost most of its voters at once where the
setting mars.recovery is manual. The node asks every other one first and founds
nothing when one of them still has an authority. Its log says what came of it.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.task(cmd, "MarsRecover") },
	}, &cobra.Command{
		Use:   "transfer NODE",
		Short: "Hand the office of the authority to the node at a mesh address",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{errors.New("give the mesh address of one node: see diarkisd mars status")}
			}
			if _, err := id.Node(args[0]).AddrPort(); err != nil {
				return &usageError{err}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return f.task(cmd, "MarsTransfer", args[0]) },
	})
	return cmd
}

func marsStatusCommand(f *marsFlags) *cobra.Command {
	var asJSON bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the authority, its voters and the members, as a node on this machine sees them",
		Long: `status asks the nodes on this machine and shows what the authority says if it
is one of them, else the first that answers.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := f.runDir()
			if err != nil {
				return err
			}
			nodes, err := healthcheck.Find(dir, f.role, f.pid)
			if err != nil {
				return &lifecycle.Error{Code: lifecycle.ExitUnavailable, Err: err}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			st, err := askMARS(ctx, nodes)
			if err != nil {
				return &lifecycle.Error{Code: lifecycle.ExitUnavailable, Err: err}
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(st)
			}
			return printMARS(cmd.OutOrStdout(), st)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Second, "give up after this `time`")
	return cmd
}

// askMARS asks nodes until one is the authority, and returns its answer or the
// first there was.
func askMARS(ctx context.Context, nodes []rundir.Node) (*lifecycle.MARSStatus, error) {
	var first *lifecycle.MARSStatus
	var errs []error
	for _, n := range nodes {
		var st lifecycle.MARSStatus
		if err := healthcheck.Ask(ctx, n, "/mars", &st); err != nil {
			errs = append(errs, fmt.Errorf("%s %d: %w", n.Role, n.PID, err))
			continue
		}
		if st.Reigns {
			return &st, nil
		}
		if first == nil {
			first = &st
		}
	}
	if first == nil {
		return nil, errors.Join(errs...)
	}
	return first, nil
}

// printMARS writes a status for people.
func printMARS(out io.Writer, st *lifecycle.MARSStatus) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "asked\t%s %d at %s\n", st.Role, st.PID, st.Node)
	fmt.Fprintf(w, "authority\t%s\n", authorityText(st))
	fmt.Fprintf(w, "epoch\t%s\n", st.Epoch)
	if st.Reigns {
		fmt.Fprintf(w, "lease\t%s\n", leaseText(st))
	}
	fmt.Fprintf(w, "voters\t%d: %s\n", len(st.Voters), strings.Join(st.Voters, " "))
	if st.Waiting != "" {
		fmt.Fprintf(w, "waiting\t%s\n", st.Waiting)
	}
	if st.Reigns {
		fmt.Fprintf(w, "members\t%d\n\n", len(st.Members))
	} else {
		fmt.Fprintf(w, "members\t%d in the directory of this node; ages are known to the authority only\n\n", len(st.Members))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "NODE\tROLE\tTYPE\tSTATE\tHEARD")
	members := slices.Clone(st.Members)
	slices.SortStableFunc(members, func(a, b lifecycle.MARSMember) int {
		return strings.Compare(a.Role+"\x00"+a.Type+"\x00"+a.State, b.Role+"\x00"+b.Type+"\x00"+b.State)
	})
	for _, m := range members {
		state, heard := m.State, "-"
		if m.Hidden {
			state += ", hidden"
		}
		if m.AgeMS != nil {
			heard = fmt.Sprintf("%.1f s ago", float64(*m.AgeMS)/1000)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", m.Node, m.Role, m.Type, state, heard)
	}
	return w.Flush()
}

func authorityText(st *lifecycle.MARSStatus) string {
	switch {
	case st.Authority == "":
		return "none known"
	case st.Provisional:
		return fmt.Sprintf("%s (%s), this node, founded lately without hearing everybody", st.Authority, st.AuthorityRole)
	case st.Reigns:
		return fmt.Sprintf("%s (%s), this node", st.Authority, st.AuthorityRole)
	case !st.Live:
		return fmt.Sprintf("%s (%s), silent at the moment", st.Authority, st.AuthorityRole)
	}
	return fmt.Sprintf("%s (%s)", st.Authority, st.AuthorityRole)
}

func leaseText(st *lifecycle.MARSStatus) string {
	if st.LeaseMS <= 0 {
		return "none: nothing is written until its voters answer"
	}
	return fmt.Sprintf("%.1f s left without another answer of its voters", float64(st.LeaseMS)/1000)
}
