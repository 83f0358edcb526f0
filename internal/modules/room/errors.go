package room

import (
	"fmt"

	"github.com/Diarkis/diarkis/internal/status"
)

// The errors a client may see. Their codes never change meaning.
var (
	// ErrShort means a payload ended before its last field.
	ErrShort = &status.Error{Code: status.PayloadShort, Text: "payload is too short"}
	// ErrMissingID means a payload has no room id, or one no node could have made.
	ErrMissingID = &status.Error{Code: status.RoomMissingID, Text: "room id must be 52 hex digits that name a node"}
	// ErrNotFound means there is no such room, or it has ended.
	ErrNotFound = &status.Error{Code: status.RoomNotFound, Text: "room not found"}
	// ErrNotIn means the user who acts is not a member of the room.
	ErrNotIn = &status.Error{Code: status.RoomNotIn, Text: "user is not in the room"}
	// ErrIn means the user already is a member of this or another room.
	ErrIn = &status.Error{Code: status.RoomJoin, Text: "user is already in a room"}
	// ErrFull means every seat is taken by a member, a reservation or someone on the way.
	ErrFull = &status.Error{Code: status.RoomJoin, Retry: true, Text: "room is full"}
	// ErrRole means the room is on a node of another transport, where a user can't be moved.
	ErrRole = &status.Error{Code: status.RoomJoin, Text: "room is on a node of another transport"}
	// ErrMoving means the user could not be handed to the room's node. Their client may
	// not have followed, but who did follow must know that it was not their fault.
	ErrMoving = &status.Error{Code: status.RoomJoin, Retry: true, Ours: true, Text: "user could not be moved to the room's node"}
	// ErrNode means the node that the room id names is not in the cluster or did not answer.
	ErrNode = &status.Error{Code: status.NodeNotFound, Retry: true, Text: "the room's node is not reachable"}
	// ErrNew means a room could not be made because the user is in one already.
	ErrNew = &status.Error{Code: status.RoomNew, Text: "user is already in a room"}
	// ErrTooMany means this node holds Config.RoomsMax rooms and somebody is in each of
	// them, or the server made it: then it is the node that is too small.
	ErrTooMany = &status.Error{Code: status.RoomNew, Retry: true, Ours: true, Text: "too many rooms on this node"}
	// ErrNotOwner means only the owner may do this.
	ErrNotOwner = &status.Error{Code: status.RoomOther, Text: "only the room's owner may do this"}
	// ErrNoOwner means nobody is in the room, so nobody owns it.
	ErrNoOwner = &status.Error{Code: status.RoomMissingOwner, Text: "room has no owner"}
	// ErrNoProperty means the room has no property of that name.
	ErrNoProperty = &status.Error{Code: status.RoomOther, Text: "room has no such property"}
	// ErrIncr means the property holds bytes, or the sum would overflow.
	ErrIncr = &status.Error{Code: status.RoomPropertyIncr, Text: "property is not an integer or would overflow"}
	// ErrReserve means there are fewer free seats than users to reserve for.
	ErrReserve = &status.Error{Code: status.RoomReserve, Retry: true, Text: "not enough free seats to reserve"}
	// ErrReserveOwner means reservations in this room are the owner's.
	ErrReserveOwner = &status.Error{Code: status.RoomReserve, Text: "only the room's owner may reserve"}
	// ErrCancelOwner means the reservation is somebody else's, or reservations in this room
	// are the owner's.
	ErrCancelOwner = &status.Error{Code: status.RoomCancel, Text: "only the room's owner may cancel a reservation of others"}
	// ErrProperties means a property would pass one of the limits in the package's documentation.
	ErrProperties = &status.Error{Code: status.InvalidParameter, Text: "property key, value or number of properties is over the limit"}
	// ErrTooLarge means a message is longer than [MessageMax].
	ErrTooLarge = invalid(fmt.Sprintf("a room message is at most %d bytes", MessageMax))
	// ErrTooLargeUnreliable means an unreliable message is longer than [UnreliableMax].
	ErrTooLargeUnreliable = invalid(fmt.Sprintf("an unreliable room message is at most %d bytes", UnreliableMax))
)

// errHook is all that a client sees of a hook that panicked.
var errHook = &status.Error{Code: status.RoomJoin, Ours: true, Text: "the application could not decide on the join"}

// invalid is an InvalidParameter error that says which one.
func invalid(text string) *status.Error {
	return &status.Error{Code: status.InvalidParameter, Text: text}
}
