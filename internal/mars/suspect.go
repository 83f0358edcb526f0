package mars

import (
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// suspect tells whether two peers on different hosts reported rec lately.
func (rec *record) suspect(now time.Time) bool {
	repeated := rec.ttl / 3 // more than a heartbeat: a peer repeats itself while a report counts
	hosts := make(map[string]bool)
	for n, at := range rec.suspected {
		if now.Sub(at) >= repeated {
			delete(rec.suspected, n)
			continue
		}
		hosts[host(n)] = true
	}
	return len(hosts) >= 2
}

func host(n id.Node) string {
	a, err := n.AddrPort()
	if err != nil {
		return string(n)
	}
	return a.Addr().String()
}

// suspect notes which members the peer by can't reach. A peer that fails to
// reach more than a fifth of its namespace is likely the one with the problem.
func (r *Registry) suspect(now time.Time, by *record, suspects []id.Node) {
	if len(suspects) > max(1, len(by.space.records)/5) {
		return
	}
	for _, n := range suspects {
		rec := r.byNode[n]
		if rec == nil || rec == by || rec.space != by.space {
			continue
		}
		rec.suspected[by.Node] = now
		r.rehide(now, rec)
	}
}

func (r *Registry) rehide(now time.Time, rec *record) {
	e := rec.Entry
	e.Hidden = rec.hidden(now)
	rec.space.change(rec, e)
}
