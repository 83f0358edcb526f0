package secure

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// vector is one handshake, the packets that follow it, and all that was derived on
// the way.
type vector struct {
	Name    string          `json:"name"`
	Input   vectorInput     `json:"input"`
	Derived vectorDerived   `json:"derived"`
	Packets vectorPackets   `json:"packets"`
	Data    []vectorData    `json:"data"`
	Refused []vectorRefused `json:"refused"`
}

type vectorInput struct {
	ClientKey     string   `json:"clientKey"`
	SID           hexBytes `json:"sid"`
	EncryptionKey hexBytes `json:"encryptionKey"`
	EncryptionIV  hexBytes `json:"encryptionIV"`
	EncryptionMac hexBytes `json:"encryptionMacKey"`
	Transport     string   `json:"transport"`
	Offer         uint8    `json:"offer"`
	Resume        bool     `json:"resume"`
	Nc            hexBytes `json:"nc"`
	ClientPrivate hexBytes `json:"clientX25519Private,omitempty"`
	ServerPrivate hexBytes `json:"serverX25519Private,omitempty"`
	Ns            hexBytes `json:"ns"`
	Cookie        hexBytes `json:"cookie"`
	ConfirmFrames hexBytes `json:"confirmFrames"`
	SCID          hexBytes `json:"scid"`
	IdleTimeoutMs int64    `json:"idleTimeoutMs"`
	ServerTimeUs  num      `json:"serverTimeUs"`
	MaxDatagram   uint16   `json:"maxDatagram"`
	PacketsPerSec uint16   `json:"packetsPerSecond"`
	KiBPerSec     uint16   `json:"kibPerSecond"`
	Draining      bool     `json:"draining"`
	AcceptResumed bool     `json:"resumed"`
	NodeToken     string   `json:"nodeToken"`
	EndedCode     uint8    `json:"endedCode"`
	RekeyPackets  uint64   `json:"rekeyPackets"`
}

type vectorDerived struct {
	Salt0       hexBytes     `json:"salt0"`
	Prk0        hexBytes     `json:"prk0"`
	CID0        hexBytes     `json:"cid0"`
	MacKey      hexBytes     `json:"macKey"`
	Suite       uint8        `json:"suite"`
	ClientShare hexBytes     `json:"clientX25519Share,omitempty"`
	ServerShare hexBytes     `json:"serverX25519Share,omitempty"`
	Shared      hexBytes     `json:"sharedSecret,omitempty"`
	TH          hexBytes     `json:"th"`
	Prk         hexBytes     `json:"prk"`
	C2S         []vectorKeys `json:"c2s"` // by phase
	S2C         []vectorKeys `json:"s2c"`
}

type vectorKeys struct {
	Secret hexBytes `json:"secret"`
	Key    hexBytes `json:"key"`
	IV     hexBytes `json:"iv"`
}

type vectorPackets struct {
	Hello      hexBytes `json:"hello"`
	Challenge  hexBytes `json:"challenge"`
	Confirm    hexBytes `json:"confirm"`
	AcceptBody hexBytes `json:"acceptBody"`
	Accept     hexBytes `json:"accept"`
	// LaterAccept is an Accept of a later version: more fields, unknown flags.
	LaterAccept hexBytes `json:"laterAccept"`
	// OlderAccept ends before the token, MisfitAccept tells a size that is not there: in
	// both there is no token.
	OlderAccept  hexBytes `json:"olderAccept"`
	MisfitAccept hexBytes `json:"misfitAccept"`
	// Ended answers Hello when the stay is over.
	Ended hexBytes `json:"ended"`
}

// handshakeCases are the handshakes of the file.
var handshakeCases = []struct {
	name    string
	offer   Offer
	key     string
	x25519  bool
	stream  bool
	resume  bool
	frames  bool // in Confirm
	refused bool // list what must be refused, too
	token   string
	ended   wire.CloseCode
}{
	{"chacha20-poly1305 over udp", OfferOf(ChaCha20Poly1305), "", false, false, false, false, true, "", wire.CloseIdle},
	{"aes-128-gcm over udp, client key, frames in confirm", OfferAll, "game client key ✓", false, false, false, true, false, "0123456789abcdef0123456789abcdef", wire.CloseReplaced},
	{"chacha20-poly1305 with x25519 over udp, resume", OfferOf(ChaCha20Poly1305), "game", true, false, true, false, true, "", wire.CloseKicked},
	{"aes-128-gcm with x25519 over udp, frames in confirm", OfferAll, "", true, false, false, true, false, "n", wire.CloseSlow},
	{"aes-128-gcm with x25519 over tcp, resume", OfferAll, "game", true, true, true, false, true, "", wire.CloseReplaced},
	{"chacha20-poly1305 over tcp, frames in confirm", OfferOf(ChaCha20Poly1305), "game", false, true, false, true, false, "0123456789abcdef0123456789abcdef", wire.CloseNormal},
	{"unknown suites are offered too, over udp", 0xfd, "", false, false, false, false, false, strings.Repeat("x", 255), wire.CloseInternal},
}

