package users

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/users/exchange"
	"github.com/Diarkis/diarkis/internal/wire"
)

func mustMarshal(t testing.TB, b []byte, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// encodedProps is EncodeProps of what can be encoded.
func encodedProps(props map[string]any) []byte {
	b, err := EncodeProps(props)
	if err != nil {
		panic(err)
	}
	return b
}

func someData() moveData {
	return moveData{
		props:    encodedProps(map[string]any{"a": "b"}),
		commands: []task{{m: request(101, "room"), rel: reliable.Reliable, ordered: true}},
		parked:   []parked{{[]byte("push"), reliable.Reliable}},
	}
}

func TestMoveDataRoundTrip(t *testing.T) {
	want := someData()
	got, released, err := parseMoveData(want.marshal())
	if err != nil || !released || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, %v", got, released, err)
	}
	if _, released, err := parseMoveData(notReleased); released || err != nil {
		t.Errorf("not released = %v, %v", released, err)
	}
}

func TestReserveLimits(t *testing.T) {
	b := mustMarshal(t, ReserveRequest{UID: "u"}.mustBytes(t), nil)
	if _, err := ParseReserveRequest(append(b, 0)); err == nil {
		t.Error("trailing bytes were accepted")
	}
	b[0] = 9
	if _, err := ParseReserveRequest(b); err == nil {
		t.Error("another layout was accepted")
	}
}

func (q ReserveRequest) mustBytes(t testing.TB) []byte {
	b, err := q.Marshal()
	return mustMarshal(t, b, err)
}

// Whatever may wait for a user can move with them.
func TestAllThatIsParkedMoves(t *testing.T) {
	var d moveData
	for n := 0; n < 1<<20; n += 4 + parkedCost {
		d.parked = append(d.parked, parked{[]byte("abcd"), reliable.Reliable})
	}
	b := d.marshal()
	got, released, err := parseMoveData(b)
	if err != nil || !released || len(got.parked) != len(d.parked) {
		t.Errorf("%d of %d messages: %v, released %v", len(got.parked), len(d.parked), err, released)
	}
}

func FuzzParseReserveRequest(f *testing.F) {
	f.Add(ReserveRequest{UID: "u", Type: "UDP", Props: encodedProps(map[string]any{"a": 1.5, "b": []any{true, nil}})}.mustBytes(f))
	f.Add(ReserveRequest{UID: "u", Credentials: &secure.Credentials{SID: id.SID{1}}}.mustBytes(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ParseReserveRequest(b)
		if err != nil {
			return
		}
		if again, err := q.Marshal(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("marshal what %x was parsed to: %x, %v", b, again, err)
		}
		if q.Props != nil {
			if _, err := mesh.DecodeMap(q.Props); err != nil {
				t.Errorf("properties passed that nobody can read: %x: %v", q.Props, err)
			}
		}
	})
}

func FuzzParseReserveReply(f *testing.F) {
	f.Add(ReserveReply{SID: id.SID{1}, Role: "udp", Host: "::1", Port: 7100, ExpiresIn: time.Minute}.Marshal())
	f.Add(ReserveReply{Refused: Full}.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := ParseReserveReply(b); err == nil && !bytes.Equal(p.Marshal(), b) {
			t.Errorf("Parse then Marshal of %x differs", b)
		}
	})
}

func FuzzParseMove(f *testing.F) {
	f.Add(someData().marshal())
	f.Add(notReleased)
	f.Add(moveOffer{uid: "u", issued: 5, ttl: time.Second, state: []byte("x")}.marshal())
	f.Add(moveReply{host: "::1", port: 1}.marshal())
	f.Add(moveID{1, 2}.marshal())
	some := notices{clock: 9, wall: 7, facts: []exchange.Fact{{UID: "u", Order: order{Issued: 3}}}}
	f.Add(some.marshal(told))
	f.Add(some.marshal(answered))
	f.Add(some.marshalOld())
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, released, err := parseMoveData(b); err == nil && released {
			for _, c := range d.commands {
				if _, err := wire.ParseMessage(c.m.AppendTo(nil)); err != nil {
					t.Errorf("command of %x: %v", b, err)
				}
			}
		}
		if o, err := parseMoveOffer(b); err == nil && !bytes.Equal(o.marshal(), b) {
			t.Errorf("offer %x differs", b)
		}
		if p, err := parseMoveReply(b); err == nil && !bytes.Equal(p.marshal(), b) {
			t.Errorf("reply %x differs", b)
		}
		if m, err := parseMoveID(b); err == nil && !bytes.Equal(m.marshal(), b) {
			t.Errorf("move id %x differs", b)
		}
		if n, old, err := parseNotices(b, told); err == nil {
			again := n.marshal(told)
			if old {
				again = n.marshalOld()
			}
			if !bytes.Equal(again, b) {
				t.Errorf("notices %x differ", b)
			}
		}
		if n, _, err := parseNotices(b, answered); err == nil && !bytes.Equal(n.marshal(answered), b) {
			t.Errorf("answer %x differs", b)
		}
	})
}
