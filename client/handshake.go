package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// schedule is when a Hello and a Confirm are sent, counted from the first.
var schedule = [...]time.Duration{0, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}

// refusedMax is how many times in a row the host may say that nothing listens
// before it is believed: the message is not authenticated.
const refusedMax = 3

// past is a deadline that wakes a reader at once.
var past = time.Unix(1, 0)

// isRefused reports whether the host said that nothing listens there. Windows has
// numbers of its own for that, and for datagrams the name of another mishap.
func isRefused(err error) bool {
	const wsaConnReset, wsaConnRefused = syscall.Errno(10054), syscall.Errno(10061)
	e, ok := errors.AsType[syscall.Errno](err)
	return ok && (e == syscall.ECONNREFUSED || e == wsaConnReset || e == wsaConnRefused)
}

// isHungUp reports whether a TCP server closed the connection instead of answering.
func isHungUp(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// place is where to connect and as whom.
type place struct {
	addr   string
	stream bool
	creds  secure.Credentials
}

func (p place) transport() Transport {
	if p.stream {
		return TCP
	}
	return UDP
}

// handshake connects to a place. It blocks for at most Options.HandshakeTimeout.
func (c *Client) handshake(ctx context.Context, p place, resume bool) (*link, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.opts.HandshakeTimeout, ErrHandshakeTimeout)
	defer cancel()
	l, err := c.handshakeIn(ctx, p, resume)
	if err == nil {
		return l, nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	} else if isRefused(err) {
		err = ErrHandshakeRefused
	} else if isHungUp(err) {
		err = ErrHandshakeEnded
	}
	return nil, fmt.Errorf("connect to %s over %v: %w", p.addr, p.transport(), err)
}

func (c *Client) handshakeIn(ctx context.Context, p place, resume bool) (_ *link, err error) {
	conn, err := c.opts.Dial(ctx, p.transport().network(), p.addr)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	wake := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	defer wake()

	hs, err := secure.NewClient(p.creds, c.opts.ClientKey, secure.ClientOptions{X25519: !c.opts.NoX25519, Stream: p.stream}, c.opts.Rand)
	if err != nil {
		return nil, err
	}
	x := exchange{ctx: ctx, link: newLink(conn, p.stream, p.addr)}
	var confirm []byte
	err = x.until(hs.Hello(), func(_ time.Time, b []byte) bool {
		confirm, err = hs.Challenge(b, resume, nil)
		return err == nil
	})
	if err != nil {
		return nil, err
	}
	err = x.until(confirm, func(now time.Time, b []byte) bool {
		a, s, o, err := hs.Accept(now, b)
		if err != nil {
			x.keep(b)
			return false
		}
		x.link.accepted(now, a, s, o)
		return true
	})
	if err != nil {
		return nil, err
	}
	if !wake() {
		return nil, context.Cause(ctx)
	}
	return x.link, conn.SetDeadline(time.Time{})
}

// exchange sends one packet until one answer fits.
type exchange struct {
	ctx     context.Context
	link    *link
	refused int // times in a row that the host said nothing listens
}

// until sends p on the schedule, over TCP once, until accept takes a packet.
func (x *exchange) until(p []byte, accept func(now time.Time, b []byte) bool) error {
	l := x.link
	start, sent := time.Now(), 0
	for {
		now := time.Now()
		if sent < len(schedule) && (sent == 0 || !l.stream) && now.Sub(start) >= schedule[sent] {
			sent++
			if err := l.send(p); err != nil && !x.tolerates(err) {
				return err
			}
		}
		var deadline time.Time // past the schedule only ctx ends the wait
		if sent < len(schedule) && !l.stream {
			deadline = start.Add(schedule[sent])
		}
		b, err := x.read(deadline)
		if err != nil {
			return err
		}
		if b != nil && accept(time.Now(), b) {
			if sent == 1 {
				l.rtt = time.Since(start)
			} else {
				l.rtt = 0 // which copy was answered is unknown
			}
			return nil
		}
	}
}

// read returns a packet, or nil at the deadline.
func (x *exchange) read(deadline time.Time) ([]byte, error) {
	b, err := x.link.next()
	if b != nil || err != nil {
		return b, err
	}
	if err := x.link.conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	// ctx sets the deadline to the past: either it did so after the line above, or it
	// shows here.
	if err := context.Cause(x.ctx); err != nil {
		return nil, err
	}
	if err := x.link.fill(); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) || x.tolerates(err) {
			return nil, context.Cause(x.ctx)
		}
		return nil, err
	}
	x.refused = 0
	return x.link.next()
}

// tolerates reports whether to go on after an error of the socket.
func (x *exchange) tolerates(err error) bool {
	if x.link.stream || !isRefused(err) {
		return false
	}
	x.refused++
	return x.refused < refusedMax
}

// keep copies a data packet that overtook Accept.
func (x *exchange) keep(b []byte) {
	if wire.TypeOf(b) == wire.PacketData && len(x.link.early) < earlyMax {
		x.link.early = append(x.link.early, append([]byte(nil), b...))
	}
}
