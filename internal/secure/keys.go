// Package secure makes and guards the keys of DX1 connections: handshake, sealing,
// replay window and rekeying, for both sides.
//
// Everything here is plain state. Time and random bytes are arguments, no socket
// is opened and nothing waits, so that the same inputs always give the same bytes:
// docs/protocol-vectors.json lists them for implementations in other languages.
//
// A client makes a [Client], a server one [Gate] for the process and, for each TCP
// connection, a [StreamGate]. A finished handshake yields a [Sealer] for the
// packets that leave and an [Opener] for those that come in.
//
//	salt0  = SHA-256("DX1" ‖ clientKey)
//	prk0   = HKDF-Extract(salt0, encryptionKey ‖ encryptionMacKey ‖ encryptionIV ‖ sid)
//	cid0   = HKDF-Expand(prk0, "dx1 cid", 8)
//	macKey = HKDF-Expand(prk0, "dx1 mac", 32)
//	th     = SHA-256("dx1 th" ‖ Confirm bytes 0..99 ‖ server X25519 share or 32 zeros)
//	prk    = HKDF-Extract(th, prk0 ‖ X25519 shared secret, or prk0 alone)
//	secret = HKDF-Expand(prk, "dx1 c2s" or "dx1 s2c", 32)
//	key    = HKDF-Expand(secret, "dx1 key", 32 or 16)
//	iv     = HKDF-Expand(secret, "dx1 iv", 12)
//	nonce  = iv XOR (0x00000000 ‖ packet number as u64)
//	next   = HKDF-Expand(secret, "dx1 ku", 32)
package secure

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/wire"
)

// Credentials are what the HTTP role hands to a client. All four are key
// material; none is ever used directly as a key or an IV. They never print.
type Credentials struct {
	SID          id.SID
	Key, IV, Mac [16]byte
}

// NewCredentials reads 64 random bytes: sid, key, IV and mac key.
func NewCredentials(rand io.Reader) (Credentials, error) {
	var c Credentials
	for _, b := range [][]byte{c.SID[:], c.Key[:], c.IV[:], c.Mac[:]} {
		if _, err := io.ReadFull(rand, b); err != nil {
			return Credentials{}, fmt.Errorf("read random bytes for credentials: %w", err)
		}
	}
	return c, nil
}

// Format keeps every verb from printing the credentials.
func (Credentials) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "credentials(redacted)") }

// Base is what both sides derive from the credentials before they talk: the key of
// the handshake macs, the name cid0 and the root of the session keys. A server
// keeps one for every reserved place, in 72 bytes. It never prints.
type Base struct {
	EndedBase
	prk0 [32]byte
}

// EndedBase is what is left of a Base once its stay is over: enough to tell its client
// so, not enough to open a connection. It takes 40 bytes and never prints.
type EndedBase struct {
	macKey [32]byte
	cid0   wire.CID
}

// Derive returns the Base of c. The clientKey is the secret that all clients of
// one game share, or "".
func Derive(c Credentials, clientKey string) Base {
	salt0 := sha256.Sum256([]byte("DX1" + clientKey))
	ikm := make([]byte, 0, 64)
	ikm = append(ikm, c.Key[:]...)
	ikm = append(ikm, c.Mac[:]...)
	ikm = append(ikm, c.IV[:]...)
	ikm = append(ikm, c.SID[:]...)

	b := Base{prk0: extract(salt0[:], ikm)}
	expand(b.cid0[:], &b.prk0, "dx1 cid")
	expand(b.macKey[:], &b.prk0, "dx1 mac")
	return b
}

// CID0 returns the name under which the handshake finds these credentials.
func (b *EndedBase) CID0() wire.CID { return b.cid0 }

// Format keeps every verb from printing the keys.
func (EndedBase) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "base(redacted)") }

// mac returns HMAC-SHA-256 of p under the mac key, cut to 16 bytes.
func (b *EndedBase) mac(p []byte) [16]byte { return shortMAC(b.macKey[:], p) }

// checkMAC says in constant time whether p ends with the mac of all before it.
func (b *EndedBase) checkMAC(p []byte) bool {
	want := b.mac(p[:len(p)-16])
	return hmac.Equal(want[:], p[len(p)-16:])
}

// sign writes the mac over all but the last 16 bytes of p into those.
func (b *EndedBase) sign(p []byte) {
	m := b.mac(p[:len(p)-16])
	copy(p[len(p)-16:], m[:])
}

