package secure

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

var update = flag.Bool("update", false, "rewrite testdata/dx1-vectors.json")

// hexBytes are bytes that JSON shows as lower-case hex.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

// vectorFile is testdata/dx1-vectors.json: handshakes and packets with all that
// was derived on the way, for implementations in other languages.
type vectorFile struct {
	About   string   `json:"about"`
	Vectors []vector `json:"vectors"`
}

type vector struct {
	Name     string         `json:"name"`
	Input    vectorInput    `json:"input"`
	Derived  vectorDerived  `json:"derived"`
	Packets  vectorPackets  `json:"packets"`
	Data     []vectorData   `json:"data"`
	Rejected []vectorReject `json:"rejected"`
}

type vectorInput struct {
	ClientKey     string   `json:"clientKey"`
	SID           hexBytes `json:"sid"`
	EncryptionKey hexBytes `json:"encryptionKey"`
	EncryptionIV  hexBytes `json:"encryptionIV"`
	EncryptionMac hexBytes `json:"encryptionMacKey"`
	Offer         uint8    `json:"offer"`
	Stream        bool     `json:"stream"`
	Resume        bool     `json:"resume"`
	Nc            hexBytes `json:"nc"`
	ClientPrivate hexBytes `json:"clientX25519Private,omitempty"`
	ServerPrivate hexBytes `json:"serverX25519Private,omitempty"`
	Ns            hexBytes `json:"ns"`
	Cookie        hexBytes `json:"cookie"`
	ConfirmFrames hexBytes `json:"confirmFrames"`
	SCID          hexBytes `json:"scid"`
	IdleTimeoutMs int64    `json:"idleTimeoutMs"`
	ServerTimeUs  int64    `json:"serverTimeUs"`
	MaxDatagram   uint16   `json:"maxDatagram"`
	PacketsPerSec uint16   `json:"packetsPerSecond"`
	KiBPerSec     uint16   `json:"kibPerSecond"`
	Draining      bool     `json:"draining"`
	AcceptResumed bool     `json:"resumed"`
	RekeyPackets  uint64   `json:"rekeyPackets"`
	Note          string   `json:"note"`
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
}

type vectorData struct {
	From    string   `json:"from"`
	PN      uint64   `json:"pn"`
	Phase   uint64   `json:"phase"`
	Largest uint64   `json:"largestBefore"`
	Nonce   hexBytes `json:"nonce"`
	Frames  hexBytes `json:"frames"`
	Packet  hexBytes `json:"packet"`
}

type vectorReject struct {
	Step   string   `json:"step"`
	Reason string   `json:"reason"`
	Packet hexBytes `json:"packet"`
}

// TestVectors makes every vector again and compares with the file.
func TestVectors(t *testing.T) {
	const path = "testdata/dx1-vectors.json"
	f := vectorFile{About: "DX1 handshakes and data packets; bytes are hex. Each key list is by key phase: entry 0 " +
		"from the handshake, each next one by \"dx1 ku\". In data, packets are in the order they were sent; " +
		"largestBefore is the highest packet number the receiver opened before."}
	for _, c := range []struct {
		name   string
		offer  Offer
		key    string
		x25519 bool
		stream bool
		resume bool
	}{
		{"chacha20-poly1305 over udp", OfferOf(ChaCha20Poly1305), "", false, false, false},
		{"aes-128-gcm over udp, client key", OfferAll, "game client key ✓", false, false, false},
		{"chacha20-poly1305 with x25519 over udp, resume", OfferOf(ChaCha20Poly1305), "game", true, false, true},
		{"aes-128-gcm with x25519 over udp", OfferAll, "", true, false, false},
		{"aes-128-gcm with x25519 over tcp, resume", OfferAll, "game", true, true, true},
		{"chacha20-poly1305 over tcp", OfferOf(ChaCha20Poly1305), "game", false, true, false},
	} {
		f.Vectors = append(f.Vectors, makeVector(t, c.name, c.key, ClientOptions{
			Offer: c.offer, X25519: c.x25519, Stream: c.stream, Rekey: RekeyPolicy{Packets: 4},
		}, c.resume))
	}
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(f); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("vectors differ from %s; if the protocol was meant to change, run with -update and read the diff", path)
	}
}

