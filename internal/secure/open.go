package secure

import (
	"encoding/binary"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// Why a data packet was refused.
const (
	ErrType   = wire.RefusedType             // not a data packet
	ErrShort  = wire.RefusedLength           // shorter than header and tag
	ErrReplay = wire.Refusal("replay")       // seen before, or too old to tell
	ErrAuth   = wire.Refusal("auth")         // does not open
	ErrOldKey = wire.Refusal("old_key")      // sealed with a key that was dropped
	ErrForged = wire.Refusal("forged_limit") // too many did not open: close the connection
)

// forgedMax is how many packets may fail to open before the key is worn out.
const forgedMax = 1 << 36

// Opener opens the data packets that one side of a connection receives. It is not
// safe for concurrent use.
type Opener struct {
	key        packetKey // of the current phase; asleep after Trim
	secret     [32]byte  // of the current phase
	suite      Suite
	fromClient bool
	nonce      [12]byte // scratch, as in Sealer

	seen      replayWindow
	flips     uint64 // phases before the current one
	lowest    uint64 // lowest number opened in the current phase
	forged    uint64
	forgedMax uint64

	prev      *packetKey // nil unless the phase changed less than flipGap ago
	prevUntil time.Time
	upcoming  *upcoming // nil until a packet claims the next phase
}

// upcoming is the next phase: derived once, current once a packet opens under it.
type upcoming struct {
	key    packetKey
	secret [32]byte
}

// NewOpener returns an Opener that expects packet 1, number 0 having gone to the
// handshake.
func NewOpener(o KeyOptions) *Opener {
	return newOpener(o, newPacketKey(o.Suite, &o.Secret))
}

func newOpener(o KeyOptions, k packetKey) *Opener {
	w := &Opener{key: k, secret: o.Secret, suite: o.Suite, fromClient: o.FromClient, forgedMax: forgedMax}
	w.seen.mark(0)
	return w
}

// Largest is the highest packet number that opened.
func (o *Opener) Largest() uint64 { return o.seen.largest }

// Forged is how many packets did not open.
func (o *Opener) Forged() uint64 { return o.forged }

// Flips is how often the peer changed its key.
func (o *Opener) Flips() uint64 { return o.flips }

// Open checks and opens pkt in place and returns its number and frames, which
// alias pkt. The error is a [wire.Refusal]; after ErrAuth and ErrForged pkt is
// overwritten. Over TCP every error ends the connection; over UDP only ErrForged does.
func (o *Opener) Open(now time.Time, pkt []byte) (pn uint64, plaintext []byte, err error) {
	body := headerBytes(o.fromClient)
	switch {
	case wire.TypeOf(pkt) != wire.PacketData:
		return 0, nil, ErrType
	case len(pkt) < body+wire.TagBytes:
		return 0, nil, ErrShort
	case o.forged >= o.forgedMax:
		return 0, nil, ErrForged
	}
	pn = rebuildPN(o.seen.largest, binary.BigEndian.Uint32(pkt[body-4:]))
	if o.seen.refuses(pn) {
		return pn, nil, ErrReplay
	}
	o.dropPrev(now)
	k := o.keyFor(pn, uint64(pkt[0]&1))
	if k == nil {
		return pn, nil, ErrOldKey
	}
	k.nonceInto(&o.nonce, pn)
	plaintext, err = k.aead.Open(pkt[body:body], o.nonce[:], pkt[body:], pkt[:body])
	if err != nil {
		return pn, nil, o.countForged()
	}
	o.seen.mark(pn)
	o.settle(now, pn, k)
	return pn, plaintext, nil
}

// keyFor returns the key of packet pn with this phase bit, or nil when that key
// is gone.
func (o *Opener) keyFor(pn, phase uint64) *packetKey {
	switch {
	case phase == o.flips&1:
		o.key.wake(o.suite)
		return &o.key
	case pn < o.lowest:
		return o.prev
	}
	if o.upcoming == nil {
		u := &upcoming{secret: nextSecret(&o.secret)}
		u.key = newPacketKey(o.suite, &u.secret)
		o.upcoming = u
	}
	return &o.upcoming.key
}

// settle records that packet pn opened under k, and makes the next phase the
// current one if k is its key.
func (o *Opener) settle(now time.Time, pn uint64, k *packetKey) {
	switch {
	case k == &o.key:
		o.lowest = min(o.lowest, pn)
	case o.upcoming != nil && k == &o.upcoming.key:
		prev := o.key
		prev.wake(o.suite) // late packets of the old phase may still come
		o.prev, o.prevUntil = &prev, now.Add(flipGap)
		o.key, o.secret = o.upcoming.key, o.upcoming.secret
		o.upcoming = nil
		o.lowest = pn
		o.flips++
	}
}

func (o *Opener) countForged() error {
	o.forged++
	if o.forged >= o.forgedMax {
		return ErrForged
	}
	return ErrAuth
}

func (o *Opener) dropPrev(now time.Time) {
	if o.prev != nil && now.After(o.prevUntil) {
		o.prev = nil
	}
}

// Trim drops what can be derived again and keys whose time is over, for a
// connection that idles.
func (o *Opener) Trim(now time.Time) {
	o.dropPrev(now)
	o.upcoming = nil
	o.key.sleep()
}

// Asleep says that nothing was opened since Trim.
func (o *Opener) Asleep() bool { return o.key.aead == nil }

// rebuildPN returns the number closest to the one after largest that ends in
// these 32 bits, as in RFC 9000 appendix A.3.
func rebuildPN(largest uint64, low uint32) uint64 {
	const window, half, limit = 1 << 32, 1 << 31, 1 << 62
	expected := largest + 1
	pn := expected&^(window-1) | uint64(low)
	switch {
	case pn+half <= expected && pn < limit-window:
		return pn + window
	case pn > expected+half && pn >= window:
		return pn - window
	}
	return pn
}

// replayBits is how far behind the highest packet number one is still told from
// a replay.
const replayBits = 1024

// replayWindow remembers which of the last replayBits numbers opened. Number n is
// bit n mod replayBits.
type replayWindow struct {
	largest uint64
	bits    [replayBits / 64]uint64
}

// refuses says that pn was marked before or lies below the window.
func (w *replayWindow) refuses(pn uint64) bool {
	if pn > w.largest {
		return false
	}
	return w.largest-pn >= replayBits || w.bits[pn%replayBits/64]&(1<<(pn%64)) != 0
}

// mark records pn, which refuses did not refuse.
func (w *replayWindow) mark(pn uint64) {
	if pn > w.largest {
		if pn-w.largest >= replayBits {
			clear(w.bits[:])
		} else {
			for n := w.largest + 1; n < pn; n++ {
				w.bits[n%replayBits/64] &^= 1 << (n % 64)
			}
		}
		w.largest = pn
	}
	w.bits[pn%replayBits/64] |= 1 << (pn % 64)
}