// session returns the secrets of a connection. The header is bytes 0..99 of
// Confirm; shared is the X25519 secret, or nil.
func (b *Base) session(header []byte, serverShare *[32]byte, shared []byte) (c2s, s2c [32]byte) {
	h := sha256.New()
	h.Write([]byte("dx1 th"))
	h.Write(header[:wire.ConfirmHeaderBytes])
	h.Write(serverShare[:])
	th := h.Sum(nil)

	ikm := make([]byte, 0, 64)
	ikm = append(ikm, b.prk0[:]...)
	ikm = append(ikm, shared...)
	prk := extract(th, ikm)
	expand(c2s[:], &prk, "dx1 c2s")
	expand(s2c[:], &prk, "dx1 s2c")
	return c2s, s2c
}

// Suite is the cipher of a connection.
type Suite uint8

// The suites of DX1. Every client has the first; a server prefers the second.
const (
	ChaCha20Poly1305 Suite = 1
	AES128GCM        Suite = 2
)

func (s Suite) String() string {
	switch s {
	case ChaCha20Poly1305:
		return "CHACHA20-POLY1305"
	case AES128GCM:
		return "AES-128-GCM"
	}
	return fmt.Sprintf("suite %d", uint8(s))
}

// Offer is a set of suites, as a byte on the wire: bit 0 for suite 1, bit 1 for
// suite 2. Unknown bits are ignored.
type Offer uint8

// OfferAll offers every suite.
const OfferAll Offer = 0b11

// OfferOf returns the set of the given suites.
func OfferOf(suites ...Suite) Offer {
	var o Offer
	for _, s := range suites {
		o |= 1 << (s - 1)
	}
	return o
}

// Has says whether s is in o and known.
func (o Offer) Has(s Suite) bool { return s >= 1 && s <= 2 && o&(1<<(s-1)) != 0 }

// choose returns the suite a server picks, or [RefusedSuite].
func (o Offer) choose() (Suite, error) {
	for _, s := range []Suite{AES128GCM, ChaCha20Poly1305} {
		if o.Has(s) {
			return s, nil
		}
	}
	return 0, RefusedSuite
}

// packetKey seals and opens the packets of one direction and phase.
type packetKey struct {
	aead cipher.AEAD // nil until wake, and again after sleep
	iv   [12]byte
	key  [32]byte // the first half of it in AES128GCM
}

// newPacketKey derives the key and IV of secret, awake. It panics on a suite that no
// handshake chooses.
func newPacketKey(s Suite, secret *[32]byte) packetKey {
	var k packetKey
	expand(k.iv[:], secret, "dx1 iv")
	switch s {
	case ChaCha20Poly1305:
		expand(k.key[:], secret, "dx1 key")
	case AES128GCM:
		expand(k.key[:16], secret, "dx1 key")
	}
	k.wake(s)
	return k
}

// wake makes the key ready for use. What it takes, most of a kilobyte, a connection
// that idles does without: see sleep.
func (k *packetKey) wake(s Suite) {
	if k.aead != nil {
		return
	}
	var err error
	switch s {
	case ChaCha20Poly1305:
		k.aead, err = chacha20poly1305.New(k.key[:])
	case AES128GCM:
		var block cipher.Block
		if block, err = aes.NewCipher(k.key[:16]); err == nil {
			k.aead, err = cipher.NewGCM(block)
		}
	default:
		err = fmt.Errorf("unknown %v", s)
	}
	if err != nil {
		panic(fmt.Sprintf("secure: packet key: %v", err))
	}
}

// sleep gives the memory back that wake took.
func (k *packetKey) sleep() { k.aead = nil }

// nonceInto writes the nonce of packet pn into n.
func (k *packetKey) nonceInto(n *[12]byte, pn uint64) {
	*n = k.iv
	low := binary.BigEndian.Uint64(n[4:])
	binary.BigEndian.PutUint64(n[4:], low^pn)
}

// nextSecret returns the secret of the phase after the one of secret.
func nextSecret(secret *[32]byte) (next [32]byte) {
	expand(next[:], secret, "dx1 ku")
	return next
}

func extract(salt, ikm []byte) [32]byte {
	prk, err := hkdf.Extract(sha256.New, ikm, salt)
	if err != nil {
		panic(fmt.Sprintf("secure: HKDF-Extract: %v", err)) // only a FIPS policy refuses
	}
	return [32]byte(prk)
}

// expand fills out with HKDF-Expand(prk, info, len(out)).
func expand(out []byte, prk *[32]byte, info string) {
	b, err := hkdf.Expand(sha256.New, prk[:], info, len(out))
	if err != nil {
		panic(fmt.Sprintf("secure: HKDF-Expand: %v", err)) // only a length beyond 8160 bytes is refused
	}
	copy(out, b)
}

func shortMAC(key, p []byte) [16]byte {
	h := hmac.New(sha256.New, key)
	h.Write(p)
	return [16]byte(h.Sum(nil))
}
