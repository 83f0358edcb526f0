package room

import (
	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
)

// SetPresent says how to know whether a member can be reached right now. Who can't becomes
// owner only when nobody can. Without it everybody can.
func (m *Machine[L]) SetPresent(f func(L) bool) { m.present = f }

// heir is who owns the room next: of those who are present the one who has been in longest.
func (m *Machine[L]) heir() id.UID {
	if m.present != nil {
		for i := range m.members {
			if m.present(m.members[i].Link) {
				return m.members[i].User
			}
		}
	}
	return m.members[0].User
}

func (m *Machine[L]) changeOwner(in Input[L], out *Output[L]) error {
	actor := -1
	if in.User != "" {
		if actor = m.find(in.User); actor < 0 {
			return ErrNotIn
		}
		if in.User != m.owner {
			return ErrNotOwner
		}
	}
	if len(in.To) != 1 || m.find(in.To[0]) < 0 {
		return ErrNotIn
	}
	if in.To[0] == m.owner {
		return nil
	}
	m.flush(out)
	m.owner = in.To[0]
	out.Deliveries += m.push(out, CmdOwnerChange, reliable.Reliable, []byte(m.owner), actor)
	return nil
}
