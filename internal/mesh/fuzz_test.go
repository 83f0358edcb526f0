package mesh

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

func FuzzHeader(f *testing.F) {
	f.Add(header{size: 100, kind: kindRequest, cmd: 10, id: 1, arg: 3000}.appendTo(nil))
	f.Add(header{kind: kindPing}.appendTo(nil))
	f.Add(header{size: 1, kind: kindPing}.appendTo(nil))
	f.Add(header{size: math.MaxUint32, kind: kindOneWay}.appendTo(nil))
	f.Add([]byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b, InlineMax)
		if err != nil {
			if !errors.Is(err, errFrame) {
				t.Errorf("error %v is not errFrame", err)
			}
			return
		}
		if h.size > InlineMax {
			t.Errorf("a payload of %d bytes was let through", h.size)
		}
		if got := h.appendTo(nil); !bytes.Equal(got, b[:headerLen]) {
			t.Errorf("parse then append = %x, want %x", got, b[:headerLen])
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(hello{1, 2, id.Incarnation{3}, "udp", "127.0.0.1:8000"}.appendTo(nil))
	f.Add(hello{1, 0, id.Incarnation{3}, "mars", "[::1]:8000"}.appendTo(nil))
	f.Add(hello{1, 0, id.Incarnation{3}, "mars", "localhost:8000"}.appendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err != nil {
			return
		}
		if got := h.appendTo(nil); !bytes.Equal(got, b) {
			t.Errorf("parse then append = %x, want %x", got, b)
		}
	})
}

func FuzzRelay(f *testing.F) {
	r := relay{from: Peer{Node: "127.0.0.1:1", Incarnation: id.Incarnation{1}, Role: "udp"}, seq: 9, cmd: 10001, limit: 3, rest: []id.Node{"127.0.0.1:8000", "[::1]:8001"}, payload: []byte("hello")}
	f.Add(r.appendTo(nil))
	r.rest = nil
	f.Add(r.appendTo(nil))
	r.cmd = CmdRelay
	f.Add(r.appendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRelay(b)
		if err != nil {
			return
		}
		again, err := parseRelay(r.appendTo(nil))
		if err != nil || !slices.Equal(again.rest, r.rest) || !bytes.Equal(again.payload, r.payload) || again.from != r.from {
			t.Errorf("append then parse = %v, %v, want %v", again, err, r)
		}
		var failed failures
		_ = failed.merge(b) // reports come from outside too
	})
}

func FuzzMap(f *testing.F) {
	for _, m := range sampleMaps() {
		delete(m, "long") // minimizing it would take longer than the fuzzing
		b, err := EncodeMap(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0x81, 0xa1, 'k', 0xdd, 0xff, 0xff, 0xff, 0xff}) // an array that claims 4 billion elements
	f.Add([]byte{0xdf, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x81, 0xa1, 'k', 0xc6, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x81, 0x01, 0x02})
	f.Add([]byte{0x80, 0x80})
	f.Add([]byte{0xc0})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMap(b)
		if err != nil {
			if !errors.Is(err, ErrMap) {
				t.Errorf("error %v is not ErrMap", err)
			}
			return
		}
		again, err := EncodeMap(m)
		if err != nil {
			t.Fatalf("a decoded map can't be encoded: %v", err)
		}
		if _, err := DecodeMap(again); err != nil {
			t.Errorf("what EncodeMap made can't be decoded: %v", err)
		}
	})
}

func sampleMaps() []map[string]any {
	return []map[string]any{
		{},
		{"b": true, "n": nil, "s": "text", "raw": []byte{1, 2}},
		{"i8": int8(-1), "i16": int16(-300), "i32": int32(1 << 20), "i64": int64(-1 << 40), "small": int64(3)},
		{"u8": uint8(200), "u16": uint16(60000), "u32": uint32(1 << 30), "u64": uint64(1 << 60), "f32": float32(1.5), "f64": 2.5},
		{"nested": map[string]any{"list": []any{int64(1), "two", map[string]any{"x": []any{}}}}},
		{"long": strings.Repeat("x", 70_000), "time": time.Unix(1_700_000_000, 5).UTC()},
	}
}

func TestMapKeepsTypes(t *testing.T) {
	for _, m := range sampleMaps() {
		b, err := EncodeMap(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeMap(b)
		if err != nil {
			t.Fatal(err)
		}
		if at, ok := got["time"].(time.Time); ok {
			got["time"] = at.UTC()
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("decoded %#v, want %#v", got, m)
		}
		again, err := EncodeMap(maps.Clone(m))
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("two encodings of %v differ", m)
		}
	}
	if b, err := EncodeMap(nil); err != nil || len(b) != 1 {
		t.Errorf("nil map = %x, %v", b, err)
	}
}

func TestMapLimits(t *testing.T) {
	nested := func(depth int) map[string]any {
		m := map[string]any{}
		for range depth - 1 {
			m = map[string]any{"m": m}
		}
		return m
	}
	loop := map[string]any{}
	loop["self"] = loop
	many := func(n int) map[string]any { return map[string]any{"l": make([]any, n)} }
	tests := []struct {
		name string
		m    map[string]any
		ok   bool
	}{
		{"deepest", nested(MapDepthMax), true},
		{"too deep", nested(MapDepthMax + 1), false},
		{"holds itself", loop, false},
		{"most entries", many(MapEntriesMax - 1), true},
		{"too many entries", many(MapEntriesMax), false},
		{"too large", map[string]any{"b": make([]byte, BodyMax)}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, err := EncodeMap(tt.m)
			if (err == nil) != tt.ok || (err != nil && !errors.Is(err, ErrMap)) {
				t.Fatalf("EncodeMap error %v, want ok %v", err, tt.ok)
			}
			if err == nil {
				if _, err := DecodeMap(b); err != nil {
					t.Errorf("DecodeMap = %v", err)
				}
			}
		})
	}
	// A claim of 4 billion elements costs nothing.
	claim := []byte{0x81, 0xa1, 'k', 0xdd, 0xff, 0xff, 0xff, 0xff}
	if n := testing.AllocsPerRun(100, func() { _, _ = DecodeMap(claim) }); n > 10 {
		t.Errorf("refusing a false claim makes %v allocations", n)
	}
}
