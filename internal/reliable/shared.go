package reliable

import (
	"sync"
	"sync/atomic"
)

// Shared is an encoded message that goes to many connections: their queues hold the one
// copy, and what each of them copies is what its cipher works on. Its memory is used
// again when all of them are done with it; a connection that ends early leaves it to
// the garbage collector.
type Shared struct {
	refs atomic.Int32
	b    []byte
}

var shareds = sync.Pool{New: func() any { return new(Shared) }}

// sharedBytesKept is the largest memory of a Shared that is used again, in bytes: that
// of a datagram. A queue counts the messages in it, not what a larger one left them.
const sharedBytesKept = fragmentMax + 180

// NewShared returns an empty message, which the caller fills by Set before anyone
// sends it, and gives up by Done.
func NewShared() *Shared {
	s := shareds.Get().(*Shared)
	s.refs.Store(1)
	s.b = s.b[:0]
	return s
}

// Buffer is empty memory to encode the message into, for Set.
func (s *Shared) Buffer() []byte { return s.b[:0] }

// Set makes b the message. Nobody changes it afterwards.
func (s *Shared) Set(b []byte) { s.b = b }

// Bytes is the message, good until Done.
func (s *Shared) Bytes() []byte { return s.b }

// Done says that the caller won't use s any more.
func (s *Shared) Done() {
	if s.refs.Add(-1) == 0 && cap(s.b) <= sharedBytesKept {
		shareds.Put(s)
	}
}

// free gives up the bytes of a message: those of a Shared, or what copyOf returned.
func free(b []byte, s *Shared) {
	if s != nil {
		s.Done()
		return
	}
	release(b)
}
