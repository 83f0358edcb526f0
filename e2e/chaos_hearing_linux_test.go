package e2e

import (
	"context"
	bin "encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// stays are all stays of players in rooms. Each message names the one it is said in, so
// that every receiver can hold every sender to exactly once and in order, from the moment
// both were there until one of them was not.
type stays struct {
	mu     sync.RWMutex // guards the fields below
	all    []*stay
	byRoom map[client.RoomID][]*stay // those that arrived
	n      int
}

// number returns another number each time.
func (a *stays) number() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n++
	return a.n
}

func (a *stays) begin(d *device, r client.RoomID) *stay {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := &stay{id: uint32(len(a.all)), device: d, began: time.Now(), room: r, heard: make(map[*stay]*heardOf)}
	a.all = append(a.all, s)
	return s
}

// add notes which room a stay was in.
func (a *stays) add(s *stay, r client.RoomID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byRoom == nil {
		a.byRoom = make(map[client.RoomID][]*stay)
	}
	a.byRoom[r] = append(a.byRoom[r], s)
}

// in returns all that ever were in a room.
func (a *stays) in(r client.RoomID) []*stay {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return slices.Clone(a.byRoom[r])
}

// get returns a stay, nil when there is none of that number.
func (a *stays) get(id uint32) *stay {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if int(id) >= len(a.all) {
		return nil
	}
	return a.all[id]
}

// stay is a player's time in a room.
type stay struct {
	id     uint32
	device *device
	began  time.Time // when the player asked to be let in

	mu              sync.Mutex // guards the fields below
	room            client.RoomID
	arrived         time.Time // when it knew that it was in; zero before
	ended           string    // how, "" while it lasts
	sent, confirmed uint64    // messages; those that were answered
	lastAt          time.Time // when the last was sent
	heard           map[*stay]*heardOf
}

func (s *stay) where() client.RoomID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room
}

func (s *stay) arrive(r client.RoomID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room, s.arrived = r, time.Now()
}

func (s *stay) end(how string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == "" {
		s.ended = how
	}
}

// lives tells whether the player is there and may hear and be heard.
func (s *stay) lives() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended == "" && !s.arrived.IsZero()
}

// A message: magic ‖ stay u32 ‖ number u64.
const (
	chaosMagic = "chao"
	chaosBytes = 4 + 4 + 8
)

// say broadcasts the next message as a request: its answer tells that the player plays.
func (s *stay) say() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != "" || s.arrived.IsZero() {
		return
	}
	const reliably = 1
	b := append(append(make([]byte, 0, len(s.room)+1+chaosBytes), s.room...), reliably)
	b = append(b, chaosMagic...)
	b = bin.BigEndian.AppendUint32(b, s.id)
	b = bin.BigEndian.AppendUint64(b, s.sent)
	err := s.device.Go(client.VerBuiltin, client.CmdRoomBroadcast, b, func(_ client.Response, err error) { s.answered(err) })
	if err != nil {
		return // not connected
	}
	s.sent++
	s.lastAt = time.Now()
}

// answered is called by the client's goroutine.
func (s *stay) answered(err error) {
	d := s.device
	if err == nil {
		s.mu.Lock()
		s.confirmed++
		s.mu.Unlock()
		d.bot.plays(d.Addr())
		return
	}
	if refused, ok := errors.AsType[*client.StatusError](err); ok && s.lives() && !d.gone.Load() {
		d.bot.w.problem("%s in %s was refused: %v", d.name, short(s.where()), refused)
	}
}

// hear takes what another said, and returns what is wrong with that.
func (s *stay) hear(from *stay, seq uint64) string {
	from.mu.Lock()
	began, room := from.began, from.room
	from.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.room != "" && s.room != room {
		return fmt.Sprintf("in %s, a message of %s in %s", short(s.room), from.device.name, short(room))
	}
	g := s.heard[from]
	if g == nil {
		g = &heardOf{missing: make(map[uint64]struct{})}
		if from != s && (s.arrived.IsZero() || began.Before(s.arrived)) {
			g.next = seq // it was there before
		}
		s.heard[from] = g
	}
	want, before := g.next, *g
	g.add(seq)
	switch {
	case g.duplicated > before.duplicated:
		return fmt.Sprintf("number %d of %s twice", seq, from.device.name)
	case g.reordered > before.reordered:
		return fmt.Sprintf("number %d of %s late, when %d was awaited", seq, from.device.name, want)
	case seq > want:
		return fmt.Sprintf("number %d of %s when %d was awaited", seq, from.device.name, want)
	}
	return ""
}

// said returns how much was said, and whether any of it after t.
func (s *stay) said(t time.Time) (n uint64, since bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent, s.lastAt.After(t)
}

// open is how many messages have no answer.
func (s *stay) open() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent - s.confirmed
}

