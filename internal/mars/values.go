package mars

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5"
)

const (
	// ValueKeyBytesMax is the longest key of a node value, in bytes.
	ValueKeyBytesMax = 128
	valuesDepthMax   = 16
)

// ErrValues means node values are not a map of plain MessagePack within the bounds.
var ErrValues = errors.New("node values must be a map of numbers, texts, bytes, lists and maps")

// EncodeValues returns the one encoding of v, empty for an empty map. It refuses
// what [DecodeValues] would not take back.
func EncodeValues(v map[string]any) ([]byte, error) {
	if len(v) == 0 {
		return nil, nil
	}
	for k := range v {
		if k == "" || len(k) > ValueKeyBytesMax {
			return nil, fmt.Errorf("node value key of %d bytes, want 1 to %d: %w", len(k), ValueKeyBytesMax, ErrValues)
		}
	}
	var buf bytes.Buffer
	enc := msgpack.NewEncoder(&buf)
	enc.SetSortMapKeys(true) // one encoding per map, or digests would differ
	enc.UseCompactInts(true)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode node values: %w", err)
	}
	if buf.Len() > ValuesBytesMax {
		return nil, fmt.Errorf("node values of %d bytes, at most %d: %w", buf.Len(), ValuesBytesMax, ErrValues)
	}
	if _, err := DecodeValues(buf.Bytes()); err != nil {
		return nil, err // such as a time, which needs an extension type
	}
	return buf.Bytes(), nil
}

// DecodeValues reads what [EncodeValues] wrote. Integers come back as int64, or
// uint64 beyond its range, floats as float64, lists as []any.
func DecodeValues(b []byte) (map[string]any, error) {
	if len(b) == 0 {
		return nil, nil
	}
	r := valueReader{b: b}
	v, ok := r.value(0)
	m, isMap := v.(map[string]any)
	if !ok || !isMap || len(b) > ValuesBytesMax || len(r.b) > 0 {
		return nil, ErrValues
	}
	return m, nil
}

// valueReader decodes MessagePack without extension types. It is written out
// because the library believes lengths before it has seen the bytes, and either
// keeps every width of integer apart or turns bytes into texts.
type valueReader struct{ b []byte }

func (r *valueReader) take(n uint64) ([]byte, bool) {
	if n > uint64(len(r.b)) {
		return nil, false
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b, true
}

// uint reads a big-endian number of size bytes.
func (r *valueReader) uint(size int) (uint64, bool) {
	var p [8]byte
	b, ok := r.take(uint64(size))
	copy(p[8-size:], b)
	return binary.BigEndian.Uint64(p[:]), ok
}

// value reads one value that stands depth maps and lists deep.
func (r *valueReader) value(depth int) (any, bool) {
	head, ok := r.take(1)
	if !ok || depth > valuesDepthMax {
		return nil, false
	}
	switch c := head[0]; {
	case c < 0x80:
		return int64(c), true
	case c >= 0xe0:
		return int64(int8(c)), true
	case c&0xf0 == 0x80:
		return r.dict(uint64(c&0x0f), depth)
	case c&0xf0 == 0x90:
		return r.list(uint64(c&0x0f), depth)
	case c&0xe0 == 0xa0:
		return r.text(uint64(c & 0x1f))
	default:
		return r.long(c, depth)
	}
}

// long reads the value after a head that has a width of its own.
func (r *valueReader) long(c byte, depth int) (any, bool) {
	switch {
	case c == 0xc0:
		return nil, true
	case c == 0xc2, c == 0xc3:
		return c == 0xc3, true
	case c >= 0xc4 && c <= 0xc6:
		n, ok := r.uint(1 << (c - 0xc4))
		if !ok {
			return nil, false
		}
		b, ok := r.take(n)
		return bytes.Clone(b), ok
	case c == 0xca:
		u, ok := r.uint(4)
		return float64(math.Float32frombits(uint32(u))), ok
	case c == 0xcb:
		u, ok := r.uint(8)
		return math.Float64frombits(u), ok
	case c >= 0xcc && c <= 0xcf:
		u, ok := r.uint(1 << (c - 0xcc))
		if u > math.MaxInt64 {
			return u, ok
		}
		return int64(u), ok
	case c >= 0xd0 && c <= 0xd3:
		size := 1 << (c - 0xd0)
		u, ok := r.uint(size)
		shift := 64 - 8*size
		return int64(u<<shift) >> shift, ok // the sign moves up and back
	case c >= 0xd9 && c <= 0xdb:
		n, ok := r.uint(1 << (c - 0xd9))
		if !ok {
			return nil, false
		}
		return r.text(n)
	case c == 0xdc, c == 0xdd:
		n, ok := r.uint(2 << (c - 0xdc))
		if !ok {
			return nil, false
		}
		return r.list(n, depth)
	case c == 0xde, c == 0xdf:
		n, ok := r.uint(2 << (c - 0xde))
		if !ok {
			return nil, false
		}
		return r.dict(n, depth)
	}
	return nil, false // extension types have no place here
}

func (r *valueReader) text(n uint64) (any, bool) {
	b, ok := r.take(n)
	return string(b), ok && utf8.Valid(b)
}

// list grows item by item: n is only a claim.
func (r *valueReader) list(n uint64, depth int) (any, bool) {
	items := []any{}
	for range n {
		v, ok := r.value(depth + 1)
		if !ok {
			return nil, false
		}
		items = append(items, v)
	}
	return items, true
}

func (r *valueReader) dict(n uint64, depth int) (any, bool) {
	m := map[string]any{}
	for range n {
		k, ok := r.value(depth + 1)
		key, isText := k.(string)
		if !ok || !isText {
			return nil, false
		}
		if m[key], ok = r.value(depth + 1); !ok {
			return nil, false
		}
	}
	return m, true
}
