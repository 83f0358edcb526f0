package room

import (
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// takeSeat uses up the user's reservation, their held seat or a free one.
func (m *Machine[L]) takeSeat(user id.UID, out *Output[L]) bool {
	_, reserved := m.reserved[user]
	_, held := m.holds[user]
	if !reserved && !held && m.Free() <= 0 {
		return false
	}
	delete(m.reserved, user)
	m.unhold(user, out)
	return true
}

// unhold frees the seat held for a user, if there is one.
func (m *Machine[L]) unhold(user id.UID, out *Output[L]) {
	if _, held := m.holds[user]; held {
		delete(m.holds, user)
		out.Unheld = append(out.Unheld, user)
	}
}

// Free returns how many seats nobody sits on, has reserved or is on the way to.
func (m *Machine[L]) Free() int {
	free := m.settings.MembersMax - len(m.members) - len(m.reserved)
	for user := range m.holds {
		if _, ok := m.reserved[user]; !ok && m.find(user) < 0 { // a seat that is taken or reserved and held as well is one seat
			free--
		}
	}
	return free
}

func (m *Machine[L]) dropExpiredHolds(now time.Time, out *Output[L]) {
	for user, until := range m.holds {
		if !now.Before(until) {
			m.unhold(user, out)
		}
	}
}

// Holds reports whether a seat was held for user at the last Step.
func (m *Machine[L]) Holds(user id.UID) bool {
	_, ok := m.holds[user]
	return ok
}

// hold keeps a seat for a user on the way. A member's is the one they have: it is a newer
// connection of the user that comes, and the one that is in is about to leave.
func (m *Machine[L]) hold(in Input[L]) error {
	_, reserved := m.reserved[in.User]
	if !reserved && m.find(in.User) < 0 && !m.Holds(in.User) && m.Free() <= 0 {
		return ErrFull
	}
	if m.holds == nil {
		m.holds = make(map[id.UID]time.Time)
	}
	m.holds[in.User] = in.Until
	return nil
}

func (m *Machine[L]) reserve(in Input[L]) error {
	if err := m.mayReserve(in.User, ErrReserveOwner); err != nil {
		return err
	}
	fresh := m.named(in.To)
	defer clear(fresh)
	for i := range m.members {
		delete(fresh, m.members[i].User) // has a seat already
	}
	seats := 0
	for user := range fresh {
		if _, reserved := m.reserved[user]; !reserved && !m.Holds(user) {
			seats++
		}
	}
	if seats > 0 && seats > m.Free() { // all or nothing
		return ErrReserve
	}
	if m.reserved == nil {
		m.reserved = make(map[id.UID]id.UID)
	}
	for user := range fresh {
		if _, reserved := m.reserved[user]; !reserved {
			m.reserved[user] = in.User
		}
	}
	return nil
}

// cancel frees seats that the user reserved. The owner and the server free any.
func (m *Machine[L]) cancel(in Input[L]) error {
	if err := m.mayReserve(in.User, ErrCancelOwner); err != nil {
		return err
	}
	for _, user := range in.To {
		if by, reserved := m.reserved[user]; reserved && in.User != "" && in.User != m.owner && in.User != by {
			return ErrCancelOwner // all or none
		}
	}
	for _, user := range in.To {
		delete(m.reserved, user)
	}
	return nil
}

// dropReserved frees the seats that a member reserved who is out now: nobody else knows
// whether they are still wanted.
func (m *Machine[L]) dropReserved(by id.UID) {
	for user, member := range m.reserved {
		if member == by {
			delete(m.reserved, user)
		}
	}
}

func (m *Machine[L]) mayReserve(user id.UID, notOwner error) error {
	switch {
	case user == "":
		return nil
	case m.find(user) < 0:
		return ErrNotIn
	case (m.settings.ReserveOwnerOnly || m.settings.Random) && user != m.owner:
		return notOwner
	}
	return nil
}