func handshakeVectors(t *testing.T) (v []vector) {
	t.Helper()
	for _, c := range handshakeCases {
		o := ClientOptions{Offer: c.offer, X25519: c.x25519, Stream: c.stream, Rekey: RekeyPolicy{Packets: vectorRekey}}
		one := makeVector(t, c.name, c.key, o, c.resume, c.frames)
		sayToken(t, &one, c.token)
		one.Input.EndedCode = uint8(c.ended)
		h := handOf(t, one)
		var err error
		one.Packets.Ended, err = Ended(nil, h.client.Hello(), &h.base.EndedBase, c.ended)
		check(t, err)
		if c.refused {
			one.Refused = refusedOf(t, one)
		}
		v = append(v, one)
	}
	return v
}

// vectorRekey is how many packets one key seals in the vectors.
const vectorRekey = 4

// vectorStart is when the handshake of a vector takes place.
var vectorStart = testStart.Add(1234 * time.Millisecond)

// makeVector runs one handshake and some packets with the dice of its name.
func makeVector(t *testing.T, name, clientKey string, o ClientOptions, resume, frames bool) vector {
	t.Helper()
	creds, err := NewCredentials(dice(name + " credentials"))
	check(t, err)
	v := vector{Name: name, Input: inputOf(creds, clientKey, o, resume), Refused: []vectorRefused{}}
	v.Input.ClientPrivate, v.Input.ServerPrivate = privatesOf(t, name, o.X25519)
	client, err := NewClient(creds, clientKey, o, dice(name+" client"))
	check(t, err)
	v.Input.Nc = bytes.Clone(client.hello.Nc[:])
	if frames {
		v.Input.ConfirmFrames = join(wire.AppendPing(nil, 1), whole(0, 0, "early"))
	}
	hs := handOf(t, v)
	v.Derived = derivedOf(t, hs, creds, clientKey, o)

	v.Packets.Hello = bytes.Clone(client.Hello())
	challenge := hs.mustChallenge()
	v.Packets.Challenge = bytes.Clone(challenge)
	v.Input.Ns, v.Input.Cookie = bytes.Clone(challenge[20:36]), bytes.Clone(challenge[36:56])
	confirm, err := client.Challenge(challenge, resume, v.Input.ConfirmFrames)
	check(t, err)
	v.Packets.Confirm = bytes.Clone(confirm)
	a, err := hs.confirm(bytes.Clone(confirm))
	check(t, err)
	v.Derived.Suite = uint8(a.Suite)
	deriveSession(t, &v, a)

	body := testAccept
	body.Resumed = resume
	var e ends
	accept, seal, open := a.Accept(hs.now, nil, body, o.Rekey)
	e.serverSeal, e.serverOpen = seal, open
	_, e.clientSeal, e.clientOpen, err = client.Accept(hs.now, accept)
	check(t, err)
	v.Data = dataOf(hs.now, e)
	return v
}

// handOf makes the server of a vector again, and a client that did nothing yet.
func handOf(t *testing.T, v vector) *hand {
	t.Helper()
	gate, err := NewGate(dice(v.Name+" server"), testStart)
	check(t, err)
	creds := v.Input.credentials()
	hs := &hand{t: t, now: vectorStart, src: testSrc, base: Derive(creds, v.Input.ClientKey), gate: gate}
	o := ClientOptions{
		Offer: Offer(v.Input.Offer), X25519: v.Input.ClientPrivate != nil, Stream: v.Input.Transport == "tcp",
		Rekey: RekeyPolicy{Packets: v.Input.RekeyPackets},
	}
	random := io.MultiReader(bytes.NewReader(v.Input.Nc), bytes.NewReader(v.Input.ClientPrivate))
	hs.client, err = NewClient(creds, v.Input.ClientKey, o, random)
	check(t, err)
	if o.Stream {
		hs.stream = gate.Stream()
	}
	return hs
}

func (in vectorInput) credentials() (c Credentials) {
	copy(c.SID[:], in.SID)
	copy(c.Key[:], in.EncryptionKey)
	copy(c.IV[:], in.EncryptionIV)
	copy(c.Mac[:], in.EncryptionMac)
	return c
}

func inputOf(c Credentials, clientKey string, o ClientOptions, resume bool) vectorInput {
	in := vectorInput{
		ClientKey: clientKey, SID: c.SID[:], EncryptionKey: c.Key[:], EncryptionIV: c.IV[:], EncryptionMac: c.Mac[:],
		Transport: "udp", Offer: uint8(o.Offer), Resume: resume, ConfirmFrames: hexBytes{},
		SCID: testAccept.SCID[:], IdleTimeoutMs: testAccept.IdleTimeout.Milliseconds(),
		ServerTimeUs: num(testAccept.ServerTime.UnixMicro()), MaxDatagram: testAccept.MaxDatagram,
		PacketsPerSec: testAccept.PacketsPerSecond, KiBPerSec: testAccept.KiBPerSecond,
		Draining: testAccept.Draining, AcceptResumed: resume, RekeyPackets: o.Rekey.Packets,
	}
	if o.Stream {
		in.Transport = "tcp"
	}
	return in
}

