package mesh

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// Frames travel on one bidirectional stream per connection, which the dialer
// opens with a hello; payloads over InlineMax on a unidirectional stream each
// (first byte streamBody); one-way messages on a unidirectional stream for ours
// and one for the application's (streamOneWay, streamOneWayApp). A frame is
//
//	offset  size  field
//	0       4     payload length, big-endian as all below
//	4       1     kind
//	5       1     0
//	6       2     command
//	8       8     id: of the request; of an ack, how many one-way messages were handled
//	16      4     request: time left in ms (0: none); response: Code; ack: class
//	20      …     payload
type header struct {
	size uint32
	kind kind
	cmd  uint16
	id   uint64
	arg  uint32
}

type kind uint8

const (
	kindHello    kind = 1  // payload: hello
	kindResponse kind = 2  // answers the request id
	kindRequest  kind = 3  //
	kindOneWay   kind = 4  //
	kindCancel   kind = 5  // the caller of request id gave up
	kindAck      kind = 6  // id one-way messages of class arg were handled so far
	kindPing     kind = 7  // answered by pong at once
	kindPong     kind = 8  //
	kindGoAway   kind = 9  // the sender starts nothing new on this connection
	kindDone     kind = 10 // the sender waits for nothing any more either
	kindKeep     kind = 11 // counts as use, so that the connection stays
	kindMax           = kindKeep
)

const (
	headerLen = 20
	helloMax  = 512
	// relayOverheadMax is what the list of addresses may add to a relayed payload.
	relayOverheadMax = 1 << 20

	streamBody      byte = 1
	streamOneWay    byte = 2
	streamOneWayApp byte = 3
)

// errFrame means the peer broke the protocol: the connection is closed.
var errFrame = errors.New("malformed frame")

func (h header) appendTo(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, h.size)
	dst = append(dst, byte(h.kind), 0)
	dst = binary.BigEndian.AppendUint16(dst, h.cmd)
	dst = binary.BigEndian.AppendUint64(dst, h.id)
	return binary.BigEndian.AppendUint32(dst, h.arg)
}

// parseHeader reads a frame's header and refuses what may not be on a stream
// whose payloads are at most max bytes, before anything is allocated for it.
func parseHeader(b []byte, max int) (header, error) {
	if len(b) < headerLen {
		return header{}, fmt.Errorf("%w: %d bytes", errFrame, len(b))
	}
	h := header{
		size: binary.BigEndian.Uint32(b), kind: kind(b[4]), cmd: binary.BigEndian.Uint16(b[6:]),
		id: binary.BigEndian.Uint64(b[8:]), arg: binary.BigEndian.Uint32(b[16:]),
	}
	if h.kind == 0 || h.kind > kindMax || b[5] != 0 {
		return header{}, fmt.Errorf("%w: kind %d", errFrame, h.kind)
	}
	limit := 0
	switch h.kind {
	case kindHello:
		limit = helloMax
	case kindRequest, kindResponse, kindOneWay:
		limit = max
	}
	if uint64(h.size) > uint64(limit) {
		return header{}, fmt.Errorf("%w: %d bytes of kind %d, at most %d", errFrame, h.size, h.kind, limit)
	}
	return h, nil
}

// bodyMax is the largest payload cmd may carry on a stream of its own.
func bodyMax(cmd uint16) int {
	if cmd == CmdRelay {
		return BodyMax + relayOverheadMax
	}
	return BodyMax
}

// timeLeft is a deadline as it crosses the mesh: milliseconds, rounded up, 0 for none.
func timeLeft(now, deadline time.Time) uint32 {
	ms := max(1, (deadline.Sub(now)+time.Millisecond-1)/time.Millisecond)
	return uint32(min(ms, 1<<32-1))
}

// hello is the first frame in both directions.
//
//	offset  size  field
//	0       1     version, 1
//	1       8     tag the dialer gave this connection
//	9       8     tag of the last connection to this peer that the dialer lost, or 0
//	17      16    incarnation
//	33      1+n   role
//	…       1+n   node
type hello struct {
	tag, lost   uint64
	incarnation id.Incarnation
	role        string
	node        id.Node
}

const helloVersion = 1

func (h hello) appendTo(dst []byte) []byte {
	dst = append(dst, helloVersion)
	dst = binary.BigEndian.AppendUint64(dst, h.tag)
	dst = binary.BigEndian.AppendUint64(dst, h.lost)
	dst = append(dst, h.incarnation[:]...)
	dst = append(append(dst, byte(len(h.role))), h.role...)
	return append(append(dst, byte(len(h.node))), h.node...)
}

func parseHello(b []byte) (hello, error) {
	const fixed = 33
	if len(b) < fixed || b[0] != helloVersion {
		return hello{}, fmt.Errorf("%w: hello of %d bytes", errFrame, len(b))
	}
	h := hello{
		tag: binary.BigEndian.Uint64(b[1:]), lost: binary.BigEndian.Uint64(b[9:]),
		incarnation: id.Incarnation(b[17:fixed]),
	}
	role, rest, ok := shortString(b[fixed:])
	node, rest, ok2 := shortString(rest)
	if !ok || !ok2 || len(rest) != 0 || role == "" {
		return hello{}, fmt.Errorf("%w: hello", errFrame)
	}
	h.role, h.node = role, id.Node(node)
	addr, err := h.node.AddrPort()
	if err != nil || id.NodeOf(addr) != h.node || addr.Port() == 0 {
		return hello{}, fmt.Errorf("%w: hello names no node", errFrame)
	}
	return h, nil
}

// shortString reads a string after its length byte.
func shortString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) == 0 || len(b) < 1+int(b[0]) {
		return "", nil, false
	}
	n := 1 + int(b[0])
	return string(b[1:n]), b[n:], true
}
