package mesh

import (
	"errors"
	"fmt"
)

// The errors of a mesh call. Test for them with [errors.Is].
var (
	// ErrConfig means the settings of the mesh can't be used: the text names the setting.
	ErrConfig = errors.New("mesh configuration")
	// ErrUnreachable means no connection to the node could be made, or the one
	// that carried the call ended before the answer came. The call may have run.
	ErrUnreachable = errors.New("node is unreachable")
	// ErrTimeout means the deadline passed before the answer came. The call may have run.
	ErrTimeout = errors.New("timed out")
	// ErrTooLarge means the payload is over [BodyMax], or over [DatagramMax] for a datagram.
	ErrTooLarge = errors.New("payload is too large")
	// ErrDraining means the other node, or this one, is shutting down and takes no new calls.
	ErrDraining = errors.New("node is draining")
	// ErrUnknownCommand means the other node has no handler for the command.
	ErrUnknownCommand = errors.New("unknown command")
	// ErrOverloaded means the other node already runs as many handlers as it may.
	ErrOverloaded = errors.New("node is overloaded")
	// ErrForbidden means that this node's role may not send the command, or that a
	// SendMany may not carry it.
	ErrForbidden = errors.New("command is not for this sender")
	// ErrOtherRun means that another process answers at the node's address than the one
	// that was asked for: it was restarted. Nothing was sent.
	ErrOtherRun = errors.New("node was restarted")
	// ErrAddress means the name of a node is not an IP address and port.
	ErrAddress = errors.New("not a node address")
)

// Code says on the wire how a request ended. Numbers never change meaning.
type Code uint32

// The codes of a response. Codes of 1000 and above belong to handlers.
const (
	CodeOK             Code = 0
	CodeHandler        Code = 1 // the handler returned an error; its text follows
	CodeUnknownCommand Code = 2
	CodeDraining       Code = 3
	CodeOverloaded     Code = 4
	CodeTooLarge       Code = 5 // the handler's answer is over BodyMax
	CodeTimeout        Code = 6 // the handler ended with its deadline
	CodePanic          Code = 7
	CodeUnreachable    Code = 8 // a relay could not reach the node
	CodeForbidden      Code = 9 // the sender may not send the command
	codeHandlerMin     Code = 1000
)

// codeErrors maps the codes that have an error of their own. [RemoteError.Is] uses it.
var codeErrors = map[Code]error{
	CodeUnknownCommand: ErrUnknownCommand,
	CodeDraining:       ErrDraining,
	CodeOverloaded:     ErrOverloaded,
	CodeTooLarge:       ErrTooLarge,
	CodeTimeout:        ErrTimeout,
	CodeUnreachable:    ErrUnreachable,
	CodeForbidden:      ErrForbidden,
}

// RemoteError is the error a handler on another node returned. A handler may
// return one itself to choose the Code the caller sees.
type RemoteError struct {
	Code Code
	Text string
}

func (e *RemoteError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("remote error %d", e.Code)
	}
	return e.Text
}

// Is makes errors.Is(err, ErrDraining) and the like true for the code of e.
func (e *RemoteError) Is(target error) bool {
	known, ok := codeErrors[e.Code]
	return ok && known == target
}
