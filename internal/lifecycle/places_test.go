package lifecycle

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/users"
)

// The settings of places nobody opened yet reach the node, and its answers.
func TestSettingsOfUnopenedPlaces(t *testing.T) {
	for key, value := range map[string]string{
		"RESERVATIONS_PER_USER": "2", "RESERVATIONS_MAX": "8", "RESERVATION_TTL": "40", "RESERVATION_TTL_MIN": "7", "RESERVED_BYTES_MAX": "65536",
	} {
		t.Setenv("DIARKIS_UDP_"+key, value)
	}
	props, err := users.EncodeProps(map[string]any{"a": strings.Repeat("x", 40<<10)})
	if err != nil {
		t.Fatal(err)
	}
	d := newDev(t, 0)
	err = runAll(context.Background(), context.Background(), d.nodes, func(ctx context.Context) error {
		if err := d.awaitPlayable(ctx); err != nil {
			return err
		}
		r := d.nodes[2].users
		ask := func(uid string, props []byte) time.Duration {
			reply, err := r.Reserve(users.ReserveRequest{UID: id.UID(uid), Props: props})
			if err != nil || reply.Refused != users.Accepted {
				t.Fatalf("reserve for %s = %v, %v", uid, reply.Refused, err)
			}
			return reply.ExpiresIn
		}
		want := func(places int, ttl, wantTTL time.Duration) {
			t.Helper()
			if got := r.Reserved(); got != places || ttl != wantTTL {
				t.Errorf("%d places wait, the last for %v, want %d and %v", got, ttl, places, wantTTL)
			}
		}
		ask("greedy", nil)
		ask("greedy", nil)
		want(2, ask("greedy", nil), 40*time.Second)
		ask("large", props)
		want(3, ask("larger", props), 40*time.Second)
		var ttl time.Duration
		for i := range 20 {
			ttl = ask(fmt.Sprint("stranger", i), nil)
		}
		want(8, ttl, 7*time.Second)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
