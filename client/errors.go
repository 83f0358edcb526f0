package client

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/status"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Errors of the library itself, for [errors.Is].
var (
	// ErrClosed means the client was closed, or ended for good: [Options.OnDisconnect] said
	// so, and the error is also what it said.
	ErrClosed = errors.New("client is closed")
	// ErrConnected means that the client is connected, is connecting, or was: to connect
	// again takes a new client, to leave for another node [Client.Reenter].
	ErrConnected = errors.New("client is connected or connecting already")
	// ErrNotConnected means that there is no connection and no state of one to queue
	// for; the library is looking for a node. Try again after [Options.OnReconnect].
	ErrNotConnected = errors.New("not connected")
	// ErrInCallback means that the call would wait for the callback that it comes from.
	// Nothing was done. [Client.Go] and [Client.Send] don't wait.
	ErrInCallback = errors.New("called from a callback, which it would wait for")
	// ErrGap means that the connection was replaced by one that knows nothing of the
	// old: the request may or may not have been carried out.
	ErrGap = errors.New("connection was replaced without its state")
	// ErrBusy means that [RequestsMax] requests wait for their answers already.
	ErrBusy = errors.New("too many requests without an answer")
	// ErrNoReconnect means that the client ended since [Options.NoReconnect] forbids to
	// look for another place.
	ErrNoReconnect = errors.New("the options forbid to ask for another place")
	// ErrNoURL means that the client has no [Options.URL] to ask for a place.
	ErrNoURL = errors.New("the options have no url to ask for a place")
	// ErrHandshakeTimeout means that nobody answered the handshake in 4 s: the node is
	// gone, the place expired, or the client key differs.
	ErrHandshakeTimeout = errors.New("handshake timed out: the node is gone, the place expired, or the client key is not the cluster's")
	// ErrHandshakeRefused means that nothing listens at the node's address.
	ErrHandshakeRefused = errors.New("nothing listens there")
	// ErrHandshakeEnded means that a TCP node closed the connection instead of
	// answering: the place expired, or the client key differs.
	ErrHandshakeEnded = errors.New("node hung up: the place expired, or the client key is not the cluster's")

	// ErrTooLarge means that a message is over 1 MiB, or unreliable and larger than a datagram.
	ErrTooLarge = reliable.ErrTooLarge
	// ErrSlow means that too much waits to be sent reliably, behind the message being
	// sent: 1,024 messages, or 256 KiB of them at 32 bytes each besides their length.
	// Nothing was sent or lost and the connection goes on; try again when some of it has
	// gone. One message behind another always fits.
	ErrSlow = reliable.ErrSlow
)

// The status of a [Response].
const (
	StatusOK  = status.OK  // 1: done
	StatusBad = status.Bad // 4: the caller's fault
	StatusErr = status.Err // 5: the server's
)

// CloseCode says why a connection was closed.
type CloseCode = wire.CloseCode

// The close codes of the protocol.
const (
	CloseNormal   = wire.CloseNormal
	CloseProtocol = wire.CloseProtocol
	CloseFlow     = wire.CloseFlow
	CloseSlow     = wire.CloseSlow
	CloseReplaced = wire.CloseReplaced
	CloseIdle     = wire.CloseIdle
	CloseRate     = wire.CloseRate
	CloseKicked   = wire.CloseKicked
	CloseShutdown = wire.CloseShutdown
	CloseInternal = wire.CloseInternal
)

// ends reports whether a server that closes with the code does not want the client back.
func ends(c CloseCode) bool { return c == CloseNormal || c == CloseReplaced || c == CloseKicked }

// known makes [CloseInternal] of a code that a later version of the protocol may know.
func known(c CloseCode) CloseCode {
	if c > CloseInternal {
		return CloseInternal
	}
	return c
}

// CloseError is the end of a stay that the server said, or of a connection that was lost,
// which counts as [CloseIdle]. [errors.Is] finds another with the same code.
type CloseError struct {
	Code   CloseCode
	Reason string // for people; may be empty
}

// What the server ends a client with, for [errors.Is]: of [Disconnect.Err], [Client.Err],
// and of the [ErrClosed] that methods return afterwards.
var (
	ErrLeft     error = &CloseError{Code: CloseNormal}   // the server ended the stay in the normal way
	ErrReplaced error = &CloseError{Code: CloseReplaced} // the same user came in from elsewhere
	ErrKicked   error = &CloseError{Code: CloseKicked}   // the server threw the user out
)

func (e *CloseError) Error() string {
	if e.Reason == "" {
		return "stay ended: " + e.Code.String()
	}
	return "stay ended: " + e.Code.String() + " (" + e.Reason + ")"
}

// Is reports whether target is a CloseError with the same code.
func (e *CloseError) Is(target error) bool {
	t, ok := target.(*CloseError)
	return ok && t.Code == e.Code
}

// StatusError is a response other than [StatusOK].
type StatusError struct {
	Ver    uint8
	Cmd    uint16
	Status uint8
	Code   uint32 // 0 unless the server sends structured errors
	Text   string // for people; never match on it
}

func (e *StatusError) Error() string {
	text := e.Text
	if text == "" {
		text = "refused without a reason"
	}
	if e.Code != 0 {
		return fmt.Sprintf("request %d.%d: %s (code %d)", e.Ver, e.Cmd, text, e.Code)
	}
	return fmt.Sprintf("request %d.%d: %s (status %d)", e.Ver, e.Cmd, text, e.Status)
}

// Is reports whether target is a StatusError with the same code, such as [ErrRoomID].
func (e *StatusError) Is(target error) bool {
	t, ok := target.(*StatusError)
	return ok && t.Code != 0 && t.Code == e.Code
}

// Some refusals of built-in commands, for [errors.Is]. A server tells which it was only
// when it sends structured errors; ErrRoomID is also what the library says itself.
var (
	ErrNoNode       error = &StatusError{Code: uint32(status.NodeNotFound), Text: "node is not there"}     // 1002: the room's node is not in the cluster
	ErrRate         error = &StatusError{Code: uint32(status.Rate), Text: "too many in a short time"}      // 1004: try again more slowly
	ErrNotInRoom    error = &StatusError{Code: uint32(status.RoomNotIn), Text: "not in the room"}          // 2001: the user is no member
	ErrRoomJoin     error = &StatusError{Code: uint32(status.RoomJoin), Text: "room can't be joined"}      // 2002: full, or the user is in one already
	ErrRoomID       error = &StatusError{Code: uint32(status.RoomMissingID), Text: "room id is malformed"} // 2004: see RoomID
	ErrRoomNotFound error = &StatusError{Code: uint32(status.RoomNotFound), Text: "no such room"}          // 2009: it is no more, or never was
)

// codeMax is above every code that a server uses.
const codeMax = 1 << 16

// statusError reads the payload of a refusal: code u32 ‖ text when the server sends
// structured errors, else text. A text never starts with a zero byte and a code
// always does, so that no setting is needed to tell them apart.
func statusError(r Response) *StatusError {
	e := &StatusError{Ver: r.Ver, Cmd: r.Cmd, Status: r.Status}
	if len(r.Payload) >= 4 {
		if c := binary.BigEndian.Uint32(r.Payload); c > 0 && c < codeMax {
			e.Code, e.Text = c, string(r.Payload[4:])
			return e
		}
	}
	e.Text = string(r.Payload)
	return e
}
