package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// schedule is when a Hello and a Confirm are sent, counted from the first.
var schedule = [...]time.Duration{0, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 3 * time.Second}

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
	node   string // the token of the run of a node that is there, empty when it isn't known
}

func (p place) transport() Transport {
	if p.stream {
		return TCP
	}
	return UDP
}

// handshake connects to a place. It blocks for at most Options.HandshakeTimeout. Before
// the Confirm leaves, which has the node take the user over, it asks may, unless that is
// nil.
func (c *Client) handshake(ctx context.Context, p place, resume bool, may func() bool) (*link, error) {
	abortDeparture(p.creds.SID)
	ctx, cancel := context.WithTimeoutCause(ctx, c.opts.HandshakeTimeout, ErrHandshakeTimeout)
	defer cancel()
	h := &login{c: c, place: p, resume: resume, may: may}
	err := h.run(ctx)
	if err == nil {
		return h.x.link, nil
	}
	c.giveUpLogin(h, err)
	if _, ended := errors.AsType[*CloseError](err); ended {
		// That is the node's word, whatever became of ctx.
	} else if cause := context.Cause(ctx); cause != nil {
		err = cause
	} else if isRefused(err) {
		err = ErrHandshakeRefused
	} else if isHungUp(err) {
		err = ErrHandshakeEnded
	}
	return nil, fmt.Errorf("connect to %s over %v: %w", p.addr, p.transport(), err)
}

// dialNode opens a socket.
func (c *Client) dialNode(ctx context.Context, network, addr string) (net.Conn, error) {
	defer c.guest()()
	return c.opts.Dial(ctx, network, addr)
}

// login is one handshake.
type login struct {
	c       *Client
	place   place
	resume  bool
	may     func() bool
	hs      *secure.Client
	x       exchange
	confirm []byte // nil until it leaves
}

// errUnwanted ends a resume whose old connection came back to life.
var errUnwanted = errors.New("the old connection lives")

// run shakes hands. h.x.link is nil as long as there is no socket.
func (h *login) run(ctx context.Context) error {
	conn, err := h.c.dialNode(ctx, h.place.transport().network(), h.place.addr)
	if err != nil {
		return err
	}
	h.x = exchange{ctx: ctx, link: newLink(conn, h.place.stream, h.place.addr)}
	release := h.x.wakeAt(ctx)
	defer release()
	o := secure.ClientOptions{X25519: !h.c.opts.NoX25519, Stream: h.place.stream}
	if h.hs, err = secure.NewClient(h.place.creds, h.c.opts.ClientKey, o, h.c.opts.Rand); err != nil {
		return err
	}
	var confirm []byte
	err = h.x.until(h.hs.Hello(), func(_ time.Time, b []byte) (bool, error) {
		if confirm, err = h.hs.Challenge(b, h.resume, nil); err == nil {
			return true, nil
		}
		return false, h.ended(b)
	})
	if err != nil {
		return err
	}
	if h.may != nil && !h.may() {
		return errUnwanted
	}
	h.confirm = confirm
	h.x.link.confirm = h.c.confirming()
	if err := h.accept(); err != nil {
		return err
	}
	if !release() {
		return context.Cause(ctx)
	}
	return conn.SetDeadline(time.Time{})
}

// accept sends the Confirm until the node answers it.
func (h *login) accept() error {
	return h.x.until(h.confirm, func(now time.Time, b []byte) (bool, error) {
		a, s, o, err := h.hs.Accept(now, b)
		if err != nil {
			h.x.keep(b)
			return false, h.ended(b)
		}
		h.x.link.accepted(now, a, s, o)
		return true, nil
	})
}

// ended returns a [*CloseError] when b says that the stay is over, else nil.
func (h *login) ended(b []byte) error {
	code, err := h.hs.Ended(b)
	if err != nil {
		return nil // somebody else's packet
	}
	return &CloseError{Code: known(code), Reason: "said when asked to let the user in"}
}

// confirming notes that a Confirm leaves and returns its number.
func (c *Client) confirming() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.confirms++
	c.confirmedAt = time.Now()
	return c.confirms
}

// exchange sends one packet until one answer fits.
type exchange struct {
	ctx     context.Context
	link    *link
	refused int // times in a row that the host said nothing listens
}

// wakeAt has the end of ctx wake whoever waits for the socket, until the function that
// it returns is called; that reports whether ctx was alive until then.
func (x *exchange) wakeAt(ctx context.Context) (release func() bool) {
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = x.link.conn.SetDeadline(past)
		close(woken)
	})
	first, alive := true, false
	return func() bool {
		if first {
			if first, alive = false, stop(); !alive {
				<-woken // so that the deadline is the caller's from here on
			}
		}
		return alive
	}
}

// until sends p on the schedule, over TCP once, until accept takes a packet or returns
// an error.
func (x *exchange) until(p []byte, accept func(now time.Time, b []byte) (bool, error)) error {
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
		if b == nil {
			continue
		}
		ok, err := accept(time.Now(), b)
		if err != nil {
			return err
		}
		if ok {
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
