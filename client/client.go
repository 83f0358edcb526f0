// Package client is the Go client of a Diarkis cluster: it gets a place from the
// HTTP role, speaks DX1 to a udp or tcp node, and keeps a player connected while
// networks and nodes come and go.
//
// A [Client] is one player. It owns one goroutine, which reads the socket, uses the
// read deadline as its only timer, and calls the callbacks of [Options]; others
// live for the time of a move to another node, of a resume, or of a change to another
// socket. Whoever sends does so in his own goroutine.
//
// # Coming back
//
// A change of the client's address costs nothing: the server follows, see [Client.Rebind].
// A connection is judged when nothing came for two seconds (TCP: five) since something
// was sent that asks for an answer: then it is resumed at the same node, beside the old
// connection, which goes on if it comes back to life before that. What breaks is resumed
// at once. That goes on for [Options.ResumeFor]; nothing reliable is lost then. When it
// fails, or the HTTP role says that the node is gone, or the node closed the connection,
// the client asks the HTTP role for a new place, with growing pauses, until it has one:
// that is a gap, and the game starts over from its lobby. It ends when the role says that
// asking again is of no use.
// A server that ends the stay with "normal", "replaced" or "kicked" ends the client, also
// when the client finds out only as it tries to come back. A node that moves the user
// elsewhere is followed without the game noticing. The time that the program itself stood
// still is never taken for a silence of the server.
//
// # Methods and callbacks
//
// Every method may be called from any goroutine at any time, also from a callback, before
// [Client.Connect] and after [Client.Close], and never waits for what can't come: what
// would wait for the callback that calls it returns [ErrInCallback] instead. (A callback
// that waits for another goroutine, which calls such a method, waits as long as that
// method's context allows.) A nil context is [context.Background]; one that has ended is
// refused before anything is done.
//
//	c, err := client.Connect(ctx, client.Options{
//		URL: "http://127.0.0.1:7000", UID: "ann",
//		OnPush: func(p client.Push) { fmt.Println(p.Cmd, len(p.Payload)) },
//	})
//	if err != nil {
//		return err
//	}
//	defer c.Close(ctx)
//	room, err := c.CreateRoom(ctx, client.RoomOptions{MembersMax: 4})
package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
)

// windowBytes is how much reliable data beyond a hole a client holds: enough for the
// 1 MiB of a long message, and for 100 Mbit/s at 45 ms with losses.
const windowBytes = 2 << 20

// What waits to be sent reliably behind the message being sent, before ErrSlow: enough
// for a moment without a connection, and less than a server takes at once afterwards.
const (
	queueMessages = 1024
	queueBytes    = 256 << 10
)

// phase says where a client is between its first connection and its end.
type phase uint8

const (
	phaseNew        phase = iota // Connect was not called or failed
	phaseConnecting              // Connect runs
	phaseUp                      // there is a link
	phaseDown                    // the link is lost; what is sent waits for the resume
	phaseSearching               // the state is lost; looking for a new place
	phaseEnded                   // for good
)

// Client is one player's presence in a cluster. Its methods are safe for concurrent use.
type Client struct {
	// Set by New, then constant.
	opts   Options
	ctx    context.Context // ends with the client
	cancel context.CancelFunc
	done   chan struct{}  // closed when the client's goroutine ended
	aside  sync.WaitGroup // goroutines beside the client's own

	// Owned by the client's goroutine.
	recv reliable.Received

	home    atomic.Uint64 // the client's goroutine, see inside
	calling atomic.Int32  // the game's code that runs now
	quiet   atomic.Bool   // no callback is called any more

	mu          sync.Mutex // guards the fields below and those of link that say so
	phase       phase
	place       place
	link        *link // nil unless phaseUp
	machine     *reliable.Machine
	move        *move                   // not nil while the server asked us to go elsewhere; nothing is sent then
	elsewhere   string                  // where a move went that failed, as it seems: the user may be there. Else ""
	attempt     *attempt                // to resume, beside the link or without one; nil when there is none
	confirms    uint64                  // Confirms that left, see ownDoing
	confirmedAt time.Time               // when the last one did
	connecting  context.CancelCauseFunc // ends Connect; nil unless phaseConnecting
	guests      map[uint64]int          // other goroutines in the game's code, see inside
	departures  []*departure            // logins that were given up and are being undone
	dispatching bool                    // callbacks run: what they send is flushed after the last
	closing     bool                    // Close waits for the queue to drain
	stopping    bool                    // Close waits no more
	unattended  bool                    // Close was called by a callback and waits for nothing
	unhook      func() bool             // undoes what an unattended Close asked of its context
	reenter     bool                    // Reenter was called
	drained     chan struct{}           // closed when nothing reliable waits any more and closing is set
	calls       map[uint64]call
	lastCall    uint64
	message     []byte // scratch of the encoder
	offset      time.Duration
	stats       Stats
	endedBy     error // why the client ended
}

