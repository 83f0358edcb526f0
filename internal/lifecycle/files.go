package lifecycle

import (
	"os"

	"github.com/Diarkis/diarkis/internal/rundir"
)

// claimFiles takes the node's place in the run directory before anything else is
// done, so that a directory that is full or not ours to write ends the node with the
// exit code for that, and removes what dead nodes left there.
func (n *Node) claimFiles() error {
	role, pid := string(n.cfg.Role), os.Getpid()
	var err error
	if n.claim, err = n.dir.Claim(role, pid); err != nil {
		return err
	}
	if swept := n.dir.Sweep(); len(swept) > 0 {
		n.log.Info().Strs("of", swept).Str("dir", n.dir.Path()).Msg("files of ended processes removed")
	}
	return n.dir.WriteNode(rundir.Node{Role: role, PID: pid}) // without addresses: it is starting
}

// releaseFiles gives the node's place up, the last of what a node does.
func (n *Node) releaseFiles() {
	if n.claim == nil {
		return
	}
	if err := n.claim.Release(); err != nil {
		n.log.Warn().Err(err).Msg("run directory not left in order")
	}
}
