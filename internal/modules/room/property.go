package room

import (
	"encoding/binary"
	"maps"
	"math"
	"slices"
)

// The limits of a room's properties.
const (
	PropertiesMax      = 256      // names in a room
	PropertyKeyMax     = 128      // bytes of a name, at least 1
	PropertyValueMax   = 16 << 10 // bytes of a value
	PropertiesBytesMax = 64 << 10 // names and values together
)

// Value is a property: bytes, or a 64-bit integer that can be incremented.
type Value struct {
	Integer bool
	Int     int64
	Bytes   []byte
}

// Property is a name with its value.
type Property struct {
	Key   string
	Value Value
}

func (v Value) size() int {
	if v.Integer {
		return 8
	}
	return len(v.Bytes)
}

// AppendTo appends the value as the wire carries it: bytes as they are, an integer
// as an i64.
func (v Value) AppendTo(dst []byte) []byte {
	if v.Integer {
		return binary.BigEndian.AppendUint64(dst, uint64(v.Int))
	}
	return append(dst, v.Bytes...)
}

// properties are a room's named values.
type properties struct {
	values map[string]Value
	bytes  int // names and values together
}

// set stores all of props or, when one limit is passed, none. Bytes are copied.
func (p *properties) set(props []Property) error {
	count, size := len(p.values), p.bytes
	fresh := make(map[string]int, len(props))
	for _, q := range props {
		if q.Key == "" || len(q.Key) > PropertyKeyMax || q.Value.size() > PropertyValueMax {
			return ErrProperties
		}
		if before, ok := fresh[q.Key]; ok {
			size -= before
		} else if old, ok := p.values[q.Key]; ok {
			size -= len(q.Key) + old.size()
		} else {
			count++
		}
		fresh[q.Key] = len(q.Key) + q.Value.size()
		size += fresh[q.Key]
	}
	if count > PropertiesMax || size > PropertiesBytesMax {
		return ErrProperties
	}
	if p.values == nil {
		p.values = make(map[string]Value)
	}
	for _, q := range props {
		q.Value.Bytes = slices.Clone(q.Value.Bytes)
		p.values[q.Key] = q.Value
	}
	p.bytes = size
	return nil
}

// incr adds delta to an integer, which starts at zero, and returns the sum.
func (p *properties) incr(key string, delta int64) (int64, error) {
	old, ok := p.values[key]
	if ok && !old.Integer {
		return 0, ErrIncr
	}
	if delta > 0 && old.Int > math.MaxInt64-delta || delta < 0 && old.Int < math.MinInt64-delta {
		return 0, ErrIncr
	}
	sum := old.Int + delta
	return sum, p.set([]Property{{key, Value{Integer: true, Int: sum}}})
}

// Properties returns the named properties that exist, or all of them when none
// is named, ordered by name. Values' bytes are lent until the next Step.
func (m *Machine[L]) Properties(keys []string) []Property {
	if len(keys) == 0 {
		keys = slices.Collect(maps.Keys(m.props.values))
	} else {
		keys = slices.Clone(keys)
	}
	slices.Sort(keys)
	var found []Property
	for _, key := range slices.Compact(keys) {
		if v, ok := m.props.values[key]; ok {
			found = append(found, Property{key, v})
		}
	}
	return found
}
