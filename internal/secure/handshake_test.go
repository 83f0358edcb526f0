package secure

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// dice returns a source of bytes that are the same in every run.
func dice(seed string) io.Reader {
	return rand.NewChaCha8(sha256.Sum256([]byte(seed)))
}

var (
	testStart = time.Unix(1_700_000_000, 0)
	testSrc   = netip.MustParseAddrPort("192.0.2.7:4321")
)

func testCredentials(t testing.TB) Credentials {
	t.Helper()
	c, err := NewCredentials(dice("credentials"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// hand is both sides of one handshake, step by step.
type hand struct {
	t      testing.TB
	now    time.Time
	src    netip.AddrPort
	base   Base
	gate   *Gate
	stream *StreamGate // nil over UDP
	client *Client
}

func newHand(t testing.TB, o ClientOptions) *hand {
	t.Helper()
	creds := testCredentials(t)
	gate, err := NewGate(dice("gate"), testStart)
	if err != nil {
		t.Fatal(err)
	}
	client, err := NewClient(creds, "game", o, dice("client"))
	if err != nil {
		t.Fatal(err)
	}
	h := &hand{t: t, now: testStart.Add(time.Second), src: testSrc, base: Derive(creds, "game"), gate: gate, client: client}
	if o.Stream {
		h.stream = gate.Stream()
	}
	return h
}

func (h *hand) challenge(hello []byte) ([]byte, error) {
	if h.stream != nil {
		return h.stream.Challenge(nil, h.now, hello, &h.base)
	}
	return h.gate.Challenge(nil, h.now, h.src, hello, &h.base)
}

func (h *hand) confirm(raw []byte) (*Accepted, error) {
	if h.stream != nil {
		return h.stream.Confirm(raw)
	}
	c, err := h.gate.Confirm(h.now, h.src, raw, &h.base)
	if err != nil {
		return nil, err
	}
	return c.Open()
}

func (h *hand) mustChallenge() []byte {
	h.t.Helper()
	b, err := h.challenge(h.client.Hello())
	if err != nil {
		h.t.Fatalf("challenge: %v", err)
	}
	return b
}

func (h *hand) mustConfirm(frames []byte) []byte {
	h.t.Helper()
	b, err := h.client.Challenge(h.mustChallenge(), false, frames)
	if err != nil {
		h.t.Fatalf("client challenge: %v", err)
	}
	return b
}

// ends are the four key holders of a connection.
type ends struct {
	clientSeal, serverSeal *Sealer
	clientOpen, serverOpen *Opener
}

var testAccept = wire.Accept{
	SCID: wire.CID{1, 2, 3, 4, 5, 6, 7, 8}, IdleTimeout: 15 * time.Second,
	ServerTime: time.UnixMicro(1_700_000_000_123_456), MaxDatagram: 1200,
	PacketsPerSecond: 200, KiBPerSecond: 128, Resumed: true,
}

func (h *hand) finish(p RekeyPolicy) ends {
	h.t.Helper()
	a, err := h.confirm(h.mustConfirm(nil))
	if err != nil {
		h.t.Fatalf("confirm: %v", err)
	}
	var e ends
	packet, seal, open := a.Accept(h.now, nil, testAccept, p)
	e.serverSeal, e.serverOpen = seal, open
	got, seal, open, err := h.client.Accept(h.now, packet)
	if err != nil {
		h.t.Fatalf("accept: %v", err)
	}
	if got != testAccept {
		h.t.Errorf("accept = %+v, want %+v", got, testAccept)
	}
	e.clientSeal, e.clientOpen = seal, open
	return e
}

// pack seals frames into one packet.
func pack(s *Sealer, now time.Time, frames string) []byte {
	b := append(s.Begin(nil), frames...)
	return s.Finish(now, b, 0)
}

func TestHandshakeRoundTrip(t *testing.T) {
	for _, suite := range []Suite{ChaCha20Poly1305, AES128GCM} {
		for _, x25519 := range []bool{false, true} {
			for _, resume := range []bool{false, true} {
				for _, stream := range []bool{false, true} {
					name := fmt.Sprintf("%v x25519=%v resume=%v stream=%v", suite, x25519, resume, stream)
					t.Run(name, func(t *testing.T) {
						h := newHand(t, ClientOptions{Offer: OfferOf(suite), X25519: x25519, Stream: stream})
						roundTrip(t, h, suite, x25519, resume)
					})
				}
			}
		}
	}
}

func roundTrip(t *testing.T, h *hand, suite Suite, x25519, resume bool) {
	confirm, err := h.client.Challenge(h.mustChallenge(), resume, []byte("first frames"))
	if err != nil {
		t.Fatal(err)
	}
	hash, ok := ConfirmHash(confirm)
	a, err := h.confirm(confirm)
	if err != nil {
		t.Fatal(err)
	}
	if string(a.Frames) != "first frames" || a.Suite != suite || a.X25519 != x25519 || a.Resume != resume || !ok || a.Hash != hash {
		t.Errorf("accepted = %q %v x25519 %v resume %v", a.Frames, a.Suite, a.X25519, a.Resume)
	}
	if stream := h.stream != nil; stream != (a.CookieTime == 0) {
		t.Errorf("cookie time = %d", a.CookieTime)
	}
	packet, serverSeal, serverOpen := a.Accept(h.now, []byte("before"), testAccept, RekeyPolicy{})
	packet, ok = bytes.CutPrefix(packet, []byte("before"))
	if !ok || len(packet) != wire.AcceptBytes+1 {
		t.Fatalf("accept has %d bytes after the prefix, want %d", len(packet), wire.AcceptBytes+1)
	}
	kept := bytes.Clone(packet)
	got, clientSeal, clientOpen, err := h.client.Accept(h.now, packet)
	if err != nil || got != testAccept {
		t.Fatalf("accept = %+v, %v", got, err)
	}
	if !bytes.Equal(kept, packet) {
		t.Error("Client.Accept changed the packet")
	}
	for i, frames := range []string{"a", "", strings.Repeat("x", 1100)} {
		for side, p := range map[string]struct {
			s *Sealer
			o *Opener
		}{"client": {clientSeal, serverOpen}, "server": {serverSeal, clientOpen}} {
			b := pack(p.s, h.now, frames)
			if len(b) != p.s.Overhead()+len(frames) {
				t.Errorf("%s packet of %d bytes for %d of frames", side, len(b), len(frames))
			}
			pn, got, err := p.o.Open(h.now, b)
			if err != nil || pn != uint64(i+1) || string(got) != frames {
				t.Errorf("%s packet %d opened as %d, %q, %v", side, i+1, pn, got, err)
			}
		}
	}
	if scid, ok := wire.PeekSCID(pack(clientSeal, h.now, "")); !ok || scid != testAccept.SCID {
		t.Errorf("scid of a client's packet = %x, %v", scid, ok)
	}
}

func TestServerPrefersAES(t *testing.T) {
	for offer, want := range map[Offer]Suite{
		0b01: ChaCha20Poly1305, 0b10: AES128GCM, 0b11: AES128GCM, 0xff: AES128GCM, 0xfd: ChaCha20Poly1305, 0: AES128GCM,
	} {
		h := newHand(t, ClientOptions{Offer: offer})
		a, err := h.confirm(h.mustConfirm(nil))
		if err != nil || a.Suite != want {
			t.Errorf("offer %#b leads to %v, %v, want %v", offer, a.Suite, err, want)
		}
	}
}

// resigned changes bytes of a packet and makes its mac right again, as a client or
// server with the credentials could.
func resigned(h *hand, b []byte, change func([]byte)) []byte {
	b = bytes.Clone(b)
	change(b)
	h.base.sign(b)
	return b
}

func TestHelloRefusals(t *testing.T) {
	stranger := Derive(testCredentials(t), "another game")
	for _, stream := range []bool{false, true} {
		for _, c := range []struct {
			name   string
			change func(h *hand, b []byte) []byte
			want   error
		}{
			{"bad mac", func(_ *hand, b []byte) []byte { b[255] ^= 1; return b }, RefusedMac},
			{"changed under the mac", func(_ *hand, b []byte) []byte { b[12] ^= 1; return b }, RefusedMac},
			{"another place's credentials", func(h *hand, b []byte) []byte { h.base = stranger; return b }, RefusedCID},
			{"no suite", func(h *hand, b []byte) []byte { return resigned(h, b, func(b []byte) { b[2] = 0 }) }, RefusedSuite},
			{"only unknown suites", func(h *hand, b []byte) []byte { return resigned(h, b, func(b []byte) { b[2] = 0xfc }) }, RefusedSuite},
			{"padding with a good mac", func(h *hand, b []byte) []byte { return resigned(h, b, func(b []byte) { b[100] = 1 }) }, wire.RefusedReserved},
			{"empty", func(*hand, []byte) []byte { return nil }, wire.RefusedLength},
		} {
			t.Run(fmt.Sprintf("%s stream=%v", c.name, stream), func(t *testing.T) {
				h := newHand(t, ClientOptions{X25519: true, Stream: stream})
				got, err := h.challenge(c.change(h, bytes.Clone(h.client.Hello())))
				if !errors.Is(err, c.want) || len(got) != 0 {
					t.Errorf("challenge = %d bytes, %v, want %v", len(got), err, c.want)
				}
			})
		}
	}
}

func TestChallengeRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		opts   ClientOptions
		change func(b []byte) // the mac is made right afterwards
		want   error
	}{
		{"another Nc", ClientOptions{}, func(b []byte) { b[19] ^= 1 }, RefusedNonce},
		{"suite not offered", ClientOptions{Offer: OfferOf(ChaCha20Poly1305)}, func(b []byte) { b[2] = 2 }, RefusedSuite},
		{"unknown suite", ClientOptions{Offer: 0xff}, func(b []byte) { b[2] = 3 }, RefusedSuite},
		{"suite 0", ClientOptions{}, func(b []byte) { b[2] = 0 }, RefusedSuite},
		{"share not asked for", ClientOptions{}, func(b []byte) { b[3], b[56] = 1, 9 }, wire.RefusedShare},
		{"share bytes without the flag", ClientOptions{}, func(b []byte) { b[56] = 9 }, wire.RefusedShare},
		{"share missing", ClientOptions{X25519: true}, func(b []byte) { b[3] = 0; clear(b[56:88]) }, wire.RefusedShare},
		{"another cid0", ClientOptions{}, func(b []byte) { b[4] ^= 1 }, RefusedCID},
		{"share of low order", ClientOptions{X25519: true}, func(b []byte) { clear(b[56:88]); b[56] = 1 }, RefusedSecret},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHand(t, c.opts)
			good := h.mustChallenge()
			if got, err := h.client.Challenge(resigned(h, good, c.change), false, nil); !errors.Is(err, c.want) || got != nil {
				t.Errorf("error = %v, want %v", err, c.want)
			}
			if _, err := h.client.Challenge(good, false, nil); err != nil {
				t.Errorf("good challenge after it: %v", err)
			}
			if _, err := h.client.Challenge(good, false, nil); !errors.Is(err, RefusedSpent) {
				t.Errorf("second good challenge: error %v", err)
			}
		})
	}
	h := newHand(t, ClientOptions{})
	b := h.mustChallenge()
	b[103] ^= 1
	if _, err := h.client.Challenge(b, false, nil); !errors.Is(err, RefusedMac) {
		t.Errorf("bad mac: error %v", err)
	}
}

