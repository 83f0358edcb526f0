package telemetry

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Episode turns any number of failures of one kind into two log lines: a warning when
// the first comes, and how many there were once none has come for a while. It is safe
// for concurrent use.
type Episode struct {
	// Set by NewEpisode, then constant.
	log         zerolog.Logger
	quiet       time.Duration
	begin, over string

	mu    sync.Mutex // guards the fields below
	count int        // of failures; 0 outside an episode
	since time.Time
	last  time.Time
	timer *time.Timer
}

// NewEpisode returns an Episode that is over when quiet has passed without a failure.
// The messages are those of its first and its last line, unless [Episode.End] comes before.
func NewEpisode(log zerolog.Logger, quiet time.Duration, begin, over string) *Episode {
	return &Episode{log: log, quiet: quiet, begin: begin, over: over}
}

// Note takes down one failure.
func (e *Episode) Note(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = time.Now()
	e.count++
	if e.count > 1 {
		return
	}
	e.since = e.last
	e.log.Warn().Err(err).Msg(e.begin)
	e.timer = time.AfterFunc(e.quiet, e.check)
}

// End ends an episode now, if there is one, for who stops and will not call Note any more. The
// line says that: nobody knows whether what failed would work again.
func (e *Episode) End() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.endLocked(e.begin + ", until this stopped")
}

// check runs when the episode may be over.
func (e *Episode) check() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if left := e.quiet - time.Since(e.last); e.count > 0 && left > 0 {
		e.timer.Reset(left)
		return
	}
	e.endLocked(e.over)
}

func (e *Episode) endLocked(message string) {
	if e.count == 0 {
		return
	}
	e.timer.Stop()
	e.log.Info().Int("failures", e.count).Str("lasted", Span(e.last.Sub(e.since))).Msg(message)
	e.count = 0
}
