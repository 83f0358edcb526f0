package client

import (
	"context"
	"errors"
	"net"
	"strconv"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// move is a request of the server to go on at another node.
type move struct {
	addr   string
	cancel context.CancelFunc
	done   chan struct{} // closed with over

	// Guarded by Client.mu.
	over  bool
	link  *link       // nil when the move failed
	ended *CloseError // what the other node said when the stay is over there
}

// beginMoveLocked stops sending on l and shakes hands with the other node, on a goroutine
// of its own because a newer MOVE may come here meanwhile.
func (c *Client) beginMoveLocked(l *link, m wire.Move) {
	if c.link != l {
		return
	}
	addr := net.JoinHostPort(m.Host, strconv.Itoa(int(m.Port)))
	if c.move != nil {
		if c.move.addr == addr || c.move.link != nil {
			return // repeated until the server sees us go; or sent before it let go of us
		}
		c.abandonMoveLocked() // the newest MOVE wins
	}
	c.endAttemptLocked()
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
	mv := c.move
	c.move = nil
	if mv.over {
		c.dropMovedLocked(mv)
	}
}

// dropMovedLocked undoes what a move came to that is not wanted any more.
func (c *Client) dropMovedLocked(mv *move) {
	switch {
	case mv.link != nil:
		c.partLocked(mv.link)
	case mv.ended == nil && c.phase == phaseEnded:
		p := c.place
		p.addr = mv.addr
		c.leaveAtLocked(p) // the node before takes nothing in, not even a CLOSE
	}
}

func (c *Client) shakeElsewhere(ctx context.Context, mv *move, p place) {
	var l *link
	var ended *CloseError
	for ctx.Err() == nil {
		var err error
		if l, err = c.handshake(ctx, p, true, nil); err == nil {
			break
		}
		if ended, _ = errors.AsType[*CloseError](err); ended != nil || !pause(ctx, retryPause) {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	mv.over = true
	close(mv.done)
	mv.link, mv.ended = l, ended
	if c.move != mv {
		c.dropMovedLocked(mv)
		return
	}
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
		c.reconnected(true)
	case c.opts.OnMove != nil && !c.quiet.Load():
		c.calling.Add(1)
		c.opts.OnMove(l.addr)
		c.calling.Add(-1)
	}
	return l
}
