package mars

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

var testHeader = Header{
	Epoch: Epoch{Generation: 1767323045, Founder: id.Incarnation{1, 2}, Term: 3},
	From:  "10.0.0.7:8000", Incarnation: id.Incarnation{9, 8, 7},
}

var simStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

const homeNode = id.Node("10.0.0.1:6779")

func testMessages(t testing.TB) map[string]Message {
	values, err := EncodeValues(map[string]any{"cpu": 0.5, "map": "desert", "list": []any{int64(1), "two", nil, true}})
	if err != nil {
		t.Fatal(err)
	}
	member := Member{
		Instance: Instance{Node: "[fd00::1]:8000", Incarnation: id.Incarnation{5}, Started: 1767323045000, Role: "udp", Type: "RANKED", Version: "1.2"},
		Endpoint: "203.0.113.5:7100", State: Taken, Hidden: true,
	}
	epoch := Epoch{Generation: 1767323045, Founder: id.Incarnation{9}, Term: 3}
	council := Council{Epoch: epoch, Version: 2, Seats: []Seat{{"10.0.0.1:6779", id.Incarnation{1}}, {"10.0.0.2:8000", id.Incarnation{2}}}}
	shared := []Shared{{Key: "season", Value: -12, Stamp: 1767323045000}, {Key: "x", Value: 12}}
	standing := Standing{Authority: "10.0.0.1:6779", Epoch: epoch, Live: true, Provisional: true, Home: true, Members: 12}
	parts := make([]byte, Buckets/8)
	parts[3] = 0x41
	buckets := make([]uint64, Buckets)
	buckets[200] = 77
	full := Entry{Member: member, Full: true, Values: values}
	full.Users, full.Load, full.Seq = 12, 0.75, 99
	return map[string]Message{
		"heartbeat": Heartbeat{Header: testHeader, Seq: 5, Have: 300, Status: Dynamic{State: Online}},
		"registration": Heartbeat{
			Header: testHeader, Seq: 1, Suspects: []id.Node{"10.0.0.9:8000"},
			Status: Dynamic{Endpoint: "203.0.113.5:7100", State: Offline, Users: 3, Load: 0.5, HasValues: true, Values: values},
			Register: &Instance{
				Node: testHeader.From, Incarnation: testHeader.Incarnation, Started: 7,
				Role: "udp", Type: "UDP", AppName: "ゲーム", AppVersion: "2", Version: "1.2",
			},
		},
		"leave": Leave{Header: testHeader, Namespace: Namespace{App: "game", Version: "2"}},
		"ack": Ack{
			Header: testHeader, Status: StatusOK, Live: true, Settling: true, Interval: 1500 * time.Millisecond, TTL: 7 * time.Second,
			Delta: Delta{
				From: 3, To: 9, More: true, Digest: 0xdeadbeef, Upserts: []Entry{{Member: member}, full},
				Removed: []Removal{{Node: "10.0.0.3:8000", Incarnation: id.Incarnation{6}, Reason: Expired}},
			},
		},
		"refusal":  Ack{Header: testHeader, Status: StatusRefused, Live: true, Reason: "role or type is empty"},
		"redirect": Ack{Header: testHeader, Status: StatusNotAuthority, Authority: "10.0.0.1:6779"},
		"news": Ack{
			Header: testHeader, Status: StatusOK, Live: true, Delta: Delta{To: 4, Digest: 9, Parts: parts},
			Council: council, HasShared: true, Shared: shared,
		},
		"same": Ack{Header: testHeader, Status: StatusOK, Live: true, Delta: Delta{To: 4, Digest: 9, Same: true}, HasShared: true},
		"ask":  Ack{Header: testHeader, Status: StatusStay, Live: true, Delta: Delta{Ask: true}},
		"comparison": Heartbeat{
			Header: testHeader, Seq: 5, Held: 7, Parts: buckets, Whole: true, Status: Dynamic{State: Online},
			Ghosts: []id.Incarnation{{1}, {2}}, CouncilMark: 4, SharedMark: 5, Shared: []Shared{{Key: "k", Value: -3}},
		},
		"renew":       Renew{Header: testHeader, Clock: 5, Council: council, Around: Around{Homes: []id.Node{"10.0.0.1:6779"}, Elsewhere: []id.Node{"10.0.0.7:8000"}, Transferred: 9}},
		"grant":       Grant{Header: testHeader, OK: true, Leaving: true, Of: epoch, Clock: 5, Held: 3},
		"vote":        Vote{Header: testHeader, Pre: true, Force: true, Prior: council.Seats[0], For: epoch, Clock: 9, Council: council},
		"vote reply":  VoteReply{Header: testHeader, OK: true, Pre: true, For: epoch, Clock: 9},
		"transfer go": TransferGo{Header: testHeader, Council: council},
		"announce":    Announce{Header: testHeader, Authority: "10.0.0.1:6779", Council: council},
		"found poll":  FoundPoll{Header: testHeader, Round: 3},
		"found reply": FoundReply{Header: testHeader, Round: 3, Live: true, Authority: "10.0.0.1:6779", Home: true, Council: council},
		"probe":       Probe{Header: testHeader, Standing: standing, Council: council},
		"probe reply": ProbeReply{Header: testHeader, Standing: standing},
		"yield":       Yield{Header: testHeader, Of: epoch, Shared: shared},
		"yielded":     Yielded{Header: testHeader, Of: epoch, Council: council},
		"transfer":    TransferAsk{Header: testHeader, To: "10.0.0.1:6779"},
		"refused":     TransferReply{Header: testHeader, To: "10.0.0.1:6779", Reason: "no such member"},
		"taken":       TransferReply{Header: testHeader, To: "10.0.0.1:6779", OK: true},
	}
}

