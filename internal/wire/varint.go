package wire

import (
	"encoding/binary"
	"math/bits"
)

// VarintMax is the largest number a varint can hold.
const VarintMax = 1<<62 - 1

// VarintLen returns how many bytes the varint of v takes: 1, 2, 4 or 8.
func VarintLen(v uint64) int {
	switch n := bits.Len64(v); {
	case n <= 6:
		return 1
	case n <= 14:
		return 2
	case n <= 30:
		return 4
	default:
		return 8
	}
}

// AppendVarint appends v in its shortest form. It panics when v is above [VarintMax].
func AppendVarint(dst []byte, v uint64) []byte {
	switch VarintLen(v) {
	case 1:
		return append(dst, byte(v))
	case 2:
		return binary.BigEndian.AppendUint16(dst, uint16(v)|1<<14)
	case 4:
		return binary.BigEndian.AppendUint32(dst, uint32(v)|2<<30)
	}
	if v > VarintMax {
		panic("wire: varint out of range")
	}
	return binary.BigEndian.AppendUint64(dst, v|3<<62)
}

// ParseVarint reads the varint at the start of b, in any of its forms, and returns
// its length in bytes; 0 means b is too short.
func ParseVarint(b []byte) (v uint64, n int) {
	if len(b) == 0 {
		return 0, 0
	}
	n = 1 << (b[0] >> 6)
	if len(b) < n {
		return 0, 0
	}
	switch n {
	case 1:
		return uint64(b[0]), 1
	case 2:
		return uint64(binary.BigEndian.Uint16(b)) & (1<<14 - 1), 2
	case 4:
		return uint64(binary.BigEndian.Uint32(b)) & (1<<30 - 1), 4
	default:
		return binary.BigEndian.Uint64(b) & VarintMax, 8
	}
}
