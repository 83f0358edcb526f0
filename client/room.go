package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/status"
)

// VerBuiltin is the version of the commands of built-in modules.
const VerBuiltin uint8 = 1

// Commands of the room module, version [VerBuiltin]. Join, leave, broadcast, message
// and owner change are pushed to the other members under the same number.
const (
	CmdRoomIncrProperty uint16 = 10
	CmdRoomMemberIDs    uint16 = 11
	CmdRoomMemberCount  uint16 = 13
	CmdRoomOwnerChange  uint16 = 14
	CmdRoomCreate       uint16 = 100
	CmdRoomJoin         uint16 = 101
	CmdRoomLeave        uint16 = 102
	CmdRoomBroadcast    uint16 = 103
	CmdRoomMessage      uint16 = 104
	CmdRoomRandomCreate uint16 = 105
	CmdRoomRandomJoin   uint16 = 106
	CmdRoomSetProperty  uint16 = 107
	CmdRoomGetProperty  uint16 = 108
	CmdRoomOwnerID      uint16 = 109
	CmdRoomReserve      uint16 = 117
	CmdRoomCancel       uint16 = 118
)

// RoomID names a room: 52 hex digits.
type RoomID = id.Room

// RoomOptions configures a room that a client creates. The zero value is ready to use.
type RoomOptions struct {
	// MembersMax is how many users fit in the room, 2 to 1000. Zero means 64.
	MembersMax int
	// KeepEmpty keeps the room for TTL after the last member left.
	KeepEmpty bool
	// StayOut creates the room without joining it.
	StayOut bool
	// TTL is how long an empty room is kept at most, in whole seconds, 10 s to 65535 s.
	// Zero means 30 s. The server cuts it to what its settings allow, 600 s by default.
	TTL time.Duration
	// Interval merges the broadcasts of that long into one push, in whole
	// milliseconds. Less than 100 ms means no merging.
	Interval time.Duration
}

func (o RoomOptions) appendTo(dst []byte) ([]byte, error) {
	if o.MembersMax == 0 {
		o.MembersMax = 64
	}
	if o.TTL == 0 {
		o.TTL = 30 * time.Second
	}
	ttl, interval := o.TTL/time.Second, o.Interval/time.Millisecond
	switch {
	case o.MembersMax < 2 || o.MembersMax > 1000:
		return nil, fmt.Errorf("a room holds 2 to 1000 members, not %d", o.MembersMax)
	case ttl < 10 || ttl > math.MaxUint16:
		return nil, fmt.Errorf("an empty room lives 10 s to 65535 s, not %v", o.TTL)
	case interval < 0 || interval > math.MaxUint32:
		return nil, fmt.Errorf("broadcasts can't be merged every %v", o.Interval)
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(o.MembersMax))
	dst = append(dst, flag(o.KeepEmpty), flag(!o.StayOut))
	dst = binary.BigEndian.AppendUint16(dst, uint16(ttl))
	dst = append(dst, 0, 0)
	return binary.BigEndian.AppendUint32(dst, uint32(interval)), nil
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// Room is what the server says about a room one created or joined.
type Room struct {
	ID      RoomID
	Created time.Time // second grain, by the server's clock
	New     bool      // this call created it
}

var errAnswer = errors.New("answer is malformed")

// parseRoom reads u32 created ‖ room id.
func parseRoom(b []byte) (Room, error) {
	if len(b) != 4+id.RoomBytes {
		return Room{}, errAnswer
	}
	r, err := id.ParseRoom(string(b[4:]))
	if err != nil {
		return Room{}, errAnswer
	}
	return Room{ID: r, Created: time.Unix(int64(binary.BigEndian.Uint32(b)), 0)}, nil
}

// parseRandomJoin reads u8 0 = created ‖ u32 created ‖ room id.
func parseRandomJoin(b []byte) (Room, error) {
	if len(b) == 0 {
		return Room{}, errAnswer
	}
	r, err := parseRoom(b[1:])
	r.New = err == nil && b[0] == 0
	return r, err
}

// ParseList reads a list of strings as built-in commands and merged broadcasts use
// it: (u32 size ‖ bytes)*. The items point into b.
func ParseList(b []byte) ([][]byte, error) {
	var out [][]byte
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, errAnswer
		}
		n := binary.BigEndian.Uint32(b)
		if uint64(n) > uint64(len(b)-4) {
			return nil, errAnswer
		}
		out = append(out, b[4:4+n:4+n])
		b = b[4+n:]
	}
	return out, nil
}

