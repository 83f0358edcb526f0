//go:build unix

package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// TestTakeover lets a second device take a player over in the middle of a game. The
// first one has to end and stay away; the player never left the room.
func TestTakeover(t *testing.T) {
	for _, typ := range []string{"UDP", "TCP"} {
		t.Run(typ, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.start(strings.ToLower(typ)).waitReady()
			c.waitHandsOut(typ)
			takeOver(t, c, typ)
		})
	}
}

func takeOver(t *testing.T, c *cluster, typ string) {
	bob := c.connect("bob", typ)
	room := bob.createRoom()
	e, err := client.RequestEndpoint(bob.ctx(), client.EndpointRequest{URL: c.url(), UID: "ann", Type: typ})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan client.Disconnect, 8)
	first := c.device(t, e, typ, func(d client.Disconnect) { over <- d })
	first.join(room, "ann")
	bob.wantPush(client.CmdRoomJoin, "ann")

	var playing sync.WaitGroup
	ctx, stop := context.WithCancel(bob.ctx())
	defer stop()
	playing.Go(func() { broadcasts(ctx, first, room, "first ") })
	playing.Go(func() { broadcasts(ctx, bob, room, "bob ") })
	playing.Go(func() { // what it hears does not matter
		for {
			select {
			case <-first.pushes:
			case <-first.Done():
				return
			}
		}
	})
	heard := &hearing{t: t}
	heard.until(bob, "first 20")

	second := c.device(t, e, typ, func(d client.Disconnect) { t.Errorf("the second device was disconnected: %+v", d) })
	playing.Go(func() { broadcasts(ctx, second, room, "second ") })
	select {
	case d := <-over:
		if d.Code != client.CloseReplaced || !d.Final {
			t.Errorf("the first device was told %+v", d)
		}
	case <-bob.ctx().Done():
		t.Fatal("the first device was told nothing")
	}
	<-first.Done()
	heard.until(bob, "second 20")
	(&hearing{t: t, joined: true}).until(second, "bob "+strconv.Itoa(heard.next["first "]+30))
	if len(over)+len(first.again)+len(second.again) != 0 {
		t.Error("a device came back")
	}
	stop()
	playing.Wait()
}

// device connects with a place that was handed out before.
func (c *cluster) device(t *testing.T, e client.Endpoint, typ string, gone func(client.Disconnect)) *player {
	t.Helper()
	p := newPlayer(t)
	o := c.options(p, "ann", typ)
	o.OnDisconnect = gone
	var err error
	if p.Client, err = client.Dial(p.ctx(), e, o); err != nil {
		t.Fatal(err)
	}
	p.closeAtEnd()
	return p
}

// broadcasts sends numbers until ctx or the player ends.
func broadcasts(ctx context.Context, p *player, r client.RoomID, prefix string) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		if p.Broadcast(r, fmt.Append(nil, prefix, n), client.Reliable) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-p.Done():
			return
		case <-tick.C:
		}
	}
}

// hearing checks that what a player hears counts up, by who says it.
type hearing struct {
	t      *testing.T
	joined bool // in the middle: the first number may be any
	next   map[string]int
}

// until listens until something was said.
func (h *hearing) until(p *player, last string) {
	h.t.Helper()
	if h.next == nil {
		h.next = map[string]int{}
	}
	for {
		select {
		case m := <-p.pushes:
			switch m.Cmd {
			case client.CmdRoomLeave:
				h.t.Fatalf("somebody left the room: %q", m.Payload)
			case client.CmdRoomBroadcast:
				if h.list(m.Payload, last) {
					return
				}
			}
		case <-p.ctx().Done():
			h.t.Fatalf("%q was never said, only %v", last, h.next)
		}
	}
}

// list takes a list of messages and reports whether the last one is among them.
func (h *hearing) list(payload []byte, last string) (found bool) {
	h.t.Helper()
	list, err := client.ParseList(payload)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, b := range list {
		at := strings.IndexByte(string(b), ' ') + 1
		who := string(b[:at])
		n, err := strconv.Atoi(string(b[at:]))
		want, known := h.next[who]
		if err != nil || n != want && (known || !h.joined) {
			h.t.Fatalf("heard %q, want number %d", b, want)
		}
		h.next[who] = n + 1
		found = found || string(b) == last
	}
	return found
}
