package httpapi

import (
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/telemetry"
)

const (
	// closedFor is how long nobody could enter before the log says so, and how long somebody
	// can before it says that this is over: a node that is restarted, or a link that blinks,
	// is no news.
	closedFor = 2 * time.Second
	// unjoinedFor is the same for this node, which waits for mars when all start together.
	unjoinedFor = 10 * time.Second
)

// watch says in the log when players can enter no node of a type, or none at all through this
// one, whether they ask or not: one warning when it has lasted, another when its cause is
// another, one line when it is over, with how many were refused. It knows types from the
// directory only, so that nobody writes into the log by asking.
type watch struct {
	log zerolog.Logger

	mu    sync.Mutex // guards the fields below
	doors map[string]*door
}

// door is a way in: a type, or "" for this node, which all types share.
type door struct {
	why     string    // it is closed; empty while it is open
	at      time.Time // since when
	told    string    // what the log says; empty: nothing
	toldAt  time.Time // since when it has been closed, as the log says
	refused int       // requests, since then
}

func newWatch(log zerolog.Logger) *watch { return &watch{log: log, doors: map[string]*door{}} }

// refuse counts a request that came to a closed door.
func (w *watch) refuse(typ string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := w.doors[typ]; d != nil {
		d.refused++
	}
}

// census is how many nodes of a type there are.
type census struct {
	nodes, open, draining, taken, silent int
	// vanished is how many went without a word where none is left, and last when.
	vanished int
	last     time.Time
}

func (c census) why() string {
	switch {
	case c.open > 0:
		return ""
	case c.vanished > 0:
		return "no node is there, they vanished"
	case c.nodes == 0:
		return "no node is there"
	case c.draining == c.nodes:
		return "all nodes are draining"
	case c.taken == c.nodes:
		return "all nodes are taken"
	case c.silent == c.nodes:
		return "all nodes are silent or suspected"
	}
	return "no node is online"
}

func count(ms []mars.Member) (c census) {
	for _, m := range ms {
		if !forPlayers(m) {
			continue
		}
		c.nodes++
		switch {
		case m.State == mars.Offline:
			c.draining++
		case m.State == mars.Taken:
			c.taken++
		case m.Hidden || m.Endpoint == "":
			c.silent++
		default:
			c.open++
		}
	}
	return c
}

// lookEvery is how often the doors are looked at: closedFor is many times that.
const lookEvery = 250 * time.Millisecond

// look notices what changed. It is called all the time, by one goroutine.
func (s *Server) look() {
	d := s.learn()
	now := time.Now()
	if now.Sub(s.lookedAt) < lookEvery {
		return
	}
	s.lookedAt = now
	why := ""
	if err := s.serving(); err != nil {
		why = err.Error()
	}
	s.watch.see(now, "", why, census{})
	for typ, c := range s.census(d) {
		s.watch.see(now, typ, c.why(), c)
	}
}

// census counts the nodes of each type, of a directory once. Only the goroutine of look calls it.
func (s *Server) census(d *mars.Directory) map[string]census {
	if d == s.censusOf && s.lastCensus != nil {
		return s.lastCensus
	}
	s.mu.Lock()
	s.lastCensus = make(map[string]census, len(s.types))
	for typ, t := range s.types {
		c := count(d.ByType(typ))
		if c.nodes == 0 {
			c.vanished, c.last = t.staying, t.until
		}
		s.lastCensus[typ] = c
	}
	s.mu.Unlock()
	s.censusOf = d
	s.watch.keep(s.lastCensus)
	return s.lastCensus
}

// see takes down how a door stands.
func (w *watch) see(now time.Time, typ, why string, c census) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.doors[typ]
	if d == nil {
		d = &door{at: now}
		w.doors[typ] = d
	}
	same, patience := sameCause, closedFor
	if typ == "" {
		same, patience = sameSide, unjoinedFor
	}
	if !same(d.why, why) {
		d.at = now
	}
	if d.why = why; now.Sub(d.at) < patience {
		return
	}
	if same(d.why, d.told) {
		if d.why == "" {
			d.refused = 0 // while it was closed too briefly for a line
		}
		return
	}
	if d.told == "" {
		d.toldAt = d.at
	}
	d.told = d.why
	if d.why == "" {
		w.overLocked(d, typ, d.at)
		return
	}
	e := w.log.Warn().Str("cause", d.why)
	if typ == "" {
		e.Msg("this node hands out no places")
		return
	}
	if c.vanished > 0 {
		e = e.Int("vanished", c.vanished).Str("ago", telemetry.Span(now.Sub(c.last)))
	}
	e.Str("type", typ).Int("nodes", c.nodes).Int("draining", c.draining).Int("taken", c.taken).Int("silent", c.silent).
		Int("refused", d.refused).Msg("no node takes players")
}

func sameCause(a, b string) bool { return a == b }

// sameSide is for this node, whose words for why it is closed vary with whom it asks in vain.
func sameSide(a, b string) bool { return (a == "") == (b == "") }

func (w *watch) overLocked(d *door, typ string, at time.Time) {
	e := w.log.Info().Int("refused", d.refused).Str("waited", telemetry.Span(at.Sub(d.toldAt)))
	d.refused = 0
	if typ == "" {
		e.Msg("this node hands out places again")
		return
	}
	e.Str("type", typ).Msg("nodes take players again")
}

// keep forgets the doors of types that are no more.
func (w *watch) keep(types map[string]census) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.doors) == len(types)+1 {
		return
	}
	for typ, d := range w.doors {
		if _, ok := types[typ]; typ != "" && !ok {
			if d.told != "" {
				w.log.Info().Str("type", typ).Int("refused", d.refused).Msg("type forgotten: no node of it came back")
			}
			delete(w.doors, typ)
		}
	}
}
