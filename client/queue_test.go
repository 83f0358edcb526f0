package client_test

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// TestSenderHearsThatItIsTooFast queues more than may wait while the node takes nothing:
// ErrSlow refuses one message, and nothing else comes of it.
func TestSenderHearsThatItIsTooFast(t *testing.T) {
	for _, tt := range []struct {
		name        string
		size        int
		least, most int // messages until then: those that wait, and those under way
	}{
		{name: "many small", size: 10, least: 1024, most: 5000},
		{name: "some long", size: 10_000, least: 24, most: 60},
	} {
		t.Run(tt.name, func(t *testing.T) {
			transports(t, func(t *testing.T, tcp bool) {
				if tcp && tt.size > 1000 {
					tt.most = 200 // 1 MiB is under way there
				} else if tcp {
					tt.most = 40_000
				}
				var got atomic.Int64
				told := make(chan struct{}, 1)
				n := start(t, clienttest.Options{TCP: tcp, Handle: func(*clienttest.Conn, wire.Message, reliable.Reliability) {
					got.Add(1)
					select {
					case told <- struct{}{}:
					default:
					}
				}})
				c, _ := dial(t, n, client.Options{OnDisconnect: func(d client.Disconnect) { t.Errorf("disconnect %+v", d) }})
				sent := 0
				n.Do(func() { // it processes nothing meanwhile
					for ; sent <= tt.most; sent++ {
						err := c.Send(2, 1, make([]byte, tt.size), client.Reliable)
						if errors.Is(err, client.ErrSlow) {
							return
						}
						if err != nil {
							t.Fatal(err)
						}
					}
				})
				if sent < tt.least || sent > tt.most {
					t.Errorf("%d messages of %d bytes queued, want %d to %d", sent, tt.size, tt.least, tt.most)
				}
				for got.Load() < int64(sent) {
					take(t, "what was queued", told)
				}
				if err := c.Send(2, 1, nil, client.Reliable); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			})
		})
	}
}
