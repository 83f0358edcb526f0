package secure

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// h reads hex in which spaces separate fields.
func h(s string) hexBytes {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

type vectorVarint struct {
	Value    num      `json:"value"`
	Bytes    hexBytes `json:"bytes"`
	Shortest bool     `json:"shortest"`
}

// varintVectors starts with the examples of RFC 9000 appendix A.1. A value comes in
// its shortest form; the longer forms are only ever received.
func varintVectors() (v []vectorVarint) {
	for _, value := range []uint64{
		151288809941952652, 494878333, 15293, 37,
		0, 1, 63, 64, 16383, 16384, 1<<30 - 1, 1 << 30, 1<<32 - 1, 1 << 32, wire.VarintMax,
	} {
		v = append(v, vectorVarint{num(value), wire.AppendVarint(nil, value), true})
	}
	return append(v, vectorVarint{37, h("4025"), false}, vectorVarint{37, h("80000025"), false},
		vectorVarint{0, h("c000000000000000"), false}, vectorVarint{63, h("403f"), false})
}

type vectorPN struct {
	Largest num    `json:"largestBefore"`
	Low32   uint32 `json:"low32"`
	PN      num    `json:"pn"`
}

// pnVectors says which number ends in 32 bits, as RFC 9000 appendix A.3 does.
func pnVectors() (v []vectorPN) {
	for _, c := range []struct {
		largest uint64
		low     uint32
	}{
		{0, 1}, {0, 0}, {0, 1<<32 - 1}, {1000, 1001}, {1000, 3}, {0xa82f30ea, 0xa82f9b32},
		{1<<32 - 1, 0}, {1<<32 - 16, 5}, {1<<32 + 5, 1<<32 - 16}, {1<<32 - 2, 1<<32 - 1}, {1 << 32, 1<<32 - 1},
		{1<<32 + 1<<31, 2}, {1<<32 + 1<<31, 1}, {1<<32 + 1<<31 - 2, 0}, {5<<32 + 7, 9},
		{1<<62 - 2, 1<<32 - 1}, {1<<62 - 2, 0},
	} {
		v = append(v, vectorPN{num(c.largest), c.low, num(rebuildPN(c.largest, c.low))})
	}
	return v
}

type vectorMessage struct {
	Name    string   `json:"name"`
	Bytes   hexBytes `json:"bytes"`
	Kind    uint8    `json:"kind"`
	Ver     uint8    `json:"ver"`
	Cmd     uint16   `json:"cmd"`
	Status  *uint8   `json:"status,omitempty"`
	ID      *num     `json:"id,omitempty"`
	Payload hexBytes `json:"payload"`
}

func messageVectors() (v []vectorMessage) {
	for _, c := range []struct {
		name string
		m    wire.Message
	}{
		{"request without an id", wire.Message{Ver: 2, Cmd: 1, Payload: []byte("hi")}},
		{"request without a payload", wire.Message{Ver: 1, Cmd: 11}},
		{"request with id 0", wire.Message{Ver: 1, Cmd: 100, HasID: true}},
		{"request with the last id of one byte", wire.Message{Ver: 1, Cmd: 100, HasID: true, ID: 63, Payload: []byte("x")}},
		{"request with an id of two bytes", wire.Message{Ver: 1, Cmd: 0x1234, HasID: true, ID: 64, Payload: []byte("x")}},
		{"request with an id of four bytes", wire.Message{Ver: 255, Cmd: 65535, HasID: true, ID: 16384}},
		{"request with the largest id", wire.Message{Cmd: 1, HasID: true, ID: wire.VarintMax}},
		{"response that is fine", wire.Message{Kind: wire.Response, Ver: 1, Cmd: 100, Status: 1, HasID: true, ID: 63, Payload: []byte("done")}},
		{"response without an id", wire.Message{Kind: wire.Response, Ver: 2, Cmd: 7, Status: 1}},
		{"response: the caller's fault, as text", wire.Message{Kind: wire.Response, Ver: 1, Cmd: 100, Status: 4, HasID: true, ID: 5, Payload: []byte("room is full")}},
		{"response: the server's fault, code and text", wire.Message{Kind: wire.Response, Ver: 1, Cmd: 100, Status: 5, HasID: true, ID: 300, Payload: []byte("\x00\x00\x03\xe9try again")}},
		{"push", wire.Message{Kind: wire.Push, Ver: 1, Cmd: 110, Payload: []byte{0, 1, 2}}},
	} {
		m := vectorMessage{Name: c.name, Bytes: c.m.AppendTo(nil), Kind: uint8(c.m.Kind), Ver: c.m.Ver, Cmd: c.m.Cmd, Payload: c.m.Payload}
		if c.m.Kind == wire.Response {
			m.Status = &c.m.Status
		}
		if c.m.HasID {
			id := num(c.m.ID)
			m.ID = &id
		}
		v = append(v, m)
	}
	return v
}

var badMessages = []vectorBad{
	{"nothing", "shorter than its header", nil},
	{"three bytes", "shorter than its header", h("000100")},
	{"kind 3", "unknown kind", h("03010064")},
	{"kind 127", "unknown kind", h("7f010064")},
	{"kind 3 with an id", "unknown kind", h("8301006405")},
	{"response without a status", "shorter than its header", h("01010064")},
	{"request without the id it has", "shorter than its header", h("80010064")},
	{"request with half an id", "shorter than its header", h("80010064 40")},
	{"response with a status but no id", "shorter than its header", h("81010064 01")},
}

type vectorFrame struct {
	Name        string         `json:"name"`
	Type        string         `json:"type"`
	Bytes       hexBytes       `json:"bytes"`
	Acknowledge bool           `json:"acknowledge"`
	Shortest    bool           `json:"shortest"`
	Fields      map[string]any `json:"fields"`
}

var frameNames = map[wire.FrameType]string{
	wire.FramePadding: "PADDING", wire.FramePing: "PING", wire.FramePong: "PONG", wire.FrameAck: "ACK",
	wire.FrameWindow: "WINDOW", wire.FrameResume: "RESUME", wire.FrameMessage: "MESSAGE", wire.FrameReliable: "RELIABLE",
	wire.FramePathChallenge: "PATH_CHALLENGE", wire.FramePathResponse: "PATH_RESPONSE",
	wire.FrameOffline: "OFFLINE", wire.FrameMove: "MOVE", wire.FrameClose: "CLOSE",
}

// fieldsOf is what the protocol page calls the parts of a frame.
func fieldsOf(f *wire.Frame) map[string]any {
	switch f.Type {
	case wire.FramePing:
		return map[string]any{"token": num(f.Token)}
	case wire.FramePong:
		return map[string]any{"token": num(f.Token), "serverTimeUs": num(f.Time)}
	case wire.FrameAck:
		ranges := [][2]num{}
		for r := range f.Ack.Ranges {
			ranges = append(ranges, [2]num{num(r.Lo), num(r.Hi)})
		}
		return map[string]any{"largest": num(f.Ack.Largest), "delayUs": num(f.Ack.DelayMicros), "ranges": ranges}
	case wire.FrameWindow:
		return map[string]any{"bytes": num(f.Window)}
	case wire.FrameResume:
		return map[string]any{"channel": f.Channel, "next": num(f.Seq)}
	case wire.FrameMessage:
		return map[string]any{"message": hexBytes(f.Data)}
	case wire.FrameReliable:
		return map[string]any{"channel": f.Channel, "seq": num(f.Seq), "first": f.First, "last": f.Last, "data": hexBytes(f.Data)}
	case wire.FramePathChallenge, wire.FramePathResponse:
		return map[string]any{"data": hexBytes(f.Path[:])}
	case wire.FrameOffline:
		return map[string]any{"reason": f.Reason}
	case wire.FrameMove:
		return map[string]any{"deadlineMs": num(f.Move.Deadline.Milliseconds()), "host": f.Move.Host, "port": f.Move.Port}
	case wire.FrameClose:
		return map[string]any{"code": num(f.Close.Code), "reason": f.Close.Reason}
	}
	return map[string]any{}
}

// frameVectors encodes frames from their fields; what only a peer would write is
// given as bytes.
func frameVectors(t *testing.T) (v []vectorFrame) {
	t.Helper()
	add := func(name string, b []byte, shortest bool) {
		f, n, err := wire.ParseFrame(b)
		check(t, err)
		if n != len(b) {
			t.Errorf("frame %q: %d of %d bytes read", name, n, len(b))
		}
		v = append(v, vectorFrame{name, frameNames[f.Type], b, f.Type.Elicits(), shortest, fieldsOf(&f)})
	}
	var path [8]byte
	copy(path[:], h("0102030405060708"))
	for _, c := range []struct {
		name  string
		bytes []byte
	}{
		{"padding is the rest of the packet, whatever it is", h("00 00ff7f")},
		{"padding of one byte", h("00")},
		{"ping", wire.AppendPing(nil, 0x0102030405060708)},
		{"ping with the largest token", wire.AppendPing(nil, 1<<64-1)},
		{"pong of a server", wire.AppendPong(nil, 0x0102030405060708, 1_700_000_000_123_456)},
		{"pong of a client", wire.AppendPong(nil, 9, 0)},
		{"ack of one packet", wire.AppendAck(nil, 0, []wire.Range{{Lo: 1, Hi: 1}})},
		{"ack of packet 0 only", wire.AppendAck(nil, 0, []wire.Range{{Lo: 0, Hi: 0}})},
		{"ack of everything so far", wire.AppendAck(nil, 20_000, []wire.Range{{Lo: 0, Hi: 500}})},
		{"ack with one gap of one packet", wire.AppendAck(nil, 25, []wire.Range{{Lo: 6, Hi: 6}, {Lo: 0, Hi: 4}})},
		{"ack with three ranges", wire.AppendAck(nil, 25, []wire.Range{{Lo: 90, Hi: 100}, {Lo: 50, Hi: 50}, {Lo: 0, Hi: 3}})},
		{"ack with all lengths of varints", wire.AppendAck(nil, 63, []wire.Range{{Lo: 1 << 40, Hi: 1<<40 + 64}, {Lo: 1 << 20, Hi: 1<<20 + 16384}})},
		{"window", wire.AppendWindow(nil, 65536)},
		{"window, as large as can be", wire.AppendWindow(nil, wire.VarintMax)},
		{"resume of the default channel", wire.AppendResume(nil, 0, 0)},
		{"resume of the unordered channel", wire.AppendResume(nil, 255, 16383)},
		{"message", wire.AppendMessage(nil, h("80010064 05 6869"))},
		{"message of 64 bytes: length of two bytes", wire.AppendMessage(nil, append(h("02010064"), make([]byte, 60)...))},
		{"fragment that is a whole message", wire.AppendReliable(nil, 0, 0, true, true, h("00020001 6869"))},
		{"first fragment", wire.AppendReliable(nil, 1, 63, true, false, h("0002"))},
		{"middle fragment", wire.AppendReliable(nil, 15, 64, false, false, h("00"))},
		{"last fragment", wire.AppendReliable(nil, 255, 1<<30, false, true, h("01"))},
		{"empty last fragment", wire.AppendReliable(nil, 0, 16384, false, true, nil)},
		{"path challenge", wire.AppendPathChallenge(nil, path)},
		{"path response", wire.AppendPathResponse(nil, path)},
		{"offline, shutting down", wire.AppendOffline(nil, wire.OfflineShutdown)},
		{"offline, taken out", wire.AppendOffline(nil, wire.OfflineOperator)},
		{"move to a name", wire.Move{Deadline: 5 * time.Second, Host: "n7.example.com", Port: 7100}.AppendTo(nil)},
		{"move to an IPv6 address", wire.Move{Deadline: (1<<32 - 1) * time.Millisecond, Host: "2001:db8::7", Port: 65535}.AppendTo(nil)},
		{"close without a reason", wire.Close{}.AppendTo(nil)},
		{"close with a reason", wire.Close{Code: wire.CloseSlow, Reason: "slow ✓"}.AppendTo(nil)},
		{"close with a code of a later version", wire.Close{Code: 16384}.AppendTo(nil)},
	} {
		add(c.name, c.bytes, true)
	}
	add("window in a longer form", h("04 c000000000010000"), false)
	add("message whose length is in a longer form", h("08 4004 02010064"), false)
	add("fragment with all varints of eight bytes", h("09 00 c000000000000007 03 c000000000000001 61"), false)
	add("ack with longer forms", h("03 4064 80000019 4001 4000 4000 4000"), false)
	return v
}

// What the bytes of a frame can be wrong about by themselves.
const (
	frameCut     = "truncated frame"
	frameUnknown = "unknown frame type"
	frameChannel = "reserved channel"
	frameFlags   = "reserved flag bits"
	frameEmpty   = "empty fragment that is not the last"
	frameRanges  = "malformed ack ranges"
)

var badFrames = []vectorBad{
	{"no frame", frameCut, nil},
	{"type 6", frameUnknown, h("06")},
	{"type 7", frameUnknown, h("0700")},
	{"type 0x0a", frameUnknown, h("0a")},
	{"type 0x12", frameUnknown, h("12")},
	{"type 0x23", frameUnknown, h("23")},
	{"type 0xff", frameUnknown, h("ff")},
	{"ping of seven bytes", frameCut, h("01 00000000000000")},
	{"pong without a time", frameCut, h("02 0102030405060708 00000000000000")},
	{"ack without a first range", frameCut, h("03 05 00 00")},
	{"ack with half a range", frameCut, h("03 05 00 01 01 00")},
	{"ack with half a varint", frameCut, h("03 40")},
	{"ack whose first range goes below 0", frameRanges, h("03 05 00 00 06")},
	{"ack whose gap goes below 0", frameRanges, h("03 05 00 01 01 03 00")},
	{"ack whose second range goes below 0", frameRanges, h("03 0a 00 01 01 02 06")},
	{"ack whose gap is huge", frameRanges, h("03 0a 00 01 00 ffffffffffffffff 00")},
	{"ack with more ranges than fit", frameCut, h("03 0a 00 ffffffffffffffff 00 00 00")},
	{"window without a number", frameCut, h("04")},
	{"window with half a number", frameCut, h("04 800100")},
	{"resume without a number", frameCut, h("05 00")},
	{"resume of channel 16", frameChannel, h("05 10 00")},
	{"resume of channel 254", frameChannel, h("05 fe 00")},
	{"message shorter than its length", frameCut, h("08 05 02010064")},
	{"message with a length beyond 2^61", frameCut, h("08 ffffffffffffffff 02010064")},
	{"fragment of channel 16", frameChannel, h("09 10 00 03 01 61")},
	{"fragment of channel 254", frameChannel, h("09 fe 00 03 01 61")},
	{"fragment with reserved flag bit 2", frameFlags, h("09 00 00 07 01 61")},
	{"fragment with reserved flag bit 7", frameFlags, h("09 00 00 83 01 61")},
	{"empty fragment in the middle", frameEmpty, h("09 00 00 00 00")},
	{"empty first fragment", frameEmpty, h("09 00 00 01 00")},
	{"fragment shorter than its length", frameCut, h("09 00 00 03 02 61")},
	{"fragment without a length", frameCut, h("09 00 00 03")},
	{"path challenge of seven bytes", frameCut, h("10 00000000000000")},
	{"path response of seven bytes", frameCut, h("11 00000000000000")},
	{"offline without a reason", frameCut, h("20")},
	{"move without a port", frameCut, h("21 000003e8 03 3a3a31 1f")},
	{"move whose host is cut", frameCut, h("21 000003e8 10 3a3a31 1f90")},
	{"close without a reason length", frameCut, h("22 03")},
	{"close whose reason is cut", frameCut, h("22 03 04 736c6f")},
}

type vectorProbe struct {
	Name  string   `json:"name"`
	Key   hexBytes `json:"key"`
	Nonce hexBytes `json:"nonce"`
	Probe hexBytes `json:"probe"`
	State uint8    `json:"state"`
	Reply hexBytes `json:"reply"`
}

var (
	probeKey   = h("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
	probeNonce = wire.Nonce(h("202122232425262728292a2b2c2d2e2f"))
)

func probeVectors() (v []vectorProbe) {
	for i, name := range []string{"online", "offline", "taken"} {
		state := wire.ProbeState(i + 1)
		v = append(v, vectorProbe{
			name, probeKey, probeNonce[:], AppendProbe(nil, probeKey, probeNonce),
			uint8(state), AppendProbeReply(nil, probeKey, probeNonce, state),
		})
	}
	return v
}

// badProbeVectors are probes that get no answer under probeKey.
func badProbeVectors() []vectorBad {
	good := AppendProbe(nil, probeKey, probeNonce)
	changed := func(at int, bit byte) []byte { b := bytes.Clone(good); b[at] ^= bit; return b }
	return []vectorBad{
		{"bad mac", "mac", changed(32, 1)},
		{"another nonce", "mac", changed(1, 1)},
		{"under another key", "mac", AppendProbe(nil, probeKey[:31], probeNonce)},
		{"nonzero padding", "reserved", changed(39, 1)},
		{"a byte short", "length", good[:39]},
		{"a byte long", "length", append(bytes.Clone(good), 0)},
		{"a reply", "type", AppendProbeReply(nil, probeKey, probeNonce, wire.ProbeOnline)},
	}
}
