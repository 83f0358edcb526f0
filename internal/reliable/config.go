package reliable

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// Reliability says whether a message may be lost, and if not, which messages it keeps
// its order with.
type Reliability uint8

const (
	// Unreliable messages fit one datagram and may be lost or overtake each other.
	Unreliable Reliability = iota
	// Reliable messages arrive exactly once, and in order within their channel. By
	// itself this is the default channel; see [OnChannel].
	Reliable
)

// OnChannel is Reliable on a channel: 0 to 15 each keep an order of their own, so that
// a lost message holds up only those of its channel, and on [ChannelUnordered] each
// message is delivered as it completes. Any other channel gives a value that is not
// [Reliability.Valid]. Over TCP all channels are one.
func OnChannel(channel uint8) Reliability {
	switch {
	case channel <= wire.ChannelOrderedMax:
		return Reliable + Reliability(channel)
	case channel == ChannelUnordered:
		return reliabilityMax
	}
	return reliabilityMax + 1
}

// reliabilityMax is Reliable on the unordered channel.
const reliabilityMax = Reliable + wire.ChannelOrderedMax + 1

// Valid reports whether r is a value this package makes.
func (r Reliability) Valid() bool { return r <= reliabilityMax }

// Channel is the channel of a message that is not Unreliable.
func (r Reliability) Channel() uint8 {
	if r == reliabilityMax {
		return ChannelUnordered
	}
	return uint8(max(r, Reliable) - Reliable)
}

// Channels of reliable messages with a meaning of their own; 1 to 15 are ordered
// independently of each other.
const (
	ChannelDefault   uint8 = 0
	ChannelUnordered uint8 = wire.ChannelUnordered
)

const (
	// PacketMin is the least a packet has to hold for frames, in bytes: what a
	// client's 1200-byte datagram leaves after header and tag.
	PacketMin = 1200 - 13 - 16
	// WindowMin is the window both sides assume until told otherwise, in bytes.
	WindowMin = 65536

	// fragmentMax leaves room in a packet of PacketMin for the frame's header and
	// an ACK. It is the same over TCP, so that what was cut for one connection fits
	// the next one, whatever that is.
	fragmentMax = 1100
	// fragmentCost is what a fragment counts in every limit on top of its length.
	fragmentCost = 32
	// heldMax bounds what is held for a peer, in bytes: incomplete messages, fragments
	// and whole messages beyond a hole, whatever connection brought them. It goes by the
	// rules of the protocol and is no setting: senders keep to it.
	heldMax = 2 << 20
	// incompleteAge is how long a channel holds something although nothing in order
	// arrives on it, see Machine.lived.
	incompleteAge = 30 * time.Second
	// silenceLived is how much of a silence counts for incompleteAge. Who sends a PING
	// now and then does not get around it.
	silenceLived = 5 * time.Second
	// slowSilence is how much of a silence counts for Config.SlowAfter: a peer that is
	// heard no more is lost or idle, which other limits tell, and not slow.
	slowSilence = time.Second
	// sendWindowMax bounds what we keep outstanding, whatever the peer's WINDOW, in bytes.
	sendWindowMax = 2 << 20
	// ackDelayMax is how long an acknowledgement may wait for company.
	ackDelayMax = 20 * time.Millisecond
	// eagerHeldMax is up to how many bytes held beyond a hole every packet is
	// acknowledged at once. More are bulk, whose sender hears of the hole anyway.
	eagerHeldMax = 4 << 10
	// packetCost is what a packet adds to its frames on its way, in bytes, roughly:
	// tiny packets must not look free to congestion control.
	packetCost = 48
)

// Datagrams is how many datagrams a message of size bytes takes on its way, at least 1,
// by what a fragment holds. It counts the same over TCP.
func Datagrams(size int) int { return max(1, (size+fragmentMax-1)/fragmentMax) }

// TCP has acknowledgements of its own kind: a RESUME at least every 32 KiB or 500 ms.
const (
	streamAckBytes = 24 << 10
	streamAckDelay = 400 * time.Millisecond
	// streamWindow is how much may stay unacknowledged, in bytes.
	streamWindow = 1 << 20
	// streamStallMax is how long a full 1 MiB may stay unacknowledged.
	streamStallMax = 10 * time.Second
)

