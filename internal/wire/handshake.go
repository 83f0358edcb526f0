package wire

import (
	"encoding/binary"
	"errors"
	"time"
)

// PacketType is the first byte of every DX1 packet.
type PacketType uint8

// The packets of DX1. A data packet's first byte carries the key phase in its
// lowest bit; [TypeOf] takes that away.
const (
	PacketHello      PacketType = 0x01
	PacketChallenge  PacketType = 0x02
	PacketConfirm    PacketType = 0x03
	PacketAccept     PacketType = 0x04
	PacketProbe      PacketType = 0x05
	PacketProbeReply PacketType = 0x06
	PacketEnded      PacketType = 0x07
	PacketData       PacketType = 0x40
)

// TypeOf returns the type of packet b, or 0 when b is empty or of no known type.
func TypeOf(b []byte) PacketType {
	if len(b) == 0 {
		return 0
	}
	switch t := PacketType(b[0]); t {
	case PacketHello, PacketChallenge, PacketConfirm, PacketAccept, PacketProbe, PacketProbeReply, PacketEnded, PacketData:
		return t
	case PacketData | 1:
		return PacketData
	}
	return 0
}

// Sizes of packets and their parts, in bytes.
const (
	HelloBytes         = 256
	ChallengeBytes     = 104
	ConfirmHeaderBytes = 100 // what comes before the sealed frames
	AcceptHeaderBytes  = 10
	AcceptBodyBytes    = 27 // at least: the node token follows, and later versions may append
	AcceptBytes        = AcceptHeaderBytes + AcceptBodyBytes + TagBytes
	EndedBytes         = 44
	TagBytes           = 16 // what sealing adds
	ClientHeaderBytes  = 13 // data packet, client to server
	ServerHeaderBytes  = 5  // data packet, server to client
	DatagramBytesMin   = 1200
)

// handshakeVersion is the DX1 version this package speaks.
const handshakeVersion = 0x01

const (
	flagX25519 = 1 << 0
	flagResume = 1 << 1 // Confirm only
)

// CID is a connection id: cid0 during the handshake, scid afterwards.
type CID [8]byte

// Nonce is the random number each side puts into a handshake or a probe.
type Nonce [16]byte

// Refusal is the error of a packet that gets no answer. Its string is a short
// constant, fit to be a metric label.
type Refusal string

// Why the layout of a packet was refused.
const (
	RefusedLength   Refusal = "length"
	RefusedType     Refusal = "type"
	RefusedVersion  Refusal = "version"
	RefusedReserved Refusal = "reserved" // a reserved flag or padding byte is not zero
	RefusedShare    Refusal = "share"    // X25519 share and flag disagree
)

func (r Refusal) Error() string { return "packet refused: " + string(r) }

// Reason returns the label of the [Refusal] inside err, or "" when there is none.
func Reason(err error) string {
	var r Refusal
	if errors.As(err, &r) {
		return string(r)
	}
	return ""
}

// PeekCID0 returns the cid0 of a Hello or Confirm, before anything is checked.
func PeekCID0(b []byte) (CID, bool) {
	switch {
	case len(b) == HelloBytes && b[0] == byte(PacketHello):
		return CID(b[4:12]), true
	case len(b) >= ConfirmHeaderBytes+TagBytes && b[0] == byte(PacketConfirm):
		return CID(b[8:16]), true
	}
	return CID{}, false
}

// PeekSCID returns the scid of a client's data packet, before anything is checked.
func PeekSCID(b []byte) (CID, bool) {
	if len(b) < ClientHeaderBytes+TagBytes || TypeOf(b) != PacketData {
		return CID{}, false
	}
	return CID(b[1:9]), true
}

// Hello opens a handshake.
//
//	offset  size  field
//	0       1     type 0x01
//	1       1     version 0x01
//	2       1     offered suites: bit 0 suite 1, bit 1 suite 2
//	3       1     flags: bit 0 X25519 share present
//	4       8     cid0
//	12      16    Nc, fresh random
//	28      32    client X25519 share, or zeros
//	60      180   zeros
//	240     16    mac of bytes 0..239
type Hello struct {
	Offer  uint8
	X25519 bool
	CID0   CID
	Nc     Nonce
	Share  [32]byte
	Mac    [16]byte
}