// Stats counts what a client did since it was made.
type Stats struct {
	PacketsSent, PacketsReceived uint64
	BytesSent, BytesReceived     uint64 // payload of datagrams or records
	Resumes                      uint64 // connections that went on where the former ended
	Moves                        uint64 // connections that went on at another node
	Gaps                         uint64 // connections that started over
	Rebinds                      uint64 // changes to another socket under a connection
}

// New returns a client that is not connected yet.
func New(o Options) (*Client, error) {
	o = o.withDefaults()
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("client options: %w", err)
	}
	c := &Client{
		opts: o, done: make(chan struct{}), drained: make(chan struct{}),
		calls: make(map[uint64]call), guests: make(map[uint64]int),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Connect is [New] and [Client.Connect]. Callbacks may be called before it returns.
func Connect(ctx context.Context, o Options) (*Client, error) {
	return newConnected(o, func(c *Client) error { return c.Connect(ctx) })
}

// Dial is [New] and [Client.Dial]. Callbacks may be called before it returns.
func Dial(ctx context.Context, e Endpoint, o Options) (*Client, error) {
	return newConnected(o, func(c *Client) error { return c.Dial(ctx, e) })
}

func newConnected(o Options, connect func(*Client) error) (*Client, error) {
	c, err := New(o)
	if err != nil {
		return nil, err
	}
	if err := connect(c); err != nil {
		c.cancel()
		return nil, err
	}
	return c, nil
}

// Connect asks the HTTP role for a place and connects to it. It tries once and
// returns an [*EndpointError], a [*CloseError], [ErrHandshakeTimeout], [ErrHandshakeRefused],
// [ErrHandshakeEnded] or ctx's cause when that fails; it may then be called again. ctx
// bounds this call only. A client that is connected, or about to be, stays as it is and
// gets [ErrConnected], a closed one [ErrClosed].
//
// A login that is given up when the node may have let the user in already is undone in
// the background, for 4 s at most, so that the user does not stay there.
func (c *Client) Connect(ctx context.Context) error {
	return c.connect(ctx, c.endpoint)
}

// Dial connects to a place that the caller got from the HTTP role. Errors and ctx
// are as for [Client.Connect].
func (c *Client) Dial(ctx context.Context, e Endpoint) error {
	return c.connect(ctx, func(context.Context) (Endpoint, error) { return e, nil })
}

// connect takes the place that endpoint returns.
func (c *Client) connect(ctx context.Context, endpoint func(context.Context) (Endpoint, error)) error {
	ctx, cancel := context.WithCancelCause(orBackground(ctx))
	defer cancel(nil)
	if err := c.beginConnect(ctx, cancel); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	l, p, err := c.login(ctx, endpoint)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.connecting = nil
	if err == nil {
		c.place = p
		c.installLocked(l, time.Now())
		go c.run(l) // which hangs up when Close was called meanwhile
		if c.closing {
			return fmt.Errorf("connect: %w", ErrClosed)
		}
		return nil
	}
	if c.phase = phaseNew; c.closing {
		c.endLocked(ErrClosed)
		return fmt.Errorf("connect: %w", ErrClosed)
	}
	return err
}

func (c *Client) beginConnect(ctx context.Context, cancel context.CancelCauseFunc) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.phase == phaseEnded || c.closing:
		return c.endErrorLocked()
	case c.phase != phaseNew:
		return ErrConnected
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	c.phase, c.connecting = phaseConnecting, cancel
	return nil
}

// login gets a place and connects to it.
func (c *Client) login(ctx context.Context, endpoint func(context.Context) (Endpoint, error)) (*link, place, error) {
	e, err := endpoint(ctx)
	if err != nil {
		return nil, place{}, err
	}
	p, err := c.placeOf(e)
	if err != nil {
		return nil, place{}, err
	}
	l, err := c.handshake(ctx, p, false, nil)
	return l, p, err
}

// orBackground makes a context of none.
func orBackground(ctx context.Context) context.Context {
	if ctx == nil {
		return context.Background()
	}
	return ctx
}

func (c *Client) endpoint(ctx context.Context) (Endpoint, error) {
	o := &c.opts
	if o.URL == "" {
		return Endpoint{}, fmt.Errorf("ask for an endpoint: %w", ErrNoURL)
	}
	q := EndpointRequest{URL: o.URL, Type: o.Type, UID: o.UID, ClientKey: o.ClientKey, Properties: o.Properties, HTTP: o.HTTP}
	if o.Ticket == nil {
		return RequestEndpoint(ctx, q)
	}
	e, err := c.withTicket(ctx, q)
	if refused, ok := errors.AsType[*EndpointError](err); ok && refused.HTTPStatus == http.StatusUnauthorized {
		return c.withTicket(ctx, q)
	}
	return e, err
}

