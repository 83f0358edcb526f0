package transport

import (
	"context"
	"errors"
	"net/netip"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Handler receives what clients do. Nothing in it may block: a whole socket waits
// for it. It is called without any lock of this package held, so it may call back,
// except for [Places.Freeze].
//
// Opened and Handle come from a reader: for one Conn, Opened first, then its
// messages in order, never two at once. The Batch is the reader's, for use during
// the call only; it is flushed when the reader has gone through what it received.
//
// Silent, Lost and Ended come from the keeper, one at a time in the server. They never
// overlap with Opened of the same place, but Handle of its Conn, or of its old one, may
// run meanwhile.
type Handler interface {
	// Opened tells of a new connection of c.Place. One that it replaces is closed
	// already, and its Lost is not told. Resumed says that reliable messages go on
	// where they stopped.
	Opened(b *Batch, c *Conn, resumed bool)
	// Handle receives a request. The payload is lent until Handle returns.
	Handle(b *Batch, c *Conn, m wire.Message, rel reliable.Reliability)
	// Silent tells that what was sent to a connected client went unanswered for
	// so long that it is most likely gone; and with false that it was heard again. The
	// connection lasts meanwhile, and what is sent waits for the client. It is told once
	// for each change. Lost, Ended and the next Opened end it too, without a word.
	Silent(p *Place, silent bool)
	// Lost tells that the place has no connection any more and waits for the next.
	Lost(p *Place)
	// Ended tells that the place is gone: closed with this code, or idle when nobody
	// came (back) in time. It is told once, but not after Cancel or Released.
	Ended(p *Place, code wire.CloseCode)
}

// State is what a server tells about its node.
type State uint32

// The states of a node, with the numbers of a probe reply.
const (
	StateOnline  = State(wire.ProbeOnline)
	StateOffline = State(wire.ProbeOffline)
	StateTaken   = State(wire.ProbeTaken)
)

// Server is a [UDP] or [TCP] server.
type Server interface {
	// Listen binds the socket. Clients are answered once Run runs.
	Listen() (netip.AddrPort, error)
	// Run serves until ctx ends, closes what is left with shutdown, and returns nil.
	// It may be called once, after Listen.
	Run(ctx context.Context) error
	// Places are the users this server expects or has.
	Places() *Places
	// State and SetState say what a probe is answered; while it is not online,
	// clients are told at their handshake that the node drains.
	State() State
	SetState(s State)
	// Offline sends every client an OFFLINE with one of the wire.Offline reasons.
	Offline(reason uint8)
	// CloseAll closes every connection and ends its place.
	CloseAll(code wire.CloseCode, reason string)
	// Connected is how many users have a live connection.
	Connected() int
	// NewBatch returns a Batch for a goroutine that sends to many connections.
	NewBatch() *Batch
	// Protocol is "UDP" or "TCP".
	Protocol() string
	// Figures counts what the server did since it was made.
	Figures() Figures
}

// Errors of this package.
var (
	// ErrClosed means the connection is over.
	ErrClosed = errors.New("connection is closed")
	// ErrFrozen means the user is being moved to another node.
	ErrFrozen = errors.New("connection is frozen for a move")
	// ErrThawed means the user goes on here: somebody called Thaw during Freeze.
	ErrThawed = errors.New("thawed before it was frozen")
	// ErrPlacesFull means Config.PlacesMax places exist.
	ErrPlacesFull = errors.New("no place is free")
	// ErrPlaceExists means the sid, or one that cannot be told from it, has a place.
	ErrPlaceExists = errors.New("place exists already")
	// ErrNoPlace means there is no place of that sid, or none in the needed state.
	ErrNoPlace = errors.New("no such place")
	// ErrRevoked is what Reservation.Release wraps when the user will never come: they may
	// live elsewhere, so their client hears nothing.
	ErrRevoked = errors.New("reservation was revoked")
	// ErrReplaced is what Reservation.Release wraps when a newer sid of the user is open:
	// their client hears that it was replaced.
	ErrReplaced = errors.New("a newer sid of the user is open")
)
