package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/internal/status"
)

// withPlayers runs f on a cluster with clients on its udp node.
func withPlayers(t *testing.T, f func(ctx context.Context, player func(uid string, o client.Options) *client.Client)) {
	t.Setenv("DIARKIS_USE_STRUCT_ERR", "TRUE")
	d := newDev(t, 0)
	err := runAll(context.Background(), context.Background(), d.nodes, func(ctx context.Context) error {
		if err := d.awaitPlayable(ctx); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		var all []*client.Client
		defer func() {
			for _, c := range all {
				_ = c.Close(ctx)
			}
		}()
		f(ctx, func(uid string, o client.Options) *client.Client {
			t.Helper()
			o.URL, o.UID = d.url(), uid
			c, err := client.Connect(ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
			return c
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The settings of budgets and rooms reach the node.
func TestSettingsOfBudgetsAndRooms(t *testing.T) {
	for key, value := range map[string]string{
		"ROOM_EMPTY_ROOMS_PER_USER": "2", "ROOM_CREATES_PER_SECOND": "1", "ROOM_CREATES_BURST": "3", "ROOM_MAX_ROOMS": "3",
		"UDP_COMMANDS_PER_SECOND": "1", "UDP_COMMANDS_BURST": "20", "UDP_DELIVERIES_PER_SECOND": "1", "UDP_DELIVERIES_BURST": "5",
	} {
		t.Setenv("DIARKIS_"+key, value)
	}
	withPlayers(t, func(ctx context.Context, player func(string, client.Options) *client.Client) {
		expect := func(what string, want []status.Code, f func() error) {
			t.Helper()
			var got []status.Code
			for range want {
				code := status.Code(0)
				if err := f(); err != nil {
					e, ok := errors.AsType[*client.StatusError](err)
					if !ok {
						t.Fatal(err)
					}
					code = status.Code(e.Code)
				}
				got = append(got, code)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: codes %v, want %v", what, got, want)
			}
		}
		a, b, d := player("a", client.Options{}), player("b", client.Options{}), player("d", client.Options{})
		var last client.Room
		create := func() (err error) {
			r, err := a.CreateRoom(ctx, client.RoomOptions{MembersMax: 4, StayOut: true})
			if err == nil {
				last = r
			}
			return err
		}
		expect("creating rooms", []status.Code{0, 0, status.RoomNew, status.Rate}, create)
		for _, c := range []*client.Client{a, b} {
			if _, err := c.JoinRoom(ctx, last.ID, nil); err != nil {
				t.Fatal(err)
			}
		}
		expect("changing the owner", []status.Code{0, 0, 0, 0, 0, status.Rate}, func() error {
			err := a.ChangeOwner(ctx, last.ID, "b")
			if err == nil { // and back, which b pays
				_ = b.ChangeOwner(ctx, last.ID, "a")
			}
			return err
		})
		expect("asking", []status.Code{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, status.Rate}, func() error {
			_, _, err := d.MemberCount(ctx, last.ID)
			return err
		})
	})
}

// A member sends small reliable broadcasts as fast as the wire takes them, to others
// whose phones are slow: they stay, and hear each other.
func TestAFloodEndsNobodyElse(t *testing.T) {
	t.Setenv("DIARKIS_UDP_PACKETS_PER_SECOND", "0")
	t.Setenv("DIARKIS_UDP_BYTES_PER_SECOND", "0")
	withPlayers(t, func(ctx context.Context, player func(string, client.Options) *client.Client) {
		ended, heard := make(chan client.Disconnect, 100), make(chan struct{}, 100)
		slow := client.Options{
			OnDisconnect: func(d client.Disconnect) { ended <- d },
			OnPush: func(m client.Push) {
				time.Sleep(200 * time.Microsecond)
				if strings.HasSuffix(string(m.Payload), "is anybody here?") {
					heard <- struct{}{}
				}
			},
		}
		attacker := player("attacker", client.Options{})
		r, err := attacker.CreateRoom(ctx, client.RoomOptions{MembersMax: 8})
		if err != nil {
			t.Fatal(err)
		}
		var others []*client.Client
		for i := range 7 {
			others = append(others, player(fmt.Sprint("player", i), slow))
			if _, err := others[i].JoinRoom(ctx, r.ID, nil); err != nil {
				t.Fatal(err)
			}
		}
		for sent := 0; sent < 6000; {
			switch err := attacker.Broadcast(r.ID, []byte("x"), client.Reliable); {
			case err == nil:
				sent++
			case errors.Is(err, client.ErrSlow):
				time.Sleep(time.Millisecond) // its own queue is full
			default:
				t.Fatal(err)
			}
		}
		if err := others[0].Broadcast(r.ID, []byte("is anybody here?"), client.Reliable); err != nil {
			t.Fatal(err)
		}
		for range len(others) - 1 {
			select {
			case <-heard:
			case d := <-ended:
				t.Fatalf("another member was ended: %+v", d)
			case <-ctx.Done():
				t.Fatal("the others don't hear each other")
			}
		}
	})
}
