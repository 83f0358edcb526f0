package mars

import (
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// gravesMax is how many ended incarnations a node remembers; they count for goneTTL.
const gravesMax = 4096

// graves remembers which incarnations have ended, so that an authority that does
// not know yet can't bring one back.
type graves struct {
	at    map[id.Incarnation]time.Time
	order []id.Incarnation // oldest first
}

func (g *graves) add(now time.Time, inc id.Incarnation) {
	if g.at == nil {
		g.at = make(map[id.Incarnation]time.Time)
	}
	if _, again := g.at[inc]; again {
		return
	}
	g.at[inc] = now
	g.order = append(g.order, inc)
	for len(g.order) > gravesMax || now.Sub(g.at[g.order[0]]) > goneTTL {
		delete(g.at, g.order[0])
		g.order = g.order[1:]
	}
}

func (g *graves) has(now time.Time, inc id.Incarnation) bool {
	at, ok := g.at[inc]
	return ok && now.Sub(at) <= goneTTL
}
