package mars

import (
	"math"

	"github.com/Diarkis/diarkis/internal/id"
)

// The one-way messages of succession. Their sender is the seat that
// Header.From and Header.Incarnation name, Header.Epoch the highest it has seen.

// Renew is the authority's request to a voter to go on backing it, with the
// council it wants the voter to hold.
type Renew struct {
	Header         // Epoch is that of the authority
	Clock   uint64 // sender's time of sending, in its own nanoseconds; comes back in Grant
	Council Council
	Around  Around
}

// Around is what a successor would not know by itself.
type Around struct {
	Homes     []id.Node // where home was
	Elsewhere []id.Node // some members of every namespace, if there are several
	// Transferred is how many milliseconds ago the office was handed over last, plus
	// one; 0 when that is not known.
	Transferred uint64
}

// Grant answers Renew.
type Grant struct {
	Header
	OK      bool
	Leaving bool   // the sender ends as soon as it can: it should not be relied on
	Of      Epoch  // of the Renew
	Clock   uint64 // of the Renew
	Held    uint64 // version of the council held when that is of epoch Of, else 0
}

// Vote asks for a vote or, with Pre, whether there would be one.
type Vote struct {
	Header
	Pre     bool
	Force   bool  // Prior gave its office up in favour of the sender: promises to it are void
	Prior   Seat  // zero unless Force
	For     Epoch // in which the sender wants to reign
	Clock   uint64
	Council Council // held by the sender
}

// VoteReply answers Vote.
type VoteReply struct {
	Header
	OK, Pre bool
	For     Epoch
	Clock   uint64
}

// TransferGo hands the office over: its sender has given its lease up.
type TransferGo struct {
	Header
	Council Council
}

// Announce tells who the authority is. It is a hint: whoever follows it finds out.
type Announce struct {
	Header            // Epoch is that of the authority
	Authority id.Node // most often the sender
	Council   Council // of that authority
}

// FoundPoll asks a last-known member whether it has an authority, before its
// sender founds a new generation.
type FoundPoll struct {
	Header
	Round uint64
}

// FoundReply answers FoundPoll.
type FoundReply struct {
	Header
	Round     uint64
	Live      bool    // there is an authority: nobody may found
	Authority id.Node // that one, when it is known
	Home      bool    // the sender is home
	Council   Council // newest held
}

// Standing is what a node knows of the authority, for two of them to compare.
type Standing struct {
	Authority   id.Node // empty: none known
	Epoch       Epoch
	Live        bool
	Provisional bool // founded lately, without having heard everybody
	Home        bool // the authority is home
	Members     uint64
}

// Probe tells a lost node or another authority how the sender stands, and asks
// for the same.
type Probe struct {
	Header
	Standing Standing
	Council  Council // for a home without memory, to know whom else to ask
}

// ProbeReply answers Probe.
type ProbeReply struct {
	Header
	Standing Standing
}

// Yield tells the authority of another generation that the sender has stopped
// writing in epoch Of and wants its members to be taken over.
type Yield struct {
	Header
	Of     Epoch
	Around Around
	Shared []Shared
}

// Yielded answers Yield: the sender's epoch is above Of.
type Yielded struct {
	Header
	Of      Epoch
	Council Council
}

// TransferAsk asks the authority to hand its office to a node.
type TransferAsk struct {
	Header
	To id.Node
}

// TransferReply answers TransferAsk: at once whether the authority will try, and once
// more when it could not.
type TransferReply struct {
	Header
	To     id.Node
	OK     bool
	Reason string // why not, empty when OK
}

const (
	kindRenew = iota + 4
	kindGrant
	kindVote
	kindVoteReply
	kindTransferGo
	kindAnnounce
	kindFoundPoll
	kindFoundReply
	kindProbe
	kindProbeReply
	kindYield
	kindYielded
	kindTransferAsk
	kindTransferReply
)

