package mars

import (
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// answered applies the reply to a heartbeat or leave.
func (o *Observer) answered(now time.Time, in Answered, out *ObserverOutput) {
	if in.Try != o.try {
		return
	}
	a, ok := in.Message.(Ack)
	switch {
	case !ok:
		o.failed(now, ErrMessage.Error(), out)
		return
	case a.Epoch.Compare(o.epoch) < 0:
		text := "answer of an older authority, epoch " + a.Epoch.String()
		if a.Epoch.IsZero() {
			text = a.From.String() + " knows of no authority yet"
		}
		o.failed(now, text, out)
		return
	}
	switch a.Status {
	case StatusNotAuthority:
		o.redirect(now, a, out)
		return
	case StatusNoLease:
		o.failed(now, a.From.String()+" has the office but no lease", out)
		return
	case StatusStay:
		o.try, o.nextAt, o.failures, o.kept = 0, now.Add(stayRetry), 0, true
		o.revive(now, a, out)
		return
	}
	if !a.Live {
		o.failed(now, a.From.String()+" does not vouch for its answer", out)
		return
	}
	o.try, o.epoch, o.spoken = 0, a.Epoch, now
	if o.adopt(a.Council); !a.Council.IsZero() && a.Council.Compare(o.council) == 0 {
		o.learn(now, a.Around)
	}
	if a.HasShared {
		for _, v := range a.Shared {
			o.shared = o.shared.put(v)
		}
	}
	if a.Status == StatusOK {
		o.writes, o.carries = o.writes[min(o.carries, len(o.writes)):], 0
	}
	if a.Interval > 0 && a.TTL > 0 {
		o.interval, o.ttl = a.Interval, a.TTL
	}
	if o.leaving && a.Status == StatusOK && o.trySeq == 0 {
		o.left = true
		out.event(Event{Kind: Gone, Node: a.From})
		return
	}
	switch a.Status {
	case StatusOK:
		o.accepted(now, a, out)
	case StatusRegister:
		o.strange(now, a, out)
	case StatusGone:
		o.evicted(now, a, out)
	case StatusRefused:
		o.refused(now, a, out)
	}
}

// accepted applies the ack of a heartbeat that the authority took.
func (o *Observer) accepted(now time.Time, a Ack, out *ObserverOutput) {
	o.failures, o.redirects, o.lastError = 0, 0, ""
	o.nextAt = now.Add(o.jitter(o.interval))
	if o.registered.IsZero() {
		kind := Joined
		if o.everJoined {
			kind = Rejoined
		}
		o.everJoined = true
		out.event(Event{Kind: kind, Node: a.From, Incarnation: o.self.Incarnation, Epoch: a.Epoch, Silence: now.Sub(o.lastLive)})
	}
	o.registered, o.vouched = a.Epoch, o.sentAt
	o.revive(now, a, out)
	switch o.dir.apply(now, a) {
	case more:
		o.nextAt = now
	case mismatch:
		out.event(Event{Kind: DirectoryRefetched, Node: a.From, Epoch: a.Epoch})
		o.nextAt = now.Add(o.jitter(retryMin))
	}
}

func (o *Observer) revive(now time.Time, a Ack, out *ObserverOutput) {
	if !o.live {
		if o.dir.authority != "" {
			out.event(Event{Kind: AuthorityBack, Node: a.From, Silence: now.Sub(o.lastLive), Epoch: a.Epoch})
		}
		o.live, o.dir.dirty = true, true
	}
	o.lastLive = now
}

// strange means the authority does not know this incarnation. From the one that
// had registered it, this is an eviction too old to be remembered; another has
// to be told who we are, spread out, for everybody else is a stranger as well.
func (o *Observer) strange(now time.Time, a Ack, out *ObserverOutput) {
	o.failures = 0
	if o.registered == a.Epoch {
		o.evicted(now, a, out)
		return
	}
	o.registered = Epoch{}
	o.nextAt = now
	if o.everJoined {
		o.nextAt = now.Add(o.spread())
	}
	if o.leaving {
		o.dirty = true
	}
}

func sameFounding(a, b Epoch) bool { return a.Generation == b.Generation && a.Founder == b.Founder }

// spread is a random wait before registering again.
func (o *Observer) spread() time.Duration {
	return time.Duration(o.cfg.Rand() * float64(o.spreadFor()))
}

// evicted means this incarnation never returns: the node goes on as the next one.
func (o *Observer) evicted(now time.Time, a Ack, out *ObserverOutput) {
	if o.leaving {
		o.left = true
		return
	}
	o.failures = 0
	o.registered = Epoch{}
	o.self.Incarnation = next(o.self.Incarnation)
	o.self.Started = max(o.self.Started+1, now.UnixMilli())
	o.seq = 0
	o.nextAt = now.Add(o.spread())
	out.event(Event{Kind: Evicted, Node: a.From, Incarnation: o.self.Incarnation, Epoch: a.Epoch})
}

// next counts the incarnation up: 128 random bits leave room between any two.
func next(i id.Incarnation) id.Incarnation {
	for k := len(i) - 1; k >= 0; k-- {
		i[k]++
		if i[k] != 0 {
			break
		}
	}
	return i
}

func (o *Observer) refused(now time.Time, a Ack, out *ObserverOutput) {
	if o.lastError != a.Reason {
		out.event(Event{Kind: Refused, Node: a.From, Text: a.Reason})
	}
	o.lastError = a.Reason
	o.registered = Epoch{}
	o.failures++
	o.nextAt = now.Add(o.jitter(refusedRetry))
}

// redirect asks whom the answering node named, or the next address.
func (o *Observer) redirect(now time.Time, a Ack, out *ObserverOutput) {
	text := a.From.String() + " is not the authority"
	if a.Authority == "" || a.Authority == o.tryTo || a.Authority == o.self.Node || o.redirects > 0 {
		o.redirects = 0
		o.failed(now, text, out)
		return
	}
	o.try = 0
	o.redirects++ // so that two nodes that name each other do not spin
	o.lastError = text
	o.values = o.values || o.carried
	o.aim(a.Authority)
	o.nextAt = now
}

// failed schedules the next try, at the next address.
func (o *Observer) failed(now time.Time, text string, out *ObserverOutput) {
	o.try, o.kept = 0, false
	o.failures++
	o.lastError = text
	o.values = o.values || o.carried // they may not have arrived
	if o.tryTo != o.to() && len(o.targets) > 0 {
		o.nextAt = now // we turned to another one meanwhile
		return
	}
	if o.target++; o.target >= len(o.targets) {
		o.aim("") // whom to ask may have changed
	}
	wait := min(retryMin*time.Duration(min(max(o.failures-2, 1), 8)), retryMax)
	if o.leaving {
		wait = retryMin
	}
	o.nextAt = now.Add(wait + time.Duration(o.cfg.Rand()*float64(wait)/2))
	out.Resolve = true
}

// jitter spreads d by ±10 %.
func (o *Observer) jitter(d time.Duration) time.Duration {
	return d + time.Duration((o.cfg.Rand()-0.5)*0.2*float64(d))
}
