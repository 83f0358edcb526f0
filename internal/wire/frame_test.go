package wire_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVarint(t *testing.T) {
	// The first four are the examples of RFC 9000 appendix A.1.
	tests := []struct {
		hex string
		v   uint64
	}{
		{"c2197c5eff14e88c", 151288809941952652}, {"9d7f3e7d", 494878333}, {"7bbd", 15293}, {"25", 37},
		{"00", 0}, {"3f", 63}, {"4040", 64}, {"7fff", 16383}, {"80004000", 16384}, {"bfffffff", 1<<30 - 1},
		{"c000000040000000", 1 << 30}, {"ffffffffffffffff", wire.VarintMax},
	}
	for _, tt := range tests {
		b := unhex(t, tt.hex)
		if got := wire.AppendVarint(nil, tt.v); !bytes.Equal(got, b) {
			t.Errorf("AppendVarint(%d) = %x, want %s", tt.v, got, tt.hex)
		}
		if v, n := wire.ParseVarint(append(b, 0xee)); v != tt.v || n != len(b) {
			t.Errorf("ParseVarint(%s) = %d, %d, want %d, %d", tt.hex, v, n, tt.v, len(b))
		}
		if n := wire.VarintLen(tt.v); n != len(b) {
			t.Errorf("VarintLen(%d) = %d, want %d", tt.v, n, len(b))
		}
		if _, n := wire.ParseVarint(b[:len(b)-1]); n != 0 {
			t.Errorf("ParseVarint(%s cut short) took %d bytes", tt.hex, n)
		}
	}
	if v, n := wire.ParseVarint([]byte{0x40, 0x25}); v != 37 || n != 2 {
		t.Errorf("a longer form of 37 = %d, %d", v, n)
	}
}

// frames has one frame of each type, byte for byte as the protocol page says.
var frames = []struct {
	name, hex string
	frame     wire.Frame
	elicits   bool
}{
	{"padding", "00", wire.Frame{Type: wire.FramePadding}, false},
	{"ping", "010102030405060708", wire.Frame{Type: wire.FramePing, Token: 0x0102030405060708}, true},
	{"pong", "02 0102030405060708 0006000000000001", wire.Frame{Type: wire.FramePong, Token: 0x0102030405060708, Time: 0x0006000000000001}, false},
	{"window", "0480010000", wire.Frame{Type: wire.FrameWindow, Window: 65536}, true},
	{"resume", "05ff4100", wire.Frame{Type: wire.FrameResume, Channel: 255, Seq: 256}, true},
	{"message", "0803616263", wire.Frame{Type: wire.FrameMessage, Data: []byte("abc")}, true},
	{"reliable, whole", "090005030268 69", wire.Frame{Type: wire.FrameReliable, Seq: 5, First: true, Last: true, Data: []byte("hi")}, true},
	{"reliable, empty last", "090f060200", wire.Frame{Type: wire.FrameReliable, Channel: 15, Seq: 6, Last: true, Data: []byte{}}, true},
	{"reliable, middle", "09ff0700017a", wire.Frame{Type: wire.FrameReliable, Channel: 255, Seq: 7, Data: []byte("z")}, true},
	{"path challenge", "100102030405060708", wire.Frame{Type: wire.FramePathChallenge, Path: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}}, true},
	{"path response", "110102030405060708", wire.Frame{Type: wire.FramePathResponse, Path: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}}, false},
	{"offline", "2001", wire.Frame{Type: wire.FrameOffline, Reason: wire.OfflineShutdown}, true},
	{"move", "21000003e8033a3a31 1f90", wire.Frame{Type: wire.FrameMove, Move: wire.Move{Deadline: time.Second, Host: "::1", Port: 8080}}, true},
	{"close", "2203 04 736c6f77", wire.Frame{Type: wire.FrameClose, Close: wire.Close{Code: wire.CloseSlow, Reason: "slow"}}, false},
}

func despace(s string) string {
	return string(slices.DeleteFunc([]byte(s), func(c byte) bool { return c == ' ' }))
}

