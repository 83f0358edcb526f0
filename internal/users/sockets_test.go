package users

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Real clients connect while strangers take place after place, so that places are
// cancelled at every step of a handshake. Whoever was let in is a user, and stays.
func TestCancelNeverHitsAPlaceThatOpens(t *testing.T) {
	const players, share = 20, 8
	reg := prometheus.NewRegistry()
	var at netip.AddrPort
	r, err := New(Config{
		Self:      mars.Instance{Node: "127.0.0.1:1", Role: "udp", Type: "UDP"},
		Directory: func() *mars.Directory { return mars.NewDirectory(1) },
		Endpoint:  func() string { return at.String() },
		UsersMax:  players + share, ReservationsMax: share,
	}, &fakeMesh{newNetwork(), "127.0.0.1:1"}, zerolog.Nop(), reg)
	if err != nil {
		t.Fatal(err)
	}
	r.SetCommands(&fakeCommands{}) // nobody asks for anything
	srv, err := transport.NewUDP(transport.Config{
		Address: "127.0.0.1", PlacesMax: players + share, Limits: transport.Limits{AddressPerSec: -1},
	}, r, zerolog.Nop(), reg)
	if err != nil {
		t.Fatal(err)
	}
	if at, err = srv.Listen(); err != nil {
		t.Fatal(err)
	}
	r.Bind(srv)
	r.SetState(mars.Online)
	var ended sync.Map
	r.OnEnded(func(u *User, _ wire.CloseCode) { ended.Store(u.SID, true) })
	ctx, stop := context.WithCancel(t.Context())
	var parts, strangers sync.WaitGroup
	parts.Go(func() { _ = r.Run(ctx) })
	parts.Go(func() { _ = srv.Run(ctx) })
	defer parts.Wait()
	defer stop()

	enough := make(chan struct{})
	strangers.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-enough:
				return
			case <-time.After(200*time.Microsecond + time.Duration(i)*2*time.Microsecond): // slower and slower: everybody gets in
				_, _ = r.Reserve(ReserveRequest{UID: id.UID(fmt.Sprint("stranger", i))})
			}
		}
	})
	var in [players]id.SID
	var clients [players]*client.Client
	var wg, departing sync.WaitGroup
	for i := range players {
		wg.Go(func() { clients[i], in[i] = enter(t, r, fmt.Sprint("player", i), &departing) })
	}
	wg.Wait()
	close(enough)
	strangers.Wait()
	for i, c := range clients {
		if c == nil {
			t.Errorf("player %d did not get in", i)
			continue
		}
		if _, gone := ended.Load(in[i]); gone || r.BySID(in[i]) == nil || !c.Connected() {
			t.Errorf("player %d was let in and is out: ended %v, connected %v", i, gone, c.Connected())
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n, _ := r.unopened.sizes(); n > share {
		t.Errorf("%d places wait", n)
	}
	departing.Wait()
	if err := r.WaitEmpty(t.Context()); err != nil { // each of them is counted out, too
		t.Error(err)
	}
}

// enter asks for places until one lasts through a handshake. Clients that were not let in
// may have to say goodbye yet: departing waits for them.
func enter(t *testing.T, r *Registry, uid string, departing *sync.WaitGroup) (*client.Client, id.SID) {
	for t.Context().Err() == nil {
		p, err := r.Reserve(ReserveRequest{UID: id.UID(uid)})
		if err != nil || p.Refused != Accepted {
			t.Errorf("reserve for %s = %v, %v", uid, p.Refused, err)
			return nil, id.SID{}
		}
		e := client.Endpoint{
			SID: p.SID.Hex(), EncryptionKey: hex.EncodeToString(p.Key[:]), EncryptionIV: hex.EncodeToString(p.IV[:]),
			EncryptionMacKey: hex.EncodeToString(p.Mac[:]), ServerType: "UDP", ServerHost: p.Host, ServerPort: p.Port,
		}
		c, err := client.New(client.Options{UID: uid, NoReconnect: true, ResumeFor: -1})
		if err != nil {
			t.Error(err)
			return nil, id.SID{}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		err = c.Dial(ctx, e)
		cancel()
		if err == nil {
			return c, p.SID
		}
		departing.Go(func() { _ = c.Close(t.Context()) })
		if !errors.Is(err, context.DeadlineExceeded) && r.BySID(p.SID) != nil {
			t.Logf("%s: %v", uid, err)
		}
	}
	return nil, id.SID{}
}
