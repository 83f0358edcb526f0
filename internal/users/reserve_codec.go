package users

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/secure"
)

const (
	reserveLayout = 1
	nonceLayout   = 2 // of a request with a nonce
	cancelLayout  = 1
	typeMax       = 128 // bytes of a node type or role
	hostMax       = 255 // bytes of a host name
)

// ReserveRequest asks a node for a place for one user, see [mesh.CmdReserve].
//
//	size      field
//	1         layout, 2 when the nonce is there, else 1
//	u32 + …   user id
//	u32 + …   node type the asker means, empty for any
//	1         1 when the next field is there, else 0
//	64        sid, key, IV, mac key
//	u32 + …   initial properties, a MessagePack map; nothing for none
//	16        nonce, in layout 2
//
// A node of a version that knows no nonces refuses a request with one as [BadRequest]: it
// is asked again without.
type ReserveRequest struct {
	UID  id.UID
	Type string
	// Props are the user's first properties as [EncodeProps] wrote them, nil for none.
	// Nobody decodes them before the user is there and one is read.
	Props []byte
	// Credentials are nil, so that the node makes new ones, or those of a place
	// that the same user was given on another node at the same time.
	Credentials *secure.Credentials
	// Nonce is random and names this request in a [CancelRequest] of the same asker. Zero
	// means that the place can't be cancelled.
	Nonce [16]byte
}

// Marshal encodes q. It fails when the properties are over a limit of [EncodeProps].
func (q ReserveRequest) Marshal() ([]byte, error) {
	if err := checkProps(q.Props); err != nil {
		return nil, fmt.Errorf("encode reservation of user %q: %w", string(q.UID), err)
	}
	layout := byte(reserveLayout)
	if q.Nonce != [16]byte{} {
		layout = nonceLayout
	}
	dst := appendBytes([]byte{layout}, string(q.UID))
	dst = appendBytes(dst, q.Type)
	if c := q.Credentials; c != nil {
		dst = appendCredentials(append(dst, 1), *c)
	} else {
		dst = append(dst, 0)
	}
	dst = appendBytes(dst, q.Props)
	if layout == nonceLayout {
		dst = append(dst, q.Nonce[:]...)
	}
	return dst, nil
}

// ParseReserveRequest reads what [ReserveRequest.Marshal] wrote and checks the user id
// and the limits of the properties, which stay encoded and stay in b.
func ParseReserveRequest(b []byte) (q ReserveRequest, err error) {
	r := reader{b: b}
	hasNonce := len(b) > 0 && b[0] == nonceLayout
	if hasNonce {
		r.layout(nonceLayout)
	} else {
		r.layout(reserveLayout)
	}
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
	if props := r.bytes(PropsBytesMax); len(props) > 0 {
		q.Props = props
	}
	if hasNonce {
		if q.Nonce = r.key(); q.Nonce == [16]byte{} {
			r.err = errCodec // it would be encoded in the other layout
		}
	}
	if err := r.end(); err != nil {
		return ReserveRequest{}, fmt.Errorf("parse reservation: %w", err)
	}
	if q.UID, err = id.ParseUID(uid); err != nil {
		return ReserveRequest{}, fmt.Errorf("parse reservation: %w", err)
	}
	if err := checkProps(q.Props); err != nil {
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
	Full       Refusal = 3 // full of players
	WrongType  Refusal = 4 // the node has another type than the asker thinks
	BadRequest Refusal = 5 // the request does not parse
	InUse      Refusal = 6 // the given sid has a place here already
	Memory     Refusal = 7 // the process is short of memory
	Busy       Refusal = 8 // too many users are on their way here from other nodes
	Cancelled  Refusal = 9 // the asker cancelled the request, and that came first
)

func (r Refusal) String() string {
	names := [...]string{"accepted", "draining", "taken", "full", "wrong type", "bad request", "in use", "memory", "busy", "cancelled"}
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

// CancelRequest takes back what a [ReserveRequest] of the same node asked for, see
// [mesh.CmdCancelReserve]. It may come before that, and again: the answer is always a
// [CancelReply].
//
//	size  field
//	1     layout, 1
//	16    nonce of the request
type CancelRequest struct{ Nonce [16]byte }

// Marshal encodes q.
func (q CancelRequest) Marshal() []byte { return append([]byte{cancelLayout}, q.Nonce[:]...) }

// ParseCancelRequest reads what [CancelRequest.Marshal] wrote. A nonce of zeros is an error.
func ParseCancelRequest(b []byte) (CancelRequest, error) {
	r := reader{b: b}
	r.layout(cancelLayout)
	q := CancelRequest{Nonce: r.key()}
	err := r.end()
	if err == nil && q.Nonce == [16]byte{} {
		err = errCodec
	}
	if err != nil {
		return CancelRequest{}, fmt.Errorf("parse cancel of a reservation: %w", err)
	}
	return q, nil
}

// CancelReply answers a [CancelRequest].
//
//	size  field
//	1     layout, 1
//	1     1 when a place was given up, 0 when there was none that nobody has opened. If the
//	      request comes later, or again, it is refused.
type CancelReply struct{ Cancelled bool }

// Marshal encodes p.
func (p CancelReply) Marshal() []byte {
	if p.Cancelled {
		return []byte{cancelLayout, 1}
	}
	return []byte{cancelLayout, 0}
}

// ParseCancelReply reads what [CancelReply.Marshal] wrote.
func ParseCancelReply(b []byte) (CancelReply, error) {
	r := reader{b: b}
	r.layout(cancelLayout)
	v := r.u8()
	if err := r.end(); err != nil || v > 1 {
		return CancelReply{}, fmt.Errorf("parse reply to a cancel: %w", errCodec)
	}
	return CancelReply{Cancelled: v == 1}, nil
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
