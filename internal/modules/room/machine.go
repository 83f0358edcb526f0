package room

import (
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
)

// The commands and pushes of a room, all in version [Ver].
const (
	Ver = 1

	CmdIncr         = 10
	CmdMemberIDs    = 11
	CmdMemberCount  = 13
	CmdOwnerChange  = 14
	CmdCreate       = 100
	CmdJoin         = 101
	CmdLeave        = 102
	CmdBroadcast    = 103
	CmdMessage      = 104
	CmdRandomCreate = 105
	CmdRandomJoin   = 106
	CmdSet          = 107
	CmdGet          = 108
	CmdOwnerID      = 109
	CmdReserve      = 117
	CmdCancel       = 118
)

// Settings are fixed when a room is made.
type Settings struct {
	MembersMax int           // 2 to 1000
	AllowEmpty bool          // the room outlives its last member by EmptyTTL, else it ends with them
	EmptyTTL   time.Duration // 10 s and more
	Interval   time.Duration // broadcasts are merged over this long; below 100 ms nothing is merged
	Random     bool          // random joins may find it
	// ReserveOwnerOnly keeps everyone but the owner from reserving seats. So does Random:
	// whom chance led there may not keep others out.
	ReserveOwnerOnly bool
}

// The limits of [Settings].
const (
	MembersMin  = 2
	MembersMax  = 1000
	EmptyTTLMin = 10 * time.Second
	IntervalMin = 100 * time.Millisecond // shorter intervals merge nothing
	IntervalMax = 60 * time.Second
)

func (s Settings) validate() error {
	switch {
	case s.MembersMax < MembersMin || s.MembersMax > MembersMax:
		return invalid("a room has 2 to 1000 members")
	case s.EmptyTTL < EmptyTTLMin:
		return invalid("a room's ttl is at least 10 s")
	case s.Interval < 0 || s.Interval > IntervalMax:
		return invalid("a room's broadcast interval is at most 60 s")
	}
	return nil
}

// Op says what an [Input] asks for.
type Op uint8

// The operations, with the fields of Input each one reads.
const (
	OpTick      Op = iota // nothing but time passed
	OpJoin                // User, Link, Message
	OpLeave               // User, Link (zero: whoever it is), Message; Lost instead of Message for an unexpected disconnect
	OpKick                // User, Link, Message: OpLeave, but not by the one who leaves
	OpDelete              // Message
	OpBroadcast           // User, Message, Rel
	OpMessage             // User, To, Message, Rel
	OpOwner               // User (empty: the server) makes To[0] the owner
	OpSet                 // User (empty: the server), Props
	OpIncr                // User (empty: the server), Key, Delta
	OpReserve             // User (empty: the server), To
	OpCancel              // User (empty: the server), To
	OpHold                // User, Until
	OpUnhold              // User
	OpEvict               // ends the room if nobody is in it or on the way, else ErrIn
	OpDiscard             // User, Message: what OpLeave with Lost pushes for this member
)

// Input is one thing that happens to a room. It is a flat struct, not an
// interface, because a broadcast must not cost an allocation. Slices are lent
// to Step.
type Input[L comparable] struct {
	// By is whose client caused this, zero for the server's own code. Step does not read it.
	By      L
	Op      Op
	Rel     reliable.Reliability
	Lost    bool
	User    id.UID
	Link    L
	To      []id.UID
	Message []byte
	Props   []Property
	Key     string
	Delta   int64
	Until   time.Time
}

// Push is one payload for some members, in room order.
type Push[L comparable] struct {
	Cmd     uint16
	Rel     reliable.Reliability
	Payload []byte // lent until the next Step with the same Output
	To      []L    // lent likewise
}

// Output is what the caller does before the next Step, in field order. Pass the
// same one to every Step of a room: its memory is reused.
type Output[L comparable] struct {
	Err    error     // the input was refused and changed nothing; Pushes may hold merged broadcasts that were due
	Value  int64     // OpIncr: the sum
	Pushes []Push[L] // in order; of OpJoin, after the answer to the one who joins
	Left   []L       // members who are out now
	Unheld []id.UID  // users for whom no seat is held any more, joined or not
	// Deliveries is what this input makes others receive, at once or merged later: the
	// datagrams of pushes times receivers, without merged ones of earlier inputs.
	Deliveries int
	// OwnerChanged is set when the owner is another one than before.
	OwnerChanged       bool
	OwnerOld, OwnerNew id.UID
	Closed             bool      // the room has ended; every later Step is refused
	WakeAt             time.Time // Step an OpTick by then; zero means never

	bytes []byte // behind Payload
	links []L    // behind To
}

func (o *Output[L]) reset() {
	clear(o.Pushes)
	clear(o.Left)
	clear(o.links)
	clear(o.Unheld)
	*o = Output[L]{Pushes: o.Pushes[:0], Left: o.Left[:0], Unheld: o.Unheld[:0], bytes: o.bytes[:0], links: o.links[:0]}
}