func TestConfirmRefusals(t *testing.T) {
	lowOrder := [32]byte{1}
	for _, c := range []struct {
		name   string
		stream bool
		change func(h *hand, b []byte) []byte
		want   error
	}{
		{"payload", false, func(_ *hand, b []byte) []byte { b[len(b)-1] ^= 1; return b }, RefusedPayload},
		{"resume flag", false, func(_ *hand, b []byte) []byte { b[3] ^= 2; return b }, RefusedPayload},
		{"client share", false, func(_ *hand, b []byte) []byte { b[68] ^= 1; return b }, RefusedPayload},
		{"share of low order", false, func(_ *hand, b []byte) []byte { copy(b[68:], lowOrder[:]); return b }, RefusedSecret},
		{"no share, no flag", false, func(_ *hand, b []byte) []byte { b[3] &^= 1; clear(b[68:100]); return b }, RefusedCookie},
		{"flag without share", false, func(_ *hand, b []byte) []byte { clear(b[68:100]); return b }, wire.RefusedShare},
		{"downgraded suite", false, func(_ *hand, b []byte) []byte { b[2] = 1; return b }, RefusedSuite},
		{"downgraded suite and offer", false, func(_ *hand, b []byte) []byte { b[2], b[4] = 1, 1; return b }, RefusedCookie},
		{"offer changed, same choice", false, func(_ *hand, b []byte) []byte { b[4] = 2; return b }, RefusedPayload},
		{"no offer", false, func(_ *hand, b []byte) []byte { b[4] = 0; return b }, RefusedSuite},
		{"cid0", false, func(_ *hand, b []byte) []byte { b[8] ^= 1; return b }, RefusedCID},
		{"Nc", false, func(_ *hand, b []byte) []byte { b[31] ^= 1; return b }, RefusedCookie},
		{"Ns", false, func(_ *hand, b []byte) []byte { b[47] ^= 1; return b }, RefusedNonce},
		{"cookie", false, func(_ *hand, b []byte) []byte { b[67] ^= 1; return b }, RefusedCookie},
		{"cookie time raised", false, func(_ *hand, b []byte) []byte { b[52]++; return b }, RefusedCookie},
		{"cookie time far ahead", false, func(_ *hand, b []byte) []byte { b[48] = 0xff; return b }, RefusedCookie},
		{"zero cookie", false, func(_ *hand, b []byte) []byte { clear(b[48:68]); return b }, RefusedCookie},
		{"another port", false, func(h *hand, b []byte) []byte {
			h.src = netip.AddrPortFrom(h.src.Addr(), h.src.Port()+1)
			return b
		}, RefusedCookie},
		{"another IP", false, func(h *hand, b []byte) []byte {
			h.src = netip.AddrPortFrom(h.src.Addr().Next(), h.src.Port())
			return b
		}, RefusedCookie},
		{"late", false, func(h *hand, b []byte) []byte { h.now = h.now.Add(cookieTTL + time.Millisecond); return b }, RefusedExpired},
		{"another server", false, func(h *hand, b []byte) []byte {
			gate, err := NewGate(dice("another gate"), testStart)
			if err != nil {
				h.t.Fatal(err)
			}
			h.gate = gate
			return b
		}, RefusedCookie},

		{"payload", true, func(_ *hand, b []byte) []byte { b[len(b)-1] ^= 1; return b }, RefusedPayload},
		{"Nc", true, func(_ *hand, b []byte) []byte { b[31] ^= 1; return b }, RefusedNonce},
		{"Ns", true, func(_ *hand, b []byte) []byte { b[32] ^= 1; return b }, RefusedNonce},
		{"cookie not zero", true, func(_ *hand, b []byte) []byte { b[48] = 1; return b }, RefusedCookie},
		{"share", true, func(_ *hand, b []byte) []byte { b[68] ^= 1; return b }, wire.RefusedShare},
		{"offer", true, func(_ *hand, b []byte) []byte { b[4] = 2; return b }, RefusedSuite},
		{"suite and offer", true, func(_ *hand, b []byte) []byte { b[2], b[4] = 1, 1; return b }, RefusedSuite},
		{"share left out", true, func(_ *hand, b []byte) []byte { b[3] &^= 1; clear(b[68:100]); return b }, wire.RefusedShare},
		{"cid0", true, func(_ *hand, b []byte) []byte { b[8] ^= 1; return b }, RefusedCID},
		{"short", true, func(_ *hand, b []byte) []byte { return b[:100] }, wire.RefusedLength},
	} {
		t.Run(fmt.Sprintf("%s stream=%v", c.name, c.stream), func(t *testing.T) {
			h := newHand(t, ClientOptions{X25519: true, Stream: c.stream})
			a, err := h.confirm(c.change(h, h.mustConfirm([]byte("frames"))))
			if !errors.Is(err, c.want) || a != nil {
				t.Errorf("error = %v, want %v", err, c.want)
			}
		})
	}
}

