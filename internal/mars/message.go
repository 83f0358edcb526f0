package mars

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// Bounds of what a message may carry, in bytes unless the name says otherwise.
const (
	NodeBytesMax     = 64
	LabelBytesMax    = 128 // role, type, application name, versions
	EndpointBytesMax = 280
	ReasonBytesMax   = 256
	ValuesBytesMax   = 16 << 10 // all node values of one member, encoded
	SuspectsMax      = 256      // suspects one heartbeat names
	GhostsMax        = 64       // ghosts one heartbeat names
	// Buckets is how many parts a directory is compared in.
	Buckets = 256
	// pageBytes is where the authority cuts a long delta: the rest follows with
	// the next ack, well under what the mesh carries in one message.
	pageBytes = 1 << 20
)

// A Message is a [Heartbeat], [Leave] or [Ack], or one of the one-way messages of
// succession, which start with [Renew].
//
//	field        size      content
//	protocol     1         Protocol
//	kind         1         1 heartbeat, 2 ack, 3 leave, 4 and up succession, in the order of their declaration
//	epoch        uv 16 uv  highest the sender has seen: generation, founder, term
//	from         uv+n      sender's mesh address
//	incarnation  16        sender's
//	body         rest      by kind
//
// Numbers are unsigned LEB128 (uv), texts and lists have their length before them.
type Message interface {
	// AppendTo appends the encoded message to dst.
	AppendTo(dst []byte) []byte
	header() Header
}

const (
	kindHeartbeat = 1
	kindAck       = 2
	kindLeave     = 3
)

// Header opens every message.
type Header struct {
	Epoch       Epoch // highest the sender has seen
	From        id.Node
	Incarnation id.Incarnation
}

func (h Header) header() Header { return h }

// Heartbeat tells the authority that a member is alive and asks what changed.
type Heartbeat struct {
	Header
	Seq uint64 // grows with every heartbeat of an incarnation
	// Have is the directory version held under Header.Epoch; zero when none is. Then
	// Held is the digest of what is held from before, for an authority that has the
	// same; Parts, when it asked for them, the digests of its buckets; and Whole asks
	// for everything.
	Have        uint64
	Held        uint64
	Parts       []uint64 // Buckets of them, or none
	Whole       bool
	Status      Dynamic
	Suspects    []id.Node        // members whose mesh link failed within SuspicionMax
	Ghosts      []id.Incarnation // members in the directory that have ended, as the sender knows
	CouncilMark uint64           // tells which council is held, zero for none
	SharedMark  uint64           // tells which shared data is held, zero for none
	Shared      []Shared         // to be written; stamps are zero
	Register    *Instance        // set to register, else nil
}

// Dynamic is the part of a member that changes while it lives.
type Dynamic struct {
	Endpoint  string
	State     State
	Users     int
	Load      float64
	HasValues bool   // Values replaces what the authority holds; required to register
	Values    []byte // encoded by AppendValues
}

// Leave tells the authority that an incarnation ends and won't be back.
type Leave struct {
	Header
	Namespace Namespace
}

// Status is how the authority took a heartbeat.
type Status uint8

// The answers to a heartbeat or leave.
const (
	StatusOK           Status = 1 // applied; Delta is valid
	StatusRegister     Status = 2 // unknown here: register, in the epoch of this ack
	StatusGone         Status = 3 // this incarnation left or was evicted: it never returns
	StatusRefused      Status = 4 // not let in, Reason says why
	StatusNotAuthority Status = 5 // ask Authority instead, when it is set
	StatusNoLease      Status = 6 // has the office but may not write at the moment
	StatusStay         Status = 7 // leave again soon: the council still counts on this voter
)

// Ack answers every Heartbeat and Leave.
type Ack struct {
	Header
	Status    Status
	Live      bool          // the sender's authority is valid right now
	Settling  bool          // the authority is too young to have heard everybody
	Interval  time.Duration // heartbeat this often; whole milliseconds
	TTL       time.Duration // evicted after this silence; whole milliseconds
	Authority id.Node       // with StatusNotAuthority, may be empty
	Reason    string
	Delta     Delta
	Council   Council  // unless the heartbeat's mark says it is held
	Around    Around   // with Council
	HasShared bool     // Shared is set
	Shared    []Shared // unless the heartbeat's mark says it is held
}