func appendItem[T ~string | ~[]byte](dst []byte, s T) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(s))), s...)
}

// roomID checks r before it is sent with the rest of a payload: what follows a room id
// of another size would be read as part of it.
func roomID(cmd uint16, r RoomID) error {
	if len(r) == id.RoomBytes {
		return nil // the server looks at the digits
	}
	return &StatusError{Ver: VerBuiltin, Cmd: cmd, Status: StatusBad, Code: uint32(status.RoomMissingID), Text: id.ErrRoom.Error()}
}

// inRoom sends a built-in command whose payload begins with a room id. It returns
// nothing but the error when there is one: the payload of a refusal is its text.
func (c *Client) inRoom(ctx context.Context, cmd uint16, r RoomID, rest []byte) ([]byte, error) {
	if err := roomID(cmd, r); err != nil {
		return nil, err
	}
	a, err := c.Request(ctx, VerBuiltin, cmd, append([]byte(r), rest...))
	if err != nil {
		return nil, err
	}
	return a.Payload, nil
}

// room sends a built-in command and has its answer read.
func (c *Client) room(ctx context.Context, cmd uint16, payload []byte, parse func([]byte) (Room, error)) (Room, error) {
	a, err := c.Request(ctx, VerBuiltin, cmd, payload)
	if err != nil {
		return Room{}, err
	}
	r, err := parse(a.Payload)
	if err != nil {
		return Room{}, fmt.Errorf("request %d.%d: %w", VerBuiltin, cmd, err)
	}
	return r, nil
}

// CreateRoom creates a room on the client's node and, unless told otherwise, joins it.
func (c *Client) CreateRoom(ctx context.Context, o RoomOptions) (Room, error) {
	return c.createRoom(ctx, CmdRoomCreate, o)
}

// CreateRandomRoom is CreateRoom for a room that [Client.RandomJoinRoom] finds.
func (c *Client) CreateRandomRoom(ctx context.Context, o RoomOptions) (Room, error) {
	return c.createRoom(ctx, CmdRoomRandomCreate, o)
}

func (c *Client) createRoom(ctx context.Context, cmd uint16, o RoomOptions) (Room, error) {
	p, err := o.appendTo(nil)
	if err != nil {
		return Room{}, fmt.Errorf("create room: %w", err)
	}
	r, err := c.room(ctx, cmd, p, parseRoom)
	r.New = err == nil
	return r, err
}

// RandomJoinRoom joins a room with a free place that was made with equal options, or
// creates one. The members get message as a join push unless it is empty.
func (c *Client) RandomJoinRoom(ctx context.Context, o RoomOptions, message []byte) (Room, error) {
	p, err := o.appendTo(nil)
	if err != nil {
		return Room{}, fmt.Errorf("join random room: %w", err)
	}
	return c.room(ctx, CmdRoomRandomJoin, append(p, message...), parseRandomJoin)
}

// JoinRoom joins a room wherever it is; the client is moved to its node first. The
// members get message as a join push unless it is empty.
func (c *Client) JoinRoom(ctx context.Context, r RoomID, message []byte) (Room, error) {
	if err := roomID(CmdRoomJoin, r); err != nil {
		return Room{}, err
	}
	return c.room(ctx, CmdRoomJoin, append([]byte(r), message...), parseRoom)
}

// LeaveRoom leaves a room. The members get message as a leave push unless it is empty.
func (c *Client) LeaveRoom(ctx context.Context, r RoomID, message []byte) error {
	_, err := c.inRoom(ctx, CmdRoomLeave, r, message)
	return err
}

// Broadcast sends message to the other members of a room, who get it as a push with
// [CmdRoomBroadcast] whose payload [ParseList] reads. rel is for both legs of the
// way. It does not wait; a refusal comes to [Options.OnResponse].
func (c *Client) Broadcast(r RoomID, message []byte, rel Reliability) error {
	if err := roomID(CmdRoomBroadcast, r); err != nil {
		return err
	}
	p := make([]byte, 0, id.RoomBytes+1+len(message))
	p = append(append(p, r...), flag(rel != Unreliable))
	return c.Send(VerBuiltin, CmdRoomBroadcast, append(p, message...), rel)
}

