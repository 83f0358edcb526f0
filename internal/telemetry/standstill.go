package telemetry

import (
	"sync"
	"time"
)

const (
	// StandstillMin is from when on a process counts as having stood still: garbage
	// collection, a busy machine and a debugger's breath are shorter.
	StandstillMin = 2 * time.Second
	// standstillRecent is how long afterwards its own absence is the likely reason for
	// what it finds: others were told meanwhile, and what they say comes in one by one.
	standstillRecent = 5 * time.Second
)

// Standstill notices that this process did not run for a while (stopped, a suspended
// machine, no CPU), so that it does not blame others for what it missed. Somebody has to
// call Awake at least twice in StandstillMin. The zero value is ready to use. It is safe
// for concurrent use.
type Standstill struct {
	mu   sync.Mutex // guards the fields below
	last time.Time  // when it was known to run
	woke time.Time
	gap  time.Duration // of the standstill that ended then
}

// Awake notes that the process runs at now, by a clock that goes on while it does not. It
// returns how long it stood still before that, once for each time, 0 when it did not.
func (s *Standstill) Awake(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	gap := now.Sub(s.last)
	first := s.last.IsZero()
	if first || gap > 0 {
		s.last = now
	}
	if first || gap < StandstillMin {
		return 0
	}
	s.woke, s.gap = now, gap
	return gap
}

// Since returns how long ago the last standstill ended, 0 when there was none.
func (s *Standstill) Since(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gap == 0 {
		return 0
	}
	return now.Sub(s.woke)
}

// Recent returns how long the process stood still when that ended only lately, else 0.
func (s *Standstill) Recent(now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gap == 0 || now.Sub(s.woke) > standstillRecent {
		return 0
	}
	return s.gap
}
