package users

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	moveLayout = 1
	// stateMax bounds the transport's state of one user on the mesh, in bytes. Who has more
	// under way and waiting, which takes every limit of theirs at once, stays on their node.
	stateMax = reliable.StateBytesMax
	// movePropsMax bounds the properties of one user on the mesh, in bytes.
	movePropsMax = 1 << 20
	// messagesMax bounds the commands of one user, parkedCountMax the parked messages:
	// as many of the shortest as fit the most bytes that may wait for a user.
	messagesMax    = 4096
	parkedCountMax = 4 << 20 / (parkedCost + 4)
)

// moveID names one move; the old node makes it.
type moveID [16]byte

// moveOffer asks a node to take a user, see mesh.CmdMoveOffer.
//
//	size      field
//	1         layout, 1
//	16        move id
//	u32 + …   user id
//	64        sid, key, IV, mac key
//	8         when the sid was issued, µs since the Unix epoch
//	4         milliseconds that the reservation lasts
//	u32 + …   state of the reliable channels, see reliable.State; nothing for none
type moveOffer struct {
	id     moveID
	uid    id.UID
	creds  secure.Credentials
	issued int64
	ttl    time.Duration
	state  []byte
}

func (o moveOffer) marshal() []byte {
	dst := append([]byte{moveLayout}, o.id[:]...)
	dst = appendCredentials(appendBytes(dst, string(o.uid)), o.creds)
	dst = binary.BigEndian.AppendUint64(dst, uint64(o.issued))
	dst = binary.BigEndian.AppendUint32(dst, uint32(o.ttl.Milliseconds()))
	return appendBytes(dst, o.state)
}

func parseMoveOffer(b []byte) (moveOffer, error) {
	r := reader{b: b}
	r.layout(moveLayout)
	o := moveOffer{id: r.key()}
	uid := r.text(id.UIDBytesMax)
	o.creds = readCredentials(&r)
	o.issued = int64(r.u64())
	o.ttl = time.Duration(r.u32()) * time.Millisecond
	o.state = r.bytes(stateMax)
	err := r.end()
	if err == nil {
		o.uid, err = id.ParseUID(uid)
	}
	if err != nil {
		return moveOffer{}, fmt.Errorf("parse move offer: %w", err)
	}
	return o, nil
}

// moveReply answers an offer.
//
//	size      field
//	1         layout, 1
//	1         refusal, 0 when accepted
//	u32 + …   public host of the node, without brackets
//	2         public port
type moveReply struct {
	refused Refusal
	host    string
	port    uint16
}

func (p moveReply) marshal() []byte {
	dst := appendBytes([]byte{moveLayout, byte(p.refused)}, p.host)
	return binary.BigEndian.AppendUint16(dst, p.port)
}

func parseMoveReply(b []byte) (moveReply, error) {
	r := reader{b: b}
	r.layout(moveLayout)
	p := moveReply{refused: Refusal(r.u8()), host: r.text(hostMax), port: r.u16()}
	if err := r.end(); err != nil {
		return moveReply{}, fmt.Errorf("parse move reply: %w", err)
	}
	return p, nil
}

// parseMoveID reads the whole of a MoveRelease or MoveAbort: layout ‖ move id.
func parseMoveID(b []byte) (moveID, error) {
	r := reader{b: b}
	r.layout(moveLayout)
	m := moveID(r.key())
	if err := r.end(); err != nil {
		return moveID{}, fmt.Errorf("parse move id: %w", err)
	}
	return m, nil
}

func (m moveID) marshal() []byte { return append([]byte{moveLayout}, m[:]...) }

// moveData is the user as the old node gives it up: the answer to MoveRelease.
//
//	size      field
//	1         layout, 1
//	1         1 released, 0 the move was aborted and nothing follows, 2 likewise because
//	          a newer sid of the user is open
//	u32 + …   properties, a MessagePack map; nothing for none
//	4         number of commands that were received and not run, oldest first
//	1, u32+…  each: 1 when it came reliably; the message
//	4         number of messages that wait for the user, oldest first
//	1, u32+…  each: 1 when it goes reliably; the message
type moveData struct {
	props    []byte
	commands []task
	parked   []parked
}

func (d moveData) marshal() []byte {
	dst := appendBytes([]byte{moveLayout, 1}, d.props)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(d.commands)))
	for _, t := range d.commands {
		dst = appendBytes(append(dst, byte(t.rel)), t.m.AppendTo(nil))
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(d.parked)))
	for _, p := range d.parked {
		dst = appendBytes(append(dst, byte(p.rel)), p.msg)
	}
	return dst
}

// The other answers to MoveRelease: the user stays, or has lost to a newer sid.
var (
	notReleased = []byte{moveLayout, 0}
	wasReplaced = []byte{moveLayout, 2}
)

// parseMoveData reports false when the move was aborted, and [transport.ErrReplaced] when
// that is because a newer sid is open.
func parseMoveData(b []byte) (d moveData, released bool, err error) {
	r := reader{b: b}
	r.layout(moveLayout)
	switch r.u8() {
	case 0:
		return moveData{}, false, r.end()
	case 2:
		if err := r.end(); err != nil {
			return moveData{}, false, err
		}
		return moveData{}, false, transport.ErrReplaced
	}
	if props := r.bytes(movePropsMax); len(props) > 0 {
		d.props = props
	}
	readMessages(&r, messagesMax, func(rel reliable.Reliability, b []byte) {
		m, err := wire.ParseMessage(b)
		if err != nil {
			r.err = err
		}
		d.commands = append(d.commands, task{m: m, rel: rel, ordered: true})
	})
	readMessages(&r, parkedCountMax, func(rel reliable.Reliability, b []byte) {
		d.parked = append(d.parked, parked{b, rel})
	})
	if err = r.end(); err == nil {
		err = checkMoveProps(d.props)
	}
	if err != nil {
		return moveData{}, false, fmt.Errorf("parse user data: %w", err)
	}
	return d, true, nil
}

func readMessages(r *reader, most uint32, each func(reliable.Reliability, []byte)) {
	n := r.u32()
	if n > most {
		r.err = errCodec
	}
	for range n {
		rel := reliable.Reliability(r.u8())
		b := r.bytes(wire.MessageMax)
		if !rel.Valid() {
			r.err = errCodec
		}
		if r.err != nil {
			return
		}
		each(rel, b)
	}
}
