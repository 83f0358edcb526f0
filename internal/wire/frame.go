package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// FrameType is the first byte of a frame.
type FrameType uint8

const (
	FramePadding       FrameType = 0x00
	FramePing          FrameType = 0x01
	FramePong          FrameType = 0x02
	FrameAck           FrameType = 0x03
	FrameWindow        FrameType = 0x04
	FrameResume        FrameType = 0x05
	FrameMessage       FrameType = 0x08
	FrameReliable      FrameType = 0x09
	FramePathChallenge FrameType = 0x10
	FramePathResponse  FrameType = 0x11
	FrameOffline       FrameType = 0x20
	FrameMove          FrameType = 0x21
	FrameClose         FrameType = 0x22
)

// Elicits reports whether a packet that holds such a frame must be acknowledged.
func (t FrameType) Elicits() bool {
	switch t {
	case FramePadding, FrameAck, FramePong, FramePathResponse, FrameClose:
		return false
	}
	return true
}

// Channels of RELIABLE frames: 0 is the default, 0 to ChannelOrderedMax are ordered
// each by itself, ChannelUnordered delivers each message as it completes.
const (
	ChannelOrderedMax = 15
	ChannelUnordered  = 255
)

// ChannelValid reports whether RELIABLE and RESUME may name channel c.
func ChannelValid(c uint8) bool { return c <= ChannelOrderedMax || c == ChannelUnordered }

// Reasons of an OFFLINE frame.
const (
	OfflineShutdown = 1 // the node is shutting down
	OfflineOperator = 2 // an operator took the node out
)

// CloseCode says why a connection ends.
type CloseCode uint64

const (
	CloseNormal CloseCode = iota
	CloseProtocol
	CloseFlow
	CloseSlow
	CloseReplaced
	CloseIdle
	CloseRate
	CloseKicked
	CloseShutdown
	CloseInternal
)

var closeNames = [...]string{"normal", "protocol error", "flow", "slow", "replaced", "idle", "rate", "kicked", "shutdown", "internal"}

func (c CloseCode) String() string {
	if c < CloseCode(len(closeNames)) {
		return closeNames[c]
	}
	return fmt.Sprintf("close code %d", uint64(c))
}

// Close is the body of a CLOSE frame.
type Close struct {
	Code   CloseCode
	Reason string // UTF-8, for people
}

// Move is the body of a MOVE frame: go on at another node.
type Move struct {
	Deadline time.Duration // how long the client may take, in whole milliseconds
	Host     string        // an IP literal without brackets or a DNS name, at most 255 bytes
	Port     uint16
}

// Range is the packet numbers from Lo to Hi, both included.
type Range struct{ Lo, Hi uint64 }

// Frame is any frame. Which fields mean something depends on Type; a Frame is only
// valid as long as the bytes it was parsed from.
type Frame struct {
	Type FrameType

	Token uint64  // PING, PONG
	Time  uint64  // PONG: microseconds since the Unix epoch, 0 from a client
	Path  [8]byte // PATH_CHALLENGE, PATH_RESPONSE

	Ack    Ack    // ACK
	Window uint64 // WINDOW: bytes

	Channel     uint8  // RESUME, RELIABLE
	Seq         uint64 // RESUME: the next expected; RELIABLE
	First, Last bool   // RELIABLE
	Data        []byte // MESSAGE, RELIABLE

	Reason uint8 // OFFLINE
	Move   Move  // MOVE
	Close  Close // CLOSE
}

// What can be wrong with a frame.
var (
	ErrTruncated    = errors.New("truncated frame")
	ErrUnknownFrame = errors.New("unknown frame type")
	ErrChannel      = errors.New("reserved channel")
	ErrFlags        = errors.New("reserved flag bits")
	ErrEmpty        = errors.New("empty fragment that is not the last")
	ErrRanges       = errors.New("malformed ack ranges")
)

// Flags of a RELIABLE frame.
const (
	flagFirst = 1
	flagLast  = 2
)

// reader takes fields off the front of b and remembers when there were too few bytes.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.short, r.b = true, nil
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) uint(size uint64) (v uint64) {
	for _, c := range r.bytes(size) {
		v = v<<8 | uint64(c)
	}
	return v
}

