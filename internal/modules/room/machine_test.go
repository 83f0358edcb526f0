package room

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/reliable"
)

var (
	epoch  = time.Unix(1_700_000_000, 0)
	testID = id.NewRoom(netip.MustParseAddrPort("127.0.0.1:8000"), [8]byte{1})
)

// The tests' links are the user ids themselves.
type testMachine = Machine[id.UID]

func newMachine(t testing.TB, s Settings) *testMachine {
	t.Helper()
	if s.MembersMax == 0 {
		s.MembersMax = 4
	}
	if s.EmptyTTL == 0 {
		s.EmptyTTL = 10 * time.Second
	}
	m, err := NewMachine[id.UID](epoch, testID, s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// describe writes an output as one line per effect.
func describe(out *Output[id.UID]) string {
	var lines []string
	if out.Err != nil {
		lines = append(lines, "error: "+out.Err.Error())
	}
	for _, p := range out.Pushes {
		payload := string(p.Payload)
		if p.Cmd == CmdBroadcast {
			payload = strings.Join(messages(p.Payload), "+")
		}
		payload = strings.ReplaceAll(payload, string(testID), "ROOM:")
		how := ""
		if p.Rel == reliable.Unreliable {
			how = " unreliably"
		}
		lines = append(lines, fmt.Sprintf("%d %q to %v%s", p.Cmd, payload, p.To, how))
	}
	if len(out.Left) > 0 {
		lines = append(lines, fmt.Sprintf("left %v", out.Left))
	}
	if out.OwnerChanged {
		lines = append(lines, fmt.Sprintf("owner %q", out.OwnerNew))
	}
	if out.Closed && out.Err == nil {
		lines = append(lines, "closed")
	}
	return strings.Join(lines, "; ")
}

func messages(b []byte) (all []string) {
	for len(b) > 0 {
		n := binary.BigEndian.Uint32(b)
		all = append(all, string(b[4:4+n]))
		b = b[4+n:]
	}
	return all
}

type in = Input[id.UID]

func join(u id.UID) in { return in{Op: OpJoin, User: u, Link: u, Message: []byte("hi " + u)} }

func say(u id.UID, s string) in {
	return in{Op: OpBroadcast, User: u, Message: []byte(s), Rel: reliable.Reliable}
}

func after(d time.Duration) in { return in{Op: OpTick, Until: epoch.Add(d)} } // a tick at that time

func TestMachine(t *testing.T) {
	bytes := func(s string) []byte { return []byte(s) }
	for _, c := range []struct {
		name  string
		s     Settings
		steps []in
		want  []string // one for each step
	}{
		{"the first member owns the room, others are told of the next", Settings{},
			[]in{join("a"), join("b"), join("b")},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "error: user is already in a room"}},
		{"an empty message is not pushed", Settings{},
			[]in{join("a"), {Op: OpJoin, User: "b", Link: "b"}, {Op: OpLeave, User: "b"}},
			[]string{`owner "a"`, "", "left [b]"}},
		{"full", Settings{MembersMax: 2},
			[]in{join("a"), join("b"), join("c")},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "error: room is full"}},
		{"leave, and the longest present owns", Settings{},
			[]in{join("a"), join("b"), join("c"), {Op: OpLeave, User: "a", Message: bytes("bye")}},
			[]string{`owner "a"`, `101 "hi b" to [a]`, `101 "hi c" to [a b]`,
				`102 "bye" to [b c]; 14 "b" to [b c]; left [a]; owner "b"`}},
		{"the last one out closes", Settings{},
			[]in{join("a"), {Op: OpLeave, User: "a"}, join("b")},
			[]string{`owner "a"`, `left [a]; owner ""; closed`, "error: room not found"}},
		{"an empty room stays for its ttl", Settings{AllowEmpty: true},
			[]in{join("a"), {Op: OpLeave, User: "a"}, join("b"), {Op: OpLeave, User: "b"}, after(9 * time.Second), after(10 * time.Second)},
			[]string{`owner "a"`, `left [a]; owner ""`, `owner "b"`, `left [b]; owner ""`, "", "closed"}},
		{"a room nobody joins ends", Settings{},
			[]in{after(9 * time.Second), after(10 * time.Second)}, []string{"", "closed"}},
		{"a lost connection", Settings{},
			[]in{join("a"), join("b"), {Op: OpLeave, User: "b", Lost: true, Message: bytes("ignored")}},
			[]string{`owner "a"`, `101 "hi b" to [a]`, `102 "ROOM:b" to [a]; left [b]`}},
		{"a lost connection with a message of the application", Settings{},
			[]in{join("a"), join("b"), {Op: OpDiscard, User: "b", Message: bytes("gone")}, {Op: OpLeave, User: "b", Lost: true}},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "", `102 "gone" to [a]; left [b]`}},
		{"a lost connection without a word", Settings{},
			[]in{join("a"), join("b"), {Op: OpDiscard, User: "b"}, {Op: OpLeave, User: "b", Lost: true}},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "", "left [b]"}},
		{"kicked ones are told", Settings{},
			[]in{join("a"), join("b"), {Op: OpKick, User: "a", Message: bytes("out")}},
			[]string{`owner "a"`, `101 "hi b" to [a]`, `102 "out" to [a b]; 14 "b" to [b]; left [a]; owner "b"`}},
		{"deletion tells all", Settings{},
			[]in{join("a"), join("b"), {Op: OpDelete, Message: bytes("end")}, say("a", "x")},
			[]string{`owner "a"`, `101 "hi b" to [a]`, `102 "end" to [a b]; left [a b]; owner ""; closed`, "error: room not found"}},
		{"broadcast at once", Settings{Interval: 99 * time.Millisecond},
			[]in{join("a"), say("a", "alone"), join("b"), say("a", "x"), {Op: OpBroadcast, User: "b", Message: bytes("y")}, say("z", "x")},
			[]string{`owner "a"`, "", `101 "hi b" to [a]`, `103 "x" to [b]`, `103 "y" to [a] unreliably`, "error: user is not in the room"}},
		{"broadcasts are merged, without one's own", Settings{Interval: 100 * time.Millisecond},
			[]in{join("a"), join("b"), join("c"), say("a", "1"), say("b", "2"), say("a", "3"), after(99 * time.Millisecond), after(100 * time.Millisecond), after(time.Second)},
			[]string{`owner "a"`, `101 "hi b" to [a]`, `101 "hi c" to [a b]`, "", "", "", "",
				`103 "1+2+3" to [c]; 103 "2" to [a]; 103 "1+3" to [b]`, ""}},
		{"a change of reliability cuts a merged push", Settings{Interval: time.Second},
			[]in{join("a"), join("b"), say("a", "1"), {Op: OpBroadcast, User: "a", Message: bytes("2")}, say("a", "3"), after(time.Second)},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "", "", "", `103 "1" to [b]; 103 "2" to [b] unreliably; 103 "3" to [b]`}},
		{"who comes later gets nothing of before", Settings{Interval: time.Second},
			[]in{join("a"), join("b"), say("a", "1"), join("c"), {Op: OpLeave, User: "a", Message: bytes("bye")}, after(time.Second)},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "", `103 "1" to [b]; 101 "hi c" to [a b]`,
				`102 "bye" to [b c]; 14 "b" to [b c]; left [a]; owner "b"`, ""}},
		{"messages go to members, each once, in room order", Settings{},
			[]in{join("a"), join("b"), join("c"), {Op: OpMessage, User: "a", To: []id.UID{"c", "b", "c", "z", "a"}, Message: bytes("x")}, {Op: OpMessage, User: "z"}},
			[]string{`owner "a"`, `101 "hi b" to [a]`, `101 "hi c" to [a b]`, `104 "x" to [a b c] unreliably`, "error: user is not in the room"}},
		{"owner change", Settings{},
			[]in{join("a"), join("b"), {Op: OpOwner, User: "b", To: []id.UID{"b"}}, {Op: OpOwner, User: "a", To: []id.UID{"z"}},
				{Op: OpOwner, User: "a", To: []id.UID{"a"}}, {Op: OpOwner, User: "a", To: []id.UID{"b"}}, {Op: OpOwner, To: []id.UID{"a"}}},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "error: only the room's owner may do this", "error: user is not in the room",
				"", `14 "b" to [b]; owner "b"`, `14 "a" to [a b]; owner "a"`}},
		{"reserved seats are for those named", Settings{MembersMax: 3},
			[]in{join("a"), {Op: OpReserve, User: "a", To: []id.UID{"b", "b", "a"}}, {Op: OpReserve, User: "a", To: []id.UID{"c", "d"}},
				join("c"), join("d"), join("b"), {Op: OpReserve, User: "z", To: []id.UID{"c"}}},
			[]string{`owner "a"`, "", "error: not enough free seats to reserve", `101 "hi c" to [a]`, "error: room is full",
				`101 "hi b" to [a c]`, "error: user is not in the room"}},
		{"a cancelled seat is free", Settings{MembersMax: 2},
			[]in{join("a"), {Op: OpReserve, User: "a", To: []id.UID{"b"}}, {Op: OpCancel, User: "a", To: []id.UID{"b", "z"}}, join("c")},
			[]string{`owner "a"`, "", "", `101 "hi c" to [a]`}},
		{"seats reserved by who left are free", Settings{MembersMax: 3},
			[]in{join("a"), join("b"), {Op: OpReserve, User: "b", To: []id.UID{"x"}}, join("c"), {Op: OpLeave, User: "b", Lost: true}, join("c"), join("d")},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "", "error: room is full", `102 "ROOM:b" to [a]; left [b]`, `101 "hi c" to [a]`, `101 "hi d" to [a c]`}},
		{"reservations in a random room", Settings{Random: true},
			[]in{join("a"), join("b"), {Op: OpReserve, User: "b", To: []id.UID{"c", "d"}}, {Op: OpReserve, User: "a", To: []id.UID{"c"}}},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "error: only the room's owner may reserve", ""}},
		{"reservations by the owner only", Settings{ReserveOwnerOnly: true},
			[]in{join("a"), join("b"), {Op: OpReserve, User: "b", To: []id.UID{"c"}}, {Op: OpCancel, User: "b"}, {Op: OpReserve, User: "a", To: []id.UID{"c"}}, {Op: OpReserve, To: []id.UID{"d"}}},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "error: only the room's owner may reserve", "error: only the room's owner may cancel a reservation of others", "", ""}},
		{"seats are cancelled by who reserved them, the owner and the server", Settings{MembersMax: 8},
			[]in{join("a"), join("b"), {Op: OpReserve, To: []id.UID{"s"}}, {Op: OpReserve, User: "a", To: []id.UID{"o"}}, {Op: OpReserve, User: "b", To: []id.UID{"x", "y"}},
				{Op: OpCancel, User: "b", To: []id.UID{"x", "s"}}, {Op: OpCancel, User: "b", To: []id.UID{"o"}}, {Op: OpCancel, User: "b", To: []id.UID{"x"}}, {Op: OpCancel, User: "a", To: []id.UID{"y", "s"}}, {Op: OpCancel, To: []id.UID{"o"}}},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "", "", "", "error: only the room's owner may cancel a reservation of others", "error: only the room's owner may cancel a reservation of others", "", "", ""}},
		{"a held seat waits for its user, and not for ever", Settings{MembersMax: 2},
			[]in{join("a"), {Op: OpHold, User: "b", Until: epoch.Add(time.Second)}, {Op: OpHold, User: "c", Until: epoch.Add(time.Second)},
				join("c"), {Op: OpHold, User: "b", Until: epoch.Add(2 * time.Second)}, after(time.Second), join("c"), after(2 * time.Second), join("c")},
			[]string{`owner "a"`, "", "error: room is full", "error: room is full", "", "", "error: room is full", "", `101 "hi c" to [a]`}},
		{"a held seat keeps the room", Settings{},
			[]in{join("a"), {Op: OpHold, User: "b", Until: epoch.Add(time.Minute)}, {Op: OpLeave, User: "a"}, after(30 * time.Second), join("b")},
			[]string{`owner "a"`, "", `left [a]; owner ""`, "", `owner "b"`}},
		{"until it is given back", Settings{},
			[]in{join("a"), {Op: OpHold, User: "b", Until: epoch.Add(time.Minute)}, {Op: OpLeave, User: "a"}, {Op: OpUnhold, User: "b"}},
			[]string{`owner "a"`, "", `left [a]; owner ""`, "closed"}},
		{"a held seat of a member is the one they have", Settings{MembersMax: 2},
			[]in{join("a"), join("b"), {Op: OpHold, User: "b", Until: epoch.Add(time.Minute)}, {Op: OpHold, User: "c", Until: epoch.Add(time.Minute)},
				{Op: OpLeave, User: "b"}, join("c"), join("b")},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "", "error: room is full", "left [b]", "error: room is full", `101 "hi b" to [a]`}},
		{"sizes", Settings{},
			[]in{join("a"), join("b"), say("a", strings.Repeat("x", MessageMax+1)), {Op: OpBroadcast, User: "a", Message: make([]byte, UnreliableMax+1)},
				{Op: OpMessage, User: "a", To: []id.UID{"b"}, Message: make([]byte, UnreliableMax+1)}, {Op: OpLeave, User: "a", Message: make([]byte, MessageMax+1)}},
			[]string{`owner "a"`, `101 "hi b" to [a]`, "error: a room message is at most 65536 bytes", "error: an unreliable room message is at most 1111 bytes",
				"error: an unreliable room message is at most 1111 bytes", "error: a room message is at most 65536 bytes"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t, c.s)
			var out Output[id.UID]
			now := epoch
			for i, step := range c.steps {
				if step.Op == OpTick && !step.Until.IsZero() {
					now = step.Until
				}
				m.Step(now, step, &out)
				if got := describe(&out); got != c.want[i] {
					t.Errorf("step %d: %s\n want %s", i, got, c.want[i])
				}
			}
		})
	}
}

