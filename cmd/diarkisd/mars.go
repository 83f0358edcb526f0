package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/Diarkis/diarkis/internal/healthcheck"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/lifecycle"
	"github.com/Diarkis/diarkis/internal/rundir"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

func marsCommand() *cobra.Command {
	f := &nodeFlags{}
	cmd := &cobra.Command{
		Use:   "mars status|recover|transfer",
		Short: "Show who leads the cluster, or change it",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return &usageError{errors.New("say status, recover or transfer")}
		},
	}
	f.add(cmd.PersistentFlags())
	cmd.AddCommand(marsStatusCommand(f), &cobra.Command{
		Use:   "recover",
		Short: "Found the cluster anew from a node on this machine, if nobody has an authority",
		Long: `recover is for a cluster that has lost most of its voters at once where the
setting mars.recovery is manual. The node asks every other one first and founds
nothing when one of them still has an authority.

It waits until the node follows an authority, and exits with 0 then, with 1 when that
takes too long or there was one all the time, with 3 when no such node runs here.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.task(cmd, "MarsRecover") },
	}, &cobra.Command{
		Use:   "transfer NODE",
		Short: "Hand the office of the authority to the node at a mesh address",
		Long: `transfer asks a node on this machine to have the office handed over, and waits until
that has happened: exit 0. Exit 1 when it can't be or takes too long, 3 when no such
node runs here. A healthy mars node gets the office back after a while.`,
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

func marsStatusCommand(f *nodeFlags) *cobra.Command {
	var asJSON bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the authority, its voters and the members, as a node on this machine sees them",
		Long: `status asks the nodes on this machine and shows what the authority says if it
is one of them, else the first that answers.

An authority that died counts as one for some seconds: "last heard" says how long ago that was.

Exit codes: 0 there is an authority, 1 there is none that may write at the moment (what
is known is shown all the same), 3 no node runs here, or none answers.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return &usageError{fmt.Errorf("--timeout has to be above 0, got %v", timeout)}
			}
			_, nodes, err := f.find(cmd)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			st, err := askMARS(ctx, nodes)
			if err != nil {
				return &lifecycle.Error{Code: lifecycle.ExitNoNode, Err: err}
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(st)
			} else {
				err = printMARS(cmd.OutOrStdout(), st)
			}
			if err != nil {
				return err
			}
			return leaderless(st)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Second, "give up after this `time`")
	return cmd
}

// leaderless returns an error when the cluster has no authority that may write, as
// the node that answered sees it.
func leaderless(st *lifecycle.MARSStatus) error {
	var why string
	switch {
	case st.Authority == "":
		why = "no authority is known"
	case st.Reigns && st.LeaseMS <= 0:
		why = "the authority " + st.Authority + " has no lease"
	case !st.Reigns && !st.Live:
		why = "the authority " + st.Authority + " is silent"
	default:
		return nil
	}
	if st.Waiting != "" {
		why += "; " + st.Role + " " + strconv.Itoa(st.PID) + " waits " + st.Waiting
	}
	return &lifecycle.Error{Code: lifecycle.ExitFailed, Err: errors.New(why)}
}

// askMARS asks all nodes at once, so that one that does not answer takes no time from
// the others, and returns the answer of the authority or else the first node's.
func askMARS(ctx context.Context, nodes []rundir.Node) (*lifecycle.MARSStatus, error) {
	answers := make([]lifecycle.MARSStatus, len(nodes))
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			if err := healthcheck.Ask(ctx, n, "/mars", &answers[i]); err != nil {
				errs[i] = fmt.Errorf("%s %d: %w", n.Role, n.PID, err)
			}
		})
	}
	wg.Wait()
	var best *lifecycle.MARSStatus
	for i := range answers {
		if errs[i] == nil && (best == nil || answers[i].Reigns) {
			best = &answers[i]
		}
	}
	if best == nil {
		return nil, errors.Join(errs...)
	}
	return best, nil
}

// printMARS writes a status for people.
func printMARS(out io.Writer, st *lifecycle.MARSStatus) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "asked\t%s %d at %s\n", st.Role, st.PID, st.Node)
	fmt.Fprintf(w, "authority\t%s\n", authorityText(st))
	fmt.Fprintf(w, "epoch\t%s\n", cmp.Or(st.Epoch, "none yet"))
	if st.Reigns {
		fmt.Fprintf(w, "lease\t%s\n", leaseText(st))
	}
	if len(st.Voters) == 0 {
		fmt.Fprint(w, "voters\tnone known\n")
	} else {
		fmt.Fprintf(w, "voters\t%d: %s\n", len(st.Voters), strings.Join(st.Voters, " "))
	}
	if st.Waiting != "" {
		fmt.Fprintf(w, "waiting\t%s\n", st.Waiting)
	}
	if len(st.Members) == 0 {
		fmt.Fprint(w, "members\tnone known\n")
		return w.Flush()
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
	}
	text := fmt.Sprintf("%s (%s)", st.Authority, st.AuthorityRole)
	if !st.Live {
		text += ", silent at the moment"
	}
	if st.AuthorityAgeMS != nil {
		text += ", last heard " + telemetry.Span(time.Duration(*st.AuthorityAgeMS)*time.Millisecond) + " ago"
	}
	return text
}

func leaseText(st *lifecycle.MARSStatus) string {
	if st.LeaseMS <= 0 {
		return "none: nothing is written until its voters answer"
	}
	return fmt.Sprintf("%.1f s left without another answer of its voters", float64(st.LeaseMS)/1000)
}
