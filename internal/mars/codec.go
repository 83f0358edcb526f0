package mars

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/Diarkis/diarkis/internal/id"
)

// ErrMalformed means bytes from another node are not a message of this protocol.
var ErrMalformed = errors.New("malformed mars message")

// reader takes fields off a message. After the first error every read returns
// zero, so callers check err once. It refuses what a writer would not write, so
// that each message has one encoding.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrMalformed, what)
		r.b = nil
	}
}

func (r *reader) take(n int, what string) []byte {
	if r.err != nil || n > len(r.b) {
		r.fail(what)
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8(what string) uint8 {
	if b := r.take(1, what); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) bool(what string) bool {
	v := r.u8(what)
	if v > 1 {
		r.fail(what)
	}
	return v == 1
}

func (r *reader) uint(most uint64, what string) uint64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > most || n > 1 && r.b[n-1] == 0 {
		r.fail(what)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) u64(what string) uint64 {
	if b := r.take(8, what); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// count reads how many items follow, each of at least size bytes: a count that
// the rest of the message can't hold is refused before anything is allocated.
func (r *reader) count(size int, what string) int {
	return int(r.uint(uint64(len(r.b)/size), what))
}

func (r *reader) bytes(most int, what string) []byte {
	return r.take(int(r.uint(uint64(most), what)), what)
}

func (r *reader) string(most int, what string) string {
	b := r.bytes(most, what)
	if !utf8.Valid(b) {
		r.fail(what)
		return ""
	}
	return string(b)
}

func (r *reader) incarnation(what string) (i id.Incarnation) {
	copy(i[:], r.take(len(i), what))
	return i
}

func (r *reader) epoch() Epoch {
	return Epoch{
		Generation: r.uint(math.MaxUint64, "generation"),
		Founder:    r.incarnation("founder"),
		Term:       r.uint(math.MaxUint64, "term"),
	}
}

func appendUint(b []byte, v uint64) []byte { return binary.AppendUvarint(b, v) }

func appendString[S ~string | ~[]byte](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendEpoch(b []byte, e Epoch) []byte {
	b = appendUint(b, e.Generation)
	b = append(b, e.Founder[:]...)
	return appendUint(b, e.Term)
}