func TestWakeAt(t *testing.T) {
	m := newMachine(t, Settings{Interval: 100 * time.Millisecond, AllowEmpty: true})
	var out Output[id.UID]
	for i, c := range []struct {
		in   in
		want time.Duration // since epoch; negative: never
	}{
		{in{}, 10 * time.Second},
		{join("a"), -1},
		{join("b"), -1},
		{say("a", "x"), 100 * time.Millisecond},
		{in{Op: OpHold, User: "c", Until: epoch.Add(50 * time.Millisecond)}, 50 * time.Millisecond},
		{in{Op: OpUnhold, User: "c"}, 100 * time.Millisecond},
		{in{Op: OpLeave, User: "a"}, -1},
		{in{Op: OpLeave, User: "b"}, 10 * time.Second},
		{in{Op: OpDelete}, -1},
	} {
		m.Step(epoch, c.in, &out)
		want := epoch.Add(c.want)
		if c.want < 0 {
			want = time.Time{}
		}
		if !out.WakeAt.Equal(want) {
			t.Errorf("step %d: wake at %v, want %v", i, out.WakeAt.Sub(epoch), c.want)
		}
	}
}

func TestWaitingIsBounded(t *testing.T) {
	m := newMachine(t, Settings{Interval: time.Minute})
	var out Output[id.UID]
	m.Step(epoch, join("a"), &out)
	m.Step(epoch, join("b"), &out)
	for _, c := range []struct {
		size, flushed int // bytes of a message, and the message that makes all go
	}{{1, waitingMax}, {60 << 10, 5}} {
		for i := 1; i <= c.flushed; i++ {
			m.Step(epoch, say("a", strings.Repeat("x", c.size)), &out)
			if (len(out.Pushes) > 0) != (i == c.flushed) {
				t.Fatalf("%d messages of %d bytes: %d pushes", i, c.size, len(out.Pushes))
			}
		}
		total := 0
		for _, p := range out.Pushes {
			if len(p.Payload) > mergedReliableMax {
				t.Errorf("a merged push of %d bytes", len(p.Payload))
			}
			total += len(messages(p.Payload))
		}
		if total != c.flushed {
			t.Errorf("%d messages arrived, want %d", total, c.flushed)
		}
	}
}

