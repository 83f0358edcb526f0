//go:build unix

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// player is a client whose pushes arrive on a channel.
type player struct {
	*client.Client
	t      *testing.T
	pushes chan client.Push
	again  chan bool // OnReconnect
	moved  chan string
}

func (c *cluster) connect(uid, typ string) *player {
	c.t.Helper()
	p, err := c.tryConnect(uid, typ, "")
	if err != nil {
		c.t.Fatalf("connect %s to a %s node: %v", uid, typ, err)
	}
	return p
}

func (c *cluster) tryConnect(uid, typ, clientKey string) (*player, error) {
	c.t.Helper()
	p := newPlayer(c.t)
	o := c.options(p, uid, typ)
	o.ClientKey = clientKey
	var err error
	if p.Client, err = client.Connect(p.ctx(), o); err != nil {
		return nil, err
	}
	p.closeAtEnd()
	return p, nil
}

func newPlayer(t *testing.T) *player {
	return &player{t: t, pushes: make(chan client.Push, 1024), again: make(chan bool, 64), moved: make(chan string, 8)}
}

func (c *cluster) options(p *player, uid, typ string) client.Options {
	return client.Options{
		URL: c.url(), UID: uid, Type: typ, HTTP: c.place.client(), Dial: c.place.dial,
		OnPush: func(m client.Push) {
			m.Payload = append([]byte(nil), m.Payload...)
			p.pushes <- m
		},
		OnReconnect: func(gap bool) { p.again <- gap },
		OnMove:      func(addr string) { p.moved <- addr },
	}
}

func (p *player) closeAtEnd() {
	p.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // no wait for acknowledgements: the node may be gone
		_ = p.Close(ctx)
	})
}

func (p *player) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	p.t.Cleanup(cancel)
	return ctx
}

func (p *player) createRoom() client.RoomID {
	p.t.Helper()
	r, err := p.CreateRoom(p.ctx(), client.RoomOptions{MembersMax: 8})
	if err != nil {
		p.t.Fatalf("create a room: %v", err)
	}
	return r.ID
}

func (p *player) join(r client.RoomID, message string) {
	p.t.Helper()
	if _, err := p.JoinRoom(p.ctx(), r, []byte(message)); err != nil {
		p.t.Fatalf("join the room: %v", err)
	}
}

func (p *player) broadcast(r client.RoomID, message string) {
	p.t.Helper()
	if err := p.Broadcast(r, []byte(message), client.Reliable); err != nil {
		p.t.Fatalf("broadcast: %v", err)
	}
}

// wantPush waits for the next push of a command and compares its text.
func (p *player) wantPush(cmd uint16, text string) {
	p.t.Helper()
	for {
		select {
		case m := <-p.pushes:
			if m.Cmd != cmd {
				continue
			}
			got := string(m.Payload)
			if cmd == client.CmdRoomBroadcast {
				list, err := client.ParseList(m.Payload)
				if err != nil || len(list) != 1 {
					p.t.Fatalf("push %d is not a list of one: %q, %v", cmd, m.Payload, err)
				}
				got = string(list[0])
			}
			if got != text {
				p.t.Fatalf("push %d = %q, want %q", cmd, got, text)
			}
			return
		case <-p.ctx().Done():
			p.t.Fatalf("push %d %q never came", cmd, text)
		}
	}
}

func TestPlayersTalkInARoom(t *testing.T) {
	for _, role := range []string{"udp", "tcp"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.start(role).waitReady()
			typ := strings.ToUpper(role)
			c.waitHandsOut(typ)
			ann, bob := c.connect("ann", typ), c.connect("bob", typ)
			r := ann.createRoom()
			bob.join(r, "hello, it's bob")
			ann.wantPush(client.CmdRoomJoin, "hello, it's bob")
			for i := range 100 {
				ann.broadcast(r, fmt.Sprintf("from ann %d", i))
				bob.broadcast(r, fmt.Sprintf("from bob %d", i))
			}
			for i := range 100 {
				bob.wantPush(client.CmdRoomBroadcast, fmt.Sprintf("from ann %d", i))
				ann.wantPush(client.CmdRoomBroadcast, fmt.Sprintf("from bob %d", i))
			}
			big := strings.Repeat("x", 60<<10) // many fragments
			bob.broadcast(r, big)
			ann.wantPush(client.CmdRoomBroadcast, big)
			if err := bob.LeaveRoom(bob.ctx(), r, []byte("bye")); err != nil {
				t.Fatal(err)
			}
			ann.wantPush(client.CmdRoomLeave, "bye")
		})
	}
}

