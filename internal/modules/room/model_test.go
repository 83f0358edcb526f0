package room

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
)

// model is a room written the naive way: who is in, who has a seat, and what each
// user should have received so far.
type model struct {
	s        Settings
	members  []id.UID
	reserved map[id.UID]id.UID
	holds    map[id.UID]time.Time
	emptyAt  time.Time // when the room became empty
	never    bool      // nobody has been in yet
	closed   bool
	numbers  map[string]int64
	got      map[id.UID][]string
}

func (m *model) expire(now time.Time) {
	maps.DeleteFunc(m.holds, func(_ id.UID, until time.Time) bool { return !until.After(now) })
}

// end closes the model when it is time, after a step.
func (m *model) end(now time.Time) {
	if len(m.members) > 0 || len(m.holds) > 0 || m.closed {
		return
	}
	ttl := m.s.EmptyTTL
	if !m.never && !m.s.AllowEmpty {
		ttl = 0
	}
	m.closed = !now.Before(m.emptyAt.Add(ttl))
}

func (m *model) seats() int {
	taken := map[id.UID]bool{}
	for _, u := range m.members {
		taken[u] = true
	}
	n := len(m.members)
	for u := range m.reserved {
		n++
		taken[u] = true
	}
	for u := range m.holds {
		if !taken[u] {
			n++
		}
	}
	return n
}

func (m *model) hasReserved(u id.UID) bool { _, ok := m.reserved[u]; return ok }

func (m *model) tell(to []id.UID, except id.UID, what string) {
	for _, u := range to {
		if u != except {
			m.got[u] = append(m.got[u], what)
		}
	}
}

func (m *model) step(now time.Time, i in) (refused bool) {
	if m.closed {
		return true
	}
	m.expire(now)
	defer m.end(now)
	is := slices.Contains(m.members, i.User)
	switch i.Op {
	case OpJoin:
		_, held := m.holds[i.User]
		if is || !held && !m.hasReserved(i.User) && m.seats() >= m.s.MembersMax {
			return true
		}
		m.tell(m.members, "", "101 "+string(i.Message))
		m.members = append(m.members, i.User)
		delete(m.holds, i.User)
		delete(m.reserved, i.User)
		m.never = false
	case OpLeave, OpKick:
		if !is {
			return true
		}
		to, wasOwner := i.User, m.members[0] == i.User
		if i.Op == OpKick {
			to = ""
		}
		if len(i.Message) > 0 {
			m.tell(m.members, to, "102 "+string(i.Message))
		}
		m.members = slices.DeleteFunc(m.members, func(u id.UID) bool { return u == i.User })
		m.emptyAt = now
		maps.DeleteFunc(m.reserved, func(_, by id.UID) bool { return by == i.User })
		if wasOwner && len(m.members) > 0 {
			m.tell(m.members, "", "14 "+string(m.members[0]))
		}
	case OpBroadcast:
		if !is {
			return true
		}
		m.tell(m.members, i.User, "103 "+string(i.Message))
	case OpMessage:
		if !is {
			return true
		}
		for _, u := range m.members {
			if slices.Contains(i.To, u) {
				m.got[u] = append(m.got[u], "104 "+string(i.Message))
			}
		}
	case OpIncr:
		if !is {
			return true
		}
		m.numbers[i.Key] += i.Delta
	case OpReserve:
		if !is {
			return true
		}
		before := maps.Clone(m.reserved)
		for _, u := range i.To {
			if !slices.Contains(m.members, u) {
				if !m.hasReserved(u) {
					m.reserved[u] = i.User
				}
			}
		}
		if m.seats() > m.s.MembersMax {
			m.reserved = before
			return true
		}
	case OpCancel:
		if !is {
			return true
		}
		for _, u := range i.To {
			if m.hasReserved(u) && m.reserved[u] != i.User && m.members[0] != i.User {
				return true
			}
		}
		for _, u := range i.To {
			delete(m.reserved, u)
		}
	case OpHold:
		_, held := m.holds[i.User]
		if !is && !held && !m.hasReserved(i.User) && m.seats() >= m.s.MembersMax {
			return true
		}
		m.holds[i.User] = i.Until
	case OpUnhold:
		delete(m.holds, i.User)
	}
	return false
}