// derivedOf derives from the credentials without the code under test.
func derivedOf(t *testing.T, hs *hand, c Credentials, clientKey string, o ClientOptions) vectorDerived {
	t.Helper()
	salt0 := sha256.Sum256(append([]byte("DX1"), clientKey...))
	ikm := bytes.Join([][]byte{c.Key[:], c.Mac[:], c.IV[:], c.SID[:]}, nil)
	prk0, err := hkdf.Extract(sha256.New, ikm, salt0[:])
	check(t, err)
	d := vectorDerived{Salt0: salt0[:], Prk0: prk0, CID0: expanded(t, prk0, "dx1 cid", 8), MacKey: expanded(t, prk0, "dx1 mac", 32)}
	if !bytes.Equal(d.CID0, hs.base.cid0[:]) || !bytes.Equal(d.MacKey, hs.base.macKey[:]) {
		t.Error("Derive differs from the page")
	}
	if o.X25519 {
		clientPrivate, serverPrivate := hs.client.private, hs.gate.good.Load().current.private
		d.ClientShare, d.ServerShare = clientPrivate.PublicKey().Bytes(), serverPrivate.PublicKey().Bytes()
		d.Shared, err = clientPrivate.ECDH(serverPrivate.PublicKey())
		check(t, err)
	}
	return d
}

// deriveSession adds what follows from the Confirm, without the code under test.
func deriveSession(t *testing.T, v *vector, a *Accepted) {
	t.Helper()
	share := make([]byte, 32)
	copy(share, v.Derived.ServerShare)
	th := sha256.Sum256(bytes.Join([][]byte{[]byte("dx1 th"), v.Packets.Confirm[:100], share}, nil))
	prk, err := hkdf.Extract(sha256.New, append(bytes.Clone(v.Derived.Prk0), v.Derived.Shared...), th[:])
	check(t, err)
	v.Derived.TH, v.Derived.Prk = th[:], prk
	keyBytes := map[Suite]int{ChaCha20Poly1305: 32, AES128GCM: 16}[a.Suite]
	phases := func(label string) (keys []vectorKeys) {
		secret := expanded(t, prk, label, 32)
		for range 3 {
			keys = append(keys, vectorKeys{
				Secret: secret, Key: expanded(t, secret, "dx1 key", keyBytes), IV: expanded(t, secret, "dx1 iv", 12),
			})
			secret = expanded(t, secret, "dx1 ku", 32)
		}
		return keys
	}
	v.Derived.C2S, v.Derived.S2C = phases("dx1 c2s"), phases("dx1 s2c")
	if !bytes.Equal(v.Derived.C2S[0].Secret, a.c2s[:]) || !bytes.Equal(v.Derived.S2C[0].Secret, a.s2c[:]) {
		t.Error("session secrets differ from the page")
	}
}

// sayToken makes the Accepts of a vector, with this token.
func sayToken(t *testing.T, v *vector, token string) {
	t.Helper()
	v.Input.NodeToken = token
	body := v.Input.accept()
	v.Packets.AcceptBody = body.AppendTo(nil)
	v.Packets.Accept = sealedAccept(v, v.Packets.AcceptBody)
	later := append(bytes.Clone(v.Packets.AcceptBody), 1, 2, 3)
	later[26] |= 0xfc
	v.Packets.LaterAccept = sealedAccept(v, later)
	v.Packets.OlderAccept = sealedAccept(v, v.Packets.AcceptBody[:wire.AcceptBodyBytes])
	v.Packets.MisfitAccept = sealedAccept(v, append(bytes.Clone(v.Packets.AcceptBody[:wire.AcceptBodyBytes]), "\x04abc"...))
}

// sealedAccept seals a body without the code under test.
func sealedAccept(v *vector, body []byte) hexBytes {
	k := newPacketKey(Suite(v.Derived.Suite), (*[32]byte)(v.Derived.S2C[0].Secret))
	header := wire.AppendAcceptHeader(nil, wire.CID(v.Derived.CID0))
	return k.aead.Seal(header, k.iv[:], body, header)
}

// privatesOf reads the private keys out of the dice again.
func privatesOf(t *testing.T, name string, x25519 bool) (client, server hexBytes) {
	t.Helper()
	if !x25519 {
		return nil, nil
	}
	read := func(seed string, skip int) hexBytes {
		b := make([]byte, skip+32)
		_, err := dice(seed).Read(b)
		check(t, err)
		return b[skip:]
	}
	return read(name+" client", 16), read(name+" server", 32)
}

func expanded(t *testing.T, prk []byte, info string, n int) []byte {
	t.Helper()
	b, err := hkdf.Expand(sha256.New, prk, info, n)
	check(t, err)
	return b
}
