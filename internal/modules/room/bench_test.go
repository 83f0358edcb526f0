package room

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/users"
	"github.com/Diarkis/diarkis/internal/wire"
)

// nowhere is a connection that costs nothing.
type nowhere struct{}

func (nowhere) Send(*transport.Batch, []byte, reliable.Reliability) error { return nil }
func (nowhere) SendShared(*transport.Batch, *reliable.Shared, reliable.Reliability) error {
	return nil
}
func (nowhere) RTT() time.Duration                    { return 0 }
func (nowhere) RemoteAddr() netip.AddrPort            { return netip.AddrPort{} }
func (nowhere) Transport() string                     { return "UDP" }
func (nowhere) Spent() (packets, bytes time.Duration) { return 0, 0 }
func (nowhere) Spend(packets, bytes time.Duration)    {}

// crowd makes a room of 100 and returns what serves one broadcast in it.
func crowd(tb testing.TB) (broadcast func(), stop func()) {
	const never = int(time.Second) // a budget that is charged and does not run out
	c := newClusterOf(tb, Config{}, users.Budget{
		CommandsPerSec: never, CommandsBurst: never, DeliveriesPerSec: never, DeliveriesBurst: never,
	}, "udp")
	n := c.nodes[0]
	var sender *users.User
	var r *room
	for i := range 100 {
		reply, err := n.users.Reserve(users.ReserveRequest{UID: id.UID(fmt.Sprint("user", i))})
		if err != nil {
			tb.Fatal(err)
		}
		u := n.users.BySID(reply.SID)
		n.users.UserOpened(nil, u, nowhere{}, false)
		if r == nil {
			if r, err = n.rooms.create(Settings{MembersMax: 100, EmptyTTL: time.Minute}, "", false); err != nil {
				tb.Fatal(err)
			}
		}
		if err := n.rooms.enter(r, u, nil, func(*transport.Batch) {}); err != nil {
			tb.Fatal(err)
		}
		sender = u
	}
	payload := append(append([]byte(r.id), 0), make([]byte, 64)...)
	m := wire.Message{Ver: Ver, Cmd: CmdBroadcast, Payload: payload}
	return func() { n.router.Serve(nil, sender, m, reliable.Unreliable) }, c.stop
}

func BenchmarkEngineBroadcast(b *testing.B) {
	broadcast, stop := crowd(b)
	defer stop()
	b.ReportAllocs()
	for b.Loop() {
		broadcast()
	}
}
