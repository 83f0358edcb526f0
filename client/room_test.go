package client_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

const room = client.RoomID("00000000000000000000ffff7f0000011f400102030405060708")

// TestRoomPayloads holds every room method to its bytes.
func TestRoomPayloads(t *testing.T) {
	type asked struct {
		cmd     uint16
		payload string
		rel     reliable.Reliability
	}
	requests := make(chan asked, 100)
	var answer string
	n := start(t, clienttest.Options{Handle: func(c *clienttest.Conn, m wire.Message, rel reliable.Reliability) {
		if m.Ver != client.VerBuiltin {
			t.Errorf("version %d", m.Ver)
		}
		requests <- asked{m.Cmd, string(m.Payload), rel}
		if m.HasID {
			c.Respond(m, 1, []byte(answer))
		}
	}})
	c, _ := dial(t, n, client.Options{})
	ctx := within(t)
	created := "\x65\x53\xf1\x00"
	wantRoom := client.Room{ID: room, Created: time.Unix(0x6553f100, 0)}
	newRoom := wantRoom
	newRoom.New = true
	options := client.RoomOptions{MembersMax: 4, KeepEmpty: true, TTL: 60 * time.Second, Interval: 200 * time.Millisecond}
	optionBytes := "\x00\x04\x01\x01\x00\x3c\x00\x00\x00\x00\x00\xc8"
	for _, q := range []struct {
		name    string
		answer  string
		call    func() (any, error)
		want    any
		cmd     uint16
		payload string
	}{
		{"create", created + string(room), func() (any, error) { return c.CreateRoom(ctx, options) }, newRoom, 100, optionBytes},
		{"create with defaults, stay out", created + string(room), func() (any, error) { return c.CreateRoom(ctx, client.RoomOptions{StayOut: true}) }, newRoom,
			100, "\x00\x40\x00\x00\x00\x1e\x00\x00\x00\x00\x00\x00"},
		{"random create", created + string(room), func() (any, error) { return c.CreateRandomRoom(ctx, options) }, newRoom, 105, optionBytes},
		{"random join, created", "\x00" + created + string(room), func() (any, error) { return c.RandomJoinRoom(ctx, options, []byte("hi")) }, newRoom, 106, optionBytes + "hi"},
		{"random join, joined", "\x01" + created + string(room), func() (any, error) { return c.RandomJoinRoom(ctx, options, nil) }, wantRoom, 106, optionBytes},
		{"join", created + string(room), func() (any, error) { return c.JoinRoom(ctx, room, []byte("hi")) }, wantRoom, 101, string(room) + "hi"},
		{"leave", "", func() (any, error) { return nil, c.LeaveRoom(ctx, room, []byte("bye")) }, nil, 102, string(room) + "bye"},
		{"broadcast reliably", "", func() (any, error) { return nil, c.Broadcast(room, []byte("m"), client.Reliable) }, nil, 103, string(room) + "\x01m"},
		{"broadcast", "", func() (any, error) { return nil, c.Broadcast(room, []byte("m"), client.Unreliable) }, nil, 103, string(room) + "\x00m"},
		{"message", "", func() (any, error) { return nil, c.Message(room, []string{"bob", "cy"}, []byte("m"), client.Reliable) }, nil, 104,
			string(room) + "\x01\x00\x02\x00\x00\x00\x03bob\x00\x00\x00\x02cym"},
		{"member ids", "\x00\x00\x00\x03bob\x00\x00\x00\x02cy", func() (any, error) {
			ids, err := c.MemberIDs(ctx, room)
			return strings.Join(ids, ","), err
		}, "bob,cy", 11, string(room)},
		{"member count", "\x00\x02\x00\x04", func() (any, error) {
			n, limit, err := c.MemberCount(ctx, room)
			return [2]int{n, limit}, err
		}, [2]int{2, 4}, 13, string(room)},
		{"owner", "bob", func() (any, error) { return c.OwnerID(ctx, room) }, "bob", 109, string(room)},
		{"owner change", "", func() (any, error) { return nil, c.ChangeOwner(ctx, room, "bob") }, nil, 14, string(room) + "bob"},
		{"set property", "", func() (any, error) { return nil, c.SetProperty(ctx, room, "key", []byte("v")) }, nil, 107, string(room) + "\x00\x00\x00\x03keyv"},
		{"get property", "v", func() (any, error) {
			v, err := c.Property(ctx, room, "key")
			return string(v), err
		}, "v", 108, string(room) + "key"},
		{"incr property", "\xff\xff\xff\xff\xff\xff\xff\xfe", func() (any, error) { return c.IncrProperty(ctx, room, "k", -3) }, int64(-2), 10,
			string(room) + "\x00\x00\x00\x01k\xff\xff\xff\xff\xff\xff\xff\xfd"},
		{"reserve", "", func() (any, error) { return nil, c.ReserveSeats(ctx, room, []string{"bob"}) }, nil, 117, string(room) + "\x00\x00\x00\x03bob"},
		{"cancel", "", func() (any, error) { return nil, c.CancelSeats(ctx, room, []string{"bob"}) }, nil, 118, string(room) + "\x00\x00\x00\x03bob"},
	} {
		t.Run(q.name, func(t *testing.T) {
			n.Do(func() { answer = q.answer })
			got, err := q.call()
			if err != nil || got != q.want {
				t.Errorf("got %v, %v; want %v", got, err, q.want)
			}
			a := take(t, "request", requests)
			if a.cmd != q.cmd || a.payload != q.payload || (a.rel == reliable.Unreliable) != (q.name == "broadcast") {
				t.Errorf("sent %d %s, want %d %s", a.cmd, hex.EncodeToString([]byte(a.payload)), q.cmd, hex.EncodeToString([]byte(q.payload)))
			}
		})
	}
	t.Run("malformed answers", func(t *testing.T) {
		n.Do(func() { answer = "xx" })
		for name, call := range map[string]func() error{
			"create": func() error { _, err := c.CreateRoom(ctx, options); return err },
			"random": func() error { _, err := c.RandomJoinRoom(ctx, options, nil); return err },
			"ids":    func() error { _, err := c.MemberIDs(ctx, room); return err },
			"count":  func() error { _, _, err := c.MemberCount(ctx, room); return err },
			"incr":   func() error { _, err := c.IncrProperty(ctx, room, "k", 1); return err },
		} {
			if err := call(); err == nil || !strings.Contains(err.Error(), "malformed") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestRoomOptionsOutOfRange(t *testing.T) {
	c, err := client.New(client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []client.RoomOptions{{MembersMax: 1}, {MembersMax: 1001}, {TTL: time.Second}, {TTL: 100 * time.Hour}, {Interval: -time.Second}} {
		if _, err := c.CreateRoom(within(t), o); err == nil || errors.Is(err, client.ErrNotConnected) {
			t.Errorf("options %+v: %v", o, err)
		}
	}
	if err := c.Message(room, make([]string, 70_000), nil, client.Reliable); !errors.Is(err, client.ErrTooLarge) {
		t.Errorf("70000 receivers: %v", err)
	}
	if err := c.Broadcast(room, bytes.Repeat([]byte("x"), 10), client.Reliable); !errors.Is(err, client.ErrNotConnected) {
		t.Errorf("before connect: %v", err)
	}
	shut(c)
}
