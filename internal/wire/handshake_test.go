package wire_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

func bytesFrom(first byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

func helloBytes() []byte {
	h := wire.Hello{
		Offer: 0b11, X25519: true, CID0: wire.CID(bytesFrom(0x10, 8)), Nc: wire.Nonce(bytesFrom(0x20, 16)),
		Share: [32]byte(bytesFrom(0x40, 32)), Mac: [16]byte(bytesFrom(0x80, 16)),
	}
	return h.AppendTo(nil)
}

func challengeBytes() []byte {
	c := wire.Challenge{
		Suite: 2, X25519: true, CID0: wire.CID(bytesFrom(0x10, 8)), NcHead: [8]byte(bytesFrom(0x20, 8)),
		Ns: wire.Nonce(bytesFrom(0x30, 16)), Cookie: [20]byte(bytesFrom(0x50, 20)),
		Share: [32]byte(bytesFrom(0x40, 32)), Mac: [16]byte(bytesFrom(0x80, 16)),
	}
	return c.AppendTo(nil)
}

func confirmBytes() []byte {
	c := wire.Confirm{
		Suite: 2, Offer: 0b11, X25519: true, Resume: true, CID0: wire.CID(bytesFrom(0x10, 8)),
		Nc: wire.Nonce(bytesFrom(0x20, 16)), Ns: wire.Nonce(bytesFrom(0x30, 16)),
		Cookie: [20]byte(bytesFrom(0x50, 20)), Share: [32]byte(bytesFrom(0x70, 32)),
		Sealed: bytesFrom(0xa0, 20),
	}
	return c.AppendTo(nil)
}

func acceptBody() []byte {
	a := wire.Accept{
		SCID: wire.CID(bytesFrom(0x10, 8)), IdleTimeout: 15 * time.Second,
		ServerTime: time.UnixMicro(1_700_000_000_123_456), MaxDatagram: 1200,
		PacketsPerSecond: 200, KiBPerSecond: 128, Draining: true, Resumed: true,
	}
	return a.AppendTo(nil)
}

// TestOffsets compares where fields lie with the tables of the protocol page.
func TestOffsets(t *testing.T) {
	hello, challenge, confirm, body := helloBytes(), challengeBytes(), confirmBytes(), acceptBody()
	for _, c := range []struct {
		name   string
		packet []byte
		offset int
		want   []byte
	}{
		{"hello head", hello, 0, []byte{1, 1, 3, 1}},
		{"hello cid0", hello, 4, bytesFrom(0x10, 8)},
		{"hello nc", hello, 12, bytesFrom(0x20, 16)},
		{"hello share", hello, 28, bytesFrom(0x40, 32)},
		{"hello zeros", hello, 60, make([]byte, 180)},
		{"hello mac", hello, 240, bytesFrom(0x80, 16)},
		{"challenge head", challenge, 0, []byte{2, 1, 2, 1}},
		{"challenge cid0", challenge, 4, bytesFrom(0x10, 8)},
		{"challenge nc head", challenge, 12, bytesFrom(0x20, 8)},
		{"challenge ns", challenge, 20, bytesFrom(0x30, 16)},
		{"challenge cookie", challenge, 36, bytesFrom(0x50, 20)},
		{"challenge share", challenge, 56, bytesFrom(0x40, 32)},
		{"challenge mac", challenge, 88, bytesFrom(0x80, 16)},
		{"confirm head", confirm, 0, []byte{3, 1, 2, 3, 3, 0, 0, 0}},
		{"confirm cid0", confirm, 8, bytesFrom(0x10, 8)},
		{"confirm nc", confirm, 16, bytesFrom(0x20, 16)},
		{"confirm ns", confirm, 32, bytesFrom(0x30, 16)},
		{"confirm cookie", confirm, 48, bytesFrom(0x50, 20)},
		{"confirm share", confirm, 68, bytesFrom(0x70, 32)},
		{"confirm sealed", confirm, 100, bytesFrom(0xa0, 20)},
		{"accept scid", body, 0, bytesFrom(0x10, 8)},
		{"accept idle", body, 8, []byte{0, 0, 0x3a, 0x98}},
		{"accept time", body, 12, []byte{0x00, 0x06, 0x0a, 0x24, 0x18, 0x20, 0x22, 0x40}},
		{"accept limits", body, 20, []byte{0x04, 0xb0, 0, 200, 0, 128}},
		{"accept flags", body, 26, []byte{3}},
		{"accept header", wire.AppendAcceptHeader(nil, wire.CID(bytesFrom(0x10, 8))), 0, append([]byte{4, 1}, bytesFrom(0x10, 8)...)},
	} {
		if got := c.packet[c.offset : c.offset+len(c.want)]; !bytes.Equal(got, c.want) {
			t.Errorf("%s at %d = %x, want %x", c.name, c.offset, got, c.want)
		}
	}
	for name, n := range map[string][2]int{
		"hello": {len(hello), 256}, "challenge": {len(challenge), 104}, "confirm": {len(confirm), 120},
		"accept body": {len(body), 28}, "accept": {wire.AcceptBytes, 53},
	} {
		if n[0] != n[1] {
			t.Errorf("%s has %d bytes, want %d", name, n[0], n[1])
		}
	}
}

func TestRefusals(t *testing.T) {
	parsers := map[string]func([]byte) error{
		"hello":     func(b []byte) error { _, err := wire.ParseHello(b); return err },
		"challenge": func(b []byte) error { _, err := wire.ParseChallenge(b); return err },
		"confirm":   func(b []byte) error { _, err := wire.ParseConfirm(b); return err },
		"accept":    func(b []byte) error { _, _, err := wire.ParseAcceptHeader(b); return err },
	}
	good := map[string][]byte{
		"hello": helloBytes(), "challenge": challengeBytes(), "confirm": confirmBytes(),
		"accept": append(wire.AppendAcceptHeader(nil, wire.CID{1}), make([]byte, 43)...),
	}
	set := func(offset int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[offset] = v; return b }
	}
	zero := func(from, to int) func([]byte) []byte {
		return func(b []byte) []byte { clear(b[from:to]); return b }
	}
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
	longer := func(b []byte) []byte { return append(b, 0) }
	for _, c := range []struct {
		packet string
		name   string
		change func([]byte) []byte
		want   error
	}{
		{"hello", "as it is", cut(256), nil},
		{"hello", "unknown suites are ignored", set(2, 0xff), nil},
		{"hello", "empty", cut(0), wire.RefusedLength},
		{"hello", "a byte short", cut(255), wire.RefusedLength},
		{"hello", "a byte long", longer, wire.RefusedLength},
		{"hello", "type", set(0, 2), wire.RefusedType},
		{"hello", "version 0", set(1, 0), wire.RefusedVersion},
		{"hello", "version 2", set(1, 2), wire.RefusedVersion},
		{"hello", "reserved flag", set(3, 3), wire.RefusedReserved},
		{"hello", "first padding byte", set(60, 1), wire.RefusedReserved},
		{"hello", "last padding byte", set(239, 1), wire.RefusedReserved},
		{"hello", "share without flag", set(3, 0), wire.RefusedShare},
		{"hello", "flag without share", zero(28, 60), wire.RefusedShare},

		{"challenge", "as it is", cut(104), nil},
		{"challenge", "empty", cut(0), wire.RefusedLength},
		{"challenge", "a byte short", cut(103), wire.RefusedLength},
		{"challenge", "a byte long", longer, wire.RefusedLength},
		{"challenge", "type", set(0, 1), wire.RefusedType},
		{"challenge", "version", set(1, 9), wire.RefusedVersion},
		{"challenge", "reserved flag", set(3, 0x81), wire.RefusedReserved},
		{"challenge", "share without flag", set(3, 0), wire.RefusedShare},
		{"challenge", "flag without share", zero(56, 88), wire.RefusedShare},

		{"confirm", "as it is", cut(120), nil},
		{"confirm", "no frames", cut(116), nil},
		{"confirm", "no tag", cut(115), wire.RefusedLength},
		{"confirm", "type", set(0, 4), wire.RefusedType},
		{"confirm", "version", set(1, 0), wire.RefusedVersion},
		{"confirm", "reserved flag", set(3, 7), wire.RefusedReserved},
		{"confirm", "reserved byte 5", set(5, 1), wire.RefusedReserved},
		{"confirm", "reserved byte 7", set(7, 1), wire.RefusedReserved},
		{"confirm", "share without flag", set(3, 2), wire.RefusedShare},
		{"confirm", "flag without share", zero(68, 100), wire.RefusedShare},

		{"accept", "as it is", cut(53), nil},
		{"accept", "later fields", longer, nil},
		{"accept", "a byte short", cut(52), wire.RefusedLength},
		{"accept", "type", set(0, 3), wire.RefusedType},
		{"accept", "version", set(1, 2), wire.RefusedVersion},
	} {
		t.Run(c.packet+"/"+c.name, func(t *testing.T) {
			if err := parsers[c.packet](c.change(bytes.Clone(good[c.packet]))); !errors.Is(err, c.want) {
				t.Errorf("error = %v, want %v", err, c.want)
			}
		})
	}
}

