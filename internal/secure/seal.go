package secure

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

const (
	// flipGap is the shortest time between two changes of the key by one sender, and
	// how long a receiver keeps the key before the current one.
	flipGap = 10 * time.Second
	// pingGap spaces the PINGs a sender asks for while its phase is unacknowledged.
	pingGap = time.Second
)

// RekeyPolicy says when a sender takes its next key. The zero value is ready to use.
type RekeyPolicy struct {
	// Packets is how many packets one key seals. Zero means 2^22.
	Packets uint64
	// Interval is how long one key seals. Zero means 1 h.
	Interval time.Duration
}

func (p RekeyPolicy) withDefaults() RekeyPolicy {
	if p.Packets == 0 {
		p.Packets = 1 << 22
	}
	if p.Interval <= 0 {
		p.Interval = time.Hour
	}
	return p
}

// KeyOptions makes one direction of a connection. Handshakes fill it in; tests and
// benchmarks may do so themselves.
type KeyOptions struct {
	Suite  Suite
	Secret [32]byte
	// FromClient says which header packets of this direction have.
	FromClient bool
	// SCID goes into that header; unused by an Opener and from the server.
	SCID wire.CID
	// Stream says that packets arrive in order and unacknowledged, as over TCP:
	// taking the next key then needs no acknowledgement.
	Stream bool
	// Rekey is used by a Sealer only.
	Rekey RekeyPolicy
}

func headerBytes(fromClient bool) int {
	if fromClient {
		return wire.ClientHeaderBytes
	}
	return wire.ServerHeaderBytes
}

// Sealer seals the data packets that one side of a connection sends. It is not
// safe for concurrent use, and needs no memory beyond its own for a packet.
type Sealer struct {
	key        packetKey // asleep after Trim
	secret     [32]byte
	suite      Suite
	fromClient bool
	stream     bool
	scid       wire.CID
	nonce      [12]byte // scratch: an array on the stack would escape

	next       uint64 // number of the next packet
	flips      uint64 // phases before the current one
	phaseFirst uint64 // first number of the current phase
	phaseAcked bool   // a packet of the current phase was acknowledged
	phaseStart time.Time
	pinged     time.Time // when WantsPing last said so
	rekey      RekeyPolicy
}

// NewSealer returns a Sealer whose next packet number is 1, number 0 having gone
// to the handshake.
func NewSealer(o KeyOptions, now time.Time) *Sealer {
	s := newSealer(o, now)
	s.next = 1
	return s
}

// newSealer returns a Sealer that has not sent its handshake packet yet.
func newSealer(o KeyOptions, now time.Time) *Sealer {
	return &Sealer{
		key:        newPacketKey(o.Suite, &o.Secret),
		secret:     o.Secret,
		suite:      o.Suite,
		fromClient: o.FromClient,
		stream:     o.Stream,
		scid:       o.SCID,
		phaseStart: now,
		rekey:      o.Rekey.withDefaults(),
	}
}

// HeaderBytes is how many bytes Begin appends.
func (s *Sealer) HeaderBytes() int { return headerBytes(s.fromClient) }

// Overhead is how many bytes a packet has besides its frames.
func (s *Sealer) Overhead() int { return s.HeaderBytes() + wire.TagBytes }

// NextPN is the number the next Finish will use.
func (s *Sealer) NextPN() uint64 { return s.next }

// Skip leaves out the next packet number for good.
func (s *Sealer) Skip() { s.next++ }

// Flips is how often the key changed.
func (s *Sealer) Flips() uint64 { return s.flips }

// Begin appends the header of the next packet to dst. The caller appends frames
// and calls Finish, or drops the bytes: Begin changes nothing in s.
func (s *Sealer) Begin(dst []byte) []byte {
	dst = append(dst, byte(wire.PacketData)) // phase and number: Finish
	if s.fromClient {
		dst = append(dst, s.scid[:]...)
	}
	return append(dst, 0, 0, 0, 0)
}

// Finish seals the packet that Begin started at pkt[start:] in place and appends
// the tag. It takes the next packet number, and the next key when that is due.
// It allocates only if pkt lacks [wire.TagBytes] of capacity.
func (s *Sealer) Finish(now time.Time, pkt []byte, start int) []byte {
	if s.flipDue(now) && s.mayFlip(now) {
		s.flip(now)
	}
	body := start + s.HeaderBytes()
	pkt[start] = byte(wire.PacketData) | byte(s.flips&1)
	binary.BigEndian.PutUint32(pkt[body-4:], uint32(s.next))
	pkt = slices.Grow(pkt, wire.TagBytes)
	return s.seal(pkt[:body], pkt[body:], pkt[start:body])
}

// seal appends sealed plaintext to dst under the next number. The plaintext may
// start where dst ends.
func (s *Sealer) seal(dst, plaintext, aad []byte) []byte {
	s.key.wake(s.suite)
	s.key.nonceInto(&s.nonce, s.next)
	s.next++
	return s.key.aead.Seal(dst, s.nonce[:], plaintext, aad)
}

// Acked tells that the peer acknowledged packet pn.
func (s *Sealer) Acked(pn uint64) {
	if pn >= s.phaseFirst && pn < s.next {
		s.phaseAcked = true
	}
}

// WantsPing says that the connection has to send something the peer acknowledges,
// because the next key waits for that. It says so from half the life of a key on,
// and at most once a second.
func (s *Sealer) WantsPing(now time.Time) bool {
	if s.stream || s.phaseAcked {
		return false
	}
	if s.next-s.phaseFirst < s.rekey.Packets/2 && now.Sub(s.phaseStart) < s.rekey.Interval/2 {
		return false
	}
	if !s.pinged.IsZero() && now.Sub(s.pinged) < pingGap {
		return false
	}
	s.pinged = now
	return true
}

// Trim drops what can be derived again, for a connection that idles.
func (s *Sealer) Trim() { s.key.sleep() }

// Asleep says that nothing was sealed since Trim.
func (s *Sealer) Asleep() bool { return s.key.aead == nil }

func (s *Sealer) flipDue(now time.Time) bool {
	return s.next-s.phaseFirst >= s.rekey.Packets || now.Sub(s.phaseStart) >= s.rekey.Interval
}

// mayFlip keeps two phases apart far enough for a receiver to tell which key a
// packet needs from its phase bit alone.
func (s *Sealer) mayFlip(now time.Time) bool {
	if s.flips > 0 && now.Sub(s.phaseStart) < flipGap {
		return false
	}
	return s.stream || s.phaseAcked
}

func (s *Sealer) flip(now time.Time) {
	s.secret = nextSecret(&s.secret)
	s.key = newPacketKey(s.suite, &s.secret)
	s.flips++
	s.phaseFirst = s.next
	s.phaseStart = now
	s.phaseAcked = false
	s.pinged = time.Time{}
}