// Delta is what changed in a directory since version From.
type Delta struct {
	From, To uint64 // From zero: all of it, unless one of Same, Ask and Parts is set
	More     bool   // the rest follows from To; Digest is of the whole
	Same     bool   // what the heartbeat Held is the directory at To
	Ask      bool   // send the digests of the buckets: no directory in this ack
	Parts    []byte // nil, or a bit for each bucket: Upserts has all of those, the others are the same
	Digest   uint64 // of the directory at To, see entryDigest
	Upserts  []Entry
	Removed  []Removal
}

// Entry is a member as it travels: values stay encoded, and the namespace is the
// receiver's own.
type Entry struct {
	Member
	Full   bool   // Users, Load, Values and Seq are present
	Values []byte // shadows Member.Values
}

// Removal says that an incarnation is no longer in the directory.
type Removal struct {
	Node        id.Node
	Incarnation id.Incarnation
	Reason      Reason
}

// Reason is why an incarnation is gone for good.
type Reason uint8

// The reasons.
const (
	Left     Reason = 1 // said so
	Expired  Reason = 2 // silent for longer than its TTL
	Replaced Reason = 3 // a newer process registered at its address
)

func (r Reason) String() string {
	switch r {
	case Left:
		return "left"
	case Expired:
		return "expired"
	case Replaced:
		return "replaced"
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// ProtocolError means the other node speaks another version of the mesh protocol.
type ProtocolError struct{ Theirs uint8 }

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("mesh protocol %d is not compatible with %d, which this node speaks", e.Theirs, Protocol)
}

// ParseMessage reads one message that fills b. It returns a *[ProtocolError] or
// an error that wraps [ErrMalformed]. The message keeps nothing of b.
func ParseMessage(b []byte) (Message, error) {
	r := &reader{b: b}
	if v := r.u8("protocol"); r.err == nil && v != Protocol {
		return nil, &ProtocolError{Theirs: v}
	}
	kind := r.u8("kind")
	h := Header{Epoch: r.epoch(), From: r.node("from"), Incarnation: r.incarnation("incarnation")}
	var m Message
	switch kind {
	case kindHeartbeat:
		m = r.heartbeat(h)
	case kindAck:
		m = r.ack(h)
	case kindLeave:
		m = Leave{Header: h, Namespace: r.namespace()}
	default:
		if parse := parsers[kind]; parse != nil {
			m = parse(r, h)
		} else {
			r.fail("kind")
		}
	}
	if len(r.b) > 0 {
		r.fail("trailing bytes")
	}
	if r.err != nil {
		return nil, r.err
	}
	return m, nil
}

// ErrMessage means a message of the wrong kind came.
var ErrMessage = errors.New("unexpected kind of mars message")

func (h Header) appendTo(dst []byte, kind uint8) []byte {
	dst = append(dst, Protocol, kind)
	dst = appendEpoch(dst, h.Epoch)
	dst = appendString(dst, h.From)
	return append(dst, h.Incarnation[:]...)
}

// AppendTo implements [Message].
func (m Heartbeat) AppendTo(dst []byte) []byte {
	dst = m.Header.appendTo(dst, kindHeartbeat)
	dst = appendUint(dst, m.Seq)
	dst = appendUint(dst, m.Have)
	dst = binary.BigEndian.AppendUint64(dst, m.Held)
	dst = appendBool(dst, len(m.Parts) > 0)
	for _, p := range m.Parts {
		dst = binary.BigEndian.AppendUint64(dst, p)
	}
	dst = appendBool(dst, m.Whole)
	s := m.Status
	dst = appendString(dst, s.Endpoint)
	dst = append(dst, byte(s.State))
	dst = appendUint(dst, uint64(s.Users))
	dst = appendFloat(dst, s.Load)
	dst = appendBool(dst, s.HasValues)
	if s.HasValues {
		dst = appendString(dst, s.Values)
	}
	dst = appendNodes(dst, m.Suspects)
	dst = appendUint(dst, uint64(len(m.Ghosts)))
	for _, g := range m.Ghosts {
		dst = append(dst, g[:]...)
	}
	dst = binary.BigEndian.AppendUint64(dst, m.CouncilMark)
	dst = binary.BigEndian.AppendUint64(dst, m.SharedMark)
	dst = appendShared(dst, m.Shared)
	dst = appendBool(dst, m.Register != nil)
	if i := m.Register; i != nil {
		dst = appendUint(dst, uint64(i.Started))
		for _, s := range [...]string{i.Role, i.Type, i.AppName, i.AppVersion, i.Version} {
			dst = appendString(dst, s)
		}
	}
	return dst
}

func (r *reader) heartbeat(h Header) Heartbeat {
	m := Heartbeat{Header: h, Seq: r.uint(math.MaxUint64, "seq"), Have: r.uint(math.MaxUint64, "have")}
	m.Held = r.u64("held")
	if r.bool("has parts") {
		m.Parts = make([]uint64, Buckets)
		for i := range m.Parts {
			m.Parts[i] = r.u64("part")
		}
	}
	m.Whole = r.bool("whole")
	s := &m.Status
	s.Endpoint = r.string(EndpointBytesMax, "endpoint")
	s.State = r.state()
	s.Users = int(r.uint(math.MaxInt32, "users"))
	s.Load = r.float("load")
	if s.HasValues = r.bool("has values"); s.HasValues {
		s.Values = r.values()
	}
	m.Suspects = r.nodes(SuspectsMax, "suspects")
	m.Ghosts = r.incarnations(GhostsMax, "ghosts")
	m.CouncilMark, m.SharedMark = r.u64("council mark"), r.u64("shared mark")
	m.Shared = r.shared()
	if r.bool("register") {
		m.Register = &Instance{
			Node: h.From, Incarnation: h.Incarnation,
			Started: int64(r.uint(math.MaxInt64, "started")),
			Role:    r.string(LabelBytesMax, "role"), Type: r.string(LabelBytesMax, "type"),
			AppName: r.string(LabelBytesMax, "app name"), AppVersion: r.string(LabelBytesMax, "app version"),
			Version: r.string(LabelBytesMax, "version"),
		}
		if !s.HasValues {
			r.fail("registration without values")
		}
	}
	return m
}

// AppendTo implements [Message].
func (m Leave) AppendTo(dst []byte) []byte {
	dst = m.Header.appendTo(dst, kindLeave)
	dst = appendString(dst, m.Namespace.App)
	return appendString(dst, m.Namespace.Version)
}

// AppendTo implements [Message].
func (m Ack) AppendTo(dst []byte) []byte {
	dst = m.Header.appendTo(dst, kindAck)
	dst = append(dst, byte(m.Status))
	dst = appendBool(dst, m.Live)
	dst = appendBool(dst, m.Settling)
	dst = appendUint(dst, uint64(m.Interval.Milliseconds()))
	dst = appendUint(dst, uint64(m.TTL.Milliseconds()))
	dst = appendString(dst, m.Authority)
	dst = appendString(dst, m.Reason)
	dst = m.Delta.appendTo(dst)
	dst = m.Around.appendTo(m.Council.appendTo(dst))
	dst = appendBool(dst, m.HasShared)
	if m.HasShared {
		dst = appendShared(dst, m.Shared)
	}
	return dst
}

func (r *reader) ack(h Header) Ack {
	m := Ack{Header: h, Status: Status(r.u8("status"))}
	if m.Status < StatusOK || m.Status > StatusStay {
		r.fail("status")
	}
	m.Live, m.Settling = r.bool("live"), r.bool("settling")
	m.Interval = time.Duration(r.uint(3_600_000, "interval")) * time.Millisecond
	m.TTL = time.Duration(r.uint(3_600_000, "ttl")) * time.Millisecond
	m.Authority = r.node("authority")
	m.Reason = r.string(ReasonBytesMax, "reason")
	m.Delta = r.delta()
	m.Council, m.Around = r.council(), r.around()
	if m.HasShared = r.bool("has shared"); m.HasShared {
		m.Shared = r.shared()
	}
	return m
}

// SenderOf returns in whose name a message speaks.
func SenderOf(m Message) id.Node { return m.header().From }