// Message sends message to some members of a room, who get it as a push with
// [CmdRoomMessage]. It does not wait; a refusal comes to [Options.OnResponse].
func (c *Client) Message(r RoomID, to []string, message []byte, rel Reliability) error {
	if err := roomID(CmdRoomMessage, r); err != nil {
		return err
	}
	if len(to) > math.MaxUint16 {
		return fmt.Errorf("message to %d members: %w", len(to), ErrTooLarge)
	}
	p := append([]byte(r), flag(rel != Unreliable))
	p = binary.BigEndian.AppendUint16(p, uint16(len(to)))
	for _, u := range to {
		p = appendItem(p, u)
	}
	return c.Send(VerBuiltin, CmdRoomMessage, append(p, message...), rel)
}

// MemberIDs returns the user ids of a room's members, longest present first.
func (c *Client) MemberIDs(ctx context.Context, r RoomID) ([]string, error) {
	b, err := c.inRoom(ctx, CmdRoomMemberIDs, r, nil)
	if err != nil {
		return nil, err
	}
	items, err := ParseList(b)
	if err != nil {
		return nil, fmt.Errorf("member ids of room %v: %w", r, err)
	}
	out := make([]string, len(items))
	for i, b := range items {
		out[i] = string(b)
	}
	return out, nil
}

// MemberCount returns how many members a room has and how many fit in.
func (c *Client) MemberCount(ctx context.Context, r RoomID) (members, membersMax int, err error) {
	b, err := c.inRoom(ctx, CmdRoomMemberCount, r, nil)
	if err != nil {
		return 0, 0, err
	}
	if len(b) != 4 {
		return 0, 0, fmt.Errorf("member count of room %v: %w", r, errAnswer)
	}
	return int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:])), nil
}

// OwnerID returns the user id of a room's owner.
func (c *Client) OwnerID(ctx context.Context, r RoomID) (string, error) {
	b, err := c.inRoom(ctx, CmdRoomOwnerID, r, nil)
	return string(b), err
}

// ChangeOwner hands a room that this client owns to another member.
func (c *Client) ChangeOwner(ctx context.Context, r RoomID, uid string) error {
	_, err := c.inRoom(ctx, CmdRoomOwnerChange, r, []byte(uid))
	return err
}

// SetProperty sets a property of the room the client is in.
func (c *Client) SetProperty(ctx context.Context, r RoomID, key string, value []byte) error {
	_, err := c.inRoom(ctx, CmdRoomSetProperty, r, append(appendItem(nil, key), value...))
	return err
}

// Property returns a property of a room on the client's node; one that was made by
// [Client.IncrProperty] is an i64, big-endian. That there is no such property is an
// error, with code 2011.
func (c *Client) Property(ctx context.Context, r RoomID, key string) ([]byte, error) {
	return c.inRoom(ctx, CmdRoomGetProperty, r, []byte(key))
}

// IncrProperty adds delta to a property of the room the client is in and returns the sum.
func (c *Client) IncrProperty(ctx context.Context, r RoomID, key string, delta int64) (int64, error) {
	b, err := c.inRoom(ctx, CmdRoomIncrProperty, r, binary.BigEndian.AppendUint64(appendItem(nil, key), uint64(delta)))
	if err != nil {
		return 0, err
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("property of room %v: %w", r, errAnswer)
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}

// ReserveSeats keeps places in the room for users, all or none.
func (c *Client) ReserveSeats(ctx context.Context, r RoomID, uids []string) error {
	return c.seats(ctx, CmdRoomReserve, r, uids)
}

// CancelSeats gives reserved places free.
func (c *Client) CancelSeats(ctx context.Context, r RoomID, uids []string) error {
	return c.seats(ctx, CmdRoomCancel, r, uids)
}

func (c *Client) seats(ctx context.Context, cmd uint16, r RoomID, uids []string) error {
	var p []byte
	for _, u := range uids {
		p = appendItem(p, u)
	}
	_, err := c.inRoom(ctx, cmd, r, p)
	return err
}
