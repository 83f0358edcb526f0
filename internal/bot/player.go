package bot

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Diarkis/diarkis/client"
)

const (
	retryAfter  = time.Second      // before a bot tries again to connect or join
	joinTimeout = 15 * time.Second // of one try
	roomBytes   = 52               // of a room id
)

// bot is one player.
type bot struct {
	run    *run
	number uint32
	queued atomic.Bool // in run.joins

	retryAt atomic.Int64 // since run.start; when to queue again, 0 for never

	entering sync.Mutex // held by the one worker that connects and joins

	mu      sync.Mutex // guards the fields below
	client  *client.Client
	tracker *tracker
	room    client.RoomID // "" while in none
	playing bool          // counted in run.inRoom, see countLocked
	away    bool          // the connection is lost, and the client tries to resume it
	hearing hearing       // whether its node still answers
	was     bool          // it was connected before
	epoch   uint32
	gap     uint32 // connections that started over
	relSeq  uint64
	unrSeq  uint64
	before  stint             // the last one that is over
	addr    string            // of the node with the room
	lost    string            // why the connection is away; "" when that was said
	behind  map[uint32]uint64 // what receivers that left before this bot count of this stay, by number
	heard   atomic.Uint64     // the number after the last reliable message that anybody heard of this stay
	even    bool              // the next message is reliable
	last    bool              // the last reliable message was sent
	payload []byte
}

// stint is how many reliable messages a bot sent in one stay in a room.
type stint struct {
	epoch uint32
	total uint64
}

func newBot(r *run, n uint32) *bot {
	return &bot{run: r, number: n, tracker: newTracker(&r.tally)}
}

func (b *bot) serverType() string {
	if !strings.EqualFold(b.run.opts.Type, "mixed") {
		return b.run.opts.Type
	}
	// Whole rooms of each, as bots of two types never meet.
	if int(b.number)/b.run.opts.RoomSize%2 == 0 {
		return "UDP"
	}
	return "TCP"
}

// enter connects the bot, if it isn't connected, and joins a room. It returns how long
// to wait before it is tried again, 0 when it is in.
func (b *bot) enter(ctx context.Context) time.Duration {
	b.entering.Lock()
	defer b.entering.Unlock()
	timed, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	c, err := b.connect(timed)
	if err == nil {
		if err = b.joinRoom(timed, c); err != nil && timed.Err() != nil && ctx.Err() == nil {
			c.Reenter() // the room may have let us in: start over, reconnected queues us
		}
	}
	if err == nil {
		return 0
	}
	b.failed(ctx, err)
	if e, ok := errors.AsType[*client.EndpointError](err); ok {
		return max(retryAfter, e.RetryAfter)
	}
	return retryAfter
}

// failed counts an error, and ends the run when trying again can't mend it.
func (b *bot) failed(ctx context.Context, err error) {
	if isComeback(err) || ctx.Err() != nil {
		return
	}
	b.run.fail(err)
	if b.run.hopeless(b, err) {
		b.run.end(&refusal{explain(err, b.serverType())})
	}
}

// isComeback reports whether an error only says that the connection was lost, which
// is counted as a reconnect.
func isComeback(err error) bool {
	return errors.Is(err, client.ErrNotConnected) || errors.Is(err, client.ErrGap) || errors.Is(err, client.ErrClosed)
}

func (b *bot) connect(ctx context.Context) (*client.Client, error) {
	b.mu.Lock()
	c := b.client
	b.mu.Unlock()
	if c != nil {
		return c, nil
	}
	o := &b.run.opts
	over := false // guarded by b.mu
	copts := client.Options{
		NoReconnect: true, // the bot looks for a new place itself, and counts what that says
		URL:         o.URL, UID: o.Prefix + strconv.Itoa(int(b.number)), Type: b.serverType(), ClientKey: o.ClientKey, Ticket: o.Ticket, HTTP: b.run.http,
		OnPush: b.push, OnResponse: b.refused, OnReconnect: b.reconnected, OnMove: b.moved, OnDisconnect: func(d client.Disconnect) { b.disconnected(d, &over) },
	}
	if o.Loss > 0 {
		copts.Dial = lossyDialer(o.Loss / 100)
	}
	c, err := client.New(copts)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.away, b.hearing = false, hearing{}
	b.mu.Unlock()
	if err := c.Connect(ctx); err != nil {
		return nil, err
	}
	b.run.letIn(copts.Type)
	b.mu.Lock()
	defer b.mu.Unlock()
	if over {
		return nil, client.ErrClosed // already: disconnected said so
	}
	b.client, b.addr = c, c.Addr()
	if b.was {
		b.run.reconnects.Add(1)
	}
	b.was = true
	return c, nil
}

