package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Kind tells requests, responses and pushes apart.
type Kind uint8

const (
	Request  Kind = 0 // a client asks
	Response Kind = 1 // the server answers
	Push     Kind = 2 // the server tells, unasked
)

func (k Kind) String() string {
	switch k {
	case Request:
		return "request"
	case Response:
		return "response"
	case Push:
		return "push"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// MessageMax is the longest message, header included, in bytes.
const MessageMax = 1 << 20

// hasID is the bit of the kind byte that says a request id follows.
const hasID = 0x80

// Message is what a client and a node say to each other.
//
//	size      field
//	1         kind, bit 7 set when a request id follows
//	1         ver: 0 utility, 1 built-in modules, 2..255 the application's
//	2         cmd
//	1         status, in responses only
//	varint    request id, when bit 7 of kind says so
//	the rest  payload
type Message struct {
	Kind    Kind
	Ver     uint8
	Cmd     uint16
	Status  uint8 // of a response: 1 ok, 4 the caller's fault, 5 ours
	HasID   bool
	ID      uint64
	Payload []byte
}

// ErrMessage means a message is shorter than its header or of unknown kind.
var ErrMessage = errors.New("malformed message")

// ParseMessage reads a whole message. The payload points into b.
func ParseMessage(b []byte) (Message, error) {
	if len(b) < 4 {
		return Message{}, ErrMessage
	}
	m := Message{Kind: Kind(b[0] &^ hasID), Ver: b[1], Cmd: binary.BigEndian.Uint16(b[2:]), HasID: b[0]&hasID != 0}
	b = b[4:]
	if m.Kind > Push {
		return Message{}, ErrMessage
	}
	if m.Kind == Response {
		if len(b) < 1 {
			return Message{}, ErrMessage
		}
		m.Status, b = b[0], b[1:]
	}
	if m.HasID {
		id, n := ParseVarint(b)
		if n == 0 {
			return Message{}, ErrMessage
		}
		m.ID, b = id, b[n:]
	}
	m.Payload = b
	return m, nil
}

// AppendTo appends the encoded message.
func (m Message) AppendTo(dst []byte) []byte {
	kind := byte(m.Kind)
	if m.HasID {
		kind |= hasID
	}
	dst = append(dst, kind, m.Ver)
	dst = binary.BigEndian.AppendUint16(dst, m.Cmd)
	if m.Kind == Response {
		dst = append(dst, m.Status)
	}
	if m.HasID {
		dst = AppendVarint(dst, m.ID)
	}
	return append(dst, m.Payload...)
}