func TestAcceptIgnoresWhatLaterServersAdd(t *testing.T) {
	want, err := wire.ParseAccept(acceptBody())
	if err != nil {
		t.Fatal(err)
	}
	b := append(acceptBody(), 1, 2, 3)
	b[26] |= 0xfc
	if got, err := wire.ParseAccept(b); err != nil || got != want {
		t.Errorf("ParseAccept = %+v, %v, want %+v", got, err, want)
	}
	if _, err := wire.ParseAccept(b[:26]); !errors.Is(err, wire.RefusedLength) {
		t.Errorf("ParseAccept of 26 bytes: error %v", err)
	}
}

func TestPeek(t *testing.T) {
	cid := wire.CID(bytesFrom(0x10, 8))
	data := append(append([]byte{0x41}, cid[:]...), make([]byte, 4+16)...)
	for _, c := range []struct {
		name       string
		packet     []byte
		isHand     bool
		isData     bool
		packetType wire.PacketType
	}{
		{"hello", helloBytes(), true, false, wire.PacketHello},
		{"confirm", confirmBytes(), true, false, wire.PacketConfirm},
		{"short confirm", confirmBytes()[:115], false, false, wire.PacketConfirm},
		{"data", data, false, true, wire.PacketData},
		{"short data", data[:28], false, false, wire.PacketData},
		{"empty", nil, false, false, 0},
		{"unknown", append([]byte{0x42}, data[1:]...), false, false, 0},
	} {
		if got := wire.TypeOf(c.packet); got != c.packetType {
			t.Errorf("%s: TypeOf = %#x, want %#x", c.name, got, c.packetType)
		}
		if got, ok := wire.PeekCID0(c.packet); ok != c.isHand || ok && got != cid {
			t.Errorf("%s: PeekCID0 = %x, %v", c.name, got, ok)
		}
		if got, ok := wire.PeekSCID(c.packet); ok != c.isData || ok && got != cid {
			t.Errorf("%s: PeekSCID = %x, %v", c.name, got, ok)
		}
	}
}