// size is how much memory the output holds on to, about, in bytes.
func (o *Output[L]) size() int { return cap(o.bytes) + 8*cap(o.links) }

// Member is one user in a room. Link is whatever the caller sends through.
type Member[L comparable] struct {
	User    id.UID
	Link    L
	discard []byte // pushed when the connection is lost; nil means the default
}

// Machine is the state of one room. It is plain state: no clock, no lock, no
// goroutine; the caller serializes Step and the getters.
type Machine[L comparable] struct {
	id       id.Room
	settings Settings
	created  time.Time
	present  func(L) bool // nil: everybody is
	closed   bool
	closeAt  time.Time // an empty room ends then

	owner    id.UID               // a member, or empty when nobody is in
	members  []Member[L]          // longest present first
	reserved map[id.UID]id.UID    // to the member who reserved the seat; empty: the server
	holds    map[id.UID]time.Time // seats of users on the way here, until then
	props    properties

	waiting   []broadcast // not pushed yet, oldest first
	bytes     []byte      // behind waiting
	flushAt   time.Time   // when waiting must go; zero when there is none
	addressed map[id.UID]struct{}
	senders   marks // of waiting
	inRun     marks // scratch of flushRun
}

// NewMachine makes an empty room. Its first member becomes the owner. Without a
// member it ends after settings.EmptyTTL.
func NewMachine[L comparable](now time.Time, room id.Room, settings Settings) (*Machine[L], error) {
	if err := settings.validate(); err != nil {
		return nil, err
	}
	return &Machine[L]{id: room, settings: settings, created: now, closeAt: now.Add(settings.EmptyTTL)}, nil
}

// Member returns the link of a member, and whether there is one of that id.
func (m *Machine[L]) Member(user id.UID) (link L, ok bool) {
	if i := m.find(user); i >= 0 {
		return m.members[i].Link, true
	}
	return link, false
}

// Step tells the room what happened at now and says what to do about it.
func (m *Machine[L]) Step(now time.Time, in Input[L], out *Output[L]) {
	out.reset()
	if m.closed {
		out.Err, out.Closed = ErrNotFound, true
		return
	}
	if !m.flushAt.IsZero() && !now.Before(m.flushAt) {
		m.flush(out)
	}
	m.dropExpiredHolds(now, out)
	owner := m.owner
	out.Err = m.apply(now, in, out)
	if m.owner != owner {
		out.OwnerChanged, out.OwnerOld, out.OwnerNew = true, owner, m.owner
	}
	if len(m.members) == 0 && !now.Before(m.closeAt) && len(m.holds) == 0 {
		m.closed = true
	}
	out.Closed, out.WakeAt = m.closed, m.wakeAt()
}

func (m *Machine[L]) apply(now time.Time, in Input[L], out *Output[L]) error {
	switch in.Op {
	case OpJoin:
		return m.join(in, out)
	case OpLeave, OpKick:
		return m.leave(now, in, out)
	case OpDelete:
		return m.delete(in, out)
	case OpBroadcast:
		return m.broadcast(now, in, out)
	case OpMessage:
		return m.message(in, out)
	case OpOwner:
		return m.changeOwner(in, out)
	case OpSet:
		return m.may(in.User, func() error { return m.props.set(in.Props) })
	case OpIncr:
		return m.may(in.User, func() (err error) { out.Value, err = m.props.incr(in.Key, in.Delta); return err })
	case OpReserve:
		return m.reserve(in)
	case OpCancel:
		return m.cancel(in)
	case OpHold:
		return m.hold(in)
	case OpUnhold:
		m.unhold(in.User, out)
	case OpEvict:
		if len(m.members) > 0 || len(m.holds) > 0 {
			return ErrIn
		}
		m.closed = true
	case OpDiscard:
		return m.setDiscard(in)
	}
	return nil
}

// may runs f when user is a member, or empty: the server itself.
func (m *Machine[L]) may(user id.UID, f func() error) error {
	if user != "" && m.find(user) < 0 {
		return ErrNotIn
	}
	return f()
}

func (m *Machine[L]) join(in Input[L], out *Output[L]) error {
	if len(in.Message) > MessageMax {
		return ErrTooLarge
	}
	if m.find(in.User) >= 0 {
		return ErrIn
	}
	if !m.takeSeat(in.User, out) {
		return ErrFull
	}
	m.flush(out)
	out.Deliveries += m.push(out, CmdJoin, reliable.Reliable, in.Message, -1)
	m.members = append(m.members, Member[L]{User: in.User, Link: in.Link})
	m.closeAt = time.Time{}
	if m.owner == "" {
		m.owner = in.User
	}
	return nil
}

