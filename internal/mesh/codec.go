package mesh

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"
)

// The limits of [EncodeMap] and [DecodeMap]. They hold before anything is allocated.
const (
	// MapDepthMax is how deep maps and arrays may be nested, the outer map included.
	MapDepthMax = 16
	// MapEntriesMax is how many elements all maps and arrays may hold together.
	MapEntriesMax = 65_536
)

// ErrMap means that bytes are not a map of the application surface, or that a map goes over a limit.
var ErrMap = errors.New("not a mesh value")

// Which limit a map goes over. Both are an [ErrMap] too.
var (
	ErrMapDeep    = fmt.Errorf("%w: nested too deep", ErrMap)
	ErrMapEntries = fmt.Errorf("%w: too many entries", ErrMap)
)

// MapLimits are what [CheckMap] lets pass.
type MapLimits struct {
	Depth   int // levels of maps and arrays, the outer map included
	Entries int // elements of all maps and arrays together
}

var mapLimits = MapLimits{Depth: MapDepthMax, Entries: MapEntriesMax}

// EncodeMap encodes a map for the mesh as MessagePack. Types survive: what goes
// in as int16 comes out as int16 (int and uint come out as 64 bits wide).
func EncodeMap(m map[string]any) ([]byte, error) {
	if !shallow(m, MapDepthMax) {
		return nil, fmt.Errorf("encode mesh value: %w: at most %d levels", ErrMapDeep, MapDepthMax)
	}
	var b bytes.Buffer
	e := msgpack.NewEncoder(&b)
	e.SetSortMapKeys(true)
	if m == nil {
		m = map[string]any{} // a nil map would be encoded as nil
	}
	if err := e.Encode(m); err != nil {
		return nil, fmt.Errorf("encode mesh value: %w", err)
	}
	if err := CheckMap(b.Bytes(), mapLimits); err != nil {
		return nil, fmt.Errorf("encode mesh value: %w", err)
	}
	return b.Bytes(), nil
}

// shallow tells whether v is nested at most depth deep. A map that holds itself is not.
func shallow(v any, depth int) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			if depth == 0 || !shallow(e, depth-1) {
				return false
			}
		}
	case []any:
		for _, e := range v {
			if depth == 0 || !shallow(e, depth-1) {
				return false
			}
		}
	}
	return true
}

// DecodeMap is the reverse of [EncodeMap]. Nested maps are map[string]any, arrays are
// []any. The result shares no memory with b.
func DecodeMap(b []byte) (map[string]any, error) {
	if err := CheckMap(b, mapLimits); err != nil {
		return nil, fmt.Errorf("decode mesh value: %w", err)
	}
	v, err := msgpack.NewDecoder(bytes.NewReader(b)).DecodeMap()
	if err != nil {
		return nil, fmt.Errorf("decode mesh value: %w: %w", ErrMap, err)
	}
	return v, nil
}

// CheckMap walks encoded bytes without allocating and refuses what is over a limit,
// claims more than it brings, or has no place in a map of the application: with
// limits within [MapDepthMax] and [MapEntriesMax], [DecodeMap] takes what it lets
// pass. Whoever keeps bytes of others undecoded asks it first. Errors are an [ErrMap].
func CheckMap(b []byte, limits MapLimits) error {
	if len(b) > BodyMax {
		return fmt.Errorf("%w: %w: %d bytes", ErrMap, ErrTooLarge, len(b))
	}
	w := mapWalk{rest: b, limits: limits, entries: limits.Entries}
	if len(b) == 0 || (b[0]&0xf0 != 0x80 && b[0] != 0xde && b[0] != 0xdf) {
		return fmt.Errorf("%w: no map", ErrMap)
	}
	if err := w.value(limits.Depth); err != nil {
		return err
	}
	if len(w.rest) > 0 {
		return fmt.Errorf("%w: %d bytes after it", ErrMap, len(w.rest))
	}
	return nil
}

type mapWalk struct {
	rest    []byte
	limits  MapLimits
	entries int // how many more elements there may be
}