func TestJoinOnAnotherNodeMovesThePlayer(t *testing.T) {
	for _, role := range []string{"udp", "tcp"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			first, second := c.start(role), c.start(role)
			first.waitReady()
			second.waitReady()
			typ := strings.ToUpper(role)
			eventually(t, "both nodes handed out", func() bool { return c.members() == 4 })
			ann := c.connect("ann", typ)
			bob := c.connectElsewhere("bob", typ, ann.Addr())
			r := ann.createRoom()
			bob.join(r, "came over")
			ann.wantPush(client.CmdRoomJoin, "came over")
			if bob.Addr() != ann.Addr() {
				t.Errorf("bob plays on %s, ann on %s", bob.Addr(), ann.Addr())
			}
			for i := range 20 {
				bob.broadcast(r, fmt.Sprint("b", i))
				ann.broadcast(r, fmt.Sprint("a", i))
			}
			for i := range 20 {
				ann.wantPush(client.CmdRoomBroadcast, fmt.Sprint("b", i))
				bob.wantPush(client.CmdRoomBroadcast, fmt.Sprint("a", i))
			}
			select {
			case gap := <-bob.again:
				t.Errorf("the move showed: reconnected, gap %v", gap)
			default:
			}
		})
	}
}

// connectElsewhere connects a player to a node other than the one at addr.
func (c *cluster) connectElsewhere(uid, typ, addr string) *player {
	c.t.Helper()
	for _, n := range c.alive() {
		if strings.EqualFold(n.name, typ) && n.Public != addr {
			return c.connectTo(uid, typ, n)
		}
	}
	c.t.Fatalf("no other %s node than %s", typ, addr)
	return nil
}

// connectTo connects a player to one node.
func (c *cluster) connectTo(uid, typ string, n *node) *player {
	c.t.Helper()
	var e client.Endpoint
	eventually(c.t, "a place on "+n.Public, func() bool {
		code, body := c.place.get(c.t, c.url()+"/debug/endpoint/type/"+typ+"/user/"+uid+"/address/"+n.Public)
		return code == http.StatusOK && json.Unmarshal([]byte(body), &e) == nil
	})
	p := newPlayer(c.t)
	var err error
	if p.Client, err = client.Dial(p.ctx(), e, c.options(p, uid, typ)); err != nil {
		c.t.Fatalf("connect %s to %s: %v", uid, n.Public, err)
	}
	p.closeAtEnd()
	return p
}

func TestWrongClientKeyIsRefused(t *testing.T) {
	c := newCluster(t, "DIARKIS_CLIENT_KEY=right")
	udp := c.start("udp").waitReady()
	eventually(t, "a place is handed out", func() bool {
		_, err := client.RequestEndpoint(context.Background(), client.EndpointRequest{URL: c.url(), UID: "probe", ClientKey: "right"})
		return err == nil
	})
	if _, err := c.tryConnect("eve", "UDP", "wrong"); err == nil {
		t.Error("the HTTP role answered a wrong client key")
	} else if e, ok := errors.AsType[*client.EndpointError](err); !ok || e.HTTPStatus != http.StatusUnauthorized {
		t.Errorf("wrong client key: %v, want 401", err)
	}
	// Someone with a stolen place but without the key gets silence from the node.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e, err := client.RequestEndpoint(ctx, client.EndpointRequest{URL: c.url(), UID: "eve", ClientKey: "right"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Dial(ctx, e, client.Options{UID: "eve", ClientKey: "wrong"}); !errors.Is(err, client.ErrHandshakeTimeout) {
		t.Errorf("handshake with the wrong client key: %v, want silence", err)
	}
	good, err := c.tryConnect("ann", "UDP", "right")
	if err != nil {
		t.Fatalf("the right client key: %v", err)
	}
	good.createRoom()
	_, metrics := get(t, "http://"+udp.Admin+"/metrics")
	if !strings.Contains(metrics, "diarkis_transport_packets_dropped_total") {
		t.Error("the refused handshake was not counted")
	}
}