// Config configures a [Machine]. The zero value is a client's side over UDP that
// neither times out nor keeps alive.
type Config struct {
	// Server allows what only a server may say and refuses it from the peer.
	Server bool
	// Stream applies the rules for TCP.
	Stream bool
	// RTT is what the handshake measured. Zero means unknown.
	RTT time.Duration
	// RetryIntervalMax caps the probe timeout. Zero means 1s.
	RetryIntervalMax time.Duration
	// MaxRetry is how many probe timeouts in a row the connection survives. Zero means 10.
	MaxRetry int
	// Window is how much reliable data beyond the next in order this side holds, in
	// bytes. It is at least [WindowMin].
	Window int
	// IdleTimeout is how long the peer may be silent. Zero means for ever.
	IdleTimeout time.Duration
	// KeepAlive is after how long without sending a PING goes out. Zero means never.
	KeepAlive time.Duration
	// QueueMessages is how many unreliable messages may wait; a newer one then replaces
	// the oldest. Zero means 1024.
	QueueMessages int
	// QueueBytes is how many bytes of unreliable messages may wait likewise, and how many
	// of reliable ones behind the one being sent before the peer has to make progress,
	// see SlowAfter. A message counts its length and 32. Zero means 256 KiB.
	QueueBytes int
	// QueueBytesMax is how many bytes of reliable messages may wait behind the one being
	// sent, unless it is one alone; one more is refused with [ErrSlow]. Zero means 1 MiB;
	// it is at least QueueBytes.
	QueueBytesMax int
	// QueueReliable is how many reliable messages may wait behind the one being sent.
	// Zero means any number.
	QueueReliable int
	// SlowAfter is how long more than QueueBytes may wait while the peer is heard but
	// acknowledges nothing reliable. Zero means 2s for a server and never for a client.
	SlowAfter time.Duration
	// Random returns random numbers. With it a packet number is left out now and then,
	// see [Machine.Skip]. Nil means that none is.
	Random func() uint64
	// FramesBase is how many bytes of frames fit a 1200-byte datagram: what UDP is
	// used for until the path is known to carry more. Zero means [PacketMin].
	FramesBase int
	// FramesMax is how many bytes of frames fit the largest datagram to search the
	// path for. Zero means no search.
	FramesMax int
	// UnreliableMax is the longest unreliable message in bytes. Zero means what fits
	// a packet of [PacketMin].
	UnreliableMax int
}

func (c Config) withDefaults() Config {
	c.RetryIntervalMax = cmp.Or(c.RetryIntervalMax, time.Second)
	c.MaxRetry = cmp.Or(c.MaxRetry, 10)
	c.Window = max(c.Window, WindowMin)
	c.QueueMessages = cmp.Or(c.QueueMessages, 1024)
	c.QueueBytes = cmp.Or(c.QueueBytes, 256<<10)
	c.QueueBytesMax = max(cmp.Or(c.QueueBytesMax, 1<<20), c.QueueBytes)
	if c.SlowAfter == 0 && c.Server {
		c.SlowAfter = 2 * time.Second
	}
	c.FramesBase = cmp.Or(c.FramesBase, PacketMin)
	c.UnreliableMax = cmp.Or(c.UnreliableMax, PacketMin-3)
	return c
}

// settings is what a machine keeps of its Config: every connection has one.
type settings struct {
	server, stream, resumed                             bool
	maxRetry                                            int32
	queueMessages, queueBytes                           int32
	queueBytesMax, queueReliable                        int32
	unreliableMax                                       int32
	retryIntervalMax, idleTimeout, keepAlive, slowAfter time.Duration
	random                                              func() uint64
}

// settings is c, with its defaults, as a machine keeps it.
func (c Config) settings() settings {
	small := func(n int) int32 { return int32(min(n, math.MaxInt32)) }
	return settings{
		server: c.Server, stream: c.Stream, maxRetry: small(c.MaxRetry),
		queueMessages: small(c.QueueMessages), queueBytes: small(c.QueueBytes),
		queueBytesMax: small(c.QueueBytesMax), queueReliable: small(c.QueueReliable),
		unreliableMax:    small(c.UnreliableMax),
		retryIntervalMax: c.RetryIntervalMax, idleTimeout: c.IdleTimeout, keepAlive: c.KeepAlive,
		slowAfter: c.SlowAfter, random: c.Random,
	}
}

// Why a message is not sent, or a connection ends.
var (
	// ErrTooLarge means a message is longer than 1 MiB, or unreliable and longer than a datagram.
	ErrTooLarge = errors.New("message too large")
	// ErrSlow means that the peer takes reliable messages more slowly than they come.
	ErrSlow = errors.New("peer is too slow")
	// ErrChannel means a message was sent on a channel that does not exist.
	ErrChannel = errors.New("no such channel")
	// ErrIdle means the peer was silent for Config.IdleTimeout.
	ErrIdle = errors.New("peer is silent")
	// ErrDead means the peer acknowledged none of Config.MaxRetry probes.
	ErrDead = errors.New("peer acknowledges nothing")
)

// Violation is what the peer did that ends the connection, as CLOSE will tell it.
type Violation struct {
	Code   wire.CloseCode
	Reason string
}

func (v *Violation) Error() string { return fmt.Sprintf("%v: %s", v.Code, v.Reason) }

// What a peer can do wrong beyond a malformed frame.
var (
	errNoFrame     = &Violation{wire.CloseProtocol, "packet without frames"}
	errServerOnly  = &Violation{wire.CloseProtocol, "server-only frame from a client"}
	errNotOnStream = &Violation{wire.CloseProtocol, "frame not allowed on TCP"}
	errAckUnsent   = &Violation{wire.CloseProtocol, "ack of a packet never sent"}
	errResume      = &Violation{wire.CloseProtocol, "resume on a connection not resumed"}
	errResumeEarly = &Violation{wire.CloseProtocol, "resume in confirm"}
	errResumeSeq   = &Violation{wire.CloseProtocol, "resume above what was sent"}
	errFragment    = &Violation{wire.CloseProtocol, "fragment does not continue its message"}
	errMessage     = &Violation{wire.CloseProtocol, "malformed message"}
	errStreamOrder = &Violation{wire.CloseProtocol, "gap or channel on TCP"}
	errWindow      = &Violation{wire.CloseFlow, "more than the window was dropped"}
	errHeld        = &Violation{wire.CloseFlow, "too much in incomplete messages and beyond holes"}
	errOld         = &Violation{wire.CloseFlow, "message incomplete for too long"}
	errLong        = &Violation{wire.CloseFlow, "message over 1 MiB"}
)