// withTicket asks for an endpoint with a fresh ticket.
func (c *Client) withTicket(ctx context.Context, q EndpointRequest) (Endpoint, error) {
	leave := c.guest()
	t, err := c.opts.Ticket(ctx, q.UID)
	leave()
	if err != nil {
		return Endpoint{}, fmt.Errorf("fetch a ticket: %w", err)
	}
	q.Ticket = strings.TrimSpace(t) // a line break at the end of an answer or a file is no part of it
	return RequestEndpoint(ctx, q)
}

func (c *Client) placeOf(e Endpoint) (place, error) {
	creds, err := e.credentials()
	if err != nil {
		return place{}, fmt.Errorf("endpoint: %w", err)
	}
	t := cmp.Or(c.opts.Transport, e.transport())
	return place{addr: e.Addr(), stream: t == TCP, creds: creds, node: e.Node}, nil
}

// Connected reports whether there is a connection right now.
func (c *Client) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.phase == phaseUp
}

// Addr returns "host:port" of the node the client is or was connected to.
func (c *Client) Addr() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.place.addr
}

// Transport returns what carries the connection.
func (c *Client) Transport() Transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.place.transport()
}

// Latency returns the smoothed round-trip time, zero before the first measurement.
func (c *Client) Latency() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.machine == nil {
		return 0
	}
	smoothed, _ := c.machine.RTT()
	return smoothed
}

// ClockOffset returns how far the server's clock is ahead of this one, good to about
// half the round-trip time.
func (c *Client) ClockOffset() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.machine != nil {
		if d, ok := c.machine.ClockOffset(); ok {
			return d
		}
	}
	return c.offset
}

// Stats returns the counters.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stats
}

// Reenter leaves the node and asks the HTTP role for another, as a game does
// between two matches after [Options.OnOffline]. It returns at once;
// [Options.OnReconnect] tells when it is done. A connection that is lost is given up
// for it; a client that looks for a place already goes on with that. It returns
// [ErrNotConnected] before [Client.Connect], [ErrClosed], and [ErrNoURL] or
// [ErrNoReconnect] when the options allow no other place: then nothing changes.
func (c *Client) Reenter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.phase == phaseEnded || c.closing:
		return fmt.Errorf("reenter: %w", c.endErrorLocked())
	case c.phase == phaseNew || c.phase == phaseConnecting:
		return fmt.Errorf("reenter: %w", ErrNotConnected)
	case c.opts.NoReconnect:
		return fmt.Errorf("reenter: %w", ErrNoReconnect)
	case c.opts.URL == "":
		return fmt.Errorf("reenter: %w", ErrNoURL)
	case c.phase == phaseSearching:
		return nil
	}
	c.reenter = true
	if c.phase == phaseDown {
		c.endAttemptLocked()
	}
	c.pokeLocked()
	return nil
}

// pokeLocked wakes the client's goroutine if it reads.
func (c *Client) pokeLocked() {
	if c.link != nil {
		c.link.poked = true
		_ = c.link.conn.SetReadDeadline(past)
	}
}

// waitingLocked reports whether something was sent reliably and may still arrive.
func (c *Client) waitingLocked() bool {
	return c.machine != nil && c.phase <= phaseDown && c.machine.Unacked()
}

// installLocked makes l the current link and carries the state over if the server
// did. It reports whether it did.
func (c *Client) installLocked(l *link, now time.Time) (resumed bool) {
	idle := l.accept.IdleTimeout
	cfg := reliable.Config{
		Stream: l.stream, RTT: l.rtt, IdleTimeout: idle, KeepAlive: idle / 3,
		Window: windowBytes, FramesBase: l.base, FramesMax: l.frames,
		QueueReliable: queueMessages, QueueBytes: queueBytes, QueueBytesMax: queueBytes,
	}
	resumed = l.accept.Resumed && c.machine != nil
	var state *reliable.State
	if resumed {
		state = c.machine.Export()
	}
	c.machine = reliable.New(now, cfg, state)
	c.machine.SendPing(now) // the answer tells the server's clock, and that the node reads us
	switch {
	case l.accept.Token != "":
		c.place.node = l.accept.Token
	case l.addr != c.place.addr:
		c.place.node = "" // what is known names the node before
	}
	c.place.addr = l.addr
	if c.link != nil {
		c.link.roam.abandon()
	}
	c.link, c.move, c.elsewhere, c.attempt, c.phase = l, nil, "", nil, phaseUp
	c.offset = l.accept.ServerTime.Add(l.rtt / 2).Sub(now)
	return resumed
}

// dropLinkLocked takes the link away; nobody sends on it any more.
func (c *Client) dropLinkLocked(p phase) {
	if c.link != nil {
		c.link.roam.abandon()
	}
	c.link, c.phase = nil, p
	c.abandonMoveLocked()
	if p >= phaseSearching {
		c.endAttemptLocked()
	}
}