func TestAcceptRefusals(t *testing.T) {
	h := newHand(t, ClientOptions{})
	if _, _, _, err := h.client.Accept(h.now, make([]byte, wire.AcceptBytes)); !errors.Is(err, RefusedSpent) {
		t.Errorf("accept before confirm: error %v", err)
	}
	a, err := h.confirm(h.mustConfirm(nil))
	if err != nil {
		t.Fatal(err)
	}
	good, _, _ := a.Accept(h.now, nil, testAccept, RekeyPolicy{})
	for _, c := range []struct {
		name   string
		offset int
		want   error
	}{
		{"type", 0, wire.RefusedType},
		{"version", 1, wire.RefusedVersion},
		{"cid0", 2, RefusedCID},
		{"body", 10, RefusedPayload},
		{"tag", wire.AcceptBytes - 1, RefusedPayload},
	} {
		b := bytes.Clone(good)
		b[c.offset] ^= 0x80
		if _, _, _, err := h.client.Accept(h.now, b); !errors.Is(err, c.want) {
			t.Errorf("%s: error = %v, want %v", c.name, err, c.want)
		}
	}
	if _, _, _, err := h.client.Accept(h.now, good); err != nil {
		t.Errorf("good accept after bad ones: %v", err)
	}
	if _, _, _, err := h.client.Accept(h.now, good); !errors.Is(err, RefusedSpent) {
		t.Errorf("repeated accept: error %v", err)
	}
}

