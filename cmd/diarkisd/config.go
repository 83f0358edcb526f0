package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/lifecycle"
)

// goodText says what was found to be good: which roles' settings, and where they come from.
func goodText(c *config.Config) string {
	roles := "every role (mars, http, udp, tcp)"
	if c.Role != "" {
		roles = "the role " + string(c.Role)
	}
	from := "no directory of settings files: environment and defaults"
	if c.Dir != "" {
		from = "directory " + c.Dir
	}
	if len(c.Files) > 0 {
		from += ", files " + strings.Join(c.Files, " ")
	}
	return "settings of " + roles + " are good; " + from
}

func configCommand() *cobra.Command {
	var dir, file, role string
	options := func() (config.Options, error) {
		o := config.Options{Dir: dir, File: file}
		if role != "" {
			r, ok := config.ParseRole(role)
			if !ok {
				return o, &usageError{fmt.Errorf("unknown role %q; roles are mars, http, udp, tcp", role)}
			}
			o.Role = r
		}
		return o, nil
	}
	cmd := &cobra.Command{
		Use:   "config check|show",
		Short: "Check or show the settings",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			return &usageError{fmt.Errorf("say check or show")}
		},
	}
	cmd.PersistentFlags().StringVar(&dir, "config-dir", "", "read settings from `dir`")
	cmd.PersistentFlags().StringVar(&file, "config", "", "read the role's settings from `file` instead of <dir>/<role>/main.json")
	cmd.PersistentFlags().StringVar(&role, "role", "", "only the settings of this role (default: of every role)")
	cmd.AddCommand(&cobra.Command{
		Use: "check", Short: "List what would keep a node with these settings from starting on this machine", Args: noArgs,
		Long: `check does what a start does, up to where something would be left behind, and lists
every problem, and every warning that such a start would log. It can't know whether
ports are free, what a cloud's metadata says, and what happens later.

Exit codes are those of a start: 0 good, perhaps with warnings, 64 wrong command line,
69 something is not there or not on this machine, 73 no file can be made in the run
directory, 77 no permission, 78 wrong settings, which comes before the others.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := options()
			if err != nil {
				return err
			}
			c, warnings, err := lifecycle.CheckSettings(cmd.Context(), o)
			for _, w := range warnings {
				fmt.Fprintln(cmd.OutOrStdout(), "warning:", w)
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), goodText(c))
			return nil
		},
	}, &cobra.Command{
		Use: "show", Short: "Print the settings in force and where each comes from (secrets masked)", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := options()
			if err != nil {
				return err
			}
			c, err := config.Load(o)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(c.Show())
			return err
		},
	})
	return cmd
}
