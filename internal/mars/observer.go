package mars

import (
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// How an observer paces itself.
const (
	// RequestTimeout is how long one heartbeat may take, dialing included.
	RequestTimeout = time.Second
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
	cfg        ObserverConfig
	self       Instance
	status     Dynamic
	seq        uint64
	epoch      Epoch // highest seen
	registered Epoch // where this incarnation was last acknowledged; zero while it is not
	everJoined bool
	dir        view

	targets  []id.Node
	target   int
	try      uint64    // of the request under way, zero while there is none
	trySeq   uint64    // its heartbeat's seq, zero for a leave
	lastTry  uint64    // the newest ever
	nextAt   time.Time // of the next heartbeat
	sentAt   time.Time
	dirty    bool      // something to push as soon as possible
	pushAt   time.Time // when to push load and values, zero while there is nothing to push
	values   bool      // changed since the last heartbeat that carried them
	carried  bool      // the request under way carries values
	interval time.Duration
	ttl      time.Duration
	suspects map[id.Node]time.Time

	lastLive   time.Time // of the last live ack, or of the start
	live       bool
	failures   int // in a row
	lastError  string
	complainAt time.Time
	leaving    bool
	left       bool
}

// NewObserver returns an observer that registers as soon as it knows whom to ask.
func NewObserver(now time.Time, cfg ObserverConfig) *Observer {
	if cfg.State == 0 {
		cfg.State = Online
	}
	return &Observer{
		cfg: cfg, self: cfg.Self, status: Dynamic{Endpoint: cfg.Endpoint, State: cfg.State},
		interval: HeartbeatMin, ttl: TTLMin, suspects: make(map[id.Node]time.Time),
		lastLive: now, nextAt: now, complainAt: now.Add(complainEvery),
	}
}

// ObserverInput is one of [Tick], [Targets], [Answered], [Failed], [SetState],
// [SetEndpoint], [SetLoad], [SetValues], [Suspect] and [Go].
type ObserverInput interface{ observerInput() }

type (
	// Tick lets time pass.
	Tick struct{}
	// Targets are the addresses at which to ask for the authority, or why there are none.
	Targets struct {
		Nodes []id.Node
		Text  string
	}
	// Answered is the reply to the [Send] with that Try.
	Answered struct {
		Try     uint64
		Message Message
	}
	// Failed means that the [Send] with that Try brought no reply.
	Failed struct {
		Try  uint64
		Text string
	}
	// SetState changes what this node says of itself, and tells the authority at once.
	SetState struct{ State State }
	// SetEndpoint does too.
	SetEndpoint struct{ Endpoint string }
	// SetLoad does too, but not more often than ten times a second.
	SetLoad struct {
		Users int
		Load  float64
	}
	// SetValues replaces the node values, encoded by [EncodeValues].
	SetValues struct{ Values []byte }
	// Suspect reports that the mesh link to a member failed.
	Suspect struct{ Node id.Node }
	// Go leaves the cluster for good.
	Go struct{}
)

func (Tick) observerInput()        {}
func (Targets) observerInput()     {}
func (Answered) observerInput()    {}
func (Failed) observerInput()      {}
func (SetState) observerInput()    {}
func (SetEndpoint) observerInput() {}
func (SetLoad) observerInput()     {}
func (SetValues) observerInput()   {}
func (Suspect) observerInput()     {}
func (Go) observerInput()          {}

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
func (o *Observer) Step(now time.Time, in ObserverInput) (out ObserverOutput) {
	switch in := in.(type) {
	case Targets:
		o.setTargets(now, in)
	case Answered:
		o.answered(now, in, &out)
	case Failed:
		if in.Try == o.try {
			o.failed(now, in.Text, &out)
		}
	case Go:
		o.leaving, o.dirty, o.nextAt = true, true, now
	default:
		o.set(now, in)
	}
	o.giveUp()
	o.grieve(now, &out)
	o.send(now, &out)
	o.dir.publish(o, &out)
	o.wake(now, &out)
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
	current := o.to()
	o.targets, o.target = append([]id.Node(nil), nodes...), 0
	for i, n := range nodes {
		if n == current {
			o.target = i
		}
	}
	if current == "" {
		o.nextAt = now
	}
}

func (o *Observer) to() id.Node {
	if len(o.targets) == 0 {
		return ""
	}
	return o.targets[o.target%len(o.targets)]
}

// set applies what the node says of itself.
func (o *Observer) set(now time.Time, in ObserverInput) {
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

func (o *Observer) staleAt() time.Time { return o.lastLive.Add(o.interval*11/10 + staleExtra) }

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
	o.try, o.trySeq, o.sentAt = o.lastTry, 0, now
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
	m := Heartbeat{Header: h, Seq: o.seq, Have: o.dir.have(o.epoch), Status: o.status, Suspects: o.suspected(now)}
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

// wake says until when nothing happens by itself.
func (o *Observer) wake(now time.Time, out *ObserverOutput) {
	if o.left {
		return
	}
	out.WakeAt = o.complainAt
	if o.live {
		out.WakeAt = o.staleAt().Add(1)
	}
	if o.try == 0 && len(o.targets) > 0 {
		if o.nextAt.Before(out.WakeAt) {
			out.WakeAt = o.nextAt
		}
		if o.failures == 0 && !o.pushAt.IsZero() && o.pushAt.Before(out.WakeAt) {
			out.WakeAt = o.pushAt
		}
	}
	if out.WakeAt.Before(now) {
		out.WakeAt = now
	}
}

func (o *ObserverOutput) event(e Event) { o.Events = append(o.Events, e) }
