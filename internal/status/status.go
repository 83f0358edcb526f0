// Package status holds what clients see of an outcome: a status byte, a code
// that never changes meaning, and whether trying again can help.
package status

import (
	"encoding/binary"
	"errors"
)

// Byte is the status of a response on the wire.
type Byte = uint8

// The status bytes of a response.
const (
	OK  Byte = 1 // done
	Bad Byte = 4 // the caller's fault
	Err Byte = 5 // ours
)

// Code says which error it was. Each module owns a range.
type Code uint32

// The codes, by module.
const (
	PayloadShort     Code = 1000
	InvalidParameter Code = 1001
	NodeNotFound     Code = 1002
	Migrate          Code = 1003
	Rate             Code = 1004

	RoomNew          Code = 2000
	RoomNotIn        Code = 2001
	RoomJoin         Code = 2002
	RoomLeave        Code = 2003
	RoomMissingID    Code = 2004
	RoomMissingOwner Code = 2005
	RoomPropertyIncr Code = 2006
	RoomReserve      Code = 2007
	RoomCancel       Code = 2008
	RoomNotFound     Code = 2009
	RoomMigrate      Code = 2010
	RoomOther        Code = 2011
	RoomCount        Code = 2012
	RoomPropertySync Code = 2013

	// Internal is every error that has no code of its own.
	Internal Code = 9999
)

// Error is an error that a client may see.
type Error struct {
	Code  Code
	Retry bool // the same call may succeed later
	Ours  bool // status byte Err instead of Bad
	Text  string
}

func (e *Error) Error() string { return e.Text }

// ErrRate means that the client's own budget is used up: nothing was done, and the
// same call succeeds when it slows down.
var ErrRate = &Error{Code: Rate, Retry: true, Text: "too many in a short time"}

// Byte returns the status byte for a response that carries e.
func (e *Error) Byte() Byte {
	if e.Ours {
		return Err
	}
	return Bad
}

// AppendTo appends the structured error payload: code u32 ‖ UTF-8 text.
func (e *Error) AppendTo(dst []byte) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(e.Code)), e.Text...)
}

// Of returns the Error inside err, or an Internal one that hides err's text
// from clients. Of(nil) is nil.
func Of(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Code: Internal, Ours: true, Retry: true, Text: "internal error"}
}
