package mars

import (
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// How an observer paces itself.
const (
	// RequestTimeout is how long one heartbeat may take, dialing included.
	RequestTimeout = time.Second
	stayRetry      = 100 * time.Millisecond // a voter's leave, until the council can do without
	retrySoon      = 50 * time.Millisecond  // once, after the first failure
	retryMin       = 400 * time.Millisecond // after a failure, plus up to half
	retryMax       = 2 * time.Second        // once the authority is silent for long
	refusedRetry   = 2 * time.Second
	pushGap        = 100 * time.Millisecond // between pushes of load and values
	staleExtra     = 2 * time.Second        // beyond one interval without a live ack
	complainEvery  = 10 * time.Second
	spreadMin      = 300 * time.Millisecond // over which members register again
)

// ObserverConfig says which node the observer is.
type ObserverConfig struct {
	Self     Instance
	Endpoint string
	State    State // zero means Online
	// Rand returns numbers in [0, 1): it spreads heartbeats over time.
	Rand func() float64
}

// Observer is every node's side: it keeps this node registered and the directory
// up to date.
type Observer struct {
	cfg         ObserverConfig
	self        Instance
	status      Dynamic
	seq         uint64
	epoch       Epoch   // highest seen
	council     Council // newest held
	shared      sharedData
	writes      []Shared  // on their way into shared
	around      Around    // as the authority said
	transferred time.Time // when the office was last handed over, as far as we know
	gone        graves
	registered  Epoch // where this incarnation was last acknowledged; zero while it is not
	everJoined  bool
	dir         view

	homes    []id.Node // addresses at which the authority may be, as looked up
	targets  []id.Node // whom to ask, in turn
	target   int
	try      uint64    // of the request under way, zero while there is none
	tryTo    id.Node   // whom it asks
	trySeq   uint64    // its heartbeat's seq, zero for a leave
	lastTry  uint64    // the newest ever
	nextAt   time.Time // of the next heartbeat
	sentAt   time.Time
	dirty    bool      // something to push as soon as possible
	pushAt   time.Time // when to push load and values, zero while there is nothing to push
	values   bool      // changed since the last heartbeat that carried them
	carried  bool      // the request under way carries values
	carries  int       // how many of writes it carries
	interval time.Duration
	ttl      time.Duration
	suspects map[id.Node]time.Time

	lastLive   time.Time // of the last live ack, or of the start
	vouched    time.Time // when the last heartbeat left that was taken
	spoken     time.Time // when a live authority last said anything, a refusal too
	live       bool
	failures   int // in a row
	redirects  int // in a row
	lastError  string
	complainAt time.Time
	leaving    bool
	kept       bool // the authority still needs our vote, as it last said
	left       bool
}

// NewObserver returns an observer that registers as soon as it knows whom to ask.
func NewObserver(now time.Time, cfg ObserverConfig) *Observer {
	if cfg.State == 0 {
		cfg.State = Online
	}
	o := &Observer{
		cfg: cfg, self: cfg.Self, status: Dynamic{Endpoint: cfg.Endpoint, State: cfg.State},
		interval: HeartbeatMin, ttl: TTLMin, suspects: make(map[id.Node]time.Time),
		lastLive: now, nextAt: now, complainAt: now.Add(complainEvery),
	}
	o.dir.gone = &o.gone
	return o
}

// Send is a request to make. Its outcome comes back as [Answered] or [Failed].
type Send struct {
	To      id.Node
	Try     uint64
	Message Message
	Timeout time.Duration
}

// ObserverOutput is what the caller does before the next Step, in field order.
type ObserverOutput struct {
	Events    []Event    // what changed, oldest first
	Directory *Directory // the new picture, nil when it is still the last one
	Send      *Send      // a request to start, nil for none; one is under way at a time
	Resolve   bool       // look the addresses up again and step Targets
	WakeAt    time.Time  // step a Tick by then; zero when there is nothing to wait for
}

// Step tells the observer what happened at now and returns what to do about it.
func (o *Observer) Step(now time.Time, in Input) (out ObserverOutput) {
	switch in := in.(type) {
	case Targets:
		o.setTargets(now, in)
	case Answered:
		o.answered(now, in, &out)
	case Failed:
		if in.Try == o.try {
			again := o.live && o.failures == 0 && o.tryTo == o.to() // most likely one message got lost
			o.failed(now, in.Text, &out)
			if again {
				o.aim(o.tryTo)
				o.nextAt = now.Add(retrySoon)
			}
		}
	case Go:
		o.leaving, o.dirty, o.nextAt = true, true, now
	default:
		o.set(now, in)
	}
	o.giveUp()
	o.grieve(now, &out)
	o.send(now, &out)
	o.dir.publish(now, o, &out)
	out.WakeAt = o.wakeAt(now)
	return out
}

// Joined tells whether this node ever registered, and in one line how it stands.
func (o *Observer) Joined() (bool, string) {
	switch {
	case o.left:
		return false, "left the cluster"
	case !o.everJoined && o.lastError != "":
		return false, "not joined: " + o.lastError
	case !o.everJoined:
		return false, "not joined: no answer from mars yet"
	case !o.live:
		return true, "joined, directory kept, mars is silent: " + o.lastError
	}
	return true, "joined"
}

// Epoch returns the highest epoch seen.
func (o *Observer) Epoch() Epoch { return o.epoch }

// Self returns what this node last said of itself.
func (o *Observer) Self() Member {
	v, _ := DecodeValues(o.status.Values)
	return Member{
		Instance: o.self, Endpoint: o.status.Endpoint, State: o.status.State,
		Users: o.status.Users, Load: o.status.Load, Values: v, Seq: o.seq,
	}
}

// Kept tells whether this node said goodbye and was asked, by the last answer it got, to
// stay until the council can do without its vote.
func (o *Observer) Kept() bool { return o.kept && !o.left }

// Left tells whether the authority acknowledged that this node left.
func (o *Observer) Left() bool { return o.left }

// setTargets keeps the old targets when there are no new ones: a resolver that
// is away with the authority must not make things worse.
func (o *Observer) setTargets(now time.Time, in Targets) {
	nodes := in.Nodes
	if len(nodes) == 0 {
		if len(o.targets) == 0 {
			o.lastError = in.Text
		}
		return
	}
	o.homes = slices.Clone(nodes)
	if o.aim(o.to()); o.try == 0 && o.failures == 0 && o.registered.IsZero() {
		o.nextAt = now
	}
}

// aim lists whom to ask for the authority: first, when it is not empty, then its
// voters, where it was looked up, and one more member by chance.
func (o *Observer) aim(first id.Node) {
	o.targets, o.target = o.targets[:0], 0
	add := func(n id.Node) {
		if n != "" && !slices.Contains(o.targets, n) {
			o.targets = append(o.targets, n)
		}
	}
	add(first)
	for _, s := range o.council.Seats {
		if s.Node != o.self.Node {
			add(s.Node)
		}
	}
	for _, n := range o.homes {
		add(n)
	}
	if n := len(o.dir.prev); n > 0 {
		if p := o.dir.prev[min(int(o.cfg.Rand()*float64(n)), n-1)].Node; p != o.self.Node {
			add(p)
		}
	}
}

// follow asks a node next, in a while of up to spread.
func (o *Observer) follow(now time.Time, n id.Node, spread time.Duration) {
	if n == "" || n == o.to() && o.live && o.failures == 0 {
		return
	}
	o.aim(n)
	o.failures = 0
	o.nextAt = now.Add(time.Duration(o.cfg.Rand() * float64(spread)))
}

// learn keeps what the authority says for its successor.
func (o *Observer) learn(now time.Time, a Around) {
	o.around = a
	ago := time.Duration(min(a.Transferred, 1<<40)) * time.Millisecond
	if at := now.Add(-ago); ago > 0 && at.After(o.transferred) {
		o.transferred = at
	}
}

// adopt makes a later council the one held. It returns whether it was one.
func (o *Observer) adopt(c Council) bool {
	if c.IsZero() || c.Compare(o.council) <= 0 {
		return false
	}
	o.council = c
	return true
}

func (o *Observer) to() id.Node {
	if len(o.targets) == 0 {
		return ""
	}
	return o.targets[o.target%len(o.targets)]
}

// set applies what the node says of itself.
func (o *Observer) set(now time.Time, in Input) {
	switch in := in.(type) {
	case SetState:
		o.dirty = o.dirty || in.State != o.status.State
		o.status.State = in.State
	case SetEndpoint:
		o.dirty = o.dirty || in.Endpoint != o.status.Endpoint
		o.status.Endpoint = in.Endpoint
	case SetLoad:
		if in.Users == o.status.Users && in.Load == o.status.Load {
			return
		}
		o.status.Users, o.status.Load = in.Users, in.Load
		o.pushAt = o.sentAt.Add(pushGap)
	case SetShared:
		o.writes = slices.DeleteFunc(slices.Clone(o.writes), func(v Shared) bool { return v.Key == in.Key })
		if len(o.writes) < SharedMax {
			o.writes, o.carries = append(o.writes, Shared{Key: in.Key, Value: in.Value}), 0
		}
		o.pushAt = o.sentAt.Add(pushGap)
	case SetValues:
		if string(in.Values) == string(o.status.Values) {
			return
		}
		o.status.Values, o.values = in.Values, true
		o.pushAt = o.sentAt.Add(pushGap)
	case Suspect:
		_, member := o.dir.lookup(in.Node)
		_, known := o.suspects[in.Node]
		if member && in.Node != o.self.Node && (known || len(o.suspects) < SuspectsMax) {
			o.suspects[in.Node] = now
			o.dirty = o.dirty || !known
		}
	}
}

// giveUp ends the leave of a node that nobody let in: nobody has to know.
func (o *Observer) giveUp() {
	if o.leaving && !o.everJoined && o.try == 0 {
		o.left = true
	}
}

// grieve notices an authority that has been silent for too long.
func (o *Observer) grieve(now time.Time, out *ObserverOutput) {
	if o.left {
		return
	}
	silence := now.Sub(o.lastLive)
	if o.live && now.After(o.staleAt()) {
		o.live, o.dir.dirty = false, true
		o.complainAt = now.Add(complainEvery)
		out.event(Event{Kind: AuthorityLost, Node: o.to(), Silence: silence, Text: o.lastError})
	}
	if !o.live && !now.Before(o.complainAt) {
		o.complainAt = now.Add(complainEvery)
		out.event(Event{Kind: AuthoritySilent, Node: o.to(), Silence: silence, Text: o.lastError})
	}
}

func (o *Observer) staleAt() time.Time { return o.lastLive.Add(o.staleAfter()) }

// staleAfter is for how long an answer vouches for the directory.
func (o *Observer) staleAfter() time.Duration { return o.interval*11/10 + staleExtra }

// send starts the next request when it is due and none is under way.
func (o *Observer) send(now time.Time, out *ObserverOutput) {
	if o.try != 0 || o.left || len(o.targets) == 0 {
		return
	}
	push := o.dirty || !o.pushAt.IsZero() && !now.Before(o.pushAt)
	if now.Before(o.nextAt) && !(push && o.failures == 0) {
		return
	}
	o.lastTry++
	o.try, o.tryTo, o.trySeq, o.sentAt = o.lastTry, o.to(), 0, now
	o.dirty, o.pushAt = false, time.Time{}
	h := Header{Epoch: o.epoch, From: o.self.Node, Incarnation: o.self.Incarnation}
	var m Message
	if o.leaving {
		m = Leave{Header: h, Namespace: o.self.Namespace()}
	} else {
		m = o.heartbeat(now, h)
	}
	out.Send = &Send{To: o.to(), Try: o.try, Message: m, Timeout: RequestTimeout}
}

func (o *Observer) heartbeat(now time.Time, h Header) Heartbeat {
	o.seq++
	o.trySeq = o.seq
	m := Heartbeat{
		Header: h, Seq: o.seq, Have: o.dir.have(o.epoch), Whole: o.dir.whole,
		Status: o.status, Suspects: o.suspected(now), Ghosts: o.dir.ghosts(now),
		CouncilMark: o.council.mark(o.around), SharedMark: o.shared.digest(), Shared: o.writes,
	}
	if o.carries = len(o.writes); m.Have == 0 && !m.Whole && o.dir.loading == nil && len(o.dir.members) > 0 {
		m.Held = o.dir.digest
		if o.dir.ask {
			m.Parts = o.dir.parts()
		}
	}
	register := o.registered.IsZero()
	m.Status.HasValues = o.values || register
	o.values, o.carried = false, m.Status.HasValues
	if !o.carried {
		m.Status.Values = nil
	}
	if register {
		self := o.self
		m.Register = &self
	}
	return m
}

func (o *Observer) suspected(now time.Time) []id.Node {
	var ns []id.Node
	for n, at := range o.suspects {
		if now.Sub(at) >= SuspicionMax {
			delete(o.suspects, n)
			continue
		}
		ns = append(ns, n)
	}
	return sorted(ns)
}

// wakeAt says until when nothing happens by itself; the zero time means ever.
func (o *Observer) wakeAt(now time.Time) time.Time {
	if o.left {
		return time.Time{}
	}
	at := o.complainAt
	if o.live {
		at = o.staleAt().Add(1)
	}
	if o.try == 0 && len(o.targets) > 0 {
		if o.nextAt.Before(at) {
			at = o.nextAt
		}
		if o.failures == 0 && !o.pushAt.IsZero() && o.pushAt.Before(at) {
			at = o.pushAt
		}
	}
	if at.Before(now) {
		return now
	}
	return at
}

// spreadFor is over how long members turn to a new authority, longer in a larger
// cluster so that it takes about a thousand registrations a second.
func (o *Observer) spreadFor() time.Duration {
	return max(time.Duration(o.dir.size())*time.Millisecond, spreadMin)
}

func (o *ObserverOutput) event(e Event) { o.Events = append(o.Events, e) }
