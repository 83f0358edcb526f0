// Package limit counts what clients do against what they may: token buckets of one
// word each, and tables of them that stay as small as they were made.
//
// Times are nanoseconds since an epoch of the caller's, the same for all calls.
package limit

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// Rate is how fast a bucket refills and how much it holds, as the time one unit
// costs and the time a full bucket is worth. The zero Rate lets everything through.
type Rate struct {
	cost, full int64 // nanoseconds
}

// NewRate returns the rate of a bucket that gets perSec units a second and holds burst,
// at least 1. Without a positive perSec there is no limit.
func NewRate(perSec, burst int) Rate {
	if perSec <= 0 {
		return Rate{}
	}
	cost := int64(time.Second) / int64(perSec)
	return Rate{cost: cost, full: cost * int64(max(burst, 1))}
}

// Bucket is a token bucket in one word: the time (nanoseconds since an epoch of
// the caller's) at which it will be full again.
type Bucket int64

// Take takes n units, or takes nothing and returns false when they are not there.
func (b *Bucket) Take(now int64, r Rate, n int) bool {
	if r.cost == 0 {
		return true
	}
	full := max(int64(*b), now) + r.cost*int64(n)
	if full-now > r.full {
		return false
	}
	*b = Bucket(full)
	return true
}

// Wait is how long until Take would give n units, n being no more than the burst.
func (b *Bucket) Wait(now int64, r Rate, n int) time.Duration {
	if r.cost == 0 {
		return 0
	}
	need := min(r.cost*int64(n), r.full)
	return time.Duration(max(0, max(int64(*b), now)+need-now-r.full))
}

// Force takes n units even when they are not there, so that the next Wait is longer.
func (b *Bucket) Force(now int64, r Rate, n int) {
	if r.cost != 0 {
		*b = Bucket(max(int64(*b), now) + r.cost*int64(n))
	}
}

// Spent is how long it takes until the bucket is full again.
func (b Bucket) Spent(now int64) time.Duration { return time.Duration(max(0, int64(b)-now)) }

// Spend makes the bucket one that is full again after d, unless it takes longer anyway.
func (b *Bucket) Spend(now int64, d time.Duration) { *b = max(*b, Bucket(now+int64(d))) }

// ways is how many entries of a table share a set, where the one quiet for
// longest makes room.
const ways = 4

// Table holds a fixed number of buckets by key. It is safe for concurrent use.
type Table struct {
	rate Rate
	seed maphash.Seed

	mu   sync.Mutex // guards the field below
	sets [][ways]entry
}

type entry struct {
	key  uint64 // hash under the seed, which nobody outside knows
	when Bucket
}

// NewTable returns a table of size buckets, or a few less.
func NewTable(r Rate, size int) *Table {
	return &Table{rate: r, seed: maphash.MakeSeed(), sets: make([][ways]entry, max(1, size/ways))}
}

// Take takes one unit from the bucket of key.
func (t *Table) Take(now int64, key uint64) bool { return t.Try(now, key) == 0 }

// Try takes one unit from the bucket of key and returns 0, or takes nothing and
// returns how long until there is one.
func (t *Table) Try(now int64, key uint64) time.Duration {
	if t.rate.cost == 0 {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bucketLocked(key).try(now, t.rate)
}

// bucketLocked is the bucket of key, a full one if it was forgotten.
func (t *Table) bucketLocked(key uint64) *Bucket {
	h := hash(t.seed, key) | 1 // never 0, the key of an empty entry
	set := &t.sets[h%uint64(len(t.sets))]
	victim := &set[0]
	for i := range set {
		e := &set[i]
		if e.key == h {
			return &e.when
		}
		if e.when < victim.when {
			victim = e
		}
	}
	*victim = entry{key: h}
	return &victim.when
}

// Charge takes n units from the bucket of key whether they are there or not, so that
// the next ones come later.
func (t *Table) Charge(now int64, key uint64, n int) {
	if t.rate.cost == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bucketLocked(key).Force(now, t.rate, n)
}

func (b *Bucket) try(now int64, r Rate) time.Duration {
	if b.Take(now, r, 1) {
		return 0
	}
	return b.Wait(now, r, 1)
}

// nat64 is the well-known prefix under which IPv4 clients show at a NAT64 (RFC 6052).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// AddressKey is what address limits count by: the IPv4 address, also of a client behind
// NAT64's well-known prefix, or the IPv6 /64.
func AddressKey(a netip.Addr) uint64 {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return v4Key(b[:])
	}
	b := a.As16()
	if nat64.Contains(a) {
		return v4Key(b[12:])
	}
	return binary.BigEndian.Uint64(b[:8])
}

func v4Key(b []byte) uint64 {
	return uint64(binary.BigEndian.Uint32(b)) | 1<<63 // no global unicast /64 looks like this
}

func hash(seed maphash.Seed, key uint64) uint64 {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], key)
	return maphash.Bytes(seed, b[:])
}

// Shared is a Bucket for many goroutines.
type Shared struct {
	mu sync.Mutex
	b  Bucket
}

// Take is [Bucket.Take] of one unit.
func (s *Shared) Take(now int64, r Rate) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Take(now, r, 1)
}
