package main

import (
	"github.com/spf13/cobra"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/lifecycle"
)

// nodeCommand is the root: it runs one node.
func nodeCommand() *cobra.Command {
	var role string
	var o lifecycle.ProcessOptions
	var flags settingFlags
	cmd := &cobra.Command{
		Use:   "diarkisd --role=mars|http|udp|tcp",
		Short: "Real-time server cluster for multiplayer games",
		Long: `diarkisd is one node of a cluster. Its role says which:

  mars   the registry that every node reports to
  http   the public door: tells a game where a player may connect
  udp    players, over UDP
  tcp    players, over TCP

Settings come from flags, then the environment, then files, then built-in
defaults: see "diarkisd config show". "diarkisd dev" runs one node of each role.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := config.ResolveRole(role)
			if err != nil {
				return err
			}
			o.Role, o.Commit, o.Flags = r, commit, flags.settings(r)
			return lifecycle.RunProcess(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "", "what this node does: mars, http, udp or tcp (else DIARKIS_SERVER_TYPE)")
	f.StringVar(&o.ConfigDir, "config-dir", "", "read settings from `dir` (else DIARKIS_CONFIG_ROOT_PATH, ./configs, /configs)")
	f.StringVar(&o.File, "config", "", "read the role's settings from `file` instead of <dir>/<role>/main.json")
	flags.add(cmd)
	return cmd
}

// settingFlags are the settings that are often given on the command line; every
// other has an environment variable.
type settingFlags struct {
	cmd                                             *cobra.Command
	address, port, marsAddress, marsPort, admin, lv string
}

func (s *settingFlags) add(cmd *cobra.Command) {
	s.cmd = cmd
	f := cmd.Flags()
	f.StringVar(&s.address, "address", "", "bind the role's port on this `address`")
	f.StringVar(&s.port, "port", "", "the role's `port`; the next free one if taken (mars: exactly this)")
	f.StringVar(&s.marsAddress, "mars-address", "", "`host` of the mars node")
	f.StringVar(&s.marsPort, "mars-port", "", "`port` of the mars node")
	f.StringVar(&s.admin, "admin-port", "", "`port` of metrics and probes; the next free one if taken")
	f.StringVar(&s.lv, "log-level", "", "trace, debug, info, warn, error or fatal")
}

// settings returns the flags that were given, by the key of the setting.
func (s *settingFlags) settings(r config.Role) map[string]string {
	out := map[string]string{}
	for flag, kv := range map[string][2]string{
		"address":      {string(r) + ".address", s.address},
		"port":         {string(r) + ".port", s.port},
		"mars-address": {"mesh.marsAddress", s.marsAddress},
		"mars-port":    {"mesh.marsPort", s.marsPort},
		"admin-port":   {"metrics.port", s.admin},
		"log-level":    {"log.level", s.lv},
	} {
		if s.cmd.Flags().Changed(flag) {
			out[kv[0]] = kv[1]
		}
	}
	return out
}