func TestFrames(t *testing.T) {
	for _, tt := range frames {
		t.Run(tt.name, func(t *testing.T) {
			b := unhex(t, despace(tt.hex))
			if got := tt.frame.AppendTo(nil); !bytes.Equal(got, b) {
				t.Errorf("AppendTo = %x, want %x", got, b)
			}
			got, n, err := wire.ParseFrame(b)
			if err != nil || n != len(b) || !reflect.DeepEqual(got, tt.frame) {
				t.Errorf("ParseFrame = %+v, %d, %v, want %+v", got, n, err, tt.frame)
			}
			if got.Type.Elicits() != tt.elicits {
				t.Errorf("Elicits = %v, want %v", !tt.elicits, tt.elicits)
			}
			for cut := range len(b) {
				if _, _, err := wire.ParseFrame(b[:cut]); !errors.Is(err, wire.ErrTruncated) && !errors.Is(err, wire.ErrEmpty) {
					t.Errorf("the first %d bytes: %v, want %v", cut, err, wire.ErrTruncated)
				}
			}
		})
	}
}

func TestPaddingTakesTheRest(t *testing.T) {
	if _, n, err := wire.ParseFrame([]byte{0, 0xff, 0xff}); n != 3 || err != nil {
		t.Errorf("ParseFrame = %d, %v", n, err)
	}
}

func TestAck(t *testing.T) {
	ranges := []wire.Range{{90, 100}, {50, 50}, {0, 3}}
	b := wire.AppendAck(nil, 25, ranges)
	if want := unhex(t, "034064190"+"20a"+"2600"+"2d03"); !bytes.Equal(b, want) {
		t.Fatalf("AppendAck = %x, want %x", b, want)
	}
	f, n, err := wire.ParseFrame(append(b, 0x01))
	if err != nil || n != len(b) {
		t.Fatalf("ParseFrame = %d, %v", n, err)
	}
	if f.Ack.Largest != 100 || f.Ack.DelayMicros != 25 {
		t.Errorf("ack = %+v", f.Ack)
	}
	if got := slices.Collect(f.Ack.Ranges); !slices.Equal(got, ranges) {
		t.Errorf("ranges = %v, want %v", got, ranges)
	}
	if got := f.AppendTo(nil); !bytes.Equal(got, b) {
		t.Errorf("AppendTo = %x, want %x", got, b)
	}
	for range f.Ack.Ranges {
		break
	}
}

