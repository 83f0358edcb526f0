package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	endpointTimeout = 10 * time.Second // one question to the HTTP role
	backoffMin      = 200 * time.Millisecond
	unknownMax      = 5 * time.Minute        // for the first node of a type, or the URL, to appear
	lingerMax       = 500 * time.Millisecond // for a TCP server to take CLOSE in
)

// run is the client's goroutine.
func (c *Client) run(l *link) {
	whole := false
	defer func() { c.finish(whole) }()
	c.home.Store(goroutine())
	for l != nil {
		l = c.after(l, c.serve(l))
	}
	whole = true
}

// finish ends the client. When a callback ended the goroutine, by a panic or by
// [runtime.Goexit], whole is false: nothing of the game is called any more then, and
// whoever waits is let go.
func (c *Client) finish(whole bool) {
	c.mu.Lock()
	l := c.link
	c.mu.Unlock()
	if l != nil {
		c.hangUp(l, phaseEnded, CloseNormal, "")
	}
	c.mu.Lock()
	c.dropLinkLocked(phaseEnded)
	if c.endedBy == nil {
		c.endedBy = ErrClosed
	}
	if c.unhook != nil {
		c.unhook()
	}
	c.mu.Unlock()
	c.cancel()
	if whole {
		c.aside.Wait()
		c.failCalls(ErrClosed)
	}
	close(c.done)
}

// after decides how to go on when serving l ended. It returns the next link, or nil
// when there will be none.
func (c *Client) after(l *link, e ending) *link {
	switch e.outcome {
	case moved:
		return c.follow(l, e.link)
	case resumed:
		return c.goOnWith(l, e.link)
	case over:
		c.drop(l, phaseSearching)
		return c.afterEnd(CloseError{e.code, e.reason})
	case gone:
		c.drop(l, phaseSearching)
		return c.search(Disconnect{Code: CloseIdle, Reason: e.reason})
	case stopped:
		c.hangUp(l, phaseEnded, CloseNormal, "")
		return nil
	case left:
		c.hangUp(l, phaseSearching, CloseNormal, "")
		return c.search(Disconnect{Code: CloseNormal})
	case violation:
		c.hangUp(l, phaseSearching, e.code, e.reason)
		return c.search(Disconnect{Code: e.code, Reason: e.reason})
	case refused:
		c.drop(l, phaseSearching)
		return c.search(Disconnect{Code: CloseIdle, Reason: "nothing listens at the node's address"})
	case closed:
		if next := c.movedLink(); next != nil {
			return c.follow(l, next) // the other node owns the user already
		}
		d := Disconnect{Code: known(e.code), Reason: e.reason}
		switch {
		case d.Code == CloseIdle: // our packets got lost: the state lives on
		case d.Code == CloseReplaced && c.ownDoing(l):
		case ends(d.Code):
			c.drop(l, phaseEnded)
			c.giveUp(d)
			return nil
		default:
			c.drop(l, phaseSearching)
			return c.search(d)
		}
	}
	return c.comeBack(l, Disconnect{Code: CloseIdle, Reason: e.reason})
}

// ownDoingFor is how long after a Confirm of our own the connection before it may be
// told that it was replaced.
const ownDoingFor = 15 * time.Second

// ownDoing reports whether l was replaced by a handshake of this client, whose Accept is
// missing yet or got lost. Then the client goes on with that, or with the next.
func (c *Client) ownDoing(l *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.confirms > l.confirm && time.Since(c.confirmedAt) < ownDoingFor
}

// afterEnd goes on after a node said, asked to let the user in, that the stay is over.
func (c *Client) afterEnd(e CloseError) *link {
	d := Disconnect{Code: e.Code, Reason: e.Reason}
	if ends(e.Code) {
		c.giveUp(d)
		return nil
	}
	return c.search(d)
}

func (c *Client) drop(l *link, p phase) {
	c.mu.Lock()
	c.dropLinkLocked(p)
	c.mu.Unlock()
	_ = l.conn.Close()
}

// hangUp sends CLOSE and closes the socket.
func (c *Client) hangUp(l *link, p phase, code CloseCode, reason string) {
	now := time.Now()
	c.mu.Lock()
	moving := c.move != nil // nothing more is said on this connection then
	if at := c.place; p == phaseEnded && !moving && c.elsewhere != "" {
		at.addr = c.elsewhere
		c.leaveAtLocked(at)
	}
	busy := l.writing
	c.dropLinkLocked(p)
	pkt, start := l.begin(l.out)
	pkt = l.finish(now, wire.Close{Code: code, Reason: reason}.AppendTo(pkt), start)
	c.mu.Unlock()
	defer l.conn.Close()
	if moving || busy {
		return
	}
	l.sayLast(now, pkt)
}

// giveUp ends the client and tells the game.
func (c *Client) giveUp(d Disconnect) {
	d.Final = true
	if d.Err == nil {
		d.Err = &CloseError{d.Code, d.Reason}
	}
	c.mu.Lock()
	if c.endedBy == nil && !c.closing {
		c.endedBy = d.Err
	}
	c.mu.Unlock()
	c.disconnected(d)
}

