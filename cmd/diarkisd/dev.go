package main

import (
	"github.com/spf13/cobra"

	"github.com/Diarkis/diarkis/internal/lifecycle"
)

func devCommand() *cobra.Command {
	o := lifecycle.DevOptions{}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run one node of each role on this machine, with bots if wanted",
		Long: `dev runs a whole cluster in one process on loopback, on whatever ports are free.

With --bots, players come in by the public door, find each other in rooms of 4
and send each other 10 messages a second; half of them over UDP (half of those
messages reliable), half over TCP. A status line a second says how it goes.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Commit, o.Out = commit, cmd.OutOrStdout()
			return lifecycle.RunDev(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Bots, "bots", 0, "how many bots play")
	f.Var(lossFlag{&o.Loss}, "loss", "`percent` of the bots' datagrams to lose, each way, as a bad network does")
	f.DurationVar(&o.Duration, "duration", 0, "end after this `time` (0: until Ctrl-C)")
	f.StringVar(&o.ConfigDir, "config-dir", "", "read settings from `dir`")
	return cmd
}
