package room

import (
	"encoding/binary"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
)

// payload takes fields off the front of b. The first one that is missing or
// malformed sets err, and everything read after it is zero. Byte slices point into
// b; ids are copies.
type payload struct {
	b   []byte
	err error
}

func (p *payload) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// take reads n bytes.
func (p *payload) take(n int) []byte {
	if p.err == nil && n > len(p.b) {
		p.fail(ErrShort)
	}
	if p.err != nil {
		return nil
	}
	field := p.b[:n:n]
	p.b = p.b[n:]
	return field
}

// rest reads what remains.
func (p *payload) rest() []byte { return p.take(len(p.b)) }

// end refuses bytes behind the last field.
func (p *payload) end() {
	if len(p.b) > 0 {
		p.fail(invalid("bytes follow the last field"))
	}
}

func (p *payload) u8() uint8 {
	if b := p.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (p *payload) u16() uint16 {
	if b := p.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (p *payload) u32() uint32 {
	if b := p.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// flag reads a u8 that is 0 or 1.
func (p *payload) flag() bool {
	v := p.u8()
	if v > 1 {
		p.fail(invalid("a flag is 0 or 1"))
	}
	return v == 1
}

func (p *payload) reliability() reliable.Reliability {
	if p.flag() {
		return reliable.Reliable
	}
	return reliable.Unreliable
}

// room reads a room id. Whether it names a room is for the lookup to say.
func (p *payload) room() []byte {
	if len(p.b) < id.RoomBytes {
		p.fail(ErrMissingID) // what is there is no room id, whatever it is
	}
	return p.take(id.RoomBytes)
}

// sized reads u32 size ‖ bytes, at most limit of them.
func (p *payload) sized(limit int) []byte {
	n := p.u32()
	if int64(n) > int64(limit) {
		p.fail(invalid("a string is longer than allowed"))
		return nil
	}
	return p.take(int(n))
}

// name reads the name of a property.
func (p *payload) name() string { return string(p.sized(PropertyKeyMax)) }

// uid checks a user id that was read.
func (p *payload) uid(b []byte) id.UID {
	if p.err != nil {
		return ""
	}
	uid, err := id.ParseUID(string(b))
	if err != nil {
		p.fail(invalid(err.Error()))
	}
	return uid
}

// uids reads n user ids, each u32 size ‖ bytes; all there are when n is negative.
func (p *payload) uids(n int) []id.UID {
	var all []id.UID
	for p.err == nil && (n < 0 && len(p.b) > 0 || len(all) < n) {
		if len(all) == MembersMax {
			p.fail(invalid("at most 1000 users can be named"))
		}
		all = append(all, p.uid(p.sized(id.UIDBytesMax)))
	}
	return all
}

// options reads u16 most members ‖ u8 allow empty ‖ u8 join ‖ u16 ttl (s) ‖ u16 0 ‖
// u32 interval (ms).
func (p *payload) options() (s Settings, join bool) {
	s.MembersMax = int(p.u16())
	s.AllowEmpty = p.flag()
	join = p.flag()
	s.EmptyTTL = time.Duration(p.u16()) * time.Second
	if p.u16() != 0 {
		p.fail(invalid("reserved bytes are 0"))
	}
	s.Interval = time.Duration(p.u32()) * time.Millisecond
	if p.err == nil {
		p.err = s.validate()
	}
	return s, join
}

// appendOptions writes what options reads, without join.
func appendOptions(dst []byte, s Settings) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(s.MembersMax))
	empty := byte(0)
	if s.AllowEmpty {
		empty = 1
	}
	dst = append(dst, empty, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(s.EmptyTTL/time.Second))
	dst = binary.BigEndian.AppendUint16(dst, 0)
	return binary.BigEndian.AppendUint32(dst, uint32(s.Interval/time.Millisecond))
}

// appendCreated appends u32 created (s) ‖ room: the answer of who is in now.
func appendCreated(dst []byte, created time.Time, r id.Room) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(created.Unix())), r...)
}

func appendSized[T ~string | ~[]byte](dst []byte, s T) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(s))), s...)
}