// botSummary is what `bot --json` prints.
type botSummary struct {
	Bots, Connected                     int
	Sent, Delivered                     int64
	Lost, Duplicated, Reordered, Errors int64
	Reconnects                          int64
	P50                                 float64 `json:"p50_ms"`
	P99                                 float64 `json:"p99_ms"`
	Seconds                             float64
}

func (c *cluster) bots(args ...string) botSummary {
	c.t.Helper()
	return c.botsFor(patience, args...)
}

// botsFor kills bots that run for longer than limit.
func (c *cluster) botsFor(limit time.Duration, args ...string) botSummary {
	c.t.Helper()
	code, out, errOut := beside.execFor(c.t, limit, c.env, append([]string{"bot", "--json", "--http", c.url()}, args...)...)
	var s botSummary
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		c.t.Fatalf("bot printed %q and %q: %v", out, errOut, err)
	}
	if code != 0 {
		c.t.Errorf("bot exited with %d: %s %s", code, out, errOut)
	}
	return s
}

func TestBotsLoseNothing(t *testing.T) {
	c := newCluster(t)
	for _, role := range []string{"udp", "udp", "tcp"} {
		c.start(role).waitReady()
	}
	c.waitHandsOut("UDP")
	c.waitHandsOut("TCP")
	for _, typ := range []string{"UDP", "TCP"} {
		s := c.bots("--count", "20", "--type", typ, "--rate", "10", "--duration", "3s")
		if s.Connected != 20 || s.Delivered == 0 || s.Lost+s.Duplicated+s.Reordered+s.Errors != 0 {
			t.Errorf("%s: %+v", typ, s)
		}
	}
}

// TestBotsWithTickets plays on a cluster that asks who a player is: nobody gets in
// without a ticket, and bots that have a key do.
func TestBotsWithTickets(t *testing.T) {
	key := filepath.Join(t.TempDir(), "ticket-key")
	if err := os.WriteFile(key, []byte("Zk3v9QpLr7Tn2XwYb5Hs8JdMf4Gc6KeA1uRi0oPq+S4=\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, "DIARKIS_HTTP_AUTH=ticket", "DIARKIS_TICKET_KEY_FILE="+key)
	c.start("udp").waitReady()
	eventually(t, "the node known", func() bool { return c.members() == 3 })
	if code, body := get(t, c.url()+"/endpoint/type/UDP/user/bot-0"); code != http.StatusUnauthorized {
		t.Errorf("a place without a ticket: %d %s", code, body)
	}
	s := c.bots("--count", "4", "--type", "UDP", "--duration", "1s", "--ticket-key-file", key)
	if s.Connected != 4 || s.Delivered == 0 || s.Lost+s.Duplicated+s.Reordered+s.Errors != 0 {
		t.Errorf("%+v", s)
	}
}

func TestDevPlaysAndStops(t *testing.T) {
	for _, q := range []struct{ when, role string }{{"while it starts", "mars"}, {"when it plays", "tcp"}} {
		t.Run(q.when, func(t *testing.T) {
			n := start(t, "dev", nodeOptions{args: []string{"dev", "--bots", "8"}})
			n.waitLog(`"node started"`, `"role":"`+q.role+`"`)
			n.signal(syscall.SIGINT)
			if code := n.waitExit(); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
		})
	}
}

func TestDevForAWhile(t *testing.T) {
	code, out, errOut := run(t, nil, "dev", "--bots", "8", "--duration", "3s")
	if code != 0 {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	for _, want := range []string{"cluster ready", "users", "rooms", "lost"} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
}
