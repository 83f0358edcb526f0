package mars

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

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
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode node values: %w", err)
	}
	if buf.Len() > ValuesBytesMax {
		return nil, fmt.Errorf("node values of %d bytes, at most %d: %w", buf.Len(), ValuesBytesMax, ErrValues)
	}
	if err := checkValues(buf.Bytes()); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// DecodeValues reads what [EncodeValues] wrote. Integers come back as int64 or
// uint64, floats as float64.
func DecodeValues(b []byte) (map[string]any, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if err := checkValues(b); err != nil {
		return nil, err
	}
	dec := msgpack.NewDecoder(bytes.NewReader(b))
	dec.UseLooseInterfaceDecoding(true)
	m, err := dec.DecodeMap()
	if err != nil {
		return nil, fmt.Errorf("decode node values: %w", err)
	}
	return m, nil
}

// checkValues walks the encoding before anything is allocated for it: the
// decoder would believe a length of a million entries.
func checkValues(b []byte) error {
	if len(b) > ValuesBytesMax || len(b) == 0 || b[0]&0xf0 != 0x80 && b[0] != 0xde && b[0] != 0xdf {
		return ErrValues
	}
	w := walker{b: b}
	if !w.value(0, false) || len(w.b) > 0 {
		return ErrValues
	}
	return nil
}

type walker struct{ b []byte }

func (w *walker) skip(n uint64) bool {
	if n > uint64(len(w.b)) {
		return false
	}
	w.b = w.b[n:]
	return true
}

// length reads a big-endian length of size bytes.
func (w *walker) length(size int) (uint64, bool) {
	if len(w.b) < size {
		return 0, false
	}
	var p [8]byte
	copy(p[8-size:], w.b)
	w.b = w.b[size:]
	return binary.BigEndian.Uint64(p[:]), true
}

// value steps over one value, which must be a text where it is a map key.
func (w *walker) value(depth int, key bool) bool {
	if len(w.b) == 0 || depth > valuesDepthMax {
		return false
	}
	c := w.b[0]
	w.b = w.b[1:]
	switch {
	case c&0xe0 == 0xa0:
		return w.skip(uint64(c & 0x1f))
	case c >= 0xd9 && c <= 0xdb:
		n, ok := w.length(1 << (c - 0xd9))
		return ok && w.skip(n)
	case key:
		return false
	case c < 0x80, c >= 0xe0, c == 0xc0, c == 0xc2, c == 0xc3: // small integers, nil, bools
		return true
	case c&0xf0 == 0x80:
		return w.items(uint64(c&0x0f), true, depth)
	case c&0xf0 == 0x90:
		return w.items(uint64(c&0x0f), false, depth)
	case c >= 0xc4 && c <= 0xc6: // bytes
		n, ok := w.length(1 << (c - 0xc4))
		return ok && w.skip(n)
	case c == 0xca, c == 0xcb:
		return w.skip(4 << (c - 0xca))
	case c >= 0xcc && c <= 0xcf:
		return w.skip(1 << (c - 0xcc))
	case c >= 0xd0 && c <= 0xd3:
		return w.skip(1 << (c - 0xd0))
	case c >= 0xdc && c <= 0xdf:
		n, ok := w.length(2 << ((c - 0xdc) & 1))
		return ok && w.items(n, c >= 0xde, depth)
	}
	return false // extension types have no place here
}

func (w *walker) items(n uint64, pairs bool, depth int) bool {
	for range n {
		if pairs && !w.value(depth+1, true) || !w.value(depth+1, false) {
			return false
		}
	}
	return true
}
