package mars

import (
	"bytes"
	"encoding/binary"
	"math"

	"github.com/Diarkis/diarkis/internal/id"
)

// entryMin is the shortest encoding of an Entry, removalMin of a Removal.
const (
	entryMin   = 1 + 16 + 1 + 5
	removalMin = 1 + 16 + 1
)

// Flags of an encoded Entry.
const (
	flagHidden = 1 << 0
	flagFull   = 1 << 1
)

func (d Delta) appendTo(dst []byte) []byte {
	dst = appendUint(dst, d.From)
	dst = appendUint(dst, d.To)
	dst = append(dst, flagsOf(d.More, d.Same, d.Ask, d.Parts != nil))
	dst = append(dst, d.Parts...)
	dst = binary.BigEndian.AppendUint64(dst, d.Digest)
	dst = appendUint(dst, uint64(len(d.Upserts)))
	for _, e := range d.Upserts {
		dst = e.appendTo(dst)
	}
	dst = appendUint(dst, uint64(len(d.Removed)))
	for _, g := range d.Removed {
		dst = appendString(dst, g.Node)
		dst = append(dst, g.Incarnation[:]...)
		dst = append(dst, byte(g.Reason))
	}
	return dst
}

func (r *reader) delta() (d Delta) {
	d.From = r.uint(math.MaxUint64, "from version")
	d.To = r.uint(math.MaxUint64, "to version")
	flags := r.u8("delta flags")
	if flags > 15 {
		r.fail("delta flags")
	}
	d.More, d.Same, d.Ask = flags&1 != 0, flags&2 != 0, flags&4 != 0
	if flags&8 != 0 {
		d.Parts = bytes.Clone(r.take(Buckets/8, "parts"))
	}
	d.Digest = r.u64("digest")
	for range r.count(entryMin, "upserts") {
		if r.err != nil {
			return d
		}
		d.Upserts = append(d.Upserts, r.entry())
	}
	for range r.count(removalMin, "removed") {
		if r.err != nil {
			return d
		}
		g := Removal{Node: r.node("removed"), Incarnation: r.incarnation("removed"), Reason: Reason(r.u8("reason"))}
		if g.Reason < Left || g.Reason > Replaced {
			r.fail("reason")
		}
		d.Removed = append(d.Removed, g)
	}
	return d
}

func (e Entry) appendTo(dst []byte) []byte {
	dst = appendString(dst, e.Node)
	dst = append(dst, e.Incarnation[:]...)
	var flags byte
	if e.Hidden {
		flags |= flagHidden
	}
	if e.Full {
		flags |= flagFull
	}
	dst = append(dst, flags, byte(e.State))
	dst = appendUint(dst, uint64(e.Started))
	for _, s := range [...]string{e.Role, e.Type, e.Version, e.Endpoint} {
		dst = appendString(dst, s)
	}
	if !e.Full {
		return dst
	}
	dst = appendUint(dst, e.Seq)
	dst = appendUint(dst, uint64(e.Users))
	dst = appendFloat(dst, e.Load)
	return appendString(dst, e.Values)
}

func (r *reader) entry() (e Entry) {
	e.Node = r.node("node")
	e.Incarnation = r.incarnation("incarnation")
	flags := r.u8("flags")
	if flags&^(flagHidden|flagFull) != 0 {
		r.fail("flags")
	}
	e.Hidden, e.Full = flags&flagHidden != 0, flags&flagFull != 0
	e.State = r.state()
	e.Started = int64(r.uint(math.MaxInt64, "started"))
	e.Role, e.Type = r.string(LabelBytesMax, "role"), r.string(LabelBytesMax, "type")
	e.Version, e.Endpoint = r.string(LabelBytesMax, "version"), r.string(EndpointBytesMax, "endpoint")
	if !e.Full {
		return e
	}
	e.Seq = r.uint(math.MaxUint64, "seq")
	e.Users = int(r.uint(math.MaxInt32, "users"))
	e.Load = r.float("load")
	e.Values = r.values()
	return e
}

// brief returns e without what only full-sync roles get.
func (e Entry) brief() Entry {
	e.Full, e.Users, e.Load, e.Values, e.Seq = false, 0, 0, nil, 0
	return e
}

// size is about how many bytes appendTo appends, never fewer.
func (e Entry) size() int {
	return entryMin + len(e.Node) + len(e.Role) + len(e.Type) + len(e.Version) + len(e.Endpoint) + len(e.Values) + 24
}

// digest is a hash of one entry as sent. The digest of a directory is the XOR of
// its entries' digests, so that both sides keep it up to date entry by entry. It
// finds mistakes and losses, not forgers: the mesh keeps those out.
func (e Entry) digest() uint64 {
	return hash64(e.appendTo(nil))
}

// hash64 is FNV-1a.
func hash64(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// bucketOf is the part of a directory that a node belongs to.
func bucketOf(n id.Node) int {
	h := hash64([]byte(n))
	return int(byte(h ^ h>>32))
}

func flagsOf(bits ...bool) (b byte) {
	for i, set := range bits {
		if set {
			b |= 1 << i
		}
	}
	return b
}

// The readers of fields that both an entry and a heartbeat have.

func (r *reader) node(what string) id.Node { return id.Node(r.string(NodeBytesMax, what)) }

func (r *reader) namespace() Namespace {
	return Namespace{App: r.string(LabelBytesMax, "app name"), Version: r.string(LabelBytesMax, "app version")}
}

func (r *reader) state() State {
	s := State(r.u8("state"))
	if !s.valid() {
		r.fail("state")
	}
	return s
}

// float reads a finite number that is not negative: a NaN would make a digest
// and a comparison of loads meaningless.
func (r *reader) float(what string) float64 {
	f := math.Float64frombits(r.u64(what))
	if !(f >= 0) || math.IsInf(f, 0) || math.Signbit(f) {
		r.fail(what)
		return 0
	}
	return f
}

func (r *reader) values() []byte {
	b := r.bytes(ValuesBytesMax, "values")
	if r.err != nil || len(b) == 0 {
		return nil
	}
	return append([]byte(nil), b...)
}

func appendFloat(b []byte, f float64) []byte {
	return binary.BigEndian.AppendUint64(b, math.Float64bits(f))
}
