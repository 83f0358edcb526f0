package reliable

import "sync"

// Copies of small messages come from pools shared by all connections, so that a
// busy one allocates nothing and an idle one keeps nothing.
type (
	small  [64]byte
	medium [256]byte
	large  [fragmentMax + 52]byte
)

var (
	smalls  = sync.Pool{New: func() any { return new(small) }}
	mediums = sync.Pool{New: func() any { return new(medium) }}
	larges  = sync.Pool{New: func() any { return new(large) }}
)

// copyOf returns a copy of b that release can take back.
func copyOf(b []byte) []byte {
	var out []byte
	switch n := len(b); {
	case n <= len(small{}):
		out = smalls.Get().(*small)[:]
	case n <= len(medium{}):
		out = mediums.Get().(*medium)[:]
	case n <= len(large{}):
		out = larges.Get().(*large)[:]
	default:
		out = make([]byte, n)
	}
	return out[:copy(out, b)]
}

// release takes back what copyOf returned. Nobody may use b afterwards; slices from
// elsewhere are left to the garbage collector.
func release(b []byte) {
	switch b = b[:cap(b)]; len(b) {
	case len(small{}):
		smalls.Put((*small)(b))
	case len(medium{}):
		mediums.Put((*medium)(b))
	case len(large{}):
		larges.Put((*large)(b))
	}
}