func (r *reader) varint() uint64 {
	v, n := ParseVarint(r.b)
	if n == 0 {
		r.short, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// Parse reads the frame at the start of b into f and returns its length in
// bytes. It finds every mistake that shows in the frame alone.
func (f *Frame) Parse(b []byte) (n int, err error) {
	*f = Frame{}
	if len(b) == 0 {
		return 0, ErrTruncated
	}
	f.Type = FrameType(b[0])
	r := reader{b: b[1:]}
	switch f.Type {
	case FramePadding:
		r.b = nil
	case FramePing:
		f.Token = r.uint(8)
	case FramePong:
		f.Token, f.Time = r.uint(8), r.uint(8)
	case FrameAck:
		err = f.Ack.parse(&r)
	case FrameWindow:
		f.Window = r.varint()
	case FrameResume:
		f.Channel, f.Seq = uint8(r.uint(1)), r.varint()
	case FrameMessage:
		f.Data = r.bytes(r.varint())
	case FrameReliable:
		err = f.parseReliable(&r)
	case FramePathChallenge, FramePathResponse:
		copy(f.Path[:], r.bytes(8))
	case FrameOffline:
		f.Reason = uint8(r.uint(1))
	case FrameMove:
		f.Move.Deadline = time.Duration(r.uint(4)) * time.Millisecond
		f.Move.Host = string(r.bytes(r.uint(1)))
		f.Move.Port = uint16(r.uint(2))
	case FrameClose:
		f.Close.Code = CloseCode(r.varint())
		f.Close.Reason = string(r.bytes(r.varint()))
	default:
		return 0, ErrUnknownFrame
	}
	switch {
	case r.short:
		return 0, ErrTruncated
	case err != nil:
		return 0, err
	case !ChannelValid(f.Channel):
		return 0, ErrChannel
	}
	return len(b) - len(r.b), nil
}

// ParseFrame is [Frame.Parse] into a new Frame.
func ParseFrame(b []byte) (f Frame, n int, err error) {
	n, err = f.Parse(b)
	return f, n, err
}

func (f *Frame) parseReliable(r *reader) error {
	f.Channel, f.Seq = uint8(r.uint(1)), r.varint()
	flags := r.uint(1)
	f.First, f.Last = flags&flagFirst != 0, flags&flagLast != 0
	f.Data = r.bytes(r.varint())
	switch {
	case flags&^(flagFirst|flagLast) != 0:
		return ErrFlags
	case len(f.Data) == 0 && !f.Last:
		return ErrEmpty
	}
	return nil
}

// AppendTo appends the encoded frame. PADDING is one byte, which makes it and all
// that is appended after it padding.
func (f *Frame) AppendTo(dst []byte) []byte {
	switch f.Type {
	case FramePing:
		return AppendPing(dst, f.Token)
	case FramePong:
		return AppendPong(dst, f.Token, f.Time)
	case FrameAck:
		return f.Ack.appendTo(dst)
	case FrameWindow:
		return AppendWindow(dst, f.Window)
	case FrameResume:
		return AppendResume(dst, f.Channel, f.Seq)
	case FrameMessage:
		return AppendMessage(dst, f.Data)
	case FrameReliable:
		return AppendReliable(dst, f.Channel, f.Seq, f.First, f.Last, f.Data)
	case FramePathChallenge:
		return AppendPathChallenge(dst, f.Path)
	case FramePathResponse:
		return AppendPathResponse(dst, f.Path)
	case FrameOffline:
		return AppendOffline(dst, f.Reason)
	case FrameMove:
		return f.Move.AppendTo(dst)
	case FrameClose:
		return f.Close.AppendTo(dst)
	default:
		return append(dst, byte(f.Type))
	}
}

// AppendPing appends a PING frame.
func AppendPing(dst []byte, token uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, byte(FramePing)), token)
}

// AppendPong appends a PONG frame; micros is the server's time since the Unix epoch.
func AppendPong(dst []byte, token, micros uint64) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, byte(FramePong)), token)
	return binary.BigEndian.AppendUint64(dst, micros)
}

// AppendWindow appends a WINDOW frame.
func AppendWindow(dst []byte, bytes uint64) []byte {
	return AppendVarint(append(dst, byte(FrameWindow)), bytes)
}

// AppendResume appends a RESUME frame.
func AppendResume(dst []byte, channel uint8, next uint64) []byte {
	return AppendVarint(append(dst, byte(FrameResume), channel), next)
}

// AppendMessage appends a MESSAGE frame with an encoded message.
func AppendMessage(dst, message []byte) []byte {
	dst = AppendVarint(append(dst, byte(FrameMessage)), uint64(len(message)))
	return append(dst, message...)
}

// MessageFrameLen returns the length of a MESSAGE frame with n bytes.
func MessageFrameLen(n int) int { return 1 + VarintLen(uint64(n)) + n }

// AppendReliable appends a RELIABLE frame with one fragment of a message.
func AppendReliable(dst []byte, channel uint8, seq uint64, first, last bool, data []byte) []byte {
	var flags byte
	if first {
		flags |= flagFirst
	}
	if last {
		flags |= flagLast
	}
	dst = AppendVarint(append(dst, byte(FrameReliable), channel), seq)
	dst = AppendVarint(append(dst, flags), uint64(len(data)))
	return append(dst, data...)
}

// ReliableFrameLen returns the length of a RELIABLE frame with n bytes of data.
func ReliableFrameLen(seq uint64, n int) int {
	return 3 + VarintLen(seq) + VarintLen(uint64(n)) + n
}

// AppendPathChallenge appends a PATH_CHALLENGE frame.
func AppendPathChallenge(dst []byte, token [8]byte) []byte {
	return append(append(dst, byte(FramePathChallenge)), token[:]...)
}

// AppendPathResponse appends a PATH_RESPONSE frame.
func AppendPathResponse(dst []byte, token [8]byte) []byte {
	return append(append(dst, byte(FramePathResponse)), token[:]...)
}

// AppendOffline appends an OFFLINE frame.
func AppendOffline(dst []byte, reason uint8) []byte {
	return append(dst, byte(FrameOffline), reason)
}

// AppendTo appends the MOVE frame. It panics when the host is over 255 bytes.
func (m Move) AppendTo(dst []byte) []byte {
	if len(m.Host) > 255 {
		panic("wire: host of MOVE is over 255 bytes")
	}
	ms := min(max(m.Deadline.Milliseconds(), 0), 1<<32-1)
	dst = binary.BigEndian.AppendUint32(append(dst, byte(FrameMove)), uint32(ms))
	dst = append(append(dst, byte(len(m.Host))), m.Host...)
	return binary.BigEndian.AppendUint16(dst, m.Port)
}

// AppendTo appends the CLOSE frame.
func (c Close) AppendTo(dst []byte) []byte {
	dst = AppendVarint(append(dst, byte(FrameClose)), uint64(c.Code))
	dst = AppendVarint(dst, uint64(len(c.Reason)))
	return append(dst, c.Reason...)
}