// randomInput makes one of the inputs that the model knows. The owner never changes
// by hand, so that the model's owner is its first member.
func randomInput(rng *rand.Rand, now time.Time, n int) in {
	user := func() id.UID { return id.UID(fmt.Sprintf("u%d", rng.IntN(7))) }
	users := func() (all []id.UID) {
		for range rng.IntN(4) {
			all = append(all, user())
		}
		return all
	}
	i := in{User: user(), Message: fmt.Appendf(nil, "m%d", n), Rel: reliable.Reliable}
	i.Link = i.User
	switch rng.IntN(14) {
	case 0, 1:
		i.Op = OpJoin
	case 2:
		i.Op = OpLeave
	case 3:
		i.Op, i.Message = OpLeave, nil
	case 4:
		i.Op = OpKick
	case 5, 6, 7:
		i.Op = OpBroadcast
	case 8:
		i.Op, i.To = OpMessage, users()
	case 9:
		i.Op, i.Key, i.Delta = OpIncr, "n", int64(rng.IntN(100)-50)
	case 10:
		i.Op, i.To = OpReserve, users()
	case 11:
		i.Op, i.To = OpCancel, users()
	case 12:
		i.Op, i.Until = OpHold, now.Add(time.Duration(1+rng.IntN(20))*time.Second)
	case 13:
		i.Op = OpUnhold
	}
	return i
}

// Whatever happens in whatever order, the machine agrees with the model: on who is
// in, on what is refused, and on what everybody has received.
func TestMachineAgainstModel(t *testing.T) {
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 0))
		s := Settings{MembersMax: 2 + rng.IntN(4), AllowEmpty: rng.IntN(2) == 0, EmptyTTL: 10 * time.Second}
		if rng.IntN(2) == 0 {
			s.Interval = 500 * time.Millisecond
		}
		m := newMachine(t, s)
		naive := &model{s: s, never: true, emptyAt: epoch, reserved: map[id.UID]id.UID{}, holds: map[id.UID]time.Time{},
			numbers: map[string]int64{}, got: map[id.UID][]string{}}
		got := map[id.UID][]string{}
		now := epoch
		var out Output[id.UID]
		take := func() {
			for _, p := range out.Pushes {
				for _, u := range p.To {
					if p.Cmd != CmdBroadcast {
						got[u] = append(got[u], fmt.Sprintf("%d %s", p.Cmd, p.Payload))
						continue
					}
					for _, s := range messages(p.Payload) {
						got[u] = append(got[u], "103 "+s)
					}
				}
			}
		}
		for n := range 200 {
			// Time passes, and the caller keeps its promise to tick at WakeAt.
			next := now.Add(time.Duration(rng.IntN(1500)) * time.Millisecond)
			for !out.WakeAt.IsZero() && !out.WakeAt.After(next) {
				now = out.WakeAt
				naive.step(now, in{})
				m.Step(now, in{}, &out)
				take()
			}
			now = next
			i := randomInput(rng, now, n)
			refused := naive.step(now, i)
			m.Step(now, i, &out)
			take()
			fail := func(what string, got, want any) {
				t.Fatalf("seed %d step %d op %d by %s: %s %v, want %v", seed, n, i.Op, i.User, what, got, want)
			}
			if (out.Err != nil) != refused {
				fail("error", out.Err, refused)
			}
			if out.Closed != naive.closed {
				fail("closed", out.Closed, naive.closed)
			}
			var members []id.UID
			for _, p := range m.Members() {
				members = append(members, p.User)
			}
			if !slices.Equal(members, naive.members) {
				fail("members", members, naive.members)
			}
			if owner := slices.Concat(members, []id.UID{""})[0]; m.Owner() != owner {
				fail("owner", m.Owner(), owner)
			}
			if free := max(0, m.Free()); !naive.closed && free != s.MembersMax-naive.seats() {
				fail("free", free, s.MembersMax-naive.seats())
			}
			if p := m.Properties([]string{"n"}); len(p) > 0 && p[0].Value.Int != naive.numbers["n"] {
				fail("property", p[0].Value.Int, naive.numbers["n"])
			}
		}
		m.Step(now.Add(time.Second), in{}, &out) // what still waits goes out
		take()
		// A message to some may pass broadcasts that wait to be merged; all else is in order.
		for u := range naive.got {
			if s.Interval > 0 {
				slices.Sort(naive.got[u])
				slices.Sort(got[u])
			}
			if !slices.Equal(got[u], naive.got[u]) {
				t.Fatalf("seed %d: %s got %v, want %v", seed, u, got[u], naive.got[u])
			}
		}
	}
}