// makeVector runs one handshake and some packets with the dice of its name.
func makeVector(t *testing.T, name, clientKey string, o ClientOptions, resume bool) vector {
	t.Helper()
	creds, err := NewCredentials(dice(name + " credentials"))
	check(t, err)
	gate, err := NewGate(dice(name+" server"), testStart)
	check(t, err)
	client, err := NewClient(creds, clientKey, o, dice(name+" client"))
	check(t, err)
	h := &hand{t: t, now: testStart.Add(1234 * time.Millisecond), src: testSrc, base: Derive(creds, clientKey), gate: gate, client: client}
	if o.Stream {
		h.stream = gate.Stream()
	}
	v := vector{Name: name, Input: inputOf(creds, clientKey, o, resume)}
	v.Input.Nc = bytes.Clone(client.hello.Nc[:])
	v.Derived = derivedOf(t, h, creds, clientKey, o)

	v.Packets.Hello = bytes.Clone(client.Hello())
	challenge := h.mustChallenge()
	v.Packets.Challenge = bytes.Clone(challenge)
	v.Input.Ns, v.Input.Cookie = bytes.Clone(challenge[20:36]), bytes.Clone(challenge[36:56])
	if !resume {
		v.Input.ConfirmFrames = append(hexBytes{0x08, 5}, "hello"...) // MESSAGE
	}
	confirm, err := client.Challenge(challenge, resume, v.Input.ConfirmFrames)
	check(t, err)
	v.Packets.Confirm = bytes.Clone(confirm)
	a, err := h.confirm(bytes.Clone(confirm))
	check(t, err)
	v.Derived.Suite = uint8(a.Suite)
	deriveSession(t, &v, a)

	body := testAccept
	body.Resumed = resume
	v.Packets.AcceptBody = body.AppendTo(nil)
	var e ends
	accept, seal, open := a.Accept(h.now, nil, body, o.Rekey)
	v.Packets.Accept = bytes.Clone(accept)
	e.serverSeal, e.serverOpen = seal, open
	_, e.clientSeal, e.clientOpen, err = client.Accept(h.now, accept)
	check(t, err)
	v.Data = dataOf(t, h.now, e)
	v.Rejected = rejectedOf(h, v)
	return v
}

func inputOf(c Credentials, clientKey string, o ClientOptions, resume bool) vectorInput {
	return vectorInput{
		ClientKey: clientKey, SID: c.SID[:], EncryptionKey: c.Key[:], EncryptionIV: c.IV[:], EncryptionMac: c.Mac[:],
		Offer: uint8(o.Offer), Stream: o.Stream, Resume: resume,
		SCID: testAccept.SCID[:], IdleTimeoutMs: testAccept.IdleTimeout.Milliseconds(),
		ServerTimeUs: testAccept.ServerTime.UnixMicro(), MaxDatagram: testAccept.MaxDatagram,
		PacketsPerSec: testAccept.PacketsPerSecond, KiBPerSec: testAccept.KiBPerSecond,
		Draining: testAccept.Draining, AcceptResumed: resume, RekeyPackets: o.Rekey.Packets,
		Note: "every packet was acknowledged and 10 s passed between packets",
	}
}