func TestAcceptTwicePanics(t *testing.T) {
	h := newHand(t, ClientOptions{})
	a, err := h.confirm(h.mustConfirm(nil))
	if err != nil {
		t.Fatal(err)
	}
	a.Accept(h.now, nil, testAccept, RekeyPolicy{})
	defer func() {
		if recover() == nil {
			t.Error("a second Accept sealed under the same number")
		}
	}()
	a.Accept(h.now, nil, testAccept, RekeyPolicy{})
}

func TestFramesMax(t *testing.T) {
	for stream, want := range map[bool]int{false: 1084, true: 1670} {
		h := newHand(t, ClientOptions{Stream: stream})
		challenge := h.mustChallenge()
		if _, err := h.client.Challenge(challenge, false, make([]byte, want+1)); !errors.Is(err, ErrFrames) {
			t.Errorf("stream %v: %d bytes of frames: error %v", stream, want+1, err)
		}
		if _, err := h.client.Challenge(challenge, false, make([]byte, want)); err != nil {
			t.Errorf("stream %v: %d bytes of frames: %v", stream, want, err)
		}
	}
}

func TestSecretsNeverPrint(t *testing.T) {
	creds := testCredentials(t)
	base := Derive(creds, "game")
	for _, verb := range []string{"%v", "%+v", "%#v", "%x", "%s", "%d"} {
		for _, v := range []any{creds, &creds, base, &base} {
			if s := fmt.Sprintf(verb, v); !strings.HasSuffix(s, "(redacted)") {
				t.Errorf("%s of %T prints %s", verb, v, s)
			}
		}
	}
}
