package client

import (
	"context"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// closeGrace is how long after the end of its context Close waits for a callback that
// runs. The server was told by then.
const closeGrace = time.Second

// Close sends what was sent reliably, tells the server that the user leaves and
// ends the client. It waits for acknowledgements until ctx ends, and returns ctx's
// cause if some are missing then. Requests without an answer get [ErrClosed]. A
// [Client.Connect] that runs ends with [ErrClosed], and Close waits until what it began
// is undone, half a second at least. No callback is called, and nothing runs, after Close
// returned; only a callback that still runs a second after ctx ended is not waited for.
//
// Called from a callback it begins all that and returns nil at once: the rest happens
// after the callback, for which it can't wait, and [Client.Done] tells the end of it. Of
// the callbacks only those of [Client.Go] are called after the one that called Close,
// with [ErrClosed].
func (c *Client) Close(ctx context.Context) error {
	ctx = orBackground(ctx)
	inside := c.inside()
	c.mu.Lock()
	c.closing = true
	switch c.phase {
	case phaseNew:
		c.endLocked(ErrClosed)
	case phaseConnecting:
		c.connecting(ErrClosed)
	case phaseUp:
	default:
		if !c.waitingLocked() {
			c.drainedLocked()
		}
	}
	if inside {
		c.unattendedLocked(ctx)
	}
	c.pokeLocked()
	c.mu.Unlock()
	if inside {
		return nil
	}
	var err error
	select {
	case <-c.done:
	case <-c.drained:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.mu.Lock()
	c.stopLocked()
	c.mu.Unlock()
	c.awaitEnd()
	c.awaitDepartures(ctx)
	return err
}

// unattendedLocked lets a Close that can't wait go on without it.
func (c *Client) unattendedLocked(ctx context.Context) {
	c.quiet.Store(true)
	first := !c.unattended
	c.unattended = true
	select {
	case <-c.drained:
		c.stopLocked()
		return
	default:
	}
	if ctx.Err() != nil {
		c.stopLocked()
	} else if first && c.phase != phaseEnded {
		c.unhook = context.AfterFunc(ctx, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.stopLocked()
		})
	}
}

// drainedLocked tells Close that it need not wait.
func (c *Client) drainedLocked() {
	select {
	case <-c.drained:
	default:
		close(c.drained)
	}
	if c.unattended {
		c.stopLocked()
	}
}

// stopLocked has the client's goroutine hang up and end.
func (c *Client) stopLocked() {
	c.quiet.Store(true)
	c.stopping = true
	c.pokeLocked()
	if l := c.link; l != nil && l.writing {
		_ = l.conn.SetWriteDeadline(time.Now().Add(lingerMax))
	}
	c.cancel()
}

// awaitEnd waits for the client's goroutine. When a callback doesn't return it hangs up
// in its place: the user must not stay at the server because of that.
func (c *Client) awaitEnd() {
	t := time.NewTimer(closeGrace)
	defer t.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-t.C:
		}
		if c.calling.Load() == 0 {
			t.Reset(closeGrace) // it is on its way: nothing it does takes long
			continue
		}
		c.mu.Lock()
		l := c.link
		c.mu.Unlock()
		if l != nil {
			c.hangUp(l, phaseEnded, CloseNormal, "")
		}
		return
	}
}

// awaitDepartures waits until logins that were given up are undone. When ctx ends they
// have lingerMax to come to that, and are given up too: nothing runs on after Close.
func (c *Client) awaitDepartures(ctx context.Context) {
	c.mu.Lock()
	all := c.departures
	c.mu.Unlock()
	if len(all) == 0 {
		return
	}
	var late, hopeless <-chan time.Time
	ended := ctx.Done()
	for _, d := range all {
		for waits := true; waits; {
			select {
			case <-d.done:
				waits = false
			case <-ended:
				ended, late = nil, time.After(lingerMax)
			case <-late:
				for _, d := range all {
					d.cancel()
				}
				hopeless = time.After(closeGrace)
			case <-hopeless:
				return // Options.Dial does not return
			}
		}
	}
}

// endLocked ends a client that has no goroutine.
func (c *Client) endLocked(why error) {
	c.phase, c.endedBy = phaseEnded, why
	c.cancel()
	close(c.done)
}

// endErrorLocked is what methods return when the client has ended, or is about to.
func (c *Client) endErrorLocked() error {
	if c.endedBy == nil || c.endedBy == ErrClosed {
		return ErrClosed
	}
	return endError{c.endedBy}
}

// endError is ErrClosed with what ended the client.
type endError struct{ why error }

func (e endError) Error() string        { return ErrClosed.Error() + ": " + e.why.Error() }
func (e endError) Is(target error) bool { return target == ErrClosed }
func (e endError) Unwrap() error        { return e.why }

// Done is closed when the client ended for good: [Client.Err] says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is why the client ended: [ErrClosed] after [Client.Close], else what the last
// [Disconnect] said. It is nil as long as [Client.Done] is open.
func (c *Client) Err() error {
	select {
	case <-c.done:
	default:
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.endedBy
}

// A method that would wait for the client's goroutine has to know that it runs on it, or
// on another that the client waits for. Neither a flag nor a lock tells a callback that
// calls the method from a goroutine that does so while a callback runs; only the
// goroutine's number does.

// inside reports whether a callback, or other code of the game that the client waits
// for, is calling.
func (c *Client) inside() bool {
	if c.calling.Load() == 0 {
		return false
	}
	me := goroutine()
	if me == c.home.Load() {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.guests[me] > 0
}

// guest notes that this goroutine is about to run code of the game, until the function
// that it returns is called.
func (c *Client) guest() func() {
	me := goroutine()
	c.calling.Add(1)
	c.mu.Lock()
	c.guests[me]++
	c.mu.Unlock()
	return func() {
		c.calling.Add(-1)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.guests[me]--; c.guests[me] == 0 {
			delete(c.guests, me)
		}
	}
}

// goroutine returns the number of the calling goroutine, from the first line of its
// stack trace, "goroutine 18 [running]:", which is how the runtime tells it.
func goroutine() uint64 {
	var b [64]byte
	fields := strings.Fields(string(b[:runtime.Stack(b[:], false)]))
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.ParseUint(fields[1], 10, 64)
	return n
}
