// Package id holds the names of things: nodes, users, connections, rooms.
//
// Each has a type of its own, so that a user id can't be passed where a node is
// meant. The package knows no I/O and no randomness: random bytes are arguments.
package id

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"unicode"
	"unicode/utf8"
)

// Node is a node's mesh address, "host:port" with an IP literal (IPv6 in
// brackets). It says where a node is; an [Incarnation] says which process it is.
type Node string

// NodeOf returns the Node at a mesh address.
func NodeOf(a netip.AddrPort) Node {
	return Node(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String())
}

// AddrPort returns the address inside n, or an error when n is not one.
func (n Node) AddrPort() (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(string(n))
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("node address %q is no IP address with a port, such as 10.0.0.7:8000", string(n))
	}
	return a, nil
}

func (n Node) String() string { return string(n) }

// Incarnation tells one run of a process from the next at the same address.
type Incarnation [16]byte

func (i Incarnation) String() string { return hex.EncodeToString(i[:]) }

// Run returns what all incarnations of one run of a process have in common: a node that
// was evicted from the cluster alive counts the last 4 bytes up and joins again.
func (i Incarnation) Run() Incarnation {
	clear(i[len(i)-4:])
	return i
}

// UID is a user id as the game knows it: 1 to [UIDBytesMax] bytes of UTF-8
// without control characters.
type UID string

// UIDBytesMax is the longest user id, in bytes.
const UIDBytesMax = 128

// ErrUID means a user id is empty, too long, not UTF-8 or holds control characters.
var ErrUID = errors.New("user id must be 1 to 128 bytes of UTF-8 without control characters")

// ParseUID checks s and returns it as a UID, or [ErrUID].
func ParseUID(s string) (UID, error) {
	if s == "" || len(s) > UIDBytesMax || !utf8.ValidString(s) {
		return "", ErrUID
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return "", ErrUID
		}
	}
	return UID(s), nil
}

// SID is the random id of one stay of a user in the cluster. It is key material:
// its String is redacted so that it can't reach a log by accident. Use
// [SID.Hex] where the credentials are handed out.
type SID [16]byte

// String returns a fixed text, never the id.
func (SID) String() string { return "sid(redacted)" }

// GoString keeps %#v from printing the id.
func (SID) GoString() string { return "id.SID(redacted)" }

// Format keeps every verb, %x and %d included, from printing the id.
func (SID) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("sid(redacted)")) }

// Hex returns the id as 32 lower-case hex digits.
func (s SID) Hex() string { return hex.EncodeToString(s[:]) }

// ParseSID reads 32 hex digits.
func ParseSID(s string) (SID, error) {
	var sid SID
	if len(s) != 2*len(sid) {
		return SID{}, errors.New("sid must be 32 hex digits")
	}
	if _, err := hex.Decode(sid[:], []byte(s)); err != nil {
		return SID{}, errors.New("sid must be 32 hex digits")
	}
	return sid, nil
}

// Room is a room's id: 52 hex digits that name the owner's mesh address.
//
//	offset  size  field
//	0       16    IP address, IPv4 mapped into IPv6
//	16      2     port, big-endian
//	18      8     random
type Room string

// RoomBytes is the length of a room id on the wire.
const RoomBytes = 52

// NewRoom names a room that lives on the node at owner.
func NewRoom(owner netip.AddrPort, random [8]byte) Room {
	var b [RoomBytes / 2]byte
	ip := owner.Addr().As16()
	copy(b[:], ip[:])
	binary.BigEndian.PutUint16(b[16:], owner.Port())
	copy(b[18:], random[:])
	return Room(hex.EncodeToString(b[:]))
}

// ErrRoom means a room id is not one this cluster could have made.
var ErrRoom = errors.New("room id must be 52 hex digits that name a node")

// ParseRoom checks s and returns it as a Room, or [ErrRoom].
func ParseRoom(s string) (Room, error) {
	if _, err := Room(s).Node(); err != nil {
		return "", err
	}
	return Room(s), nil
}

// Node returns the node that owns the room.
func (r Room) Node() (Node, error) {
	var b [RoomBytes / 2]byte
	if len(r) != RoomBytes {
		return "", ErrRoom
	}
	if _, err := hex.Decode(b[:], []byte(r)); err != nil {
		return "", ErrRoom
	}
	port := binary.BigEndian.Uint16(b[16:])
	if port == 0 {
		return "", ErrRoom
	}
	return NodeOf(netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[:16])), port)), nil
}

func (r Room) String() string { return string(r) }