// parsers read the bodies of the messages of succession.
var parsers = map[uint8]func(*reader, Header) Message{
	kindRenew: func(r *reader, h Header) Message {
		return Renew{Header: h, Clock: r.clock(), Council: r.council(), Around: r.around()}
	},
	kindGrant: func(r *reader, h Header) Message {
		return Grant{Header: h, OK: r.bool("ok"), Leaving: r.bool("leaving"), Of: r.epoch(), Clock: r.clock(), Held: r.uint(math.MaxUint64, "held")}
	},
	kindVote: func(r *reader, h Header) Message {
		return Vote{Header: h, Pre: r.bool("pre"), Force: r.bool("force"), Prior: r.seat(), For: r.epoch(), Clock: r.clock(), Council: r.council()}
	},
	kindVoteReply: func(r *reader, h Header) Message {
		return VoteReply{Header: h, OK: r.bool("ok"), Pre: r.bool("pre"), For: r.epoch(), Clock: r.clock()}
	},
	kindTransferGo: func(r *reader, h Header) Message { return TransferGo{Header: h, Council: r.council()} },
	kindAnnounce: func(r *reader, h Header) Message {
		return Announce{Header: h, Authority: r.node("authority"), Council: r.council()}
	},
	kindFoundPoll: func(r *reader, h Header) Message { return FoundPoll{Header: h, Round: r.uint(math.MaxUint64, "round")} },
	kindFoundReply: func(r *reader, h Header) Message {
		return FoundReply{
			Header: h, Round: r.uint(math.MaxUint64, "round"), Live: r.bool("live"),
			Authority: r.node("authority"), Home: r.bool("home"), Council: r.council(),
		}
	},
	kindProbe: func(r *reader, h Header) Message {
		return Probe{Header: h, Standing: r.standing(), Council: r.council()}
	},
	kindProbeReply: func(r *reader, h Header) Message { return ProbeReply{Header: h, Standing: r.standing()} },
	kindYield: func(r *reader, h Header) Message {
		return Yield{Header: h, Of: r.epoch(), Around: r.around(), Shared: r.shared()}
	},
	kindYielded:     func(r *reader, h Header) Message { return Yielded{Header: h, Of: r.epoch(), Council: r.council()} },
	kindTransferAsk: func(r *reader, h Header) Message { return TransferAsk{Header: h, To: r.node("to")} },
	kindTransferReply: func(r *reader, h Header) Message {
		return TransferReply{Header: h, To: r.node("to"), OK: r.bool("ok"), Reason: r.string(ReasonBytesMax, "reason")}
	},
}

func (s Seat) appendTo(dst []byte) []byte {
	return append(appendString(dst, s.Node), s.Incarnation[:]...)
}

func (r *reader) seat() Seat { return Seat{Node: r.node("seat"), Incarnation: r.incarnation("seat")} }

func (r *reader) clock() uint64 { return r.uint(math.MaxInt64, "clock") }

func (c Council) appendTo(dst []byte) []byte {
	dst = appendEpoch(dst, c.Epoch)
	dst = appendUint(dst, c.Version)
	dst = append(dst, byte(len(c.Seats)))
	for _, s := range c.Seats {
		dst = s.appendTo(dst)
	}
	return dst
}

func (r *reader) council() Council {
	c := Council{Epoch: r.epoch(), Version: r.uint(math.MaxUint64, "council version")}
	n := int(r.u8("seats"))
	if n > seatsMax {
		r.fail("seats")
		return Council{}
	}
	for range n {
		s := r.seat()
		if c.Has(s) {
			r.fail("seat twice")
		}
		c.Seats = append(c.Seats, s)
	}
	return c
}

func (s Standing) appendTo(dst []byte) []byte {
	dst = appendString(dst, s.Authority)
	dst = appendEpoch(dst, s.Epoch)
	for _, b := range [...]bool{s.Live, s.Provisional, s.Home} {
		dst = appendBool(dst, b)
	}
	return appendUint(dst, s.Members)
}

func (r *reader) standing() Standing {
	return Standing{
		Authority: r.node("authority"), Epoch: r.epoch(), Live: r.bool("live"),
		Provisional: r.bool("provisional"), Home: r.bool("home"), Members: r.uint(math.MaxUint32, "members"),
	}
}

// AppendTo implements [Message].
func (m Renew) AppendTo(dst []byte) []byte {
	dst = m.Header.appendTo(dst, kindRenew)
	return m.Around.appendTo(m.Council.appendTo(appendUint(dst, m.Clock)))
}

