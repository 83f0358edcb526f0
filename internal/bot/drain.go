package bot

import (
	"context"
	"sync"

	"github.com/Diarkis/diarkis/client"
)

// stay is a sender's presence in a room at the end of play.
type stay struct {
	bot   *bot
	room  client.RoomID
	epoch uint32
	gap   uint32
	total uint64 // reliable messages, the last included
}

// drain has every bot announce its last reliable message, reliably, and waits until
// all members of its room heard it and all before it. What is missing then is lost.
func (r *run) drain(ctx context.Context) {
	rooms := make(map[client.RoomID][]stay)
	for _, b := range r.bots {
		if s, ok := b.sayLast(); ok {
			rooms[s.room] = append(rooms[s.room], s)
		}
	}
	r.wait(ctx, func() bool { return eachPair(rooms, (*tracker).complete) })
	eachPair(rooms, func(t *tracker, sender, epoch uint32, total uint64) bool {
		if !t.complete(sender, epoch, total) {
			t.finish(sender, epoch, total)
		}
		return true
	})
}

// sayLast sends the bot's last message. It reports false when the bot plays no more.
func (b *bot) sayLast() (stay, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.room == "" {
		return stay{}, false
	}
	if !b.sendLocked(message{what: last, reliable: true, sender: b.number, epoch: b.epoch}) {
		return stay{}, false
	}
	return stay{b, b.room, b.epoch, b.gap, b.relSeq}, true
}

// eachPair calls f with the tracker of every receiver for every sender of its room, as
// long as both are where they were when the sender said its last, until f says false.
func eachPair(rooms map[client.RoomID][]stay, f func(t *tracker, sender, epoch uint32, total uint64) bool) bool {
	for _, members := range rooms {
		for _, to := range members {
			for _, from := range members {
				if from.bot == to.bot || !from.holds() {
					continue
				}
				to.bot.mu.Lock()
				ok := to.bot.gap != to.gap || f(to.bot.tracker, from.bot.number, from.epoch, from.total)
				to.bot.mu.Unlock()
				if !ok {
					return false
				}
			}
		}
	}
	return true
}

func (s stay) holds() bool {
	s.bot.mu.Lock()
	defer s.bot.mu.Unlock()
	return s.bot.gap == s.gap
}

// closeAll says goodbye for every bot, some at a time, until ctx ends; those left just go.
func (r *run) closeAll(ctx context.Context) {
	next := make(chan *bot)
	var wg sync.WaitGroup
	for range r.opts.Ramp {
		wg.Go(func() {
			for b := range next {
				b.mu.Lock()
				c := b.client
				b.mu.Unlock()
				if c != nil {
					_ = c.Close(ctx)
				}
			}
		})
	}
	for _, b := range r.bots {
		next <- b
	}
	close(next)
	wg.Wait()
}
