package bot

import (
	"encoding/binary"
	"errors"
	"time"
)

// The head of everything bots tell each other; zeros follow up to the size asked for.
//
//	offset  size  field
//	0       4     "bot1"
//	4       1     what: 0 play, 1 join, 2 last
//	5       1     1 when sent reliably
//	6       4     sender
//	10      4     epoch: which stay of the sender in a room
//	14      8     seq, counted apart for reliable and unreliable
//	22      8     nanoseconds since the start of the run
const headBytes = 30

const magic = "bot1"

// what says what a message is for.
type what uint8

const (
	play what = iota
	join      // the message of a join push
	last      // the sender's last reliable one; seq counts like play
)

// message is the head.
type message struct {
	what     what
	reliable bool
	sender   uint32
	epoch    uint32
	seq      uint64
	sent     time.Duration
}

var errMessage = errors.New("not a message of a bot")

// appendTo appends the message, filled up to size bytes.
func (m message) appendTo(dst []byte, size int) []byte {
	start := len(dst)
	dst = append(dst, magic...)
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
	if len(b) < headBytes || string(b[:4]) != magic || b[4] > byte(last) || b[5] > 1 {
		return message{}, errMessage
	}
	return message{
		what: what(b[4]), reliable: b[5] == 1,
		sender: binary.BigEndian.Uint32(b[6:]), epoch: binary.BigEndian.Uint32(b[10:]),
		seq: binary.BigEndian.Uint64(b[14:]), sent: time.Duration(binary.BigEndian.Uint64(b[22:])),
	}, nil
}
