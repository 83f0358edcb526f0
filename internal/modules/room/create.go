package room

import (
	"fmt"
	"io"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/status"
	"github.com/Diarkis/diarkis/internal/users"
)

// Why a room was evicted, as metric labels.
const (
	evictedMaker = "maker" // its maker has Config.EmptyMax others
	evictedFull  = "full"  // there were Config.RoomsMax rooms
)

// Why a room was not made, as metric labels; refused is that the node is full.
const (
	refusedEmpty = "maker"
	refusedRate  = "rate"
)

// errTooManyEmpty refuses a room that nobody would be in to who made most of them.
func errTooManyEmpty(most int) error {
	return &status.Error{Code: status.RoomNew, Retry: true, Text: fmt.Sprintf("nobody is in %d rooms that this user made, and more may not be", most)}
}

// mayMake takes a room, or the search for one on other nodes, from the user's budget.
func mayMake(q *Request) error {
	if !q.User().ChargeCreate(q.Batch()) {
		return status.ErrRate
	}
	return nil
}

// limited returns what a client asked for, within what clients may have. An empty room
// may always end earlier than its ttl, so that a longer one is cut, not refused.
func (e *Engine) limited(s Settings) Settings {
	s.EmptyTTL = min(s.EmptyTTL, e.cfg.TTLMax)
	return s
}

// create makes an empty room for the client of maker, or for the server's own code when
// maker is empty. With stays nobody is about to join it. Nobody else finds it before
// its first step: a join, a held seat or publish.
func (e *Engine) create(s Settings, maker id.UID, stays bool) (*room, error) {
	if s.MembersMax > e.cfg.MembersMax {
		return nil, invalid(fmt.Sprintf("a room has at most %d members here", e.cfg.MembersMax))
	}
	var random [8]byte
	if _, err := io.ReadFull(e.cfg.Rand, random[:]); err != nil {
		return nil, fmt.Errorf("create a room: %w", err)
	}
	now := time.Now()
	r := &room{id: id.NewRoom(e.addr, random), created: now, settings: s, maker: maker, at: -1}
	var err error
	if r.m, err = NewMachine[*users.User](now, r.id, s); err != nil {
		return nil, err
	}
	r.m.SetPresent((*users.User).Present)
	result, err := e.admit(r, stays)
	e.metrics.creates.WithLabelValues(result).Inc()
	if err != nil {
		return nil, err
	}
	return r, nil
}

// admit adds a room. When there are too many, the client's room goes that has been
// empty for longest.
func (e *Engine) admit(r *room, stays bool) (result string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := &e.index
	switch {
	case stays && r.maker != "" && len(x.makers[r.maker]) >= e.cfg.EmptyMax:
		return refusedEmpty, e.tooManyEmpty
	case len(x.rooms)-x.empty.Len() >= e.cfg.RoomsMax:
		return refused, ErrTooMany
	}
	e.made++
	r.number = e.made
	x.rooms[r.id] = r
	if len(x.rooms) > e.cfg.RoomsMax {
		e.laterLocked(e.shed)
	}
	return succeeded, nil
}

// shed ends rooms that nobody is in until there are no more than may be.
func (e *Engine) shed() {
	for {
		e.mu.Lock()
		var oldest *room
		if len(e.index.rooms) > e.cfg.RoomsMax {
			oldest = e.index.oldestEmpty()
		}
		e.mu.Unlock()
		if oldest == nil {
			return
		}
		e.evict(oldest, evictedFull)
	}
}

// evict ends a room unless somebody is in it by now, or on the way to it.
func (e *Engine) evict(r *room, reason string) {
	if _, err := e.step(nil, r, input{Op: OpEvict}, nil); err == nil {
		e.metrics.evicted.WithLabelValues(reason).Inc()
	}
}

// laterLocked runs f in a goroutine of its own, which Run waits for: whoever acts may
// hold locks that no hook must run under. The caller holds mu.
func (e *Engine) laterLocked(f func()) {
	if !e.stopped {
		e.ticks.Go(f)
	}
}
