package httpapi

import (
	"time"

	"github.com/Diarkis/diarkis/internal/mars"
)

// How long a type is remembered after its last node left the directory. One that was drained
// before was most likely taken away for good; one that was not is missed, and who asks for it
// is told that it is a shortage, which is an alert.
const (
	retiredTypeFor = 10 * time.Minute
	missedTypeFor  = time.Hour
)

// typeSeen is what is known of a type for players.
type typeSeen struct {
	here    bool      // some node of it is in the directory
	until   time.Time // when it was there last, if it is not
	drained bool      // none of its nodes was online when they were seen last
	staying int       // nodes that had not said that they go, when they were seen last
}

// learn returns the directory and notes the types in it. It is called all the time, so that
// a type is known before the first player asks, and its end when it comes.
func (s *Server) learn() *mars.Directory {
	d := s.cluster.Directory()
	s.mu.Lock()
	defer s.mu.Unlock()
	if d == s.seen {
		return d
	}
	s.seen = d
	s.arriveLocked(d)
	now := time.Now()
	for typ, t := range s.types {
		if t.here {
			t.here, t.until = false, now
		}
		if s.types[typ] = t; t.forgotten(now) {
			delete(s.types, typ)
		}
	}
	for _, m := range d.Members {
		if forPlayers(m) {
			t := s.types[m.Type]
			if !t.here {
				t.drained, t.staying = true, 0
			}
			if m.State != mars.Offline {
				t.staying++
			}
			s.types[m.Type] = typeSeen{here: true, drained: t.drained && m.State != mars.Online, staying: t.staying}
		}
	}
	return d
}

func (t typeSeen) forgotten(now time.Time) bool {
	keep := missedTypeFor
	if t.drained {
		keep = retiredTypeFor
	}
	return !t.here && now.Sub(t.until) >= keep
}

// known says whether a type is one that nodes run, or ran until lately.
func (s *Server) known(typ string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.types[typ]
	return ok && !t.forgotten(time.Now())
}
