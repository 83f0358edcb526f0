package reliable

import (
	"slices"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// Received is what one packet brought. A caller keeps one per read loop and passes
// it to every [Machine.Receive], which empties it first.
type Received struct {
	// Messages are whole messages, oldest first. Their bytes are lent: some point
	// into the packet, so they are good until its buffer is used again.
	Messages []Delivery
	// Close is set when the peer closed the connection.
	Close *wire.Close
	// Move is set when the server sends this client to another node.
	Move *wire.Move
	// Offline is the reason of an OFFLINE frame, 0 when there was none.
	Offline uint8
	// Pong is the answer to our last PING.
	Pong Pong
	// PathChallenge is what the next packet answers: the peer found us elsewhere.
	PathChallenge PathToken
	// PathResponse answers a PATH_CHALLENGE the caller sent.
	PathResponse PathToken

	lent   [][]byte // of the pools, behind Messages
	long   [][]byte // behind Messages of several fragments
	spares [][]byte // where the next ones will be put together
}

// The memory kept for long messages: bytes, and pieces to search.
const (
	sparesMax   = 2 * wire.MessageMax
	sparesCount = 64
)

// Delivery is one message from the peer.
type Delivery struct {
	Bytes   []byte       // encoded, lent
	Message wire.Message // Bytes parsed; its payload points into them
	Rel     Reliability
	Channel uint8 // of reliable messages
}

// Pong is the answer to a PING.
type Pong struct {
	Has        bool
	RTT        time.Duration // from the PING's packet to the PONG's
	ServerTime uint64        // microseconds since the Unix epoch, 0 from a client
}

// PathToken is the content of a PATH_CHALLENGE or PATH_RESPONSE.
type PathToken struct {
	Has   bool
	Token [8]byte
}

// Reset empties r and keeps its memory.
func (r *Received) Reset() {
	clear(r.Messages)
	r.Messages = r.Messages[:0]
	r.Close, r.Move, r.Offline = nil, nil, 0
	r.Pong, r.PathChallenge, r.PathResponse = Pong{}, PathToken{}, PathToken{}
	for i, b := range r.lent {
		release(b)
		r.lent[i] = nil
	}
	r.lent = r.lent[:0]
	if len(r.long) > 0 {
		r.keepLong()
	}
}

// keepLong makes spares of what the long messages took. Past the limits the oldest go.
func (r *Received) keepLong() {
	for i, b := range r.long {
		if r.long[i] = nil; cap(b)&(cap(b)-1) == 0 { // as borrow needs it; from a State it may be otherwise
			r.spares = append(r.spares, b)
		}
	}
	r.long = r.long[:0]
	kept := 0
	for i := len(r.spares) - 1; i >= 0; i-- {
		if kept += cap(r.spares[i]); kept > sparesMax || len(r.spares)-i > sparesCount {
			r.spares = slices.Delete(r.spares, 0, i+1)
			return
		}
	}
}

// lend takes back b, which copyOf returned, when the messages are not used any more.
func (r *Received) lend(b []byte) { r.lent = append(r.lent, b) }

// lendLong does so for memory that borrow returned.
func (r *Received) lendLong(b []byte) { r.long = append(r.long, b) }

// extendMin is the least memory an incomplete message gets, in bytes.
const extendMin = 64

// extend appends a fragment to an incomplete message, which is nil at first. It takes
// memory of no more than twice what is in it: a message that never becomes whole must
// not keep that of a long one.
func (r *Received) extend(message, fragment []byte) []byte {
	n := len(message) + len(fragment)
	if n <= cap(message) {
		return append(message, fragment...)
	}
	size := extendMin
	for size < n {
		size *= 2
	}
	longer := append(append(r.borrow(size), message...), fragment...)
	if cap(message) > 0 {
		r.lendLong(message)
	}
	return longer
}

// borrow returns empty memory of exactly size bytes, a power of two.
func (r *Received) borrow(size int) []byte {
	for i := len(r.spares) - 1; i >= 0; i-- {
		if b := r.spares[i]; cap(b) == size {
			r.spares = slices.Delete(r.spares, i, i+1)
			return b[:0]
		}
	}
	return make([]byte, 0, size)
}

// deliver adds a message, or reports that it is none.
func (r *Received) deliver(b []byte, rel Reliability, channel uint8) error {
	m, err := wire.ParseMessage(b)
	if err != nil {
		return errMessage
	}
	r.Messages = append(r.Messages, Delivery{b, m, rel, channel})
	return nil
}