func (m *Machine[L]) leave(now time.Time, in Input[L], out *Output[L]) error {
	if len(in.Message) > MessageMax {
		return ErrTooLarge
	}
	i := m.find(in.User)
	var any L
	if i < 0 || in.Link != any && in.Link != m.members[i].Link {
		return ErrNotIn // or it is another connection of the user that is in
	}
	m.flush(out)
	message := in.Message
	if in.Lost {
		message = m.discardMessage(i)
	}
	out.Left = append(out.Left, m.members[i].Link)
	if in.Op == OpKick {
		out.Deliveries += m.push(out, CmdLeave, reliable.Reliable, message, -1) // the one kicked did not act, so is told too
	} else {
		out.Deliveries += m.push(out, CmdLeave, reliable.Reliable, message, i)
	}
	m.members = slices.Delete(m.members, i, i+1)
	m.dropReserved(in.User)
	if len(m.members) == 0 {
		m.owner, m.closeAt = "", now
		if m.settings.AllowEmpty {
			m.closeAt = now.Add(m.settings.EmptyTTL)
		}
		return nil
	}
	if m.owner == in.User {
		m.owner = m.heir()
		out.Deliveries += m.push(out, CmdOwnerChange, reliable.Reliable, []byte(m.owner), -1)
	}
	return nil
}

func (m *Machine[L]) delete(in Input[L], out *Output[L]) error {
	if len(in.Message) > MessageMax {
		return ErrTooLarge
	}
	m.flush(out)
	out.Deliveries += m.push(out, CmdLeave, reliable.Reliable, in.Message, -1)
	for _, member := range m.members {
		out.Left = append(out.Left, member.Link)
	}
	for user := range m.holds {
		m.unhold(user, out)
	}
	m.members, m.owner, m.closed = nil, "", true
	return nil
}

func (m *Machine[L]) setDiscard(in Input[L]) error {
	i := m.find(in.User)
	if i < 0 {
		return ErrNotIn
	}
	if len(in.Message) > MessageMax {
		return ErrTooLarge
	}
	m.members[i].discard = append([]byte{}, in.Message...) // not nil: empty means to push nothing
	return nil
}

// discardMessage is what the others get when member i vanishes.
func (m *Machine[L]) discardMessage(i int) []byte {
	if d := m.members[i].discard; d != nil {
		return d
	}
	return append([]byte(m.id), m.members[i].User...)
}

// push adds a payload for every member but the one at except (-1: none).
// An empty join or leave message is not pushed at all. It returns what that
// counts as deliveries.
func (m *Machine[L]) push(out *Output[L], cmd uint16, rel reliable.Reliability, payload []byte, except int) int {
	if len(payload) == 0 && (cmd == CmdJoin || cmd == CmdLeave) {
		return 0
	}
	start := len(out.links)
	for i := range m.members {
		if i != except {
			out.links = append(out.links, m.members[i].Link)
		}
	}
	out.add(cmd, rel, payload, out.links[start:len(out.links):len(out.links)])
	return (len(out.links) - start) * reliable.Datagrams(len(payload))
}

// add appends a push with a copy of payload.
func (o *Output[L]) add(cmd uint16, rel reliable.Reliability, payload []byte, to []L) {
	if len(to) == 0 {
		return
	}
	start := len(o.bytes)
	o.bytes = append(o.bytes, payload...)
	o.Pushes = append(o.Pushes, Push[L]{Cmd: cmd, Rel: rel, Payload: o.bytes[start:len(o.bytes):len(o.bytes)], To: to})
}

// find returns the position of a member, or -1. Rooms are small and a scan of
// a few cache lines beats a map; 1000 members cost less than one sealed packet.
func (m *Machine[L]) find(user id.UID) int {
	return slices.IndexFunc(m.members, func(p Member[L]) bool { return p.User == user })
}

// wakeAt is when time alone changes something: merged broadcasts are due, a seat
// is no longer held, or an empty room ends.
func (m *Machine[L]) wakeAt() time.Time {
	if m.closed {
		return time.Time{}
	}
	wake := m.flushAt
	earlier := func(t time.Time) {
		if wake.IsZero() || t.Before(wake) {
			wake = t
		}
	}
	for _, until := range m.holds {
		earlier(until)
	}
	if len(m.members) == 0 && len(m.holds) == 0 {
		earlier(m.closeAt)
	}
	return wake
}

// ID returns the room's id.
func (m *Machine[L]) ID() id.Room { return m.id }

// Settings returns what the room was made with.
func (m *Machine[L]) Settings() Settings { return m.settings }

// Created returns when the room was made.
func (m *Machine[L]) Created() time.Time { return m.created }

// Owner returns the owner's id; empty when nobody is in the room.
func (m *Machine[L]) Owner() id.UID { return m.owner }

// Members returns the members, longest present first. The slice is lent until
// the next Step.
func (m *Machine[L]) Members() []Member[L] { return m.members }

// Closed reports whether the room has ended.
func (m *Machine[L]) Closed() bool { return m.closed }