// AppendTo implements [Message].
func (m Grant) AppendTo(dst []byte) []byte {
	dst = appendBool(appendBool(m.Header.appendTo(dst, kindGrant), m.OK), m.Leaving)
	return appendUint(appendUint(appendEpoch(dst, m.Of), m.Clock), m.Held)
}

// AppendTo implements [Message].
func (m Vote) AppendTo(dst []byte) []byte {
	dst = appendBool(appendBool(m.Header.appendTo(dst, kindVote), m.Pre), m.Force)
	dst = appendUint(appendEpoch(m.Prior.appendTo(dst), m.For), m.Clock)
	return m.Council.appendTo(dst)
}

// AppendTo implements [Message].
func (m VoteReply) AppendTo(dst []byte) []byte {
	dst = appendBool(appendBool(m.Header.appendTo(dst, kindVoteReply), m.OK), m.Pre)
	return appendUint(appendEpoch(dst, m.For), m.Clock)
}

// AppendTo implements [Message].
func (m TransferGo) AppendTo(dst []byte) []byte {
	return m.Council.appendTo(m.Header.appendTo(dst, kindTransferGo))
}

// AppendTo implements [Message].
func (m Announce) AppendTo(dst []byte) []byte {
	return m.Council.appendTo(appendString(m.Header.appendTo(dst, kindAnnounce), m.Authority))
}

// AppendTo implements [Message].
func (m FoundPoll) AppendTo(dst []byte) []byte {
	return appendUint(m.Header.appendTo(dst, kindFoundPoll), m.Round)
}

// AppendTo implements [Message].
func (m FoundReply) AppendTo(dst []byte) []byte {
	dst = appendUint(m.Header.appendTo(dst, kindFoundReply), m.Round)
	dst = appendString(appendBool(dst, m.Live), m.Authority)
	return m.Council.appendTo(appendBool(dst, m.Home))
}

// AppendTo implements [Message].
func (m Probe) AppendTo(dst []byte) []byte {
	return m.Council.appendTo(m.Standing.appendTo(m.Header.appendTo(dst, kindProbe)))
}

// AppendTo implements [Message].
func (m ProbeReply) AppendTo(dst []byte) []byte {
	return m.Standing.appendTo(m.Header.appendTo(dst, kindProbeReply))
}

// AppendTo implements [Message].
func (m Yield) AppendTo(dst []byte) []byte {
	return appendShared(m.Around.appendTo(appendEpoch(m.Header.appendTo(dst, kindYield), m.Of)), m.Shared)
}

// AppendTo implements [Message].
func (m Yielded) AppendTo(dst []byte) []byte {
	return m.Council.appendTo(appendEpoch(m.Header.appendTo(dst, kindYielded), m.Of))
}

// AppendTo implements [Message].
func (m TransferAsk) AppendTo(dst []byte) []byte {
	return appendString(m.Header.appendTo(dst, kindTransferAsk), m.To)
}

// AppendTo appends the encoded message to dst.
func (m TransferReply) AppendTo(dst []byte) []byte {
	dst = appendString(m.Header.appendTo(dst, kindTransferReply), m.To)
	return appendString(appendBool(dst, m.OK), m.Reason)
}

func (a Around) appendTo(dst []byte) []byte {
	return appendUint(appendNodes(appendNodes(dst, a.Homes), a.Elsewhere), a.Transferred)
}

func (r *reader) around() Around {
	return Around{Homes: r.nodes(homesMax, "homes"), Elsewhere: r.nodes(elsewhereMax, "elsewhere"), Transferred: r.clock()}
}

func appendNodes(dst []byte, ns []id.Node) []byte {
	dst = appendUint(dst, uint64(len(ns)))
	for _, n := range ns {
		dst = appendString(dst, n)
	}
	return dst
}

// nodes reads a list of at most so many.
func (r *reader) nodes(most int, what string) []id.Node {
	n := r.count(1, what)
	if n > most {
		r.fail(what)
		return nil
	}
	var ns []id.Node
	for range n {
		ns = append(ns, r.node(what))
	}
	return ns
}
