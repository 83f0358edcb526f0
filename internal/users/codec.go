package users

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// errCodec means bytes from another node are not what this node's version writes.
var errCodec = errors.New("malformed message from another node")

// reader takes fields off the front of b. The first field that is not there
// sets err, and everything read after that is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) take(n int) []byte {
	if r.err != nil || n < 0 || n > len(r.b) {
		r.err = errCodec
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// key reads 16 bytes.
func (r *reader) key() (k [16]byte) {
	copy(k[:], r.take(len(k)))
	return k
}

// bytes reads a u32 size, at most limit, and that many bytes, which stay in the input.
func (r *reader) bytes(limit int) []byte {
	n := r.u32()
	if int64(n) > int64(limit) {
		r.err = errCodec
		return nil
	}
	return r.take(int(n))
}

func (r *reader) text(limit int) string { return string(r.bytes(limit)) }

// layout reads the first byte of every message and refuses another version.
func (r *reader) layout(want uint8) {
	if got := r.u8(); r.err == nil && got != want {
		r.err = fmt.Errorf("layout %d of another node's message is not %d: %w", got, want, errCodec)
	}
}

// end is the error of the whole message: trailing bytes are one.
func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		return errCodec
	}
	return r.err
}

func appendBytes[T string | []byte](dst []byte, b T) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(b))), b...)
}
