package users

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
)

// nestedProps is a map that is depth levels deep.
func nestedProps(depth int) map[string]any {
	m := map[string]any{}
	for range depth - 1 {
		m = map[string]any{"": m}
	}
	return m
}

func TestEncodePropsLimits(t *testing.T) {
	list := func(n int) []any { return make([]any, n) }
	for _, c := range []struct {
		name  string
		props map[string]any
		want  error
	}{
		{"none", nil, nil},
		{"a name", map[string]any{"name": "Ann"}, nil},
		{"the most entries", map[string]any{"a": list(PropsEntriesMax - 1)}, nil},
		{"one more", map[string]any{"a": list(PropsEntriesMax)}, ErrPropsLarge},
		{"many in many", map[string]any{"a": []any{list(100), list(100)}, "b": list(100)}, ErrPropsLarge},
		{"many of a type that is no []any", map[string]any{"a": make([]string, PropsEntriesMax)}, ErrPropsLarge},
		{"the deepest", nestedProps(PropsDepthMax), nil},
		{"one deeper", nestedProps(PropsDepthMax + 1), ErrPropsDeep},
		{"the most bytes", map[string]any{"a": strings.Repeat("x", PropsBytesMax-10)}, nil},
		{"more bytes", map[string]any{"a": strings.Repeat("x", PropsBytesMax)}, ErrPropsLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := EncodeProps(c.props)
			if !errors.Is(err, c.want) {
				t.Fatalf("EncodeProps = %v, want %v", err, c.want)
			}
			if err != nil {
				return
			}
			q, err := ParseReserveRequest(ReserveRequest{UID: "u", Props: b}.mustBytes(t))
			if err != nil || !bytes.Equal(q.Props, b) {
				t.Errorf("what may be sent is not taken: %v", err)
			}
		})
	}
	if _, err := EncodeProps(map[string]any{"f": func() {}}); err == nil {
		t.Error("a function was encoded")
	}
}

// A node trusts no other's word for the limits.
func TestPropsOfALyingPeer(t *testing.T) {
	large, err := mesh.EncodeMap(map[string]any{"a": make([]any, PropsEntriesMax)})
	if err != nil {
		t.Fatal(err)
	}
	deep, err := mesh.EncodeMap(nestedProps(PropsDepthMax + 1))
	if err != nil {
		t.Fatal(err)
	}
	for name, props := range map[string][]byte{
		"too many": large, "too deep": deep, "no map": {0x93, 1, 2, 3}, "cut off": {0xdf, 0, 0, 0, 200},
		"too long": append([]byte{0x81, 0xa1, 'a', 0xc6, 0, 1, 0, 0}, make([]byte, 1<<16)...),
	} {
		b := appendBytes(appendBytes([]byte{reserveLayout}, "u"), "")
		if _, err := ParseReserveRequest(appendBytes(append(b, 0), props)); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := (ReserveRequest{UID: "u", Props: props}).Marshal(); err == nil {
			t.Errorf("%s: sent", name)
		}
	}
}

// What a stranger sends with a request for a place costs what it weighs, not what it
// would unfold to, until the user is there and somebody looks at it.
func TestUnopenedPropertiesStayEncoded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		var props map[string]any
		body := `{"a":[` + strings.Repeat(`{"":{}},`, 100) + `{}]}`
		if err := json.Unmarshal([]byte(body), &props); err != nil {
			t.Fatal(err)
		}
		encoded := encodedProps(props)
		const places = 60
		reserve := func() (last id.SID) {
			for i := range places {
				b := ReserveRequest{UID: id.UID(fmt.Sprint("u", i)), Props: encoded}.mustBytes(t)
				b = append(make([]byte, 0, 1<<20), b...) // nor does the message they came in stay
				if b, err := n.handleReserve(t.Context(), peer("x"), b); err != nil {
					t.Fatal(err)
				} else if reply, err := ParseReserveReply(b); err != nil || reply.Refused != Accepted {
					t.Fatalf("reserve: %v, %v", reply.Refused, err)
				} else {
					last = reply.SID
				}
			}
			return last
		}
		reserve() // tables have their size now
		pass(2 * time.Minute)
		before := heapAlloc()
		last := reserve()
		each := (int64(heapAlloc()) - int64(before)) / places
		if limit := int64(len(encoded) + 2048); each > limit {
			t.Errorf("a place with %d bytes of properties holds %d bytes, want at most %d", len(encoded), each, limit)
		}
		n.places.connect(last, false)
		if v, ok := GetAs[[]any](n.BySID(last), "a"); !ok || len(v) != 101 {
			t.Errorf("the list has %d entries, %v", len(v), ok)
		}
	})
}

func heapAlloc() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Nor does a move look into properties nobody has read.
func TestPropertiesMoveEncoded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, _, _, result, stop := moving(t, newNetwork())
		defer stop()
		reply, err := a.Reserve(ReserveRequest{UID: "v", Props: encodedProps(map[string]any{"level": 3.0})})
		if err != nil {
			t.Fatal(err)
		}
		a.places.connect(reply.SID, false)
		u := a.BySID(reply.SID)
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		b.places.connect(u.SID, true)
		synctest.Wait()
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		v := b.BySID(u.SID)
		for name, u := range map[string]*User{"old": u, "new": v} {
			if u.props.values != nil || u.props.encoded == nil {
				t.Errorf("the %s node decoded the properties", name)
			}
		}
		if level, ok := GetAs[float64](v, "level"); !ok || level != 3 {
			t.Errorf("level = %v, %v", level, ok)
		}
	})
}