func TestFrameErrors(t *testing.T) {
	tests := []struct {
		name, hex string
		want      error
	}{
		{"nothing", "", wire.ErrTruncated},
		{"unknown type", "06", wire.ErrUnknownFrame},
		{"unknown type above", "23", wire.ErrUnknownFrame},
		{"reserved flag", "0900000461", wire.ErrTruncated},
		{"reserved flag bit 2", "090000070161", wire.ErrFlags},
		{"reserved flag bit 7", "090000830161", wire.ErrFlags},
		{"channel 16", "091000030161", wire.ErrChannel},
		{"channel 254 in resume", "05fe00", wire.ErrChannel},
		{"empty first", "0900000100", wire.ErrEmpty},
		{"empty middle", "0900000000", wire.ErrEmpty},
		{"ack: first range below zero", "0305000006", wire.ErrRanges},
		{"ack: gap below zero", "03050001010300", wire.ErrRanges},
		{"ack: length below zero", "03050001010103", wire.ErrRanges},
		{"ack: more ranges than bytes", "0305003f00", wire.ErrTruncated},
		{"message longer than the packet", "08ffffffffffffffff61", wire.ErrTruncated},
	}
	for _, tt := range tests {
		if _, _, err := wire.ParseFrame(unhex(t, tt.hex)); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestMessage(t *testing.T) {
	tests := []struct {
		name, hex string
		m         wire.Message
	}{
		{"request", "00 01 0064 6869", wire.Message{Kind: wire.Request, Ver: 1, Cmd: 100, Payload: []byte("hi")}},
		{"request with id", "80 01 0064 4100", wire.Message{Kind: wire.Request, Ver: 1, Cmd: 100, HasID: true, ID: 256, Payload: []byte{}}},
		{"response", "01 02 ffff 01 00", wire.Message{Kind: wire.Response, Ver: 2, Cmd: 65535, Status: 1, Payload: []byte{0}}},
		{"response with id", "81 00 0001 05 07 78", wire.Message{Kind: wire.Response, Cmd: 1, Status: 5, HasID: true, ID: 7, Payload: []byte("x")}},
		{"push", "02 ff 0000", wire.Message{Kind: wire.Push, Ver: 255, Payload: []byte{}}},
	}
	for _, tt := range tests {
		b := unhex(t, despace(tt.hex))
		if got := tt.m.AppendTo(nil); !bytes.Equal(got, b) {
			t.Errorf("%s: AppendTo = %x, want %x", tt.name, got, b)
		}
		if got, err := wire.ParseMessage(b); err != nil || !reflect.DeepEqual(got, tt.m) {
			t.Errorf("%s: ParseMessage = %+v, %v", tt.name, got, err)
		}
	}
	for _, bad := range []string{"", "000000", "03000000", "7f000000", "01000000", "80000000", "8100000001", "8000000040"} {
		if _, err := wire.ParseMessage(unhex(t, bad)); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("ParseMessage(%s) = %v, want %v", bad, err, wire.ErrMessage)
		}
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		wire.CloseNormal.String(): "normal", wire.CloseInternal.String(): "internal", wire.CloseCode(77).String(): "close code 77",
		wire.Request.String(): "request", wire.Response.String(): "response", wire.Push.String(): "push", wire.Kind(9).String(): "kind 9",
	} {
		if got != want {
			t.Errorf("String = %q, want %q", got, want)
		}
	}
}

func TestPanicsOnOurBugs(t *testing.T) {
	for name, f := range map[string]func(){
		"varint": func() { wire.AppendVarint(nil, wire.VarintMax+1) },
		"host":   func() { wire.Move{Host: string(make([]byte, 256))}.AppendTo(nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func FuzzFrame(f *testing.F) {
	for _, tt := range frames {
		f.Add(unhex(f, despace(tt.hex)))
	}
	f.Add(wire.AppendAck(nil, 25, []wire.Range{{90, 100}, {50, 50}, {0, 3}}))
	for _, b := range vectorBytes(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		first, n, err := wire.ParseFrame(b)
		if err != nil {
			return
		}
		if n < 1 || n > len(b) {
			t.Fatalf("ParseFrame took %d of %d bytes", n, len(b))
		}
		for r := range first.Ack.Ranges {
			if r.Lo > r.Hi {
				t.Errorf("range %v", r)
			}
		}
		if first.Type == wire.FrameAck { // which keeps whatever form of varint its ranges came in
			ranges := slices.Collect(first.Ack.Ranges)
			again, _, err := wire.ParseFrame(wire.AppendAck(nil, first.Ack.DelayMicros, ranges))
			if err != nil || !slices.Equal(slices.Collect(again.Ack.Ranges), ranges) || again.Ack.DelayMicros != first.Ack.DelayMicros {
				t.Errorf("parsed %v, after AppendAck %v, %v", ranges, slices.Collect(again.Ack.Ranges), err)
			}
			return
		}
		again, _, err := wire.ParseFrame(first.AppendTo(nil))
		if err != nil || !reflect.DeepEqual(again, first) {
			t.Errorf("parsed %+v, after AppendTo %+v, %v", first, again, err)
		}
	})
}

// vectorBytes are the frames and messages of docs/protocol-vectors.json, good and bad.
func vectorBytes(t testing.TB) (all [][]byte) {
	t.Helper()
	b, err := os.ReadFile("../../docs/protocol-vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	type entry struct{ Bytes string }
	var f struct{ Frames, BadFrames, Messages, BadMessages []entry }
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	for _, e := range slices.Concat(f.Frames, f.BadFrames, f.Messages, f.BadMessages) {
		all = append(all, unhex(t, e.Bytes))
	}
	return all
}

func FuzzParseMessage(f *testing.F) {
	for _, b := range vectorBytes(f) {
		f.Add(b)
	}
	f.Add([]byte("\x00\x01\x00\x64hi"))
	f.Add([]byte("\x81\x00\x00\x01\x05\x07x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		first, err := wire.ParseMessage(b)
		if err != nil {
			return
		}
		again, err := wire.ParseMessage(first.AppendTo(nil))
		if err != nil || !reflect.DeepEqual(again, first) {
			t.Errorf("parsed %+v, after AppendTo %+v, %v", first, again, err)
		}
	})
}

func BenchmarkParseFrame(b *testing.B) {
	p := wire.AppendReliable(nil, 0, 1000, true, true, make([]byte, 100))
	var f wire.Frame
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Parse(p); err != nil {
			b.Fatal(err)
		}
	}
}
