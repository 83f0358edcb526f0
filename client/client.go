// Package client is the Go client of a Diarkis cluster: it gets a place from the
// HTTP role, speaks DX1 to a udp or tcp node, and keeps a player connected while
// networks and nodes come and go.
//
// A [Client] is one player. It owns one goroutine, which reads the socket, uses the
// read deadline as its only timer, and calls the callbacks of [Options]; others
// live for the time of a move to another node, or of a change to another socket.
// Whoever sends does so in his own goroutine.
//
// # Coming back
//
// A change of the client's address costs nothing: the server follows, see [Client.Rebind].
// A connection that falls silent or breaks is resumed at the same node for
// [Options.ResumeFor]; nothing reliable is lost then. When that fails, or the node
// closed the connection, the client asks the HTTP role for a new place, with growing
// pauses, until it has one: that is a gap, and the game starts over from its lobby. It
// ends when the role says that asking again is of no use.
// A server that closes with "normal", "replaced" or "kicked" ends the client. A node
// that moves the user elsewhere is followed without the game noticing.
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
	phaseNew       phase = iota // Connect was not called or failed
	phaseUp                     // there is a link
	phaseDown                   // the link is lost; what is sent waits for the resume
	phaseSearching              // the state is lost; looking for a new place
	phaseEnded                  // for good
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

	mu          sync.Mutex // guards the fields below and those of link that say so
	phase       phase
	place       place
	link        *link // nil unless phaseUp
	machine     *reliable.Machine
	move        *move         // not nil while the server asked us to go elsewhere; nothing is sent then
	elsewhere   string        // where the last move went that failed, "" when there was none
	dispatching bool          // callbacks run: what they send is flushed after the last
	closing     bool          // Close waits for the queue to drain
	stopping    bool          // Close waits no more
	reenter     bool          // Reenter was called
	drained     chan struct{} // closed when nothing reliable waits any more and closing is set
	calls       map[uint64]call
	lastCall    uint64
	message     []byte // scratch of the encoder
	offset      time.Duration
	stats       Stats
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
	c := &Client{opts: o, done: make(chan struct{}), drained: make(chan struct{}), calls: make(map[uint64]call)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Connect is [New] and [Client.Connect]. Callbacks may be called before it returns.
func Connect(ctx context.Context, o Options) (*Client, error) {
	c, err := New(o)
	if err != nil {
		return nil, err
	}
	if err := c.Connect(ctx); err != nil {
		c.cancel()
		return nil, err
	}
	return c, nil
}

// Dial is [New] and [Client.Dial]. Callbacks may be called before it returns.
func Dial(ctx context.Context, e Endpoint, o Options) (*Client, error) {
	c, err := New(o)
	if err != nil {
		return nil, err
	}
	if err := c.Dial(ctx, e); err != nil {
		c.cancel()
		return nil, err
	}
	return c, nil
}

// Connect asks the HTTP role for a place and connects to it. It tries once and
// returns an [*EndpointError], [ErrHandshakeTimeout], [ErrHandshakeRefused] or
// [ErrHandshakeEnded] when that fails; it may then be called again. ctx bounds this call only.
func (c *Client) Connect(ctx context.Context) error {
	e, err := c.endpoint(ctx)
	if err != nil {
		return err
	}
	return c.Dial(ctx, e)
}

// Dial connects to a place that the caller got from the HTTP role. Errors and ctx
// are as for [Client.Connect].
func (c *Client) Dial(ctx context.Context, e Endpoint) error {
	p, err := c.placeOf(e)
	if err != nil {
		return err
	}
	l, err := c.handshake(ctx, p, false)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if c.phase != phaseNew || c.closing {
		c.mu.Unlock()
		_ = l.conn.Close()
		return errors.New("client was connected or closed already")
	}
	c.place = p
	c.installLocked(l, time.Now())
	c.mu.Unlock()
	go c.run(l)
	return nil
}

func (c *Client) endpoint(ctx context.Context) (Endpoint, error) {
	o := &c.opts
	if o.URL == "" {
		return Endpoint{}, errors.New("ask for an endpoint: no url in the options")
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
	t, err := c.opts.Ticket(ctx, q.UID)
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
	return place{addr: e.Addr(), stream: t == TCP, creds: creds}, nil
}

// Close sends what was sent reliably, tells the server that the user leaves and
// ends the client. It waits for acknowledgements until ctx ends, and returns ctx's
// cause if some are missing then. Requests without an answer get [ErrClosed]. No
// callback is called after Close returned.
func (c *Client) Close(ctx context.Context) error {
	c.mu.Lock()
	if c.phase == phaseNew {
		c.phase = phaseEnded
		close(c.done)
	}
	c.closing = true
	if c.phase != phaseUp && !c.waitingLocked() {
		c.drainedLocked()
	}
	c.pokeLocked()
	c.mu.Unlock()
	var err error
	select {
	case <-c.done:
	case <-c.drained:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.mu.Lock()
	c.stopping = true
	c.pokeLocked()
	c.mu.Unlock()
	c.cancel()
	<-c.done
	return err
}

// Done is closed when the client ended for good.
func (c *Client) Done() <-chan struct{} { return c.done }

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
// [Options.OnReconnect] tells when it is done.
func (c *Client) Reenter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reenter = true
	c.pokeLocked()
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

// drainedLocked tells Close that it need not wait.
func (c *Client) drainedLocked() {
	select {
	case <-c.drained:
	default:
		close(c.drained)
	}
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
	c.place.addr = l.addr
	if c.link != nil {
		c.link.roam.abandon()
	}
	c.link, c.move, c.phase = l, nil, phaseUp
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
}
