package lifecycle

import (
	"os"

	"github.com/Diarkis/diarkis/internal/rundir"
)

// unkeptMax is how many times in a row the files could not be kept when that is said.
const unkeptMax = 2

// claimFiles takes the node's place in the run directory before anything else is
// done, so that a directory that is full or not ours to write ends the node with the
// exit code for that, and removes what dead nodes left there.
func (n *Node) claimFiles() error {
	role, pid := string(n.cfg.Role), os.Getpid()
	var err error
	if n.claim, err = n.dir.Claim(role, pid); err != nil {
		return err
	}
	if mode, exposed := n.dir.Exposed(); exposed {
		n.log.Warn().Str("dir", n.dir.Path()).Stringer("mode", mode).
			Msg("everybody on this machine may replace files in the run directory: chmod +t")
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
	var also []string
	if n.record.ProbeKeyFile != "" {
		also = append(also, n.record.ProbeKeyFile)
	}
	err := n.claim.Keep(n.writeRecord, also...)
	if other := n.files.Refresh(); err == nil {
		err = other
	}
	n.noteKept(err)
	n.noteTaken()
}

// noteKept says in one line that health checks and tasks find this node no more, and in one that
// they do again. The first failure does not count: another node may have looked at the lock.
func (n *Node) noteKept(err error) {
	switch {
	case err == nil && n.unkept >= unkeptMax:
		n.log.Info().Str("dir", n.dir.Path()).Msg("files in the run directory are there again")
	case err != nil && n.unkept == unkeptMax-1:
		n.log.Warn().Err(err).Str("dir", n.dir.Path()).
			Msg("files in the run directory not kept: health checks and tasks may not find this node")
	}
	if n.unkept = min(n.unkept+1, unkeptMax); err == nil {
		n.unkept = 0
	}
}

// noteTaken says once when files of another user keep the node's addresses from being told.
func (n *Node) noteTaken() {
	taken := n.files.Taken()
	if len(taken) > 0 && !n.robbed {
		n.log.Warn().Strs("files", taken).Str("dir", n.dir.Path()).
			Msg("address files not written: another user made files with their names")
	}
	n.robbed = len(taken) > 0
}
