package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/Diarkis/diarkis/internal/config"
)

// nodeFlags choose the node on this machine that is asked.
type nodeFlags struct {
	pid  int
	role string
	dir  string
}

func (f *nodeFlags) add(set *pflag.FlagSet) {
	set.IntVar(&f.pid, "pid", 0, "ask the node with this process `id`")
	set.StringVar(&f.role, "role", "", "ask the node of this `role`")
	set.StringVar(&f.dir, "run-dir", "", "`dir` of the nodes' files (else DIARKIS_RUN_DIR, else the temporary directory)")
}

// runDir returns where the nodes of this machine keep their files. Nothing else that
// is set counts: a mistake in it must not keep an operator from the nodes that run.
func (f *nodeFlags) runDir(cmd *cobra.Command) (string, error) {
	if cmd.Flags().Changed("pid") && f.pid <= 0 {
		return "", &usageError{fmt.Errorf("--pid %d is no process id", f.pid)}
	}
	if cmd.Flags().Changed("role") {
		if _, ok := config.ParseRole(f.role); !ok {
			return "", &usageError{fmt.Errorf("unknown role %q; roles are mars, http, udp, tcp", f.role)}
		}
	}
	if f.dir != "" {
		return f.dir, nil
	}
	_, env, _ := config.LoadHealthCheck("") // of which only the directory counts here
	return env.RunDir, nil
}