func (c *Client) disconnected(d Disconnect) {
	if c.opts.OnDisconnect != nil && !c.quiet.Load() {
		c.calling.Add(1)
		c.opts.OnDisconnect(d)
		c.calling.Add(-1)
	}
}

func (c *Client) reconnected(gap bool) {
	if c.opts.OnReconnect != nil && !c.quiet.Load() {
		c.calling.Add(1)
		c.opts.OnReconnect(gap)
		c.calling.Add(-1)
	}
}

// comeBack tries to resume a lost connection, or goes on with doing so, and looks for a
// new place when that is hopeless.
func (c *Client) comeBack(l *link, d Disconnect) *link {
	if c.opts.ResumeFor < 0 {
		c.drop(l, phaseSearching)
		return c.search(d)
	}
	c.mu.Lock()
	if c.move != nil {
		c.elsewhere = c.move.addr // the user may be there already
	}
	c.mu.Unlock()
	c.drop(l, phaseDown)
	c.disconnected(d)
	next, err := c.awaitAttempt()
	if next != nil {
		return c.takeUp(next)
	}
	c.mu.Lock()
	c.phase = phaseSearching
	if c.closing {
		c.drainedLocked()
	}
	c.mu.Unlock()
	if e, ok := errors.AsType[*CloseError](err); ok {
		if d.Code, d.Reason = e.Code, e.Reason; ends(e.Code) {
			c.giveUp(d)
			return nil
		}
	}
	return c.lookFor(d)
}

// goOnWith goes on with the link of a resume beside the old connection.
func (c *Client) goOnWith(old, l *link) *link {
	_ = old.conn.Close()
	c.disconnected(Disconnect{Code: CloseIdle, Reason: "the node did not answer"})
	return c.takeUp(l)
}

// takeUp goes on with the link of a resume.
func (c *Client) takeUp(l *link) *link {
	c.mu.Lock()
	resumed := c.installLocked(l, time.Now())
	if resumed {
		c.stats.Resumes++
	} else {
		c.stats.Gaps++
	}
	c.mu.Unlock()
	if !resumed {
		c.failCalls(ErrGap)
	}
	c.reconnected(!resumed)
	return l
}

// search is lookFor for a connection that ended without a chance to resume.
func (c *Client) search(d Disconnect) *link {
	if c.opts.URL != "" && !c.opts.NoReconnect {
		c.disconnected(d)
	}
	return c.lookFor(d)
}

// lookFor asks the HTTP role for places until it is connected to one. It returns nil
// when the client was closed meanwhile or may not come back.
func (c *Client) lookFor(d Disconnect) *link {
	c.failCalls(ErrGap)
	c.mu.Lock()
	c.reenter, c.elsewhere, c.machine = false, "", nil
	if c.closing {
		c.drainedLocked() // nothing that waited can arrive any more
	}
	c.mu.Unlock()
	if c.opts.NoReconnect || c.opts.URL == "" {
		why := ErrNoReconnect
		if !c.opts.NoReconnect {
			why = ErrNoURL
		}
		d.Err = fmt.Errorf("%w: %w", why, &CloseError{d.Code, d.Reason})
		c.giveUp(d)
		return nil
	}
	var err error
	var unknown time.Time // since when the HTTP role knows no such type, zero while it does
	for try := 0; pause(c.ctx, c.backoff(try, err)); try++ {
		var l *link
		if l, err = c.enter(); err == nil {
			c.reconnected(true)
			return l
		}
		if e, ok := errors.AsType[*CloseError](err); ok && ends(e.Code) {
			d.Code, d.Reason = e.Code, e.Reason // another login of the user came first, say
			c.giveUp(d)
			return nil
		}
		if unknown = unknownSince(err, unknown, time.Now()); permanent(err) || !unknown.IsZero() && time.Since(unknown) > unknownMax {
			d.Err = err
			c.giveUp(d)
			return nil
		}
	}
	return nil
}

// unknownSince is since when every answer was that there is no such type: right after a
// cluster started anew that passes, but not for ever.
func unknownSince(err error, before, now time.Time) time.Time {
	if e, ok := errors.AsType[*EndpointError](err); !ok || e.HTTPStatus != http.StatusNotFound {
		return time.Time{}
	}
	if before.IsZero() {
		return now
	}
	return before
}

// enter takes a new place.
func (c *Client) enter() (*link, error) {
	l, p, err := c.login(c.ctx, func(ctx context.Context) (Endpoint, error) {
		ctx, cancel := context.WithTimeout(ctx, endpointTimeout)
		defer cancel()
		return c.endpoint(ctx)
	})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.place = p
	c.installLocked(l, time.Now())
	c.stats.Gaps++
	return l, nil
}

// backoff is how long to wait before a try, and no less than the server asked for. Chance
// keeps the clients of a node that died from coming all at once.
func (c *Client) backoff(try int, err error) time.Duration {
	if try == 0 {
		return rand.N(backoffMin)
	}
	d := min(backoffMin<<min(try, 16), c.opts.BackoffMax)
	if e, ok := errors.AsType[*EndpointError](err); ok && e.RetryAfter > d/2 {
		return e.RetryAfter + rand.N(max(d, e.RetryAfter)/2+1)
	}
	return d/2 + rand.N(d/2+1)
}

// pause waits. It reports false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}
