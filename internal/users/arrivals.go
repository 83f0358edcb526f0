package users

import (
	"container/list"
	"time"
)

// Users on the way here bring what is to go on of their connections, a state of some KB
// or of megabytes, which lies here until their client comes or the place expires. Who
// has much and never comes must not keep the others out: those with little have a share
// of their own, and when one is full, or there are too many, the oldest goes who did not
// come in good time.

const (
	// arrivalSmallMax is how long a state is of those with little, in bytes.
	arrivalSmallMax = 64 << 10
	// arrivalSmallBytesMax bounds theirs together, arrivalBytesMax those of the others. Of
	// these one may take a quarter of what is left: so few with very much can't keep out
	// the many with less (Choudhury and Hahne, dynamic queue length thresholds).
	arrivalSmallBytesMax = 32 << 20
	arrivalBytesMax      = 64 << 20
	// arrivalGrace is how long nobody goes for another. A client that follows its MOVE is
	// here in two or three round trips.
	arrivalGrace = time.Second
)

// arrivalShare is users on the way here who share a bound.
type arrivalShare struct {
	byAge list.List // of *moveIn, oldest first
	bytes int
}

func (v *moves) shareOf(m *moveIn) *arrivalShare {
	if m.bytes <= arrivalSmallMax {
		return &v.small
	}
	return &v.large
}

// fits reports whether m may take what it brings.
func (v *moves) fits(m *moveIn) bool {
	if m.bytes <= arrivalSmallMax {
		return m.bytes <= arrivalSmallBytesMax-v.small.bytes
	}
	return m.bytes <= (arrivalBytesMax-v.large.bytes)/4
}

// late is the oldest of the share when it could have been here by now, else nil.
func (s *arrivalShare) late(now time.Time) *moveIn {
	if front := s.byAge.Front(); front != nil {
		if m := front.Value.(*moveIn); now.Sub(m.since) >= arrivalGrace {
			return m
		}
	}
	return nil
}

// older is the older of two, either of which may be nil.
func older(a, b *moveIn) *moveIn {
	if a == nil || b != nil && b.since.Before(a.since) {
		return b
	}
	return a
}

// addArrival notes a user on the way here, or says why not. For one whose state does
// not fit, the oldest go who could have been here by now.
func (r *Registry) addArrival(m *moveIn) Refusal {
	for {
		why, oldest := r.moves.addIn(time.Now(), m, r.cfg.ArrivalsMax)
		if oldest == nil {
			return why
		}
		if !r.giveUp(oldest, "crowded") {
			r.moves.spare(oldest) // the client is at the door, so the next one's turn
		}
	}
}

// spare makes m the newest of its share.
func (v *moves) spare(m *moveIn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.arriving[m.id] == m {
		m.since = time.Now()
		v.shareOf(m).byAge.MoveToBack(m.age)
	}
}

// addIn notes a user on the way here, of at most limit. An id that is in use is that
// of an offer which came twice. When others take what m needs, it returns the one who
// may go for it, if there is one.
func (v *moves) addIn(now time.Time, m *moveIn, limit int) (why Refusal, oldest *moveIn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	share := v.shareOf(m)
	switch {
	case v.arriving[m.id] != nil:
		return InUse, nil
	case len(v.arriving) >= limit:
		return Busy, older(v.large.late(now), v.small.late(now))
	case !v.fits(m):
		return Busy, share.late(now)
	}
	v.arriving[m.id] = m
	m.since = now
	m.age = share.byAge.PushBack(m)
	share.bytes += m.bytes
	return Accepted, nil
}

func (v *moves) dropIn(m *moveIn) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.arriving[m.id] != m {
		return
	}
	delete(v.arriving, m.id)
	share := v.shareOf(m)
	share.byAge.Remove(m.age)
	share.bytes -= m.bytes
}

func (v *moves) countIn() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.arriving)
}

func (v *moves) in(mid moveID) *moveIn {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.arriving[mid]
}
