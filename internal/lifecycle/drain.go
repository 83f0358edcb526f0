package lifecycle

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/telemetry"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users"
	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	// leaveTime bounds the wait for the authority to acknowledge a leave: a node that
	// can't say goodbye expires instead.
	leaveTime = 500 * time.Millisecond
	// voterLeaveTime bounds it for a voter, whose place another takes before it goes or
	// whose seat is given up, and handOverTime for the authority.
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

// drain takes the node out of the hand-out, tells its clients, and waits until those
// who are there have left or the time is up. Nothing undoes it: who changes the state
// meanwhile is told so.
func (n *Node) drain() {
	n.stating.Lock()
	n.draining.Store(true)
	n.marsNode.SetState(mars.Offline)
	if n.users == nil {
		n.stating.Unlock()
		return
	}
	n.users.SetState(mars.Offline)
	n.server.SetState(transport.StateOffline)
	n.stating.Unlock()
	n.server.Offline(offlineStopping)
	n.waitForUsers(max(n.cfg.Env.ShutdownTimeout-n.closeTime(), 0))
	n.server.CloseAll(wire.CloseShutdown, "the node is shutting down")
}

// drainReport is how often a node that waits for its users says for whom.
const drainReport = 30 * time.Second

// waitForUsers waits until all users who are there have left, for at most wait.
// Who is silent, or is away and may resume, is not waited for: it may be dead, and if
// it is not, it asks for a new place.
func (n *Node) waitForUsers(wait time.Duration) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(n.hard, wait)
	defer cancel()
	if n.users.CCU() == 0 {
		n.log.Info().Int("users", 0).Msg("draining ended, nobody is left to wait for")
		return
	}
	n.crowd().fields(n.log.Info()).Str("wait", telemetry.Span(wait)).Time("until", began.Add(wait)).Msg("draining started")
	for {
		period, stop := context.WithTimeout(ctx, drainReport)
		err := n.users.WaitEmpty(period)
		stop()
		waited := telemetry.Span(time.Since(began))
		switch {
		case err == nil:
			n.crowd().fields(n.log.Info()).Str("waited", waited).Msg("draining ended, nobody is left to wait for")
			return
		case ctx.Err() != nil:
			reason := "time is up"
			if n.hard.Err() != nil {
				reason = context.Cause(n.hard).Error()
			}
			n.crowd().fields(n.log.Warn()).Str("waited", waited).Str("reason", reason).Msg("draining ended with users left")
			return
		}
		n.crowd().fields(n.log.Info()).Str("waited", waited).Str("left", telemetry.Span(time.Until(began.Add(wait)))).Msg("draining, waiting for users")
	}
}

// crowd is who is on a node: how many are there and how many are not, and some of
// those who are.
type crowd struct {
	present, away int
	some          []string
}

// crowdNamed is how many users a line names: enough to look one up.
const crowdNamed = 5

func (n *Node) crowd() crowd {
	var c crowd
	n.users.Each(func(u *users.User) bool {
		if u.Present() {
			c.present++
			if len(c.some) < crowdNamed {
				c.some = append(c.some, string(u.ID))
			}
		}
		return true
	})
	c.away = max(n.users.CCU()-c.present, 0)
	return c
}

// fields writes who is waited for, and who is not.
func (c crowd) fields(e *zerolog.Event) *zerolog.Event {
	e = e.Int("users", c.present)
	if c.away > 0 {
		e = e.Int("not_waited_for", c.away)
	}
	if len(c.some) > 0 {
		e = e.Strs("such_as", c.some)
	}
	return e
}

// leave says goodbye to the cluster, by deadline less what stopping takes. After a
// second signal nobody waits for more than the goodbye itself.
func (n *Node) leave(deadline time.Time) {
	wait := leaveTime
	switch {
	case n.hard.Err() != nil:
	case n.marsNode.Reigns():
		wait = handOverTime
	case n.marsNode.Votes():
		wait = voterLeaveTime
	}
	wait = max(min(wait, time.Until(deadline)-stopTimeMin), leaveTime)
	ctx, cancel := context.WithTimeout(n.hard, wait)
	if n.hard.Err() != nil {
		ctx, cancel = context.WithTimeout(context.WithoutCancel(n.hard), leaveTime)
	}
	defer cancel()
	err := n.marsNode.Leave(ctx)
	if joined, reason := n.marsNode.Joined(); !joined {
		n.log.Debug().Str("reason", reason).Msg("nothing to leave") // or a registration on its way, which expires
		return
	}
	if err != nil {
		n.log.Warn().Err(err).Str("waited", telemetry.Span(wait)).Msg("leave not acknowledged")
	}
}