// HelloMacOffset is where the mac of a Hello starts and what it covers ends.
const HelloMacOffset = HelloBytes - 16

// ParseHello reads a Hello; its error is a [Refusal]. The mac is not checked.
func ParseHello(b []byte) (Hello, error) {
	if err := checkHead(b, PacketHello, HelloBytes, HelloBytes); err != nil {
		return Hello{}, err
	}
	if b[3]&^flagX25519 != 0 || !allZero(b[60:HelloMacOffset]) {
		return Hello{}, RefusedReserved
	}
	h := Hello{
		Offer:  b[2],
		X25519: b[3]&flagX25519 != 0,
		CID0:   CID(b[4:12]),
		Nc:     Nonce(b[12:28]),
		Share:  [32]byte(b[28:60]),
		Mac:    [16]byte(b[HelloMacOffset:]),
	}
	if h.X25519 == allZero(h.Share[:]) {
		return Hello{}, RefusedShare
	}
	return h, nil
}

// AppendTo appends the 256 bytes of h to dst.
func (h *Hello) AppendTo(dst []byte) []byte {
	dst = append(dst, byte(PacketHello), handshakeVersion, h.Offer, flagIf(h.X25519, flagX25519))
	dst = append(dst, h.CID0[:]...)
	dst = append(dst, h.Nc[:]...)
	dst = append(dst, h.Share[:]...)
	dst = append(dst, make([]byte, HelloMacOffset-60)...)
	return append(dst, h.Mac[:]...)
}

// Challenge answers a Hello.
//
//	offset  size  field
//	0       1     type 0x02
//	1       1     version
//	2       1     chosen suite
//	3       1     flags: bit 0 X25519 share present, iff Hello had one
//	4       8     cid0
//	12      8     Nc bytes 0..7
//	20      16    Ns
//	36      20    cookie, opaque to the client
//	56      32    server X25519 share, or zeros
//	88      16    mac of bytes 0..87
type Challenge struct {
	Suite  uint8
	X25519 bool
	CID0   CID
	NcHead [8]byte
	Ns     Nonce
	Cookie [20]byte
	Share  [32]byte
	Mac    [16]byte
}

// ChallengeMacOffset is where the mac of a Challenge starts and what it covers ends.
const ChallengeMacOffset = ChallengeBytes - 16

// ParseChallenge reads a Challenge; its error is a [Refusal]. The mac is not checked.
func ParseChallenge(b []byte) (Challenge, error) {
	if err := checkHead(b, PacketChallenge, ChallengeBytes, ChallengeBytes); err != nil {
		return Challenge{}, err
	}
	if b[3]&^flagX25519 != 0 {
		return Challenge{}, RefusedReserved
	}
	c := Challenge{
		Suite:  b[2],
		X25519: b[3]&flagX25519 != 0,
		CID0:   CID(b[4:12]),
		NcHead: [8]byte(b[12:20]),
		Ns:     Nonce(b[20:36]),
		Cookie: [20]byte(b[36:56]),
		Share:  [32]byte(b[56:88]),
		Mac:    [16]byte(b[ChallengeMacOffset:]),
	}
	if c.X25519 == allZero(c.Share[:]) {
		return Challenge{}, RefusedShare
	}
	return c, nil
}

// AppendTo appends the 104 bytes of c to dst.
func (c *Challenge) AppendTo(dst []byte) []byte {
	dst = append(dst, byte(PacketChallenge), handshakeVersion, c.Suite, flagIf(c.X25519, flagX25519))
	dst = append(dst, c.CID0[:]...)
	dst = append(dst, c.NcHead[:]...)
	dst = append(dst, c.Ns[:]...)
	dst = append(dst, c.Cookie[:]...)
	dst = append(dst, c.Share[:]...)
	return append(dst, c.Mac[:]...)
}

