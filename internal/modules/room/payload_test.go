package room

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/status"
)

func TestOptions(t *testing.T) {
	good := []byte{0, 4, 1, 1, 0, 30, 0, 0, 0, 0, 0, 200}
	p := payload{b: append(bytes.Clone(good), "hi"...)}
	s, join := p.options()
	want := Settings{MembersMax: 4, AllowEmpty: true, EmptyTTL: 30 * time.Second, Interval: 200 * time.Millisecond}
	if p.err != nil || s != want || !join || string(p.rest()) != "hi" {
		t.Errorf("options %+v join %v: %v", s, join, p.err)
	}
	for name, c := range map[string]struct {
		at   int
		to   byte
		code status.Code
	}{
		"one member":          {1, 1, status.InvalidParameter},
		"too many members":    {0, 8, status.InvalidParameter},
		"allow empty 2":       {2, 2, status.InvalidParameter},
		"join 2":              {3, 2, status.InvalidParameter},
		"ttl 9 s":             {5, 9, status.InvalidParameter},
		"reserved bytes":      {7, 1, status.InvalidParameter},
		"an interval of days": {8, 255, status.InvalidParameter},
	} {
		b := bytes.Clone(good)
		b[c.at] = c.to
		p := payload{b: b}
		p.options()
		if e := status.Of(p.err); e == nil || e.Code != c.code {
			t.Errorf("%s: %v", name, p.err)
		}
	}
	for n := range good {
		p := payload{b: good[:n]}
		if p.options(); !errors.Is(p.err, ErrShort) {
			t.Errorf("%d bytes: %v", n, p.err)
		}
	}
}

func TestPayloadErrors(t *testing.T) {
	list := appendSized(appendSized(nil, "a"), "b")
	for name, c := range map[string]struct {
		b    []byte
		read func(p *payload)
		want status.Code
	}{
		"no room":             {nil, func(p *payload) { p.room() }, status.RoomMissingID},
		"half a room":         {[]byte("abc"), func(p *payload) { p.room() }, status.RoomMissingID},
		"reliable 2":          {[]byte{2}, func(p *payload) { p.reliability() }, status.InvalidParameter},
		"no reliable":         {nil, func(p *payload) { p.reliability() }, status.PayloadShort},
		"more ids than sent":  {list, func(p *payload) { p.uids(3) }, status.PayloadShort},
		"half an id":          {list[:len(list)-1], func(p *payload) { p.uids(-1) }, status.PayloadShort},
		"an empty id":         {appendSized(nil, ""), func(p *payload) { p.uids(-1) }, status.InvalidParameter},
		"a long id":           {appendSized(nil, bytes.Repeat([]byte("x"), 129)), func(p *payload) { p.uids(-1) }, status.InvalidParameter},
		"an id with controls": {appendSized(nil, "a\n"), func(p *payload) { p.uids(-1) }, status.InvalidParameter},
		"1001 ids":            {bytes.Repeat(appendSized(nil, "x"), 1001), func(p *payload) { p.uids(-1) }, status.InvalidParameter},
		"a size past the end": {[]byte{0, 0, 0, 9, 1}, func(p *payload) { p.name() }, status.PayloadShort},
		"a huge size":         {[]byte{255, 255, 255, 255}, func(p *payload) { p.name() }, status.InvalidParameter},
		"trailing":            {[]byte{1, 2}, func(p *payload) { p.u8(); p.end() }, status.InvalidParameter},
	} {
		p := payload{b: c.b}
		c.read(&p)
		if e := status.Of(p.err); e == nil || e.Code != c.want {
			t.Errorf("%s: %v", name, p.err)
		}
	}
	p := payload{b: list}
	if ids := p.uids(2); p.err != nil || len(ids) != 2 || ids[1] != "b" {
		t.Errorf("ids %v: %v", ids, p.err)
	}
}

// FuzzPayload reads the same bytes as every kind of payload there is.
func FuzzPayload(f *testing.F) {
	s := Settings{MembersMax: 4, EmptyTTL: 10 * time.Second}
	f.Add(append(appendOptions(nil, s), "hi"...))
	f.Add(append([]byte(testID), "hi"...))
	f.Add(appendSized(append([]byte(testID), 1, 0, 1), "user"))
	f.Add(append(appendSized([]byte(testID), "key"), 0, 0, 0, 0, 0, 0, 0, 1))
	f.Add(append([]byte{holdSeat, 0, 0, 4, 0}, append([]byte(testID), "user"...)...))
	f.Add(refusal(ErrFull))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := payload{b: b}
		if s, _ := p.options(); p.err == nil {
			again := payload{b: appendOptions(nil, s)}
			if s2, _ := again.options(); again.err != nil || s2 != s {
				t.Errorf("options %+v read again: %+v, %v", s, s2, again.err)
			}
		}
		p = payload{b: b}
		p.room()
		p.reliability()
		ids := p.uids(int(p.u16()))
		message := p.rest()
		if p.err == nil && id.RoomBytes+3+len(ids)*5+len(message) > len(b) {
			t.Errorf("read more than there is in %x", b)
		}
		p = payload{b: b}
		p.room()
		for _, uid := range p.uids(-1) {
			if _, err := id.ParseUID(string(uid)); p.err == nil && err != nil {
				t.Errorf("id %q: %v", string(uid), err)
			}
		}
		p = payload{b: b}
		p.room()
		if name := p.name(); len(name) > PropertyKeyMax {
			t.Errorf("a name of %d bytes", len(name))
		}
		p.take(8)
		p.end()
		p = payload{b: b}
		p.u8()
		p.u32()
		p.room()
		p.uid(p.rest())
		if err := parseRefusal(b); err == nil {
			t.Errorf("refusal %x is no error", b)
		}
	})
}
