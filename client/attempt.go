package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
)

const (
	// chanceMax is how long a client waits at most, by chance, once the silence of its node
	// is too long, see [reliable.Machine.Unanswered]: the players of a node that died must
	// not come all at once.
	chanceMax = 500 * time.Millisecond
	// probeAfter is how long after the last packet a client asks whether the node is still
	// there when messages came and nothing it sent is unanswered, at most once a probeGap:
	// who only listens must notice the end of a node too.
	probeAfter = 250 * time.Millisecond
	probeGap   = time.Second
	// stoodStill is how late the client's goroutine has to come for the time to be its own
	// fault: the process was suspended, or a callback took long. What the node sent
	// meanwhile waits in the socket.
	stoodStill = 500 * time.Millisecond
)

// judge is what a link's silence is judged by. Client.mu guards it.
type judge struct {
	from    time.Time // no silence before counts: we did not listen
	came    time.Time // when the packet came whose callbacks run, zero when none do
	curious bool      // messages came since the last probe
	probed  time.Time // when the last one left
	verdict time.Time // when to resume beside, zero while there is hope
}

// wakeUp notes that the client's goroutine runs, which it wanted to do at armed unless
// it was poked. It reports whether it did not run for too long.
func (j *judge) wakeUp(now, armed time.Time, poked bool) (stood bool) {
	late := !poked && !armed.IsZero() && now.Sub(armed) > stoodStill
	busy := !j.came.IsZero() && now.Sub(j.came) > stoodStill
	if stood = late || busy; stood {
		j.from, j.verdict = now, time.Time{}
	}
	j.came = time.Time{}
	return stood
}

// opened notes that a packet opened, with messages or without.
func (j *judge) opened(now time.Time, messages bool) {
	j.came, j.verdict = now, time.Time{}
	j.curious = j.curious || messages
}

// silence is for how long the node was not heard although we listened.
func (j *judge) silence(now time.Time, m *reliable.Machine) time.Duration {
	quiet, _ := m.Silence(now)
	return min(quiet, now.Sub(j.from))
}

// verdictLocked is when to resume beside the link, or to probe, if nothing comes until
// then; zero when there is no reason.
func (c *Client) verdictLocked(l *link, now time.Time) (at time.Time, resume bool) {
	j := &l.judge
	if c.opts.ResumeFor < 0 || c.move != nil || c.attempt != nil {
		return time.Time{}, false
	}
	switch {
	case c.machine.Unanswered():
		if j.verdict.IsZero() {
			j.verdict = now.Add(rand.N(chanceMax))
		}
		return j.verdict, true
	case !j.curious || c.machine.Asked():
		return time.Time{}, false
	}
	quiet, _ := c.machine.Silence(now)
	at = now.Add(probeAfter - quiet)
	if next := j.probed.Add(probeGap); at.Before(next) {
		at = next
	}
	return at, false
}

// judgeLocked does what the verdict says when its time has come.
func (c *Client) judgeLocked(l *link, now time.Time) {
	switch at, resume := c.verdictLocked(l, now); {
	case at.IsZero() || now.Before(at):
	case resume:
		c.beginAttemptLocked()
	default:
		c.machine.SendPing(now)
		l.judge.probed, l.judge.curious = now, false
	}
}

// errGone means that the HTTP role says that the run of the node is over.
var errGone = errors.New("the node is gone")

// attempt is a resume that is under way. The old connection may live beside it: it is
// read until the Accept came, and a sign of life before the first Confirm left ends the
// attempt.
type attempt struct {
	cancel context.CancelCauseFunc
	done   chan struct{} // closed with over

	// Guarded by Client.mu.
	answered time.Time // when a node answered a Hello last, and a Confirm left
	alive    time.Time // when the one did that the connection was at
	failed   bool      // one handshake brought nothing
	over     bool      // no more will come
	link     *link     // what it brought
	err      error     // why it brought nothing
}

// confirmed reports whether a Confirm left, so that the node may have replaced the old
// connection.
func (a *attempt) confirmed() bool { return !a.answered.IsZero() }

func (c *Client) beginAttemptLocked() {
	ctx, expire := context.WithTimeout(c.ctx, c.opts.ResumeFor)
	ctx, cancel := context.WithCancelCause(ctx)
	a := &attempt{cancel: cancel, done: make(chan struct{})}
	c.attempt = a
	p, other := c.place, c.elsewhere
	c.aside.Go(func() {
		defer expire()
		defer cancel(nil)
		var l *link
		err := ErrClosed // unless Options.Dial ends the goroutine
		defer func() { c.endOfAttempt(a, l, err) }()
		l, err = c.resume(ctx, a, p, other)
	})
}

// endOfAttempt notes what an attempt came to.
func (c *Client) endOfAttempt(a *attempt, l *link, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.over = true
	close(a.done)
	if c.attempt != a {
		if l != nil {
			c.partLocked(l)
		}
		return
	}
	a.link, a.err = l, err
	c.pokeLocked()
}

// endAttemptLocked forgets an attempt, also one that just succeeded.
func (c *Client) endAttemptLocked() {
	a := c.attempt
	if a == nil {
		return
	}
	c.attempt = nil
	a.cancel(errUnwanted)
	if a.link != nil {
		c.partLocked(a.link)
	}
}

// attemptedLocked says how to go on with the link when the attempt beside it has come to
// something.
func (c *Client) attemptedLocked() ending {
	a := c.attempt
	switch {
	case a == nil:
		return ending{}
	case a.link != nil:
		return ending{outcome: resumed, link: a.link}
	case !a.over && !a.failed:
		return ending{}
	}
	if e, ok := errors.AsType[*CloseError](a.err); ok {
		return ending{outcome: over, code: e.Code, reason: e.Reason}
	}
	switch {
	case errors.Is(a.err, errGone):
		return ending{outcome: gone, reason: errGone.Error()}
	case errors.Is(a.err, ErrHandshakeRefused):
		return ending{outcome: refused}
	}
	return ending{outcome: lost, reason: "the node does not answer"}
}

// openedLocked notes that a packet of the link opened. It returns an ending when the
// attempt beside it has succeeded, for nothing more is taken from the old connection then.
func (c *Client) openedLocked() ending {
	switch a := c.attempt; {
	case a == nil:
	case a.link != nil:
		return ending{outcome: resumed, link: a.link}
	case !a.confirmed():
		c.endAttemptLocked()
	}
	return ending{}
}

// awaitAttempt waits for an attempt without a connection beside it. It returns neither a
// link nor an error when it was not wanted any more.
func (c *Client) awaitAttempt() (*link, error) {
	c.mu.Lock()
	if c.closing && !c.waitingLocked() {
		c.drainedLocked()
	}
	if c.reenter {
		c.mu.Unlock()
		return nil, nil
	}
	if c.attempt == nil {
		c.beginAttemptLocked()
	}
	a := c.attempt
	c.mu.Unlock()
	<-a.done
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.attempt != a {
		return nil, nil
	}
	if a.link == nil {
		c.attempt = nil
	}
	return a.link, a.err
}