// Confirm proves that the client got the Challenge and holds the credentials.
//
//	offset  size  field
//	0       1     type 0x03
//	1       1     version
//	2       1     chosen suite
//	3       1     flags: bit 0 both shares were present, bit 1 resume wanted
//	4       1     offered suites, as in Hello
//	5       3     zeros
//	8       8     cid0
//	16      16    Nc
//	32      16    Ns
//	48      20    cookie
//	68      32    client X25519 share, or zeros
//	100     …     sealed frames
type Confirm struct {
	Suite  uint8
	Offer  uint8
	X25519 bool
	Resume bool
	CID0   CID
	Nc     Nonce
	Ns     Nonce
	Cookie [20]byte
	Share  [32]byte
	Sealed []byte // at least TagBytes; aliases the packet
}

// ParseConfirm reads a Confirm; its error is a [Refusal]. Sealed aliases b.
func ParseConfirm(b []byte) (Confirm, error) {
	if err := checkHead(b, PacketConfirm, ConfirmHeaderBytes+TagBytes, -1); err != nil {
		return Confirm{}, err
	}
	if b[3]&^(flagX25519|flagResume) != 0 || !allZero(b[5:8]) {
		return Confirm{}, RefusedReserved
	}
	c := Confirm{
		Suite:  b[2],
		Offer:  b[4],
		X25519: b[3]&flagX25519 != 0,
		Resume: b[3]&flagResume != 0,
		CID0:   CID(b[8:16]),
		Nc:     Nonce(b[16:32]),
		Ns:     Nonce(b[32:48]),
		Cookie: [20]byte(b[48:68]),
		Share:  [32]byte(b[68:100]),
		Sealed: b[ConfirmHeaderBytes:],
	}
	if c.X25519 == allZero(c.Share[:]) {
		return Confirm{}, RefusedShare
	}
	return c, nil
}

// AppendTo appends the 100 bytes of header and Sealed to dst.
func (c *Confirm) AppendTo(dst []byte) []byte {
	flags := flagIf(c.X25519, flagX25519) | flagIf(c.Resume, flagResume)
	dst = append(dst, byte(PacketConfirm), handshakeVersion, c.Suite, flags, c.Offer, 0, 0, 0)
	dst = append(dst, c.CID0[:]...)
	dst = append(dst, c.Nc[:]...)
	dst = append(dst, c.Ns[:]...)
	dst = append(dst, c.Cookie[:]...)
	dst = append(dst, c.Share[:]...)
	return append(dst, c.Sealed...)
}

// Accept is the sealed body of the packet that ends the handshake.
//
//	offset  size  field
//	0       8     scid
//	8       4     idleTimeout ms
//	12      8     serverTime µs since the Unix epoch
//	20      2     maxDatagram
//	22      2     packets per second, 0 unlimited
//	24      2     KiB per second, 0 unlimited
//	26      1     flags: bit 0 node is draining, bit 1 resumed
//	27      1     size of the token
//	28      …     node token
type Accept struct {
	SCID             CID
	IdleTimeout      time.Duration // millisecond grain
	ServerTime       time.Time     // microsecond grain
	MaxDatagram      uint16
	PacketsPerSecond uint16
	KiBPerSecond     uint16
	Draining         bool
	Resumed          bool
	// Token names this run of the node to the HTTP role; "" when the server told none. At
	// most 255 bytes of ASCII.
	Token string
}

// ParseAccept reads the opened body of an Accept. Unknown flags and bytes after the
// token are ignored, so that later servers can add fields. A server that ends after the
// flags, or tells a size that does not fit, has no token.
func ParseAccept(b []byte) (Accept, error) {
	if len(b) < AcceptBodyBytes {
		return Accept{}, RefusedLength
	}
	a := Accept{
		SCID:             CID(b[0:8]),
		IdleTimeout:      time.Duration(binary.BigEndian.Uint32(b[8:])) * time.Millisecond,
		ServerTime:       time.UnixMicro(int64(binary.BigEndian.Uint64(b[12:]))),
		MaxDatagram:      binary.BigEndian.Uint16(b[20:]),
		PacketsPerSecond: binary.BigEndian.Uint16(b[22:]),
		KiBPerSecond:     binary.BigEndian.Uint16(b[24:]),
		Draining:         b[26]&1 != 0,
		Resumed:          b[26]&2 != 0,
	}
	if rest := b[AcceptBodyBytes:]; len(rest) > 0 && int(rest[0]) < len(rest) {
		a.Token = string(rest[1 : 1+int(rest[0])])
	}
	return a, nil
}