var errMapShort = fmt.Errorf("%w: cut off", ErrMap)

func (w *mapWalk) skip(n uint64) error {
	if uint64(len(w.rest)) < n {
		return errMapShort
	}
	w.rest = w.rest[n:]
	return nil
}

// number reads a big-endian length of size bytes.
func (w *mapWalk) number(size int) (uint64, error) {
	var wide [8]byte
	if len(w.rest) < size {
		return 0, errMapShort
	}
	copy(wide[8-size:], w.rest)
	w.rest = w.rest[size:]
	return binary.BigEndian.Uint64(wide[:]), nil
}

// skipSized skips what follows its own length, given in size bytes.
func (w *mapWalk) skipSized(size int) error {
	n, err := w.number(size)
	if err != nil {
		return err
	}
	return w.skip(n)
}

// value walks one value; depth is how many levels it may still open.
func (w *mapWalk) value(depth int) error {
	if len(w.rest) == 0 {
		return errMapShort
	}
	c := w.rest[0]
	w.rest = w.rest[1:]
	switch {
	case c <= 0x7f || c >= 0xe0: // small integers
		return nil
	case c&0xf0 == 0x80:
		return w.elements(uint64(c&0x0f), depth, true)
	case c&0xf0 == 0x90:
		return w.elements(uint64(c&0x0f), depth, false)
	case c&0xe0 == 0xa0: // short string
		return w.skip(uint64(c & 0x1f))
	}
	switch c {
	case 0xc0, 0xc2, 0xc3: // nil, false, true
		return nil
	case 0xc4, 0xc5, 0xc6: // bytes
		return w.skipSized(1 << (c - 0xc4))
	case 0xd9, 0xda, 0xdb: // string
		return w.skipSized(1 << (c - 0xd9))
	case 0xca, 0xcb: // float32, float64
		return w.skip(4 << (c - 0xca))
	case 0xcc, 0xcd, 0xce, 0xcf: // uint8 to uint64
		return w.skip(1 << (c - 0xcc))
	case 0xd0, 0xd1, 0xd2, 0xd3: // int8 to int64
		return w.skip(1 << (c - 0xd0))
	case 0xd6, 0xd7: // 4 or 8 bytes of a time
		return w.time(4 << (c - 0xd6))
	case 0xc7: // 12 bytes of a time
		n, err := w.number(1)
		if err != nil {
			return err
		}
		if n != 12 {
			return fmt.Errorf("%w: unknown extension", ErrMap)
		}
		return w.time(12)
	case 0xdc, 0xdd, 0xde, 0xdf: // arrays, maps
		n, err := w.number(2 << ((c - 0xdc) & 1))
		if err != nil {
			return err
		}
		return w.elements(n, depth, c >= 0xde)
	}
	return fmt.Errorf("%w: type %#x", ErrMap, c)
}

func (w *mapWalk) time(size uint64) error {
	const timestamp = 0xff
	if len(w.rest) == 0 || w.rest[0] != timestamp {
		return fmt.Errorf("%w: unknown extension", ErrMap)
	}
	return w.skip(1 + size)
}

func (w *mapWalk) elements(n uint64, depth int, keyed bool) error {
	if depth == 0 {
		return fmt.Errorf("%w: at most %d levels", ErrMapDeep, w.limits.Depth)
	}
	if n > uint64(w.entries) {
		return fmt.Errorf("%w: more than %d", ErrMapEntries, w.limits.Entries)
	}
	w.entries -= int(n)
	for range n {
		if keyed {
			if len(w.rest) == 0 {
				return errMapShort
			}
			if c := w.rest[0]; c&0xe0 != 0xa0 && (c < 0xd9 || c > 0xdb) {
				return fmt.Errorf("%w: a key is no string", ErrMap)
			}
			if err := w.value(0); err != nil {
				return err
			}
		}
		if err := w.value(depth - 1); err != nil {
			return err
		}
	}
	return nil
}
