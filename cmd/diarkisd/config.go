package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/lifecycle"
)

func configCommand() *cobra.Command {
	var dir, role string
	load := func() (*config.Config, error) {
		o := config.Options{Dir: dir}
		if role != "" {
			r, ok := config.ParseRole(role)
			if !ok {
				return nil, &usageError{fmt.Errorf("unknown role %q; roles are mars, http, udp, tcp", role)}
			}
			o.Role = r
		}
		return config.Load(o)
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
	cmd.PersistentFlags().StringVar(&role, "role", "", "only the settings of this role (default: of every role)")
	cmd.AddCommand(&cobra.Command{
		Use: "check", Short: "List every problem in the settings; exit 78 if there is one", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load()
			if err != nil {
				return err
			}
			if role == "" || role == string(config.RoleHTTP) {
				if err := lifecycle.CheckTickets(c); err != nil {
					return err
				}
			}
			for _, w := range c.Warnings {
				fmt.Fprintln(cmd.OutOrStdout(), "warning:", w)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "settings are good")
			return nil
		},
	}, &cobra.Command{
		Use: "show", Short: "Print the settings in force and where each comes from (secrets masked)", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := load()
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(c.Show())
			return err
		},
	})
	return cmd
}
