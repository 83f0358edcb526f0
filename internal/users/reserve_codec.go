package users

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/secure"
)

const (
	reserveLayout = 1
	// PropsBytesMax is the most that initial properties take on the mesh.
	PropsBytesMax = 64 << 10
	typeMax       = 128 // bytes of a node type or role
	hostMax       = 255 // bytes of a host name
)

// ReserveRequest asks a node for a place for one user, see [mesh.CmdReserve].
//
//	size      field
//	1         layout, 1
//	u32 + …   user id
//	u32 + …   node type the asker means, empty for any
//	1         1 when the next field is there, else 0
//	64        sid, key, IV, mac key
//	u32 + …   initial properties, a MessagePack map; nothing for none
type ReserveRequest struct {
	UID  id.UID
	Type string
	// Props are the user's first properties.
	Props map[string]any
	// Credentials are nil, so that the node makes new ones, or those of a place
	// that the same user was given on another node at the same time.
	Credentials *secure.Credentials
}

// Marshal encodes q. It fails when a property has no MessagePack form or all of
// them together are over [PropsBytesMax].
func (q ReserveRequest) Marshal() ([]byte, error) {
	props, err := marshalProps(q.Props, PropsBytesMax)
	if err != nil {
		return nil, fmt.Errorf("encode reservation of user %q: %w", string(q.UID), err)
	}
	dst := appendBytes([]byte{reserveLayout}, string(q.UID))
	dst = appendBytes(dst, q.Type)
	if c := q.Credentials; c != nil {
		dst = appendCredentials(append(dst, 1), *c)
	} else {
		dst = append(dst, 0)
	}
	return appendBytes(dst, props), nil
}

// ParseReserveRequest reads what [ReserveRequest.Marshal] wrote and checks the user id.
func ParseReserveRequest(b []byte) (q ReserveRequest, err error) {
	r := reader{b: b}
	r.layout(reserveLayout)
	uid := r.text(id.UIDBytesMax)
	q.Type = r.text(typeMax)
	switch r.u8() {
	case 0:
	case 1:
		c := readCredentials(&r)
		q.Credentials = &c
	default:
		r.err = errCodec
	}
	props := r.bytes(PropsBytesMax)
	if err := r.end(); err != nil {
		return ReserveRequest{}, fmt.Errorf("parse reservation: %w", err)
	}
	if q.UID, err = id.ParseUID(uid); err != nil {
		return ReserveRequest{}, fmt.Errorf("parse reservation: %w", err)
	}
	if q.Props, err = parseProps(props); err != nil {
		return ReserveRequest{}, fmt.Errorf("parse reservation: %w", err)
	}
	return q, nil
}

// Refusal says why a node gives no place. Zero means that it does.
type Refusal uint8

// The refusals. Numbers never change meaning.
const (
	Accepted   Refusal = 0
	Draining   Refusal = 1 // shutting down or not started
	Taken      Refusal = 2 // taken out by an operator or full by the game's own choice
	Full       Refusal = 3 // no free place
	WrongType  Refusal = 4 // the node has another type than the asker thinks
	BadRequest Refusal = 5 // the request does not parse
	InUse      Refusal = 6 // the given sid has a place here already
)

func (r Refusal) String() string {
	names := [...]string{"accepted", "draining", "taken", "full", "wrong type", "bad request", "in use"}
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("refusal %d", uint8(r))
}

// ReserveReply answers a [ReserveRequest].
//
//	size      field
//	1         layout, 1
//	1         refusal, 0 when accepted
//	64        sid, key, IV, mac key; zeros when refused
//	u32 + …   role of the node
//	u32 + …   public host of the node, without brackets
//	2         public port
//	4         milliseconds until the place expires unopened
type ReserveReply struct {
	Refused      Refusal
	SID          id.SID
	Key, IV, Mac [16]byte
	Role         string
	Host         string
	Port         uint16
	ExpiresIn    time.Duration
}

// Format keeps every verb from printing the keys.
func (p ReserveReply) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "reserve reply(%v)", p.Refused)
}

// Marshal encodes p.
func (p ReserveReply) Marshal() []byte {
	dst := appendCredentials([]byte{reserveLayout, byte(p.Refused)}, secure.Credentials{SID: p.SID, Key: p.Key, IV: p.IV, Mac: p.Mac})
	dst = appendBytes(dst, p.Role)
	dst = appendBytes(dst, p.Host)
	dst = binary.BigEndian.AppendUint16(dst, p.Port)
	return binary.BigEndian.AppendUint32(dst, uint32(p.ExpiresIn.Milliseconds()))
}

// ParseReserveReply reads what [ReserveReply.Marshal] wrote.
func ParseReserveReply(b []byte) (ReserveReply, error) {
	r := reader{b: b}
	r.layout(reserveLayout)
	p := ReserveReply{Refused: Refusal(r.u8())}
	c := readCredentials(&r)
	p.SID, p.Key, p.IV, p.Mac = c.SID, c.Key, c.IV, c.Mac
	p.Role = r.text(typeMax)
	p.Host = r.text(hostMax)
	p.Port = r.u16()
	p.ExpiresIn = time.Duration(r.u32()) * time.Millisecond
	if err := r.end(); err != nil {
		return ReserveReply{}, fmt.Errorf("parse reserve reply: %w", err)
	}
	return p, nil
}

func appendCredentials(dst []byte, c secure.Credentials) []byte {
	for _, b := range [][16]byte{c.SID, c.Key, c.IV, c.Mac} {
		dst = append(dst, b[:]...)
	}
	return dst
}

func readCredentials(r *reader) secure.Credentials {
	return secure.Credentials{SID: r.key(), Key: r.key(), IV: r.key(), Mac: r.key()}
}

func marshalProps(props map[string]any, limit int) ([]byte, error) {
	if len(props) == 0 {
		return nil, nil
	}
	b, err := mesh.EncodeMap(props)
	if err != nil {
		return nil, fmt.Errorf("properties: %w", err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("properties take %d bytes, at most %d fit", len(b), limit)
	}
	return b, nil
}

func parseProps(b []byte) (map[string]any, error) {
	if len(b) == 0 {
		return nil, nil
	}
	props, err := mesh.DecodeMap(b)
	if err != nil {
		return nil, fmt.Errorf("properties: %w", err)
	}
	return props, nil
}
