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

// writeRecord says where the node is, and stores the key of its probe.
func (n *Node) writeRecord() error {
	if n.probeKey != nil {
		f, err := n.dir.WriteProbeKey(n.record.Role, n.record.PID, n.probeKey)
		if err != nil {
			return err
		}
		n.record.ProbeKeyFile = f
	}
	n.record.Bound = n.listens
	return n.dir.WriteNode(n.record)
}

// keepFiles keeps the node's files there while it runs, whoever cleans up, and takes
// the plain address names that have become free.
func (n *Node) keepFiles() {
	if n.files == nil {
		return
	}
	err := n.claim.Keep(n.writeRecord)
	if err == nil {
		err = n.files.Refresh()
	}
	if err != nil {
		n.log.Debug().Err(err).Msg("files not kept")
	}
}
