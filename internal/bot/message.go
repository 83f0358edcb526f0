package bot

import (
	"encoding/binary"
	"errors"
	"time"
)

// The head of everything bots tell each other; zeros follow up to the size asked for.
//
//	offset  size  field
//	0       4     "bot2"
//	4       8     run
//	12      1     what: 0 play, 1 join, 2 last
//	13      1     1 when sent reliably
//	14      4     sender
//	18      4     epoch: which stay of the sender in a room
//	22      8     seq, counted apart for reliable and unreliable
//	30      8     nanoseconds since the start of the run
const headBytes = 38

const magic = "bot2"

// what says what a message is for.
type what uint8

const (
	play what = iota
	join      // the message of a join push
	last      // the sender's last reliable one; seq counts like play
)

// message is the head.
type message struct {
	run      uint64
	what     what
	reliable bool
	sender   uint32
	epoch    uint32
	seq      uint64
	sent     time.Duration
}

var (
	errMessage = errors.New("a message of a bot arrived altered, in the wrong way, or at its sender")
	// errStranger is what players who are no bots say.
	errStranger = errors.New("not a message of a bot")
)

// appendTo appends the message, filled up to size bytes.
func (m message) appendTo(dst []byte, size int) []byte {
	start := len(dst)
	dst = append(dst, magic...)
	dst = binary.BigEndian.AppendUint64(dst, m.run)
	dst = append(dst, byte(m.what), 0)
	if m.reliable {
		dst[len(dst)-1] = 1
	}
	dst = binary.BigEndian.AppendUint32(dst, m.sender)
	dst = binary.BigEndian.AppendUint32(dst, m.epoch)
	dst = binary.BigEndian.AppendUint64(dst, m.seq)
	dst = binary.BigEndian.AppendUint64(dst, uint64(m.sent))
	for len(dst)-start < size {
		dst = append(dst, 0)
	}
	return dst
}

func parseMessage(b []byte) (message, error) {
	if len(b) < len(magic) || string(b[:len(magic)]) != magic {
		return message{}, errStranger
	}
	if len(b) < headBytes || b[12] > byte(last) || b[13] > 1 {
		return message{}, errMessage
	}
	return message{
		run: binary.BigEndian.Uint64(b[4:]), what: what(b[12]), reliable: b[13] == 1,
		sender: binary.BigEndian.Uint32(b[14:]), epoch: binary.BigEndian.Uint32(b[18:]),
		seq: binary.BigEndian.Uint64(b[22:]), sent: time.Duration(binary.BigEndian.Uint64(b[30:])),
	}, nil
}
