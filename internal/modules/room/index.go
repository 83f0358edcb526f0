package room

import (
	"cmp"
	"container/heap"
	"container/list"
	"slices"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/users"
)

// index is what the engine knows of its rooms without locking any of them: which one a
// random join should lead to, and which ones nobody is in, by who made them and by
// age. The engine's mutex guards it. Every change and every choice is O(log n).
type index struct {
	open   map[Settings]*byAppeal     // random rooms with a free seat
	makers map[id.UID][]*room         // rooms of clients that nobody is in, longest empty first
	empty  *list.List                 // all of those, of *room, longest empty first
	rooms  map[id.Room]*room          // all rooms
	in     map[*users.User]membership // also while the user is joining
	held   map[id.UID]heldSeat        // where a seat was held last for a user on the way
}

func newIndex() index {
	return index{
		open: map[Settings]*byAppeal{}, makers: map[id.UID][]*room{}, empty: list.New(),
		rooms: map[id.Room]*room{}, in: map[*users.User]membership{}, held: map[id.UID]heldSeat{},
	}
}

// heldSeat is a seat that another node asked for, and which.
type heldSeat struct {
	room *room
	by   id.Node
}

// membership is where a user is, or is about to be.
type membership struct {
	room    *room
	joined  bool // false while the user is joining
	present bool // counted in room.present
}

// facts are what the index is told of a room.
type facts struct {
	known   bool // the room has had its first step
	members int
	holds   int  // seats of users on the way
	free    bool // a random join may take a seat
}

func factsOf(m *Machine[*users.User]) facts {
	return facts{true, len(m.members), len(m.holds), m.settings.Random && m.Free() > 0}
}

// nobody says that no one is in the room or on the way to it.
func (f facts) nobody() bool { return f.members == 0 && f.holds == 0 }

// appeal is what makes a random join prefer a room: first how many are there to play
// with, present or on the way; then that its members may come back, or that it is the
// server's; a room of strangers that nobody is in comes last.
func (r *room) appeal() int {
	if n := r.present + r.facts.holds; n > 0 {
		return n + 1
	}
	if r.facts.members > 0 || r.maker == "" {
		return 1
	}
	return 0
}

// alive is the least appeal of a room in which somebody is.
const alive = 2

// byAppeal is a heap: the room with the most appeal first, of equals the oldest.
type byAppeal []*room

func (h byAppeal) Len() int { return len(h) }
func (h byAppeal) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(h[j].rank, h[i].rank), cmp.Compare(h[i].number, h[j].number)) < 0
}
func (h byAppeal) Swap(i, j int) { h[i], h[j] = h[j], h[i]; h[i].at, h[j].at = i, j }
func (h *byAppeal) Push(x any)   { r := x.(*room); r.at = len(*h); *h = append(*h, r) }
func (h *byAppeal) Pop() any {
	last := len(*h) - 1
	r := (*h)[last]
	(*h)[last], *h = nil, (*h)[:last]
	r.at = -1
	return r
}

// put brings the index up to date with a room's facts and its number of present
// members.
func (x *index) put(r *room) {
	x.list(r, r.facts.free)
	x.countEmpty(r, r.facts.nobody())
}

// remove forgets a room that has ended.
func (x *index) remove(r *room) {
	delete(x.rooms, r.id)
	x.list(r, false)
	x.countEmpty(r, false)
}

// list has random joins find the room, or not.
func (x *index) list(r *room, open bool) {
	h := x.open[r.settings]
	switch {
	case !open && r.at < 0:
	case !open:
		heap.Remove(h, r.at)
		if h.Len() == 0 {
			delete(x.open, r.settings)
		}
	case r.at < 0:
		if h == nil {
			h = new(byAppeal)
			x.open[r.settings] = h
		}
		r.rank = r.appeal()
		heap.Push(h, r)
	default:
		if rank := r.appeal(); rank != r.rank {
			r.rank = rank
			heap.Fix(h, r.at)
		}
	}
}

// countEmpty counts the room against its maker, or no more. The server's own do not count.
func (x *index) countEmpty(r *room, empty bool) {
	if r.maker == "" || empty == (r.emptied != nil) {
		return
	}
	if empty {
		r.emptied = x.empty.PushBack(r)
		x.makers[r.maker] = append(x.makers[r.maker], r)
		return
	}
	x.empty.Remove(r.emptied)
	r.emptied = nil
	rest := slices.DeleteFunc(x.makers[r.maker], func(o *room) bool { return o == r })
	if len(rest) == 0 {
		delete(x.makers, r.maker)
	} else {
		x.makers[r.maker] = rest
	}
}

// over returns the room that has been empty longest of a maker who has more than most
// empty ones, nil when there are not as many. It does not count any more.
func (x *index) over(maker id.UID, most int) *room {
	if maker == "" || len(x.makers[maker]) <= most {
		return nil
	}
	oldest := x.makers[maker][0]
	x.countEmpty(oldest, false)
	return oldest
}

// oldestEmpty returns the room of a client that has been empty longest, nil when
// there is none. It does not count any more.
func (x *index) oldestEmpty() *room {
	front := x.empty.Front()
	if front == nil {
		return nil
	}
	r := front.Value.(*room)
	x.countEmpty(r, false)
	return r
}

// best returns the room that a random join with these settings should lead to, nil when
// there is none of that appeal. An empty room of the user's own comes before those that
// are not alive.
func (x *index) best(s Settings, user id.UID, least int) *room {
	h := x.open[s]
	if h == nil {
		return nil
	}
	found := (*h)[0]
	if found.rank >= alive {
		return found
	}
	if least >= alive {
		return nil
	}
	for _, own := range x.makers[user] {
		if own.at >= 0 && own.settings == s {
			return own
		}
	}
	return found
}

// enter notes that a user who was joining r is in.
func (x *index) enter(u *users.User, r *room) {
	m := membership{room: r, joined: true, present: u.Present()}
	if m.present {
		r.present++
	}
	x.in[u] = m
}

// leave notes that a user is not in r any more.
func (x *index) leave(u *users.User, r *room) {
	m := x.in[u]
	if m.room != r {
		return
	}
	if m.present {
		r.present--
	}
	delete(x.in, u)
}

// presence notes whether a user is present now.
func (x *index) presence(u *users.User) {
	m := x.in[u]
	if !m.joined || m.present == u.Present() {
		return
	}
	if m.present = !m.present; m.present {
		m.room.present++
	} else {
		m.room.present--
	}
	x.in[u] = m
	x.put(m.room)
}
