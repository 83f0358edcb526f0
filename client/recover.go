package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	endpointTimeout = 10 * time.Second       // one question to the HTTP role
	retryPause      = 250 * time.Millisecond // between two handshakes at the same node
	backoffMin      = 200 * time.Millisecond
	unknownMax      = 5 * time.Minute        // for the first node of a type, or the URL, to appear
	lingerMax       = 500 * time.Millisecond // for a TCP server to take CLOSE in
)

// run is the client's goroutine.
func (c *Client) run(l *link) {
	for l != nil {
		l = c.after(l, c.serve(l))
	}
	c.mu.Lock()
	c.dropLinkLocked(phaseEnded)
	c.mu.Unlock()
	c.cancel()
	c.aside.Wait()
	c.failCalls(ErrClosed)
	close(c.done)
}

// after decides how to go on when serving l ended. It returns the next link, or nil
// when there will be none.
func (c *Client) after(l *link, e ending) *link {
	switch e.outcome {
	case moved:
		return c.follow(l, e.link)
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
		switch d := (Disconnect{Code: e.code, Reason: e.reason}); e.code {
		case CloseNormal, CloseReplaced, CloseKicked:
			c.drop(l, phaseEnded)
			c.giveUp(d)
			return nil
		case CloseIdle: // our packets got lost: the state lives on
		default:
			c.drop(l, phaseSearching)
			return c.search(d)
		}
	}
	return c.comeBack(l, Disconnect{Code: CloseIdle, Reason: e.reason})
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
	busy := l.writing
	c.dropLinkLocked(p)
	pkt, start := l.begin(l.out)
	pkt = l.finish(now, wire.Close{Code: code, Reason: reason}.AppendTo(pkt), start)
	c.mu.Unlock()
	defer l.conn.Close()
	if moving || busy {
		return
	}
	_ = l.conn.SetDeadline(now.Add(lingerMax))
	if _, err := l.conn.Write(pkt); err != nil {
		return
	}
	if !l.stream {
		_, _ = l.conn.Write(pkt) // nobody acknowledges a CLOSE, so one copy may get lost
		return
	}
	// Closing a TCP socket with unread data resets the connection, which may overtake
	// the CLOSE: let the server close first.
	if t, ok := l.conn.(interface{ CloseWrite() error }); ok && t.CloseWrite() == nil {
		for l.start, l.end = 0, 0; l.fill() == nil; l.start, l.end = 0, 0 {
		}
	}
}

func (c *Client) giveUp(d Disconnect) {
	d.Final = true
	if c.opts.OnDisconnect != nil {
		c.opts.OnDisconnect(d)
	}
}

// comeBack tries to resume a lost connection, and looks for a new place when that is
// hopeless.
func (c *Client) comeBack(l *link, d Disconnect) *link {
	if c.opts.ResumeFor < 0 {
		c.drop(l, phaseSearching)
		return c.search(d)
	}
	c.drop(l, phaseDown)
	if c.opts.OnDisconnect != nil {
		c.opts.OnDisconnect(d)
	}
	next := c.resume()
	if next == nil {
		c.mu.Lock()
		c.phase = phaseSearching
		if c.closing {
			c.drainedLocked()
		}
		c.mu.Unlock()
		return c.lookFor(d)
	}
	c.mu.Lock()
	resumed := c.installLocked(next, time.Now())
	if resumed {
		c.stats.Resumes++
	} else {
		c.stats.Gaps++
	}
	c.mu.Unlock()
	if !resumed {
		c.failCalls(ErrGap)
	}
	if c.opts.OnReconnect != nil {
		c.opts.OnReconnect(!resumed)
	}
	return next
}

// resume handshakes at the node that has the state until it answers, says that
// nothing listens there, or has dropped the state by now.
func (c *Client) resume() *link {
	ctx, cancel := context.WithTimeout(c.ctx, c.opts.ResumeFor)
	defer cancel()
	c.mu.Lock()
	p, other := c.place, c.elsewhere
	c.mu.Unlock()
	hungUp := 0
	for ctx.Err() == nil {
		start := time.Now()
		l, err := c.handshake(ctx, p, true)
		if err == nil {
			return l
		}
		if errors.Is(err, ErrHandshakeEnded) {
			if hungUp++; hungUp >= refusedMax {
				return nil // over TCP that is how a node says that it doesn't know us
			}
		}
		if other != "" {
			// A move that seemed to fail may have gone through: look there too.
			p.addr, other = other, p.addr
		} else if errors.Is(err, ErrHandshakeRefused) {
			return nil
		}
		if time.Since(start) < retryPause && !pause(ctx, retryPause) {
			return nil
		}
	}
	return nil
}

