package users

import (
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/transport"
)

// A user id may come back with a new sid as often as tickets are handed out, and each
// time as a new user: the budgets would be whole again, for who is the same client. So a
// user begins with what the user id has spent on this node lately.

// spent says when each budget of a user id is whole again, in nanoseconds of the
// budgets' clock: those of the user and those of the connection.
type spent struct {
	commands, deliveries, creates, refuse, exempt int64
	packets, bytes                                int64
}

// worse is what remains of both: who has spent over two connections waits for the
// longer of both.
func (s spent) worse(o spent) spent {
	return spent{
		max(s.commands, o.commands), max(s.deliveries, o.deliveries), max(s.creates, o.creates),
		max(s.refuse, o.refuse), max(s.exempt, o.exempt),
		max(s.packets, o.packets), max(s.bytes, o.bytes),
	}
}

// until is when all of it is whole again.
func (s spent) until() int64 {
	return max(s.commands, s.deliveries, s.creates, s.refuse, s.exempt, s.packets, s.bytes)
}

// ofLink adds what a connection has spent.
func (s spent) ofLink(now int64, l Link) spent {
	packets, bytes := l.Spent()
	s.packets, s.bytes = max(s.packets, now+int64(packets)), max(s.bytes, now+int64(bytes))
	return s
}

// spentLocked is what u has spent by now, link being its connection, or nil.
func (u *User) spentLocked(now int64, link *Link) spent {
	b := &u.budget
	s := spent{
		b.commands.word.Load(), b.deliveries.word.Load(), b.creates.word.Load(), b.refuse.word.Load(), b.exempt.word.Load(),
		u.linkSpent.packets, u.linkSpent.bytes,
	}
	if link != nil {
		s = s.ofLink(now, *link)
	}
	return s
}

// noteSpentLocked keeps what u, who is leaving, has spent.
func (r *Registry) noteSpentLocked(u *User, link *Link) {
	now := r.budgets.now(nil)
	r.spent.note(now, u.ID, u.spentLocked(now, link))
}

// begin makes u, whose first connection is link, begin with what its user id has spent.
// A sibling that is still open is about to be replaced: what it spends until then
// counts for the next sid only, so that two can't have more than two bursts.
func (r *Registry) begin(b *transport.Batch, u *User, link Link) {
	now := r.budgets.now(b)
	var s spent
	for _, sibling := range r.users.byUID(nil, u.ID) {
		if sibling == u {
			continue
		}
		sibling.mu.Lock()
		s = s.worse(sibling.spentLocked(now, sibling.link.Load()))
		sibling.mu.Unlock()
	}
	s = s.worse(r.spent.of(u.ID)) // after them: one who left meanwhile is in there
	if s.until() <= now {
		return
	}
	u.budget.commands.raise(s.commands)
	u.budget.deliveries.raise(s.deliveries)
	u.budget.creates.raise(s.creates)
	u.budget.refuse.raise(s.refuse)
	u.budget.exempt.raise(s.exempt)
	link.Spend(time.Duration(s.packets-now), time.Duration(s.bytes-now))
}

// raise makes the bucket one that is full again at until, unless it takes longer anyway.
func (b *bucket) raise(until int64) {
	for {
		old := b.word.Load()
		if old >= until || b.word.CompareAndSwap(old, until) {
			return
		}
	}
}

// spentMemory keeps what users who are gone had spent, by user id, until all of it is
// whole again: a few seconds. It holds at most max, then the oldest goes.
type spentMemory struct {
	max int

	mu    sync.Mutex // guards the fields below
	byUID map[id.UID]spent
	order []id.UID // keys of byUID, oldest first
}

func (m *spentMemory) init(most int) { m.max, m.byUID = most, make(map[id.UID]spent) }

// note keeps what a user who is gone had spent.
func (m *spentMemory) note(now int64, uid id.UID, s spent) {
	if s.until() <= now {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old, again := m.byUID[uid]
	if !again {
		m.makeRoomLocked(now)
		m.order = append(m.order, uid)
	}
	m.byUID[uid] = s.worse(old)
}

// makeRoomLocked looks at the two oldest: for each that comes one goes, and of what is
// whole again one more. Who comes and goes all the time is not the oldest any more.
func (m *spentMemory) makeRoomLocked(now int64) {
	for i := 0; len(m.order) > 0 && (i < 2 || len(m.order) >= m.max); i++ {
		uid := m.order[0]
		m.order = m.order[1:]
		if m.byUID[uid].until() > now && len(m.order)+1 < m.max {
			m.order = append(m.order, uid)
			continue
		}
		delete(m.byUID, uid)
	}
}

// of is what users of uid who are gone had spent.
func (m *spentMemory) of(uid id.UID) spent {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.byUID[uid]
}
