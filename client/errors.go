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
	// ErrClosed means the client was closed, or ended for good: [Options.OnDisconnect] said so.
	ErrClosed = errors.New("client is closed")
	// ErrNotConnected means that there is no connection and no state of one to queue
	// for; the library is looking for a node. Try again after [Options.OnReconnect].
	ErrNotConnected = errors.New("not connected")
	// ErrGap means that the connection was replaced by one that knows nothing of the
	// old: the request may or may not have been carried out.
	ErrGap = errors.New("connection was replaced without its state")
	// ErrBusy means that [RequestsMax] requests wait for their answers already.
	ErrBusy = errors.New("too many requests without an answer")
	// ErrHandshakeTimeout means that nobody answered the handshake in 4 s: the node is
	// gone, the place expired, or the client key differs.
	ErrHandshakeTimeout = errors.New("handshake timed out")
	// ErrHandshakeRefused means that nothing listens at the node's address.
	ErrHandshakeRefused = errors.New("nothing listens there")
	// ErrHandshakeEnded means that a TCP node closed the connection instead of
	// answering: the place expired, or the client key differs.
	ErrHandshakeEnded = errors.New("node hung up")

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

// StatusError is a response other than [StatusOK].
type StatusError struct {
	Ver    uint8
	Cmd    uint16
	Status uint8
	Code   uint32 // 0 unless the server sends structured errors
	Text   string // for people; never match on it
}

func (e *StatusError) Error() string {
	if e.Code != 0 {
		return fmt.Sprintf("command %d.%d answered status %d, code %d: %s", e.Ver, e.Cmd, e.Status, e.Code, e.Text)
	}
	return fmt.Sprintf("command %d.%d answered status %d: %s", e.Ver, e.Cmd, e.Status, e.Text)
}

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