// derivedOf derives from the credentials without the code under test.
func derivedOf(t *testing.T, h *hand, c Credentials, clientKey string, o ClientOptions) vectorDerived {
	t.Helper()
	salt0 := sha256.Sum256(append([]byte("DX1"), clientKey...))
	ikm := bytes.Join([][]byte{c.Key[:], c.Mac[:], c.IV[:], c.SID[:]}, nil)
	prk0, err := hkdf.Extract(sha256.New, ikm, salt0[:])
	check(t, err)
	d := vectorDerived{Salt0: salt0[:], Prk0: prk0, CID0: expanded(t, prk0, "dx1 cid", 8), MacKey: expanded(t, prk0, "dx1 mac", 32)}
	if !bytes.Equal(d.CID0, h.base.cid0[:]) || !bytes.Equal(d.MacKey, h.base.macKey[:]) {
		t.Error("Derive differs from the page")
	}
	if o.X25519 {
		clientPrivate, serverPrivate := h.client.private, h.gate.good.Load().current.private
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
	// The inputs of the key agreement, only known here.
	v.Input.ClientPrivate, v.Input.ServerPrivate = privatesOf(t, v.Name, v.Derived.Shared != nil)
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

// dataOf sends packets both ways over two key phases, and some beyond 32 bits.
func dataOf(t *testing.T, now time.Time, e ends) (data []vectorData) {
	t.Helper()
	send := func(from string, s *Sealer, o *Opener, frames []byte) {
		now = now.Add(flipGap)
		d := vectorData{From: from, PN: s.NextPN(), Largest: o.Largest(), Frames: bytes.Clone(frames)}
		d.Packet = pack(s, now, string(frames))
		d.Phase = s.Flips()
		d.Nonce = bytes.Clone(s.nonce[:])
		pn, got, err := o.Open(now, bytes.Clone(d.Packet))
		if err != nil || pn != d.PN || !bytes.Equal(got, frames) {
			t.Errorf("%s packet %d opened as %d, %x, %v", from, d.PN, pn, got, err)
		}
		s.Acked(d.PN)
		data = append(data, d)
	}
	for i := range 9 {
		frames := append([]byte{0x08, byte(i)}, bytes.Repeat([]byte{byte(i)}, i)...) // MESSAGE
		send("client", e.clientSeal, e.serverOpen, frames)
		if i < 5 {
			send("server", e.serverSeal, e.clientOpen, frames)
		}
	}
	for _, pn := range []uint64{1 << 31, 1<<32 - 1, 1<<32 + 7} {
		e.serverSeal.next, e.serverSeal.phaseFirst = pn, pn                              // no flip for the numbers left out
		send("server", e.serverSeal, e.clientOpen, []byte{0x01, 0, 0, 0, 0, 0, 0, 0, 9}) // PING
	}
	return data
}

// rejectedOf lists packets that have to be dropped, and why this server drops them.
func rejectedOf(h *hand, v vector) (rejected []vectorReject) {
	add := func(step string, b []byte, offset int, bit byte, try func([]byte) error) {
		b = bytes.Clone(b)
		b[offset] ^= bit
		err := try(bytes.Clone(b))
		if err == nil {
			h.t.Errorf("%s: a %s changed at %d was taken", v.Name, step, offset)
		}
		rejected = append(rejected, vectorReject{Step: step, Reason: wire.Reason(err), Packet: b})
	}
	hello := func(b []byte) error {
		_, err := h.gate.Challenge(nil, h.now, h.src, b, &h.base)
		return err
	}
	add("hello", v.Packets.Hello, 1, 2, hello)
	add("hello", v.Packets.Hello, 3, 2, hello)
	add("hello", v.Packets.Hello, 100, 1, hello)
	add("hello", v.Packets.Hello, 255, 1, hello)
	challenge := func(b []byte) error {
		h.client.confirmed = false
		_, err := h.client.Challenge(b, false, nil)
		return err
	}
	add("challenge", v.Packets.Challenge, 2, 4, challenge)
	add("challenge", v.Packets.Challenge, 3, 1, challenge)
	add("challenge", v.Packets.Challenge, 103, 1, challenge)
	return rejected
}

func expanded(t *testing.T, prk []byte, info string, n int) []byte {
	t.Helper()
	b, err := hkdf.Expand(sha256.New, prk, info, n)
	check(t, err)
	return b
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(fmt.Errorf("make vector: %w", err))
	}
}
