package bot

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lobby is a room module without anything but what bots use. deliver passes on one
// broadcast to one member, or does something wrong with it.
type lobby struct {
	deliver func(to *clienttest.Conn, payload []byte, rel reliable.Reliability)

	mu    sync.Mutex
	rooms []*table
	byID  map[string]*table
}

type table struct {
	id      id.Room
	max     int
	members []*clienttest.Place
}

func (l *lobby) handle(c *clienttest.Conn, m wire.Message, rel reliable.Reliability) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch m.Cmd {
	case client.CmdRoomRandomJoin:
		l.join(c, m)
	case client.CmdRoomBroadcast:
		t := l.byID[string(m.Payload[:id.RoomBytes])]
		if t == nil || !slices.Contains(t.members, c.Place) {
			c.Respond(m, 4, []byte("not in room"))
			return
		}
		text := m.Payload[id.RoomBytes+1:]
		payload := append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...)
		for _, p := range t.members {
			if p != c.Place && p.Conn != nil {
				l.deliver(p.Conn, payload, rel)
			}
		}
	}
}

func (l *lobby) join(c *clienttest.Conn, m wire.Message) {
	maxMembers := int(binary.BigEndian.Uint16(m.Payload))
	i := slices.IndexFunc(l.rooms, func(t *table) bool { return len(t.members) < t.max })
	if i < 0 {
		var random [8]byte
		binary.BigEndian.PutUint64(random[:], rand.Uint64())
		t := &table{id: id.NewRoom(netip.MustParseAddrPort("127.0.0.1:8000"), random), max: maxMembers}
		i = len(l.rooms)
		l.rooms = append(l.rooms, t)
		l.byID[string(t.id)] = t
	}
	t := l.rooms[i]
	answer := append([]byte{1, 0, 0, 0, 1}, t.id...)
	if len(t.members) == 0 {
		answer[0] = 0
	}
	for _, p := range t.members {
		if p.Conn != nil {
			_ = p.Conn.Push(1, client.CmdRoomJoin, m.Payload[12:], reliable.Reliable)
		}
	}
	t.members = append(t.members, c.Place)
	c.Respond(m, 1, answer)
}

// ended takes a user out of his room and tells the others.
func (l *lobby) ended(p *clienttest.Place, _ wire.CloseCode) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.rooms {
		if i := slices.Index(t.members, p); i >= 0 {
			t.members = slices.Delete(t.members, i, i+1)
			for _, q := range t.members {
				if q.Conn != nil {
					_ = q.Conn.Push(1, client.CmdRoomLeave, append([]byte(t.id), p.UID...), reliable.Reliable)
				}
			}
		}
	}
}

func faithful(to *clienttest.Conn, payload []byte, rel reliable.Reliability) {
	_ = to.Push(1, client.CmdRoomBroadcast, payload, rel)
}

type arena struct {
	udp, tcp *clienttest.Node
	url      string
}