func TestMessagesSurvive(t *testing.T) {
	for name, m := range testMessages(t) {
		t.Run(name, func(t *testing.T) {
			b := m.AppendTo([]byte{})
			got, err := ParseMessage(b)
			if err != nil || !reflect.DeepEqual(got, m) {
				t.Errorf("ParseMessage = %+v, %v\nwant %+v", got, err, m)
			}
			for n := range b {
				if _, err := ParseMessage(b[:n]); !errors.Is(err, ErrMalformed) {
					t.Fatalf("first %d of %d bytes: %v", n, len(b), err)
				}
			}
			if _, err := ParseMessage(append(b, 0)); !errors.Is(err, ErrMalformed) {
				t.Errorf("one byte more: %v", err)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	beat := func(change func(*Heartbeat)) []byte {
		m := Heartbeat{Header: testHeader, Seq: 1, Status: Dynamic{State: Online}}
		change(&m)
		return m.AppendTo(nil)
	}
	for _, tt := range []struct {
		name string
		b    []byte
	}{
		{"nothing", nil},
		{"kind 0", append([]byte{Protocol, 0}, beat(func(*Heartbeat) {})[2:]...)},
		{"state 0", beat(func(m *Heartbeat) { m.Status.State = 0 })},
		{"load that is no number", beat(func(m *Heartbeat) { m.Status.Load = math.NaN() })},
		{"negative load", beat(func(m *Heartbeat) { m.Status.Load = -1 })},
		{"endless load", beat(func(m *Heartbeat) { m.Status.Load = math.Inf(1) })},
		{"long endpoint", beat(func(m *Heartbeat) { m.Status.Endpoint = strings.Repeat("x", EndpointBytesMax+1) })},
		{"text that is not UTF-8", beat(func(m *Heartbeat) { m.Status.Endpoint = "\xff" })},
		{"large values", beat(func(m *Heartbeat) { m.Status.HasValues, m.Status.Values = true, make([]byte, ValuesBytesMax+1) })},
		{"many suspects", beat(func(m *Heartbeat) { m.Suspects = make([]id.Node, SuspectsMax+1) })},
		{"registration without values", beat(func(m *Heartbeat) { m.Register = &Instance{Role: "udp", Type: "UDP"} })},
		{"status 0", Ack{Header: testHeader}.AppendTo(nil)},
		{"reason 0", Ack{Header: testHeader, Status: StatusOK, Delta: Delta{Removed: []Removal{{}}}}.AppendTo(nil)},
		{"padded number", append([]byte{Protocol, kindLeave, 0x80, 0x00}, make([]byte, 40)...)},
	} {
		if m, err := ParseMessage(tt.b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", tt.name, m, err)
		}
	}
	_, err := ParseMessage([]byte{Protocol + 1, kindLeave})
	if pe, ok := errors.AsType[*ProtocolError](err); !ok || pe.Theirs != Protocol+1 {
		t.Errorf("another protocol: %v", err)
	}
}

// A count that the message can't hold is refused before anything is allocated.
func TestParseDoesNotBelieveCounts(t *testing.T) {
	b := Ack{Header: testHeader, Status: StatusOK}.AppendTo(nil)
	b = append(b[:len(b)-1-3-20-1], 0xff, 0xff, 0xff, 0x7f)
	allocs := testing.AllocsPerRun(10, func() {
		if _, err := ParseMessage(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("ParseMessage = %v", err)
		}
	})
	if allocs > 20 {
		t.Errorf("%v allocations", allocs)
	}
}

func FuzzParseMessage(f *testing.F) {
	for _, m := range testMessages(f) {
		f.Add(m.AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMessage(b)
		if err != nil {
			return // bad bytes may be refused, never panic
		}
		if got := m.AppendTo(nil); !bytes.Equal(got, b) {
			t.Errorf("Parse then AppendTo = %x, want %x", got, b)
		}
	})
}

// Whatever a peer sends, neither machine panics, and the registry's answer is well-formed.
func FuzzMachines(f *testing.F) {
	for _, m := range testMessages(f) {
		f.Add(m.AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMessage(b)
		if err != nil {
			return
		}
		r := NewRegistry(simStart, RegistryConfig{Node: homeNode, Incarnation: id.Incarnation{1}})
		for range 3 { // the first raises the epoch
			out := r.Step(simStart, Request{Message: m})
			if h, ok := m.(Heartbeat); ok {
				h.Epoch = r.Epoch()
				m = h
			}
			if out.Reply == nil {
				continue
			}
			if _, err := ParseMessage(out.Reply.AppendTo(nil)); err != nil {
				t.Errorf("answer: %v", err)
			}
		}
		r.Step(simStart.Add(time.Minute), RegistryTick{})
		for _, home := range []bool{true, false} {
			mc := New(simStart, Config{Self: Instance{Node: "10.0.0.2:8000", Role: "mars", Type: "MARS"}, Home: home, ColdBoot: -1, Rand: func() float64 { return 0.5 }})
			mc.Step(simStart, Targets{Nodes: []id.Node{homeNode}})
			for i := range 3 {
				mc.Step(simStart.Add(time.Duration(i)*time.Second), Received{Message: m})
				mc.Step(simStart.Add(time.Duration(i)*time.Second), Request{Message: m})
			}
		}
		o := NewObserver(simStart, ObserverConfig{Self: Instance{Node: "10.0.0.2:8000"}, Rand: func() float64 { return 0.5 }})
		out := o.Step(simStart, Targets{Nodes: []id.Node{homeNode}})
		for range 3 {
			if out.Send == nil {
				break
			}
			out = o.Step(simStart, Answered{Try: out.Send.Try, Message: m})
		}
	})
}

func TestValues(t *testing.T) {
	for _, v := range []map[string]any{
		nil,
		{"a": int64(1), "b": int64(-5), "c": 1.5, "d": "text", "e": []byte{1, 2}, "f": nil, "g": true},
		{"nested": map[string]any{"list": []any{map[string]any{"x": int64(1)}, "y"}}},
		{"large": uint64(math.MaxUint64), "long": strings.Repeat("x", 5000)},
	} {
		b, err := EncodeValues(v)
		if err != nil {
			t.Errorf("EncodeValues(%v): %v", v, err)
			continue
		}
		got, err := DecodeValues(b)
		if err != nil || !reflect.DeepEqual(got, v) {
			t.Errorf("DecodeValues = %#v, %v, want %#v", got, err, v)
		}
		again, err := EncodeValues(got)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("second encoding %x, first %x (%v)", again, b, err)
		}
	}
	deep := map[string]any{}
	for range valuesDepthMax + 1 {
		deep = map[string]any{"in": deep}
	}
	for name, v := range map[string]map[string]any{
		"deep": deep, "time": {"at": time.Unix(1, 0)}, "large": {"x": make([]byte, ValuesBytesMax)},
		"long key": {strings.Repeat("k", ValueKeyBytesMax+1): 1}, "empty key": {"": 1}, "channel": {"c": make(chan int)},
	} {
		if _, err := EncodeValues(v); err == nil {
			t.Errorf("%s values were taken", name)
		}
	}
}

func FuzzDecodeValues(f *testing.F) {
	for _, v := range []map[string]any{{"a": 1, "b": "x"}, {"n": map[string]any{"l": []any{1.5, nil}}}} {
		b, err := EncodeValues(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0xdf, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x81, 0xa1, 'k', 0xc7, 1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := DecodeValues(b)
		if err != nil {
			return
		}
		if _, err := EncodeValues(v); err != nil && !errors.Is(err, ErrValues) {
			t.Errorf("EncodeValues(%v): %v", v, err)
		}
	})
}
