package lifecycle

import (
	"context"
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	// leaveTime bounds the wait for the authority to acknowledge a leave: a node that
	// can't say goodbye expires instead.
	leaveTime = 500 * time.Millisecond
	// voterLeaveTime bounds it for a voter, whose place another takes before it goes,
	// and handOverTime for the authority. Where all nodes stop at once nobody will.
	voterLeaveTime = 1500 * time.Millisecond
	handOverTime   = 4 * time.Second
	// stopTimeMin is what stopping the parts of a node gets in any case.
	stopTimeMin = 300 * time.Millisecond
)

// closeTime is the last part of the shutdown timeout, kept for closing connections,
// leaving and stopping: 10 % of it, at least 1 s and at most 30 s.
func (n *Node) closeTime() time.Duration {
	return min(max(n.cfg.Env.ShutdownTimeout/10, time.Second), 30*time.Second)
}

// drain takes the node out of the hand-out, tells its clients, and waits until they
// have left or the time is up.
func (n *Node) drain() {
	n.draining.Store(true)
	n.marsNode.SetState(mars.Offline)
	if n.users == nil {
		return
	}
	n.users.SetState(mars.Offline)
	n.server.SetState(transport.StateOffline)
	n.server.Offline(offlineStopping)
	wait := max(n.cfg.Env.ShutdownTimeout-n.closeTime(), 0)
	n.log.Info().Int("users", n.users.CCU()).Dur("wait_ms", wait).Msg("draining started")
	ctx, cancel := context.WithTimeout(n.hard, wait)
	defer cancel()
	if err := n.users.WaitEmpty(ctx); err != nil {
		n.log.Warn().Int("users", n.users.CCU()).Msg("draining ended with users left")
	}
	n.server.CloseAll(wire.CloseShutdown, "the node is shutting down")
}

// leave says goodbye to the cluster, by deadline less what stopping takes.
func (n *Node) leave(deadline time.Time) {
	wait := leaveTime
	switch {
	case n.marsNode.Reigns():
		wait = handOverTime
	case n.marsNode.Votes():
		wait = voterLeaveTime
	}
	wait = max(min(wait, time.Until(deadline)-stopTimeMin), leaveTime)
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if err := n.marsNode.Leave(ctx); err != nil {
		n.log.Warn().Err(err).Msg("leave not acknowledged")
	}
}
