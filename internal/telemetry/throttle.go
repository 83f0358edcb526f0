package telemetry

import (
	"sync"
	"time"
)

// LineEvery is how often a [Throttle] lets a kind of fault write a line: with a minute
// between them, faults of a hundred kinds write less than two lines a second.
const LineEvery = time.Minute

// kindsMax is how many kinds of faults have lines of their own; the rest share one.
const kindsMax = 256

// Throttle keeps a log from being flooded by faults of many kinds, whose names are known
// as they come, such as handlers or nodes: each kind gets one line in [LineEvery], with
// how many got none since the line before. The zero value is ready to use. It is safe
// for concurrent use.
type Throttle struct {
	mu    sync.Mutex // guards the field below
	kinds map[string]*kindOfFault
}

type kindOfFault struct {
	line time.Time // when it got its last line
	more int       // faults since then
}

// Line notes one fault of a kind, a word of the code, and returns whether it gets a
// line and how many since the last one got none.
func (t *Throttle) Line(kind string) (more int, ok bool) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kinds == nil {
		t.kinds = make(map[string]*kindOfFault)
	}
	k := t.kinds[kind]
	if k == nil {
		if len(t.kinds) >= kindsMax {
			kind = ""
		}
		if k = t.kinds[kind]; k == nil {
			k = new(kindOfFault)
			t.kinds[kind] = k
		}
	}
	if !k.line.IsZero() && now.Sub(k.line) < LineEvery {
		k.more++
		return 0, false
	}
	more = k.more
	*k = kindOfFault{line: now}
	return more, true
}
