package bot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Diarkis/diarkis/client"
)

// silentAfter is how long what a bot sent reliably may go unanswered before the bot counts as
// not playing. The client judges its node by the same 2 s, and says so when it has tried in
// vain to reach it anew.
const silentAfter = 2 * time.Second

// hearing is whether a bot's node still answers, of what run.listen sees each second. Times
// are since run.start. The zero value is a node of which nothing is expected.
type hearing struct {
	packets uint64        // that the client had received
	since   time.Duration // when the oldest message after those was sent reliably; 0: none was
	silent  bool
}

// asked notes that something was sent that the node has to acknowledge.
func (h *hearing) asked(now time.Duration) {
	if h.since == 0 {
		h.since = now
	}
}

// look takes down how many packets came by now. When the run itself stood still, nobody could
// have heard an answer.
func (h *hearing) look(now time.Duration, packets uint64, stood bool) {
	switch {
	case packets != h.packets:
		h.packets, h.since, h.silent = packets, 0, false
	case h.since == 0:
	case stood:
		h.since = now
	case now-h.since > silentAfter:
		h.silent = true
	}
}

// listen notices bots whose nodes fell silent, and those that are heard again.
func (r *run) listen(stood bool) {
	now := time.Since(r.start)
	for _, b := range r.bots {
		b.mu.Lock()
		if b.client != nil && b.room != "" && !b.away {
			before := b.hearing.silent
			b.hearing.look(now, b.client.Stats().PacketsReceived, stood)
			if b.hearing.silent && !before {
				r.causes.add(b.addr + " does not answer")
			}
			b.countLocked()
		}
		b.mu.Unlock()
	}
	r.hint()
}

// reconnected is called by the client's goroutine.
func (b *bot) reconnected(gap bool) {
	b.run.reconnects.Add(1)
	b.mu.Lock()
	if !gap && b.lost != "" {
		b.run.causes.add(lostText(b.addr, b.lost) + ", and was resumed")
	}
	b.away, b.hearing, b.lost = false, hearing{}, ""
	b.countLocked()
	b.mu.Unlock()
	b.run.hint()
	if gap {
		b.startOver("the node knew nothing of the connection any more")
		b.run.enqueue(b)
	}
}

// moved is called by the client's goroutine.
func (b *bot) moved(addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addr = addr
}

// disconnected is called by the client's goroutine: first when it tries to resume, with Final
// when the connection's state is gone, or the server does not want the bot back: then it sets
// over, which b.mu guards.
func (b *bot) disconnected(d client.Disconnect, over *bool) {
	why := whyLost(d)
	b.mu.Lock()
	if b.lost = why; b.hearing.silent {
		b.lost = "" // listen said so
	}
	b.away = true
	b.countLocked()
	addr := b.addr
	b.mu.Unlock()
	if !d.Final {
		b.run.causes.now(lostText(addr, why))
		return
	}
	if !errors.Is(d.Err, client.ErrNoReconnect) {
		b.failed(context.Background(), cmp.Or[error](d.Err, &client.CloseError{Code: d.Code, Reason: d.Reason}))
	}
	b.startOver(why)
	b.mu.Lock()
	b.client, b.away, b.hearing, b.lost, *over = nil, false, hearing{}, "", true
	b.mu.Unlock()
	if errors.Is(d.Err, client.ErrNoReconnect) {
		b.run.enqueue(b)
	} else {
		b.retryAt.Store(int64(time.Since(b.run.start) + retryAfter))
	}
}

func lostText(addr, why string) string { return fmt.Sprintf("disconnected: %s: %s", addr, why) }

// away counts why the bots that wait for a resume when play ends do so.
func (r *run) away() {
	for _, b := range r.bots {
		b.mu.Lock()
		if b.away && b.lost != "" {
			r.causes.add(lostText(b.addr, b.lost))
			b.lost = ""
		}
		b.mu.Unlock()
	}
}

// whyLost says why a connection ended: what the node said, or that it said nothing.
func whyLost(d client.Disconnect) string {
	if d.Code != client.CloseIdle {
		return (&client.CloseError{Code: d.Code, Reason: d.Reason}).Error()
	}
	return cmp.Or(d.Reason, "the connection was lost")
}

// startOver is for a connection whose state is gone, with all that was on its way.
func (b *bot) startOver(why string) {
	b.mu.Lock()
	addr, in := b.addr, b.room != ""
	b.mu.Unlock()
	b.run.gaps.Add(1)
	b.run.causes.add(fmt.Sprintf("started over: %s: %s", addr, why))
	for _, h := range b.outOfRoom() {
		b.run.took(b, h)
	}
	if in {
		b.tookUnheard()
	}
}

// outOfRoom forgets the room and what was expected in it, and returns how far that was heard.
func (b *bot) outOfRoom() []progress {
	b.mu.Lock()
	b.room = ""
	b.countLocked()
	b.gap++
	open := b.tracker.reset()
	b.mu.Unlock()
	b.run.hint()
	return open
}

// took counts what a stream still lacked when the state of a connection went. What its sender
// goes on to say, until it notices the same, tookUnheard counts.
func (r *run) took(receiver *bot, h progress) {
	if !r.counting.Load() || int(h.sender) >= len(r.bots) {
		return
	}
	from := r.bots[h.sender]
	from.mu.Lock()
	defer from.mu.Unlock()
	total := from.sentInLocked(h.epoch)
	if total > h.next {
		r.taken.Add(int64(total - h.next))
	}
	if h.epoch == from.epoch && from.room != "" {
		if from.behind == nil {
			from.behind = make(map[uint32]uint64)
		}
		from.behind[receiver.number] = max(total, h.next)
	}
}

// tookUnheard counts what a bot whose stay ended with its node had sent after others noticed
// the end, and before it did. What somebody heard was not on its way to those.
func (b *bot) tookUnheard() {
	b.mu.Lock()
	defer b.mu.Unlock()
	heard := b.heard.Load()
	for _, counted := range b.behind {
		if from := max(counted, heard); b.relSeq > from && b.run.counting.Load() {
			b.run.taken.Add(int64(b.relSeq - from))
		}
	}
	b.behind = nil
}

// heard notes that somebody got a reliable message.
func (r *run) heard(m message) {
	if int(m.sender) >= len(r.bots) {
		return
	}
	h := &r.bots[m.sender].heard
	for seen := h.Load(); m.seq >= seen && !h.CompareAndSwap(seen, m.seq+1); seen = h.Load() {
	}
}

// sentInLocked returns how many reliable messages the bot sent in a stay, 0 when that is long over.
func (b *bot) sentInLocked(epoch uint32) uint64 {
	switch epoch {
	case b.epoch:
		return b.relSeq
	case b.before.epoch:
		return b.before.total
	}
	return 0
}
