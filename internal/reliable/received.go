package reliable

import (
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

// sparesMax bounds the memory kept for long messages, in bytes.
const sparesMax = 2 * wire.MessageMax

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

// keepLong makes spares of what the long messages took.
func (r *Received) keepLong() {
	kept := 0
	for _, b := range r.spares {
		kept += cap(b)
	}
	for i, b := range r.long {
		if r.long[i] = nil; kept+cap(b) <= sparesMax {
			kept += cap(b)
			r.spares = append(r.spares, b)
		}
	}
	r.long = r.long[:0]
}

// lend takes back b, which copyOf returned, when the messages are not used any more.
func (r *Received) lend(b []byte) { r.lent = append(r.lent, b) }

// lendLong does so for memory that borrow returned.
func (r *Received) lendLong(b []byte) { r.long = append(r.long, b) }

// borrow returns memory to put a long message together in.
func (r *Received) borrow() []byte {
	n := len(r.spares)
	if n == 0 {
		return nil
	}
	b := r.spares[n-1]
	r.spares[n-1] = nil
	r.spares = r.spares[:n-1]
	return b[:0]
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
