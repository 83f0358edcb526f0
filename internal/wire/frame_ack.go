package wire

// Ack is the body of an ACK frame: which packets arrived. It points into the bytes
// it was parsed from.
type Ack struct {
	Largest     uint64
	DelayMicros uint64 // from the arrival of Largest to the sending of this frame
	First       uint64 // how many packets right below Largest arrived too
	count       uint64
	rest        []byte // (gap, length)*, checked by parse
}

func (a *Ack) parse(r *reader) error {
	a.Largest, a.DelayMicros, a.count, a.First = r.varint(), r.varint(), r.varint(), r.varint()
	if r.short {
		return nil // reported by the caller
	}
	if a.First > a.Largest {
		return ErrRanges
	}
	a.rest = r.b
	lo := a.Largest - a.First
	for range a.count {
		gap, length := r.varint(), r.varint()
		if r.short {
			return nil
		}
		// RFC 9000 section 19.3.1: the next range ends at lo - gap - 2.
		if lo < gap+2 || lo-gap-2 < length {
			return ErrRanges
		}
		lo = lo - gap - 2 - length
	}
	a.rest = a.rest[:len(a.rest)-len(r.b)]
	return nil
}

// Ranges yields the acknowledged packet numbers, highest range first.
func (a *Ack) Ranges(yield func(Range) bool) {
	lo := a.Largest - a.First
	if !yield(Range{lo, a.Largest}) {
		return
	}
	r := reader{b: a.rest}
	for range a.count {
		hi := lo - r.varint() - 2
		lo = hi - r.varint()
		if !yield(Range{lo, hi}) {
			return
		}
	}
}

func (a *Ack) appendTo(dst []byte) []byte {
	dst = AppendVarint(append(dst, byte(FrameAck)), a.Largest)
	dst = AppendVarint(dst, a.DelayMicros)
	dst = AppendVarint(dst, a.count)
	dst = AppendVarint(dst, a.First)
	return append(dst, a.rest...)
}

// AppendAck appends an ACK frame. The ranges come highest first, with at least one
// missing packet between two of them.
func AppendAck(dst []byte, delayMicros uint64, ranges []Range) []byte {
	dst = AppendVarint(append(dst, byte(FrameAck)), ranges[0].Hi)
	dst = AppendVarint(dst, delayMicros)
	dst = AppendVarint(dst, uint64(len(ranges)-1))
	dst = AppendVarint(dst, ranges[0].Hi-ranges[0].Lo)
	for i, r := range ranges[1:] {
		dst = AppendVarint(dst, ranges[i].Lo-r.Hi-2)
		dst = AppendVarint(dst, r.Hi-r.Lo)
	}
	return dst
}