func TestSettings(t *testing.T) {
	ok := Settings{MembersMax: 2, EmptyTTL: 10 * time.Second}
	for _, change := range []func(*Settings){
		func(s *Settings) { s.MembersMax = 1 },
		func(s *Settings) { s.MembersMax = 1001 },
		func(s *Settings) { s.EmptyTTL = 9 * time.Second },
		func(s *Settings) { s.Interval = 61 * time.Second },
	} {
		s := ok
		change(&s)
		if _, err := NewMachine[id.UID](epoch, testID, s); err == nil {
			t.Errorf("%+v was accepted", s)
		}
	}
	ok.MembersMax = 1000
	if _, err := NewMachine[id.UID](epoch, testID, ok); err != nil {
		t.Error(err)
	}
}

func TestProperties(t *testing.T) {
	m := newMachine(t, Settings{})
	var out Output[id.UID]
	step := func(i in) error { m.Step(epoch, i, &out); return out.Err }
	set := func(user id.UID, props ...Property) error { return step(in{Op: OpSet, User: user, Props: props}) }
	text := func(k, v string) Property { return Property{k, Value{Bytes: []byte(v)}} }
	_ = step(join("a"))
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"by a stranger", set("z", text("k", "v")), ErrNotIn},
		{"by a member", set("a", text("k", "v"), text("b", "w")), nil},
		{"by the server", set("", text("k", "v2")), nil},
		{"no name", set("a", text("", "v")), ErrProperties},
		{"long name", set("a", text(strings.Repeat("k", PropertyKeyMax+1), "v")), ErrProperties},
		{"long value", set("a", text("ok", "v"), text("k", strings.Repeat("v", PropertyValueMax+1))), ErrProperties},
		{"increment bytes", step(in{Op: OpIncr, User: "a", Key: "k", Delta: 1}), ErrIncr},
		{"increment nothing", step(in{Op: OpIncr, User: "a", Key: "n", Delta: -5}), nil},
		{"increment", step(in{Op: OpIncr, User: "a", Key: "n", Delta: 7}), nil},
		{"overflow", step(in{Op: OpIncr, User: "a", Key: "n", Delta: 1<<63 - 1}), ErrIncr},
		{"increment by a stranger", step(in{Op: OpIncr, User: "z", Key: "n", Delta: 7}), ErrNotIn},
	} {
		if !errors.Is(c.err, c.want) || (c.err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	var got []string
	for _, p := range m.Properties(nil) {
		got = append(got, fmt.Sprintf("%s=%x", p.Key, p.Value.AppendTo(nil)))
	}
	if want := []string{"b=77", "k=7632", "n=0000000000000002"}; !slices.Equal(got, want) {
		t.Errorf("properties %v, want %v", got, want)
	}
	if p := m.Properties([]string{"n", "none", "n"}); len(p) != 1 || p[0].Value.Int != 2 {
		t.Errorf("named properties %v", p)
	}
	big := strings.Repeat("v", PropertyValueMax)
	if err := set("a", text("1", big), text("2", big), text("3", big), text("4", big)); !errors.Is(err, ErrProperties) {
		t.Errorf("too many bytes: %v", err)
	}
	for i := range PropertiesMax {
		_ = set("a", text(fmt.Sprint("key", i), ""))
	}
	if n := len(m.Properties(nil)); n != PropertiesMax {
		t.Errorf("%d properties", n)
	}
}

func TestBroadcastAllocatesNothing(t *testing.T) {
	m := newMachine(t, Settings{MembersMax: 100})
	var out Output[id.UID]
	for i := range 100 {
		m.Step(epoch, join(id.UID(fmt.Sprint("user", i))), &out)
	}
	msg := in{Op: OpBroadcast, User: "user50", Message: make([]byte, 64), Rel: reliable.Unreliable}
	if avg := testing.AllocsPerRun(100, func() { m.Step(epoch, msg, &out) }); avg != 0 {
		t.Errorf("%v allocations a broadcast", avg)
	}
}

func BenchmarkBroadcast(b *testing.B) {
	m := newMachine(b, Settings{MembersMax: 100})
	var out Output[id.UID]
	for i := range 100 {
		m.Step(epoch, join(id.UID(fmt.Sprint("user", i))), &out)
	}
	msg := in{Op: OpBroadcast, User: "user50", Message: make([]byte, 64), Rel: reliable.Unreliable}
	b.ReportAllocs()
	for b.Loop() {
		m.Step(epoch, msg, &out)
	}
}
