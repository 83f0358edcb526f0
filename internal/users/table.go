package users

import (
	"hash/maphash"
	"sync"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/users/exchange"
)

const shards = 64

// table finds users by sid and by user id. One user id may have several sids for
// a while: they hang on a chain, newest first. Its locks are never held together with
// a user's.
type table struct {
	seed maphash.Seed
	sids [shards]struct {
		sync.RWMutex
		m map[id.SID]*User
	}
	uids [shards]struct {
		sync.RWMutex // guards User.uid of these, too
		m            map[id.UID]*User
	}
}

// uidLinks is a user's place on the chain of their user id.
type uidLinks struct{ newer, older *User }

func (t *table) init() {
	t.seed = maphash.MakeSeed()
	for i := range shards {
		t.sids[i].m = make(map[id.SID]*User)
		t.uids[i].m = make(map[id.UID]*User)
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
	defer n.Unlock()
	if u.uid.older = n.m[u.ID]; u.uid.older != nil {
		u.uid.older.uid.newer = u
	}
	n.m[u.ID] = u
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
	newer, older := u.uid.newer, u.uid.older
	u.uid = uidLinks{}
	if older != nil {
		older.uid.newer = newer
	}
	switch {
	case newer != nil:
		newer.uid.older = older
	case older != nil:
		n.m[u.ID] = older
	default:
		delete(n.m, u.ID)
	}
	return true
}

func (t *table) bySID(sid id.SID) *User {
	s := &t.sids[sid[0]%shards]
	s.RLock()
	defer s.RUnlock()
	return s.m[sid]
}

// openByUID returns the newest user of a user id who is open, or nil.
func (t *table) openByUID(uid id.UID) *User {
	n := &t.uids[t.uidShard(uid)]
	n.RLock()
	defer n.RUnlock()
	for u := n.m[uid]; u != nil; u = u.uid.older {
		if u.isOpen.Load() {
			return u
		}
	}
	return nil
}

// openIn returns the users who are open and whose sids are in one of the shards.
func (t *table) openIn(shard int) (open []exchange.Fact) {
	s := &t.sids[shard]
	s.RLock()
	defer s.RUnlock()
	for _, u := range s.m {
		if u.isOpen.Load() {
			open = append(open, exchange.Fact{UID: u.ID, Order: u.order})
		}
	}
	return open
}

// byUID appends all users of a user id to dst.
func (t *table) byUID(dst []*User, uid id.UID) []*User {
	n := &t.uids[t.uidShard(uid)]
	n.RLock()
	defer n.RUnlock()
	for u := n.m[uid]; u != nil; u = u.uid.older {
		dst = append(dst, u)
	}
	return dst
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