func TestReason(t *testing.T) {
	if got := wire.Reason(fmt.Errorf("hello from a stranger: %w", wire.RefusedShare)); got != "share" {
		t.Errorf("Reason of a wrapped refusal = %q", got)
	}
	if got := wire.Reason(errors.New("disk full")); got != "" {
		t.Errorf("Reason of another error = %q", got)
	}
}

// fuzzRoundTrip checks that bytes a parser takes come out of AppendTo unchanged.
func fuzzRoundTrip[P any](f *testing.F, seed []byte, parse func([]byte) (P, error), appendTo func(P) []byte) {
	f.Add(seed)
	f.Add([]byte{})
	f.Add(seed[:len(seed)-1])
	f.Add(append(bytes.Clone(seed), 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parse(b)
		if err != nil {
			if wire.Reason(err) == "" {
				t.Errorf("error %v has no reason", err)
			}
			return
		}
		if got := appendTo(p); !bytes.Equal(got, b) {
			t.Errorf("Parse then AppendTo = %x, want %x", got, b)
		}
	})
}

func FuzzHello(f *testing.F) {
	fuzzRoundTrip(f, helloBytes(), wire.ParseHello, func(p wire.Hello) []byte { return p.AppendTo(nil) })
}

func FuzzChallenge(f *testing.F) {
	fuzzRoundTrip(f, challengeBytes(), wire.ParseChallenge, func(p wire.Challenge) []byte { return p.AppendTo(nil) })
}

func FuzzConfirm(f *testing.F) {
	fuzzRoundTrip(f, confirmBytes(), wire.ParseConfirm, func(p wire.Confirm) []byte { return p.AppendTo(nil) })
}

func endedBytes() []byte {
	e := wire.Ended{Code: wire.CloseReplaced, CID0: wire.CID{1, 2}, Nc: wire.Nonce{3}, Mac: [16]byte{4}}
	return e.AppendTo(nil)
}

func FuzzEnded(f *testing.F) {
	for at, v := range map[int]byte{0: 2, 1: 2, 2: 255, 3: 1, 43: 9} {
		b := endedBytes()
		b[at] = v
		f.Add(b)
	}
	fuzzRoundTrip(f, endedBytes(), wire.ParseEnded, func(p wire.Ended) []byte { return p.AppendTo(nil) })
}

func FuzzAccept(f *testing.F) {
	f.Add(acceptBody())
	f.Add(acceptBody()[:26])
	f.Add(acceptBody()[:27])
	f.Add(append(acceptBody()[:27], "\x04abc"...))
	f.Add(append(acceptBody()[:27], "\x03abc and more"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := wire.ParseAccept(b)
		if err != nil {
			return
		}
		want := bytes.Clone(b[:wire.AcceptBodyBytes])
		want[26] &= 3
		want = append(append(want, byte(len(p.Token))), p.Token...)
		if got := p.AppendTo(nil); !bytes.Equal(got, want) {
			t.Errorf("ParseAccept then AppendTo = %x, want %x", got, want)
		}
	})
}
