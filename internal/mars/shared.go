package mars

import (
	"cmp"
	"errors"
	"math"
	"slices"

	"github.com/Diarkis/diarkis/internal/id"
)

// Bounds of the data that all nodes of a cluster share.
const (
	SharedMax         = 10 // keys
	SharedKeyBytesMax = 54
)

// ErrShared means a key of shared data is empty, too long, or one too many.
var ErrShared = errors.New("shared data has at most 10 keys of 1 to 54 bytes")

// Shared is a value that all nodes see. The last writer wins.
type Shared struct {
	Key   string
	Value int16
	Stamp uint64 // when it was written, as the authority counts; 0: not yet
}

// sharedData is sorted by key and never changed in place.
type sharedData []Shared

// put returns s with a value that is newer than what is there. It returns s itself
// when there is nothing to change or no room.
func (s sharedData) put(v Shared) sharedData {
	if v.Key == "" || len(v.Key) > SharedKeyBytesMax {
		return s
	}
	i, found := slices.BinarySearchFunc(s, v.Key, func(o Shared, key string) int { return cmp.Compare(o.Key, key) })
	switch {
	case found && s[i].Stamp >= v.Stamp, !found && len(s) >= SharedMax:
		return s
	case found:
		s = slices.Clone(s)
		s[i] = v
		return s
	}
	return slices.Insert(slices.Clone(s), i, v)
}

// newest is the highest stamp.
func (s sharedData) newest() (stamp uint64) {
	for _, v := range s {
		stamp = max(stamp, v.Stamp)
	}
	return stamp
}

func (s sharedData) digest() uint64 {
	if len(s) == 0 {
		return 0
	}
	return hash64(appendShared(nil, s))
}

func appendShared(dst []byte, s []Shared) []byte {
	dst = append(dst, byte(len(s)))
	for _, v := range s {
		dst = appendString(dst, v.Key)
		dst = append(dst, byte(uint16(v.Value)>>8), byte(v.Value))
		dst = appendUint(dst, v.Stamp)
	}
	return dst
}

func (r *reader) shared() []Shared {
	n := int(r.u8("shared"))
	if n > SharedMax {
		r.fail("shared")
		return nil
	}
	var s []Shared
	for range n {
		v := Shared{Key: r.string(SharedKeyBytesMax, "shared key")}
		if b := r.take(2, "shared value"); b != nil {
			v.Value = int16(uint16(b[0])<<8 | uint16(b[1]))
		}
		v.Stamp = r.uint(math.MaxUint64, "stamp")
		s = append(s, v)
	}
	return s
}

// incarnations reads a list of at most so many.
func (r *reader) incarnations(most int, what string) []id.Incarnation {
	n := r.count(len(id.Incarnation{}), what)
	if n > most {
		r.fail(what)
		return nil
	}
	var is []id.Incarnation
	for range n {
		is = append(is, r.incarnation(what))
	}
	return is
}
