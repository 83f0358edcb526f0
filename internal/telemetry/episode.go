package telemetry

import (
	"sync"
	"time"
)

// Quiet is how long an episode is silent after its line: with a minute between
// lines, faults of a hundred kinds write less than two lines a second.
const Quiet = time.Minute

// episodesMax is how many kinds of faults have lines of their own; the rest share one.
const episodesMax = 256

// Episodes keeps a log from being flooded by faults that come again and again: each
// kind of fault gets one line in [Quiet], with how many got none since the line
// before. The zero value is ready to use. It is safe for concurrent use.
type Episodes struct {
	mu    sync.Mutex // guards the field below
	kinds map[string]*episode
}

type episode struct {
	line time.Time // when it got its last line
	more int       // faults since then
}

// Line notes one fault of a kind, a word of the code, and returns whether it gets a
// line and how many since the last one got none.
func (e *Episodes) Line(kind string) (more int, ok bool) {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.kinds == nil {
		e.kinds = make(map[string]*episode)
	}
	k := e.kinds[kind]
	if k == nil {
		if len(e.kinds) >= episodesMax {
			kind = ""
		}
		if k = e.kinds[kind]; k == nil {
			k = new(episode)
			e.kinds[kind] = k
		}
	}
	if !k.line.IsZero() && now.Sub(k.line) < Quiet {
		k.more++
		return 0, false
	}
	more = k.more
	*k = episode{line: now}
	return more, true
}