// search is lookFor for a connection that ended without a chance to resume.
func (c *Client) search(d Disconnect) *link {
	if c.opts.OnDisconnect != nil && c.opts.URL != "" && !c.opts.NoReconnect {
		c.opts.OnDisconnect(d)
	}
	return c.lookFor(d)
}

// lookFor asks the HTTP role for places until it is connected to one. It returns nil
// when the client was closed meanwhile or may not come back.
func (c *Client) lookFor(d Disconnect) *link {
	c.failCalls(ErrGap)
	c.mu.Lock()
	c.reenter, c.elsewhere, c.machine = false, "", nil
	c.mu.Unlock()
	if c.opts.NoReconnect || c.opts.URL == "" {
		c.giveUp(d)
		return nil
	}
	var err error
	var unknown time.Time // since when the HTTP role knows no such type, zero while it does
	for try := 0; pause(c.ctx, c.backoff(try, err)); try++ {
		var l *link
		if l, err = c.enter(); err == nil {
			if c.opts.OnReconnect != nil {
				c.opts.OnReconnect(true)
			}
			return l
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
	ctx, cancel := context.WithTimeout(c.ctx, endpointTimeout)
	defer cancel()
	e, err := c.endpoint(ctx)
	if err != nil {
		return nil, err
	}
	p, err := c.placeOf(e)
	if err != nil {
		return nil, err
	}
	l, err := c.handshake(c.ctx, p, false)
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

// move is a request of the server to go on at another node.
type move struct {
	addr   string
	cancel context.CancelFunc
	done   chan struct{} // closed with over

	// Guarded by Client.mu.
	over bool
	link *link // nil when the move failed
}

// beginMoveLocked stops sending on l and shakes hands with the other node, on a goroutine
// of its own because a newer MOVE may come here meanwhile.
func (c *Client) beginMoveLocked(l *link, m wire.Move) {
	if c.link != l {
		return
	}
	addr := net.JoinHostPort(m.Host, strconv.Itoa(int(m.Port)))
	if c.move != nil {
		if c.move.addr == addr {
			return // repeated until the server sees us go
		}
		c.abandonMoveLocked() // the newest MOVE wins
	}
	ctx, cancel := context.WithTimeout(c.ctx, m.Deadline)
	mv := &move{addr: addr, cancel: cancel, done: make(chan struct{})}
	c.move = mv
	p := c.place
	p.addr = addr
	c.aside.Add(1)
	go func() {
		defer c.aside.Done()
		defer cancel()
		c.shakeElsewhere(ctx, mv, p)
	}()
}

// abandonMoveLocked forgets a move, also one that just succeeded.
func (c *Client) abandonMoveLocked() {
	if c.move == nil {
		return
	}
	c.move.cancel()
	if c.move.link != nil {
		_ = c.move.link.conn.Close()
	}
	c.move = nil
}

func (c *Client) shakeElsewhere(ctx context.Context, mv *move, p place) {
	var l *link
	for l == nil && ctx.Err() == nil {
		var err error
		if l, err = c.handshake(ctx, p, true); err != nil && !pause(ctx, retryPause) {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	mv.over = true
	close(mv.done)
	if c.move != mv {
		if l != nil {
			_ = l.conn.Close()
		}
		return
	}
	mv.link = l
	c.pokeLocked()
}

// awaitMove waits for the end of a move after the old socket broke, which is no loss
// when the move succeeds. It reports whether there was one.
func (c *Client) awaitMove() bool {
	c.mu.Lock()
	mv := c.move
	c.mu.Unlock()
	if mv == nil {
		return false
	}
	select {
	case <-mv.done:
	case <-c.ctx.Done():
		<-mv.done
	}
	return true
}

// movedLink returns the link of a move that succeeded and was not followed yet.
func (c *Client) movedLink() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.move == nil {
		return nil
	}
	return c.move.link
}

// follow goes on with the link of a finished move.
func (c *Client) follow(old, l *link) *link {
	c.mu.Lock()
	resumed := c.installLocked(l, time.Now())
	c.elsewhere = ""
	if resumed {
		c.stats.Moves++
	} else {
		c.stats.Gaps++
	}
	c.mu.Unlock()
	_ = old.conn.Close()
	switch {
	case !resumed:
		c.failCalls(ErrGap)
		if c.opts.OnReconnect != nil {
			c.opts.OnReconnect(true)
		}
	case c.opts.OnMove != nil:
		c.opts.OnMove(l.addr)
	}
	return l
}
