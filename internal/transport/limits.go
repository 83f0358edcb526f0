package transport

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// Limits bounds what clients may cost. The zero value means the defaults in the
// comments; a negative rate means no limit.
type Limits struct {
	// UnauthenticatedPerSec is how many handshake and probe packets a second the
	// process looks at. Zero means 20,000.
	UnauthenticatedPerSec int
	// HelloPerSec and HelloBurst bound the Hellos with a good mac of one place. Zero means 5 and 10.
	HelloPerSec, HelloBurst int
	// AddressPerSec and AddressBurst bound them by IPv4 address or IPv6 /64. Zero means 20 and 40.
	AddressPerSec, AddressBurst int
	// PacketsPerSec and PacketsBurst bound what one connection sends us. Zero means 200 and 400.
	PacketsPerSec, PacketsBurst int
	// BytesPerSec and BytesBurst do the same in bytes. Zero means 128 KiB and 256 KiB.
	BytesPerSec, BytesBurst int
	// QueueMessages and QueueBytes bound what waits to be sent to one client behind
	// the message being sent. Zero means 1,024 and 256 KiB.
	QueueMessages, QueueBytes int
	// TableSize is how many places and addresses are remembered for HelloPerSec and
	// AddressPerSec; past that the longest quiet is forgotten. Zero means 16,384.
	TableSize int
	// HandshakesMax is how many TCP connections may be in their handshake. Zero means 4,096.
	HandshakesMax int
}

func (l Limits) withDefaults() Limits {
	l.UnauthenticatedPerSec = cmp.Or(l.UnauthenticatedPerSec, 20_000)
	l.HelloPerSec, l.HelloBurst = cmp.Or(l.HelloPerSec, 5), cmp.Or(l.HelloBurst, 10)
	l.AddressPerSec, l.AddressBurst = cmp.Or(l.AddressPerSec, 20), cmp.Or(l.AddressBurst, 40)
	l.PacketsPerSec, l.PacketsBurst = cmp.Or(l.PacketsPerSec, 200), cmp.Or(l.PacketsBurst, 400)
	l.BytesPerSec, l.BytesBurst = cmp.Or(l.BytesPerSec, 128<<10), cmp.Or(l.BytesBurst, 256<<10)
	l.TableSize = cmp.Or(l.TableSize, 16_384)
	l.HandshakesMax = cmp.Or(l.HandshakesMax, 4096)
	return l
}

// rate is how fast a bucket refills and how much it holds, as the time one unit
// costs and the time a full bucket is worth. The zero rate lets everything through.
type rate struct {
	cost, full int64 // nanoseconds
}

func newRate(perSec, burst int) rate {
	if perSec <= 0 {
		return rate{}
	}
	cost := int64(time.Second) / int64(perSec)
	return rate{cost: cost, full: cost * int64(max(burst, 1))}
}

// bucket is a token bucket in one word: the time (nanoseconds since an epoch of
// the caller's) at which it will be full again.
type bucket int64

// take takes n units, or takes nothing and returns false when they are not there.
func (b *bucket) take(now int64, r rate, n int) bool {
	if r.cost == 0 {
		return true
	}
	full := max(int64(*b), now) + r.cost*int64(n)
	if full-now > r.full {
		return false
	}
	*b = bucket(full)
	return true
}

// wait is how long until take would give n units, n being no more than the burst.
func (b *bucket) wait(now int64, r rate, n int) time.Duration {
	if r.cost == 0 {
		return 0
	}
	need := min(r.cost*int64(n), r.full)
	return time.Duration(max(0, max(int64(*b), now)+need-now-r.full))
}

// force takes n units even when they are not there, so that the next wait is longer.
func (b *bucket) force(now int64, r rate, n int) {
	if r.cost != 0 {
		*b = bucket(max(int64(*b), now) + r.cost*int64(n))
	}
}

// tableWays is how many entries of a table share a set, where the one quiet for
// longest makes room.
const tableWays = 4

// table holds a fixed number of buckets by key. It is safe for concurrent use.
type table struct {
	rate rate
	seed maphash.Seed

	mu   sync.Mutex // guards the field below
	sets [][tableWays]tableEntry
}

type tableEntry struct {
	key  uint64 // hash under the seed, which nobody outside knows
	when bucket
}

func newTable(r rate, size int) *table {
	return &table{rate: r, seed: maphash.MakeSeed(), sets: make([][tableWays]tableEntry, max(1, size/tableWays))}
}

// take takes one unit from the bucket of key.
func (t *table) take(now int64, key uint64) bool {
	if t.rate.cost == 0 {
		return true
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], key)
	h := maphash.Bytes(t.seed, b[:]) | 1 // never 0, the key of an empty entry
	t.mu.Lock()
	defer t.mu.Unlock()
	set := &t.sets[h%uint64(len(t.sets))]
	victim := &set[0]
	for i := range set {
		e := &set[i]
		if e.key == h {
			return e.when.take(now, t.rate, 1)
		}
		if e.when < victim.when {
			victim = e
		}
	}
	*victim = tableEntry{key: h}
	return victim.when.take(now, t.rate, 1)
}

// addressKey is what address limits count by: the IPv4 address or the IPv6 /64.
func addressKey(a netip.Addr) uint64 {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return uint64(binary.BigEndian.Uint32(b[:])) | 1<<63 // no global unicast /64 looks like this
	}
	b := a.As16()
	return binary.BigEndian.Uint64(b[:8])
}
