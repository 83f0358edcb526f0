package users

import (
	"hash/maphash"
	"slices"
	"sync"

	"github.com/Diarkis/diarkis/internal/id"
)

const shards = 64

// table finds users by sid and by user id. One user id may have several sids for
// a while. Its locks are never held together with a user's.
type table struct {
	seed maphash.Seed
	sids [shards]struct {
		sync.RWMutex
		m map[id.SID]*User
	}
	uids [shards]struct {
		sync.RWMutex
		m map[id.UID][]*User
	}
}

func (t *table) init() {
	t.seed = maphash.MakeSeed()
	for i := range shards {
		t.sids[i].m = make(map[id.SID]*User)
		t.uids[i].m = make(map[id.UID][]*User)
	}
}

func (t *table) uidShard(uid id.UID) uint64 { return maphash.String(t.seed, string(uid)) % shards }

// add reports false when the sid is taken.
func (t *table) add(u *User) bool {
	s := &t.sids[u.SID[0]%shards]
	s.Lock()
	_, taken := s.m[u.SID]
	if !taken {
		s.m[u.SID] = u
	}
	s.Unlock()
	if taken {
		return false
	}
	n := &t.uids[t.uidShard(u.ID)]
	n.Lock()
	n.m[u.ID] = append(n.m[u.ID], u)
	n.Unlock()
	return true
}

// remove reports false when u was not there.
func (t *table) remove(u *User) bool {
	s := &t.sids[u.SID[0]%shards]
	s.Lock()
	there := s.m[u.SID] == u
	if there {
		delete(s.m, u.SID)
	}
	s.Unlock()
	if !there {
		return false
	}
	n := &t.uids[t.uidShard(u.ID)]
	n.Lock()
	defer n.Unlock()
	// A new slice, because byUID lends the old one.
	rest := slices.DeleteFunc(slices.Clone(n.m[u.ID]), func(v *User) bool { return v == u })
	if len(rest) == 0 {
		delete(n.m, u.ID)
	} else {
		n.m[u.ID] = rest
	}
	return true
}

func (t *table) bySID(sid id.SID) *User {
	s := &t.sids[sid[0]%shards]
	s.RLock()
	defer s.RUnlock()
	return s.m[sid]
}

// byUID returns all users of a user id; the slice must not be changed.
func (t *table) byUID(uid id.UID) []*User {
	n := &t.uids[t.uidShard(uid)]
	n.RLock()
	defer n.RUnlock()
	return slices.Clip(n.m[uid])
}

func (t *table) each(f func(*User) bool) {
	for i := range shards {
		s := &t.sids[i]
		s.RLock()
		users := make([]*User, 0, len(s.m))
		for _, u := range s.m {
			users = append(users, u)
		}
		s.RUnlock()
		for _, u := range users {
			if !f(u) {
				return
			}
		}
	}
}