func newArena(t *testing.T, deliver func(*clienttest.Conn, []byte, reliable.Reliability)) *arena {
	t.Helper()
	node := func(tcp bool) *clienttest.Node {
		l := &lobby{deliver: deliver, byID: make(map[string]*table)}
		n, err := clienttest.Start(clienttest.Options{TCP: tcp, Handle: l.handle, Ended: l.ended, Forget: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Kill)
		return n
	}
	a := &arena{udp: node(false), tcp: node(true)}
	s := httptest.NewServer(clienttest.Endpoints(func(typ string) *clienttest.Node {
		if typ == "TCP" {
			return a.tcp
		}
		return a.udp
	}))
	t.Cleanup(s.Close)
	a.url = s.URL
	return a
}

// connections are those that are open.
func (a *arena) connections() (open int) {
	for _, n := range []*clienttest.Node{a.udp, a.tcp} {
		n.Do(func() { open += len(n.Conns()) })
	}
	return open
}

func (a *arena) options() Options {
	return Options{
		URL: a.url, Count: 8, Rate: 50, Duration: time.Minute, Play: 300 * time.Millisecond,
		DrainTimeout: 5 * time.Second, Prefix: "bot-",
	}
}

func TestRun(t *testing.T) {
	for _, typ := range []string{"UDP", "TCP", "mixed"} {
		t.Run(typ, func(t *testing.T) {
			a := newArena(t, faithful)
			o := a.options()
			o.Type, o.Count = typ, 16
			s, err := Run(context.Background(), o)
			if err != nil {
				t.Fatal(err)
			}
			if !s.Clean() || s.Bots != 16 || s.Reconnects != 0 {
				t.Errorf("summary %v", s)
			}
			for range 100 { // they said goodbye, far sooner than idle connections end
				if a.connections() == 0 {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if n := a.connections(); n != 0 {
				t.Errorf("%d bots left without a goodbye", n)
			}
			if s.Sent < 16 || s.Delivered < 2*s.Sent || s.Delivered > 3*s.Sent || s.P50 <= 0 || s.P99 < s.P50 || s.Seconds < 0.3 {
				t.Errorf("summary %v", s)
			}
		})
	}
}

// isReliablePlay reports whether a merged broadcast of one holds a reliable message.
func isReliablePlay(payload []byte) bool {
	m, err := parseMessage(payload[4:])
	return err == nil && m.what == play && m.reliable
}

func TestRunNoticesWhatGoesWrong(t *testing.T) {
	var n atomic.Int64
	var held []byte
	for _, c := range []struct {
		name    string
		deliver func(to *clienttest.Conn, payload []byte, rel reliable.Reliability)
		found   func(Summary) bool
	}{
		{"lost", func(to *clienttest.Conn, payload []byte, rel reliable.Reliability) {
			if !isReliablePlay(payload) || n.Add(1) != 20 {
				faithful(to, payload, rel)
			}
		}, func(s Summary) bool { return s.Lost == 1 && s.Duplicated == 0 && s.Reordered == 0 }},
		{"duplicated", func(to *clienttest.Conn, payload []byte, rel reliable.Reliability) {
			faithful(to, payload, rel)
			if isReliablePlay(payload) && n.Add(1) == 20 {
				faithful(to, payload, rel)
			}
		}, func(s Summary) bool { return s.Lost == 0 && s.Duplicated == 1 && s.Reordered == 0 }},
		{"reordered", func(to *clienttest.Conn, payload []byte, rel reliable.Reliability) {
			m, err := parseMessage(payload[4:])
			switch {
			case err == nil && m.sender == 0 && m.reliable && held == nil && m.what == play && m.seq > 0 && to.Place.UID == "bot-1":
				held = slices.Clone(payload)
			case err == nil && m.sender == 0 && m.reliable && len(held) > 0 && to.Place.UID == "bot-1":
				faithful(to, payload, rel)
				faithful(to, held, rel)
				held = []byte{}
			default:
				faithful(to, payload, rel)
			}
		}, func(s Summary) bool { return s.Lost == 0 && s.Duplicated == 0 && s.Reordered == 1 }},
		{"last one lost", func(to *clienttest.Conn, payload []byte, rel reliable.Reliability) {
			if m, err := parseMessage(payload[4:]); err != nil || m.what != last || n.Add(1) != 1 {
				faithful(to, payload, rel)
			}
		}, func(s Summary) bool { return s.Lost == 1 && s.Duplicated == 0 && s.Reordered == 0 }},
		{"all of one receiver lost", func(to *clienttest.Conn, payload []byte, rel reliable.Reliability) {
			if to.Place.UID != "bot-1" {
				faithful(to, payload, rel)
			}
		}, func(s Summary) bool { return s.Lost >= 3 }},
		{"sent the wrong way", func(to *clienttest.Conn, payload []byte, rel reliable.Reliability) {
			if isReliablePlay(payload) && n.Add(1) == 20 {
				rel = reliable.Unreliable
			}
			faithful(to, payload, rel)
		}, func(s Summary) bool { return s.Errors == 1 && s.Lost == 1 }},
		{"unreliable lost is no mistake", func(to *clienttest.Conn, payload []byte, rel reliable.Reliability) {
			if rel == reliable.Reliable {
				faithful(to, payload, rel)
			}
		}, func(s Summary) bool { return s.Clean() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n.Store(0)
			held = nil
			o := newArena(t, c.deliver).options()
			o.Count, o.DrainTimeout = 4, 500*time.Millisecond
			s, err := Run(context.Background(), o)
			if err != nil {
				t.Fatal(err)
			}
			if !c.found(s) {
				t.Errorf("summary %v", s)
			}
		})
	}
}

// TestRunSurvivesGaps closes connections while bots play: they come back, and
// what was lost with a connection is no loss of the protocol.
func TestRunSurvivesGaps(t *testing.T) {
	a := newArena(t, faithful)
	o := a.options()
	o.Duration, o.Play = 0, 0
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var lines atomic.Int64
	o.Status = func(line string) {
		if !strings.Contains(line, "playing") {
			t.Errorf("status line %q", line)
		}
		switch lines.Add(1) {
		case 1:
			a.udp.Do(func() {
				for _, c := range a.udp.Conns()[:3] {
					c.Close(wire.CloseInternal, "test")
				}
			})
		case 3:
			stop()
		}
	}
	s, err := Run(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if s.Faulty() || s.Connected != s.Bots || s.Errors != 0 || s.Reconnects != 3 || s.Gaps != 3 || !s.Interrupted {
		t.Errorf("summary %v", s)
	}
	if text := s.String(); !strings.Contains(text, "started over: "+a.udp.Addr().String()) || !strings.Contains(text, "internal") {
		t.Errorf("the summary does not name the node that forgot three bots, and why:\n%s", text)
	}
}

func TestSummaryKeys(t *testing.T) {
	b, err := json.Marshal(Summary{})
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	want := []string{"bots", "connected", "sent", "delivered", "lost", "duplicated", "reordered", "taken", "errors", "reconnects", "gaps", "p50_ms", "p99_ms", "seconds", "causes", "interrupted"}
	for _, k := range want {
		if _, ok := m[k]; !ok {
			t.Errorf("no %q in the summary", k)
		}
	}
	if len(m) != len(want) {
		t.Errorf("summary has %d keys, want %d", len(m), len(want))
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add(message{what: last, reliable: true, sender: 1, epoch: 2, seq: 3, sent: 4}.appendTo(nil, 64))
	f.Add([]byte("bot2"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err != nil {
			return
		}
		if got, err := parseMessage(m.appendTo(nil, len(b))); err != nil || got != m {
			t.Errorf("%+v came back as %+v, %v", m, got, err)
		}
	})
}
