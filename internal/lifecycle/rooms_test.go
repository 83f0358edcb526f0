package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/internal/status"
)

// withPlayers runs f on a cluster with clients on its udp node.
func withPlayers(t *testing.T, f func(ctx context.Context, player func(uid string) *client.Client)) {
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
		f(ctx, func(uid string) *client.Client {
			t.Helper()
			c, err := client.Connect(ctx, client.Options{URL: d.url(), UID: uid})
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
	withPlayers(t, func(ctx context.Context, player func(string) *client.Client) {
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
		a, b, d := player("a"), player("b"), player("d")
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