// AppendTo appends the body to dst: 28 bytes and the token.
func (a *Accept) AppendTo(dst []byte) []byte {
	dst = append(dst, a.SCID[:]...)
	dst = binary.BigEndian.AppendUint32(dst, uint32(a.IdleTimeout.Milliseconds()))
	dst = binary.BigEndian.AppendUint64(dst, uint64(a.ServerTime.UnixMicro()))
	dst = binary.BigEndian.AppendUint16(dst, a.MaxDatagram)
	dst = binary.BigEndian.AppendUint16(dst, a.PacketsPerSecond)
	dst = binary.BigEndian.AppendUint16(dst, a.KiBPerSecond)
	dst = append(dst, flagIf(a.Draining, 1)|flagIf(a.Resumed, 2), byte(len(a.Token)))
	return append(dst, a.Token...)
}

// ParseAcceptHeader reads what an Accept packet says in clear: type 0x04,
// version, cid0. The rest is the sealed body and aliases b.
func ParseAcceptHeader(b []byte) (cid0 CID, sealed []byte, err error) {
	if err := checkHead(b, PacketAccept, AcceptBytes, -1); err != nil {
		return CID{}, nil, err
	}
	return CID(b[2:AcceptHeaderBytes]), b[AcceptHeaderBytes:], nil
}

// AppendAcceptHeader appends the 10 bytes that come before the sealed body.
func AppendAcceptHeader(dst []byte, cid0 CID) []byte {
	return append(append(dst, byte(PacketAccept), handshakeVersion), cid0[:]...)
}

// Ended answers a Hello for a stay that is over, so that its client does not go on
// asking.
//
//	offset  size  field
//	0       1     type 0x07
//	1       1     version
//	2       1     code of the CLOSE that the client may have missed
//	3       1     zero
//	4       8     cid0
//	12      16    Nc of the Hello
//	28      16    mac of bytes 0..27
type Ended struct {
	Code CloseCode // at most 255
	CID0 CID
	Nc   Nonce
	Mac  [16]byte
}

// EndedMacOffset is where the mac of an Ended starts and what it covers ends.
const EndedMacOffset = EndedBytes - 16

// ParseEnded reads an Ended; its error is a [Refusal]. The mac is not checked.
func ParseEnded(b []byte) (Ended, error) {
	if err := checkHead(b, PacketEnded, EndedBytes, EndedBytes); err != nil {
		return Ended{}, err
	}
	if b[3] != 0 {
		return Ended{}, RefusedReserved
	}
	return Ended{
		Code: CloseCode(b[2]),
		CID0: CID(b[4:12]),
		Nc:   Nonce(b[12:EndedMacOffset]),
		Mac:  [16]byte(b[EndedMacOffset:]),
	}, nil
}

// AppendTo appends the 44 bytes of e to dst.
func (e *Ended) AppendTo(dst []byte) []byte {
	dst = append(dst, byte(PacketEnded), handshakeVersion, byte(e.Code), 0)
	dst = append(dst, e.CID0[:]...)
	dst = append(dst, e.Nc[:]...)
	return append(dst, e.Mac[:]...)
}

// checkHead checks the length, type and version that every handshake packet
// shares. A maxBytes below 0 is no limit.
func checkHead(b []byte, t PacketType, minBytes, maxBytes int) error {
	switch {
	case len(b) < minBytes || maxBytes >= 0 && len(b) > maxBytes:
		return RefusedLength
	case b[0] != byte(t):
		return RefusedType
	case b[1] != handshakeVersion:
		return RefusedVersion
	}
	return nil
}

func flagIf(set bool, flag byte) byte {
	if set {
		return flag
	}
	return 0
}

func allZero(b []byte) bool {
	var or byte
	for _, v := range b {
		or |= v
	}
	return or == 0
}
