package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

const (
	// retryPause is between two handshakes at the same node that came to nothing at once.
	// It doubles up to retryPauseMax while the node hangs up, which only says "not now":
	// anybody behind the same address can make it do that, and a user who is between two
	// nodes is let in by neither. That a stay is over a node says in so many words.
	retryPause    = 250 * time.Millisecond
	retryPauseMax = time.Second
)

// resume handshakes at the node that has the state until it answers, says that the stay
// is over or that nothing listens there, until the HTTP role says that the node is gone,
// or until the node has dropped the state by now. A move that seemed to fail may have gone
// through: then other is where it went, and both are asked at once. Of the two only the
// owner lets the user in.
func (c *Client) resume(ctx context.Context, a *attempt, p place, other string) (*link, error) {
	if p.node != "" && c.opts.URL != "" {
		c.aside.Go(func() { c.watchNode(ctx, a, p.node, other != "") })
	}
	if other == "" {
		return c.knock(ctx, a, p, true)
	}
	both, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	type answer struct {
		link *link
		err  error
	}
	answers := make(chan answer, 2)
	for _, addr := range [...]string{p.addr, other} {
		c.aside.Go(func() {
			got := answer{err: ErrClosed} // unless Options.Dial ends the goroutine
			defer func() { answers <- got }()
			q := p
			q.addr = addr
			got.link, got.err = c.knock(both, a, q, addr == p.addr)
		})
	}
	first, second := <-answers, answer{}
	if !errors.Is(first.err, ErrHandshakeRefused) {
		stop(errUnwanted) // nothing else leaves a question open
	}
	if second = <-answers; first.link == nil && (second.link != nil || errors.Is(first.err, ErrHandshakeRefused)) {
		return second.link, second.err
	}
	if second.link != nil {
		c.mu.Lock()
		c.partLocked(second.link)
		c.mu.Unlock()
	}
	return first.link, first.err
}

// knock handshakes at one node until there is an answer. Home says that it is the one
// where the connection was.
func (c *Client) knock(ctx context.Context, a *attempt, p place, home bool) (*link, error) {
	wait := retryPause
	for began := time.Now(); ctx.Err() == nil; {
		l, err := c.handshake(ctx, p, true, func() bool { return c.mayConfirm(a, home) })
		if err == nil {
			return l, nil
		}
		_, ended := errors.AsType[*CloseError](err)
		if ended || errors.Is(err, errUnwanted) || errors.Is(err, ErrHandshakeRefused) {
			return nil, err
		}
		silent := errors.Is(err, ErrHandshakeTimeout)
		if silent || time.Since(began) >= c.opts.HandshakeTimeout {
			c.noteFailed(ctx, a)
		}
		if silent {
			wait = retryPause
			continue
		}
		pause(ctx, wait/2+rand.N(wait/2))
		wait = min(2*wait, retryPauseMax)
	}
	return nil, context.Cause(ctx)
}

// mayConfirm reports whether a is wanted still. From then on it is whatever the old
// connection says.
func (c *Client) mayConfirm(a *attempt, home bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.attempt != a {
		return false
	}
	a.answered = time.Now()
	if home {
		a.alive = a.answered
	}
	return true
}

// noteFailed has an old connection given up after a whole handshake in vain.
func (c *Client) noteFailed(ctx context.Context, a *attempt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() == nil {
		a.failed = true
		c.pokeLocked()
	}
}
