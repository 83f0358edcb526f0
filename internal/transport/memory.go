package transport

import (
	"hash/maphash"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

// memory is what is left of places that ended, the oldest forgotten first: what a Hello
// for them is answered with, and what keeps a Confirm from being accepted twice if the sid
// comes back. It is guarded by Places.mu; its entries hold no pointers.
type memory struct {
	entries map[wire.CID]departed
	order   []departure // oldest first, some without an entry
	users   map[uint64]ofUser
}

// departed is one of them.
type departed struct {
	base   secure.EndedBase
	cookie uint64 // of the Confirm accepted last, 0: none
	at     int64  // when it ended
	user   uint64 // whose it was, see Places.userOf
	code   uint8  // of the CLOSE its client may have missed
	told   bool   // a Hello is answered with it; else with silence
}

// departure is when an entry was made. One that was made anew has a later one.
type departure struct {
	cid0 wire.CID
	at   int64
}

// ofUser are the entries of one user, oldest first.
type ofUser struct {
	cids [staysPerUser]wire.CID
	n    int
}

const (
	// rememberFor covers the life of a cookie, with some to spare.
	rememberFor = 15 * time.Second
	// staysPerUser is how many places that ended are remembered of one user: more than
	// devices whose CLOSE got lost. Who comes and goes all the time pushes out their own
	// and nobody else's.
	staysPerUser = 8
	// orderSpare is how many more of order may be without an entry than have one.
	orderSpare = 64
)

// add remembers d, and forgets the oldest past most, or past staysPerUser of its user.
func (m *memory) add(d departed, most int) {
	if m.entries == nil {
		m.entries, m.users = map[wire.CID]departed{}, map[uint64]ofUser{}
	}
	cid0 := d.base.CID0()
	m.take(cid0)
	if own := m.users[d.user]; own.n == staysPerUser {
		m.take(own.cids[0])
	}
	for len(m.entries) >= most {
		m.forgetOldest()
	}
	m.entries[cid0] = d
	own := m.users[d.user]
	own.cids[own.n] = cid0
	own.n++
	m.users[d.user] = own
	if m.order = append(m.order, departure{cid0, d.at}); len(m.order) > 2*len(m.entries)+orderSpare {
		m.order = slices.DeleteFunc(m.order, func(o departure) bool { return !m.has(o) })
	}
}

func (m *memory) has(o departure) bool {
	d, ok := m.entries[o.cid0]
	return ok && d.at == o.at
}

// take forgets the entry of a place, which is reserved again for one, and returns it.
func (m *memory) take(cid0 wire.CID) (d departed, ok bool) {
	if d, ok = m.entries[cid0]; !ok {
		return d, false
	}
	delete(m.entries, cid0)
	own := m.users[d.user]
	if i := slices.Index(own.cids[:own.n], cid0); i >= 0 {
		copy(own.cids[i:], own.cids[i+1:own.n])
		own.n--
	}
	if m.users[d.user] = own; own.n == 0 {
		delete(m.users, d.user)
	}
	return d, true
}

func (m *memory) forgetOldest() {
	o := m.order[0]
	m.order = m.order[1:]
	if m.has(o) {
		m.take(o.cid0)
	}
}

// forgetBefore forgets what ended before a time.
func (m *memory) forgetBefore(at int64) {
	for len(m.order) > 0 && m.order[0].at < at {
		m.forgetOldest()
	}
	if len(m.order) == 0 {
		m.order, m.entries, m.users = nil, nil, nil // which keep the room of the most there were
	}
}

// rememberLocked keeps what is needed of a place that ended with code, or of which
// another node has the user now: then only what a replayed Confirm needs.
func (ps *Places) rememberLocked(p *Place, code wire.CloseCode, told bool) {
	d := departed{base: p.base.EndedBase, at: ps.core.nanos(time.Now()), code: uint8(code), told: told, user: ps.userOf(p.uid)}
	if code > wire.CloseInternal {
		d.code = uint8(wire.CloseInternal)
	}
	if p.more != nil {
		d.cookie = p.more.last.cookie
	}
	if d.told || d.cookie != 0 {
		ps.memory.add(d, ps.core.cfg.PlacesMax)
	}
}

// userOf is what a user is remembered by: an entry holds no pointers.
func (ps *Places) userOf(uid id.UID) uint64 { return maphash.String(ps.seed, string(uid)) }

// Replaced is Cancel because a newer sid of the user is open: a client that comes later
// hears that it was replaced.
func (ps *Places) Replaced(sid id.SID) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.cancelledLocked(sid)
	if p == nil {
		return false
	}
	ps.leaveLocked(p, wire.CloseReplaced)
	return true
}

// leaveLocked removes p, which ended with code. It returns the connection that is left
// to close.
func (ps *Places) leaveLocked(p *Place, code wire.CloseCode) *Conn {
	return ps.removeLocked(p, code, p.isToldLocked(code))
}

// isToldLocked says whether the client of a place may hear that it ended with code. It
// may not when it never was here: its place may have been for a user on the way from
// another node, who still lives there. A newer sid ended that stay too, whatever came of
// it.
func (p *Place) isToldLocked(code wire.CloseCode) bool {
	return code == wire.CloseReplaced || p.more != nil && (p.more.here || p.more.owned)
}

// forgetOld drops the memory of places whose time is over.
func (ps *Places) forgetOld(now time.Time) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.memory.forgetBefore(ps.core.nanos(now.Add(-max(rememberFor, ps.core.cfg.ResumeTTL))))
}

// byCID0Of returns the place a handshake packet asks for, or nil.
func (ps *Places) byCID0Of(cid wire.CID) *Place {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.byCID0[cid]
}

// askedFor returns the place a Hello asks for, or what there is to tell of it: over says
// that there is.
func (ps *Places) askedFor(now time.Time, cid0 wire.CID) (p *Place, d departed, over bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p = ps.byCID0[cid0]; p != nil {
		return p, d, false
	}
	d, over = ps.memory.entries[cid0]
	return nil, d, over && d.told && ps.core.nanos(now) < d.at+int64(ps.core.cfg.ResumeTTL)
}

// answerEnded appends to dst what tells the sender of a Hello that its place is over.
func (k *core) answerEnded(now time.Time, dst, hello []byte, d *departed) ([]byte, error) {
	cid0 := d.base.CID0()
	if !k.charge(now, cidKey(cid0)) {
		return nil, dropProcess
	}
	code := wire.CloseCode(d.code)
	answer, err := secure.Ended(dst, hello, &d.base, code)
	if err != nil {
		return nil, err
	}
	if err := k.chargeHello(now, cid0); err != nil {
		return nil, err
	}
	k.m.endedTold.WithLabelValues(code.String()).Inc()
	return answer, nil
}