// got returns how much of another was heard.
func (s *stay) got(from *stay) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.heard[from]; g != nil {
		return g.next
	}
	return 0
}

// misses returns what is missing of one who left and said all before, "" for nothing.
func (s *stay) misses(from *stay) string {
	from.mu.Lock()
	began, ended, sent := from.began, from.ended, from.sent
	from.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.heard[from]
	if ended != "left" || g == nil && began.Before(s.arrived) { // else it may have come after all was said
		return ""
	}
	if g == nil {
		g = new(heardOf)
	}
	if g.next == sent {
		return ""
	}
	return fmt.Sprintf("%s heard %d of the %d messages of %s, who left %s in peace", s.device.name, g.next, sent, from.device.name, short(s.room))
}

// push is called by the client's goroutine.
func (d *device) push(p client.Push) {
	w := d.bot.w
	if p.Ver != client.VerBuiltin || p.Cmd != client.CmdRoomBroadcast || d.gone.Load() || w.ctx.Err() != nil {
		return
	}
	items, err := client.ParseList(p.Payload)
	if err != nil {
		w.problem("%s: a push that is not a list", d.name)
	}
	s := d.current()
	for _, b := range items {
		if len(b) != chaosBytes || string(b[:4]) != chaosMagic {
			w.problem("%s: a message that nobody sent: %q", d.name, b)
			continue
		}
		from := w.stayed.get(bin.BigEndian.Uint32(b[4:]))
		switch {
		case from == nil:
			w.problem("%s: a message of nobody", d.name)
		case s == nil:
			w.problem("%s is in no room and hears %s", d.name, from.device.name)
		default:
			if wrong := s.hear(from, bin.BigEndian.Uint64(b[8:])); wrong != "" {
				w.problem("%s heard %s", d.name, wrong)
			}
		}
	}
}

// gap is a connection that was replaced by one that knows nothing of it.
type gap struct {
	device      *device
	at          time.Time
	node        string // where the player was
	code        client.CloseCode
	why         string
	unconfirmed uint64 // of its messages, those without an answer
}

func (d *device) reconnected(gapped bool) {
	w := d.bot.w
	if !gapped || d.gone.Load() || w.ctx.Err() != nil {
		return
	}
	d.mu.Lock()
	d.gaps++
	s := d.stay
	if s != nil && s.lives() { // else it is on the way in, and will know itself
		d.stay = nil
	} else {
		s = nil
	}
	why, node := d.over, d.last
	d.mu.Unlock()
	g := gap{device: d, at: time.Now(), node: node, code: why.Code, why: strings.TrimSpace(why.Code.String() + " " + why.Reason)}
	if s != nil {
		s.end("gap")
		g.unconfirmed = s.open()
		d.bot.table.change(s.where(), "") // the room was where the connection was
	}
	w.event("%s has a gap: was on %s, is on %s (%s), %d messages unconfirmed", d.name, g.node, d.Addr(), g.why, g.unconfirmed)
	w.mu.Lock()
	w.gaps = append(w.gaps, g)
	w.mu.Unlock()
}

func (d *device) disconnected(why client.Disconnect) {
	w := d.bot.w
	d.mu.Lock()
	d.over, d.last = why, d.Addr()
	d.mu.Unlock()
	if d.gone.Load() || w.ctx.Err() != nil {
		return
	}
	w.event("%s disconnected from %s: %v %q final %v %v", d.name, d.Addr(), why.Code, why.Reason, why.Final, why.Err)
	switch why.Code {
	case client.CloseProtocol, client.CloseFlow, client.CloseSlow, client.CloseRate, client.CloseInternal, client.CloseKicked:
		w.problem("%s, who plays by the rules, was closed: %v %s", d.name, why.Code, why.Reason)
	}
	if why.Final && why.Code != client.CloseReplaced {
		w.problem("%s was ended for good: %v %s %v", d.name, why.Code, why.Reason, why.Err)
	}
}

// dial opens a socket of the device on its host.
func (d *device) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.gone.Load() {
		return nil, net.ErrClosed
	}
	c, err := d.bot.from.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &mutable{Conn: c, device: d}, nil
}

// mutable is a connection that falls silent when its device is gone: what is written is
// lost, what comes is not read, and even the end is not told.
type mutable struct {
	net.Conn
	device *device
}

func (m *mutable) Write(b []byte) (int, error) {
	if m.device.gone.Load() {
		return len(b), nil
	}
	return m.Conn.Write(b)
}

func (m *mutable) Read(b []byte) (int, error) {
	for {
		n, err := m.Conn.Read(b)
		if err != nil || !m.device.gone.Load() {
			return n, err
		}
	}
}

func (m *mutable) Close() error {
	if !m.device.gone.Load() {
		return m.Conn.Close()
	}
	m.device.bot.w.keep(m.Conn)
	return m.SetDeadline(time.Unix(1, 0))
}
