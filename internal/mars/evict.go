package mars

import (
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// remove takes a member out of the registry for good.
func (r *Registry) remove(now time.Time, rec *record, why Reason, out *RegistryOutput) {
	delete(r.byNode, rec.Node)
	rec.space.drop(rec)
	rec.space.removed(Removal{Node: rec.Node, Incarnation: rec.Incarnation, Reason: why})
	r.bury(now, rec.Incarnation)
	if why == Expired {
		if r.lost = append(r.lost, rec.Node); len(r.lost) > lostMax {
			r.lost = r.lost[1:]
		}
	}
	kind := map[Reason]Kind{Left: MemberLeft, Expired: MemberExpired, Replaced: MemberReplaced}[why]
	silence := r.silence(now, rec)
	if why == Replaced && rec.last.IsZero() {
		silence = 0 // it may have ended before we began to listen
	}
	out.member(kind, rec, silence)
}

// silence is for how long nothing was heard of a member, be it that nobody was heard.
func (r *Registry) silence(now time.Time, rec *record) time.Duration {
	if rec.last.IsZero() {
		return now.Sub(r.started)
	}
	return now.Sub(rec.last)
}

// bury remembers that an incarnation must not return.
func (r *Registry) bury(now time.Time, inc id.Incarnation) {
	if _, again := r.gone[inc]; again {
		return
	}
	r.gone[inc] = now
	r.goneOrder = append(r.goneOrder, inc)
	if len(r.goneOrder) > goneMax {
		delete(r.gone, r.goneOrder[0])
		r.goneOrder = r.goneOrder[1:]
	}
}

func (r *Registry) forget(now time.Time) {
	for len(r.goneOrder) > 0 && now.Sub(r.gone[r.goneOrder[0]]) > goneTTL {
		delete(r.gone, r.goneOrder[0])
		r.goneOrder = r.goneOrder[1:]
	}
}

// partingMax is the silence after which who had said goodbye has ended: until it may go
// it repeats itself every stayRetry, or once a request has failed within 1.6 s.
const partingMax = 3 * time.Second

// part lets go who said goodbye and did not wait until the council could do without it.
func (r *Registry) part(now time.Time, out *RegistryOutput) {
	var ended []*record
	for rec := range r.all() {
		if rec.parting && now.Sub(rec.heard) >= partingMax {
			ended = append(ended, rec)
		}
	}
	for _, rec := range ended {
		r.remove(now, rec, Left, out)
	}
}

// expire evicts who was silent for its TTL. When many fall silent together it
// is more likely the network: they are hidden at once and evicted after 3 TTL.
func (r *Registry) expire(now time.Time, out *RegistryOutput) {
	window := TTL(r.interval())
	r.expired = slices.DeleteFunc(r.expired, func(at time.Time) bool { return now.Sub(at) > window })
	type silence struct {
		rec   *record
		lasts time.Duration
	}
	var silent []silence
	r.part(now, out)
	before := len(r.byNode) + len(r.expired) // members at the start of the window
	for _, ns := range r.order {
		for _, rec := range r.spaces[ns].records {
			if d := now.Sub(rec.heard); d >= rec.ttl {
				silent = append(silent, silence{rec, d})
				if rec.silent {
					before-- // counted as a member and as expired
				} else {
					r.expired = append(r.expired, now)
				}
			} else if rec.Hidden {
				r.rehide(now, rec) // a suspicion may have run out
			}
		}
	}
	mass := len(r.expired) >= massMin && float64(len(r.expired)) > massShare*float64(before)
	if mass != r.guard {
		r.guard = mass
		out.event(Event{Kind: map[bool]Kind{true: GuardOn, false: GuardOff}[mass], Count: len(r.expired)})
	}
	for _, s := range silent {
		switch {
		case s.lasts >= 3*s.rec.ttl, !mass && !s.rec.silent:
			r.remove(now, s.rec, Expired, out)
		case !s.rec.silent:
			s.rec.silent = true
			r.rehide(now, s.rec)
			out.member(MemberSilent, s.rec, r.silence(now, s.rec))
		}
	}
}
