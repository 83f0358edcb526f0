package users

import (
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/telemetry"
	"github.com/Diarkis/diarkis/internal/users/exchange"
)

// clockCheck is how often the wall clocks of the nodes are compared.
const clockCheck = 10 * time.Second

// clockWatch logs whose wall clock is wrong, as far as can be known: a line when that
// begins and one when it is over.
type clockWatch struct {
	walls   *exchange.Walls
	log     zerolog.Logger
	self    id.Node
	checked time.Time
	off     map[id.Node]bool // nodes that a line named, and that are still off
	differ  bool             // a line said that clocks differ, and they still do
}

func newClockWatch(self id.Node, now, wall time.Time, log zerolog.Logger) clockWatch {
	return clockWatch{walls: exchange.NewWalls(self, now, wall), log: log, self: self, checked: now, off: make(map[id.Node]bool)}
}

func (w *clockWatch) hear(a answer) {
	if a.wall != 0 {
		w.walls.Hear(a.at, a.To, a.wall)
	}
}

// judge compares the clocks when it is time to.
func (w *clockWatch) judge(now, wall time.Time) {
	if now.Sub(w.checked) < clockCheck {
		return
	}
	w.checked = now
	off, agreed := w.walls.Judge(now, wall)
	if !agreed {
		if len(off) > 0 && !w.differ {
			direction(w.log.Warn(), off[0].Ahead).Stringer("peer", off[0].Node).Int("peers", len(off)).
				Msg("wall clocks of nodes differed, and no majority agreed on the time")
		}
		w.differ = len(off) > 0
		return
	}
	w.differ = false
	still := make(map[id.Node]bool)
	for _, c := range off {
		still[c.Node] = true
		switch {
		case w.off[c.Node]:
		case c.Node == w.self:
			direction(w.log.Warn(), c.Ahead).Msg("wall clock of this node differed from that of most nodes")
		default:
			direction(w.log.Warn(), c.Ahead).Stringer("peer", c.Node).Msg("wall clock of another node differed from that of most nodes")
		}
	}
	for n := range w.off {
		if !still[n] {
			w.log.Info().Stringer("peer", n).Msg("wall clock agreed with most nodes again, or the node has gone")
		}
	}
	w.off = still
}

func direction(e *zerolog.Event, ahead time.Duration) *zerolog.Event {
	if ahead < 0 {
		return e.Str("behind", telemetry.Span(-ahead))
	}
	return e.Str("ahead", telemetry.Span(ahead))
}