func (b *bot) joinRoom(ctx context.Context, c *client.Client) error {
	b.mu.Lock()
	if b.room != "" {
		b.mu.Unlock()
		return nil
	}
	b.before = stint{b.epoch, b.relSeq}
	b.epoch++
	b.relSeq, b.unrSeq, b.last = 0, 0, false
	b.heard.Store(0)
	gap := b.gap
	hello := message{run: b.run.id, what: join, reliable: true, sender: b.number, epoch: b.epoch, sent: time.Since(b.run.start)}
	b.mu.Unlock()

	r, err := c.RandomJoinRoom(ctx, client.RoomOptions{MembersMax: b.run.opts.RoomSize}, hello.appendTo(nil, headBytes))
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gap != gap {
		return client.ErrGap // the room was joined by a connection that is no more
	}
	b.room, b.addr = r.ID, c.Addr()
	b.countLocked()
	b.run.everIn.Store(true)
	return nil
}

// countLocked has the run count the bot as playing, or no more: it is in a room, over a
// connection that lives, of a node that answers.
func (b *bot) countLocked() {
	is := b.room != "" && !b.away && !b.hearing.silent
	if is == b.playing {
		return
	}
	b.playing = is
	if is {
		b.run.inRoom.Add(1)
	} else {
		b.run.inRoom.Add(-1)
	}
}

// turn sends one message, or queues the bot when it is time to try again.
func (b *bot) turn() {
	if at := b.retryAt.Load(); at != 0 && time.Since(b.run.start) >= time.Duration(at) && b.retryAt.CompareAndSwap(at, 0) {
		b.run.enqueue(b)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.room == "" {
		return
	}
	m := message{what: play, sender: b.number, epoch: b.epoch}
	if b.even = !b.even; b.even || b.client.Transport() == client.TCP {
		m.reliable = true
	}
	b.sendLocked(m)
}

// sendLocked broadcasts m. A message that the client did not take uses up no number.
func (b *bot) sendLocked(m message) bool {
	seq, rel := &b.unrSeq, client.Unreliable
	if m.reliable {
		seq, rel = &b.relSeq, client.Reliable
	}
	m.run, m.seq, m.sent = b.run.id, *seq, time.Since(b.run.start)
	b.payload = m.appendTo(b.payload[:0], b.run.opts.Size)
	if err := b.client.Broadcast(b.room, b.payload, rel); err != nil {
		if !isComeback(err) {
			b.run.fail(err)
		}
		return false
	}
	*seq++
	if m.reliable {
		b.hearing.asked(m.sent)
	}
	b.run.sent.Add(1)
	return true
}

// push is called by the client's goroutine.
func (b *bot) push(p client.Push) {
	now := time.Since(b.run.start)
	if p.Ver != client.VerBuiltin {
		return
	}
	switch p.Cmd {
	case client.CmdRoomBroadcast:
		items, err := client.ParseList(p.Payload)
		if err != nil {
			b.run.fail(err)
			return
		}
		b.mu.Lock()
		for _, it := range items {
			b.heardLocked(now, it, p.Rel != client.Unreliable)
		}
		b.mu.Unlock()
	case client.CmdRoomJoin:
		if m, err := parseMessage(p.Payload); err == nil && m.what == join && m.run == b.run.id {
			b.mu.Lock()
			b.tracker.joined(m.sender, m.epoch)
			b.mu.Unlock()
		}
	case client.CmdRoomLeave:
		b.memberGone(p.Payload)
	}
}

func (b *bot) heardLocked(now time.Duration, payload []byte, reliably bool) {
	m, err := parseMessage(payload)
	if errors.Is(err, errStranger) || err == nil && m.run != b.run.id {
		return // others may be in the room
	}
	if err != nil || m.what == join || m.reliable != reliably || m.sender == b.number {
		b.run.fail(errMessage) // altered, sent the wrong way, or back to its sender
		return
	}
	b.run.delivered.Add(1)
	b.run.latency.add(now - m.sent)
	if !m.reliable {
		return
	}
	b.tracker.heard(m.sender, m.epoch, m.seq)
	b.run.heard(m)
	if m.what == last || !b.run.playing.Load() {
		b.run.hint()
	}
}

// memberGone reads room id ‖ user id, what a room says when a member disappeared.
func (b *bot) memberGone(payload []byte) {
	if len(payload) < roomBytes {
		return
	}
	uid, ok := strings.CutPrefix(string(payload[roomBytes:]), b.run.opts.Prefix)
	n, err := strconv.ParseUint(uid, 10, 32)
	if !ok || err != nil {
		return
	}
	b.mu.Lock()
	h, open := b.tracker.gone(uint32(n))
	b.mu.Unlock()
	if open {
		b.run.took(b, h)
	}
}

// refused is called by the client's goroutine with answers to broadcasts, which come
// only when they were refused.
func (b *bot) refused(r client.Response) {
	if r.Status != client.StatusOK {
		b.run.fail(&client.StatusError{Ver: r.Ver, Cmd: r.Cmd, Status: r.Status, Text: string(r.Payload)})
	}
}
