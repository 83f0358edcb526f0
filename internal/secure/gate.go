package secure

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// Why a handshake packet with a good layout was refused.
const (
	RefusedCID     wire.Refusal = "cid"     // no place is reserved under this cid0
	RefusedMac     wire.Refusal = "mac"     // not from a holder of the credentials
	RefusedSuite   wire.Refusal = "suite"   // nothing in common, or not what the offer leads to
	RefusedCookie  wire.Refusal = "cookie"  // not this server's, or another address or handshake
	RefusedExpired wire.Refusal = "expired" // the cookie is too old
	RefusedNonce   wire.Refusal = "nonce"   // Nc or Ns of another handshake
	RefusedSecret  wire.Refusal = "secret"  // the X25519 secret is all zeros
	RefusedPayload wire.Refusal = "payload" // what is sealed does not open
	RefusedSpent   wire.Refusal = "spent"   // this step of the handshake is over
)

const (
	// rotation is how long one cookie secret and X25519 key pair is handed out. The
	// one before stays good, so that no cookie dies early.
	rotation = 60 * time.Second
	// cookieTTL is how long a client may take to confirm.
	cookieTTL = 10 * time.Second

	cookieTimeBytes = 5
	rotationMs      = uint64(rotation / time.Millisecond)
	cookieTTLMs     = uint64(cookieTTL / time.Millisecond)
)

// Gate is the server's side of all handshakes of a process. Over UDP it keeps
// nothing for a client: what it needs again comes back in the cookie.
//
//	offset  size  field of the cookie
//	0       5     ms since the Gate was made, plus 1
//	5       15    HMAC-SHA-256(secret, time ‖ IP (16) ‖ port ‖ cid0 ‖ Nc ‖ suite ‖ X25519 flag) bytes 0..14
//
// Ns is the last 16 bytes of the same HMAC. The secret and the X25519 key pair are
// replaced together. Gate is safe for concurrent use.
type Gate struct {
	start time.Time // then constant

	good atomic.Pointer[generations]

	mu   sync.Mutex // guards the field below, and who replaces good
	rand io.Reader
}

// generations are the two sets of secrets that are good at one time.
type generations struct{ current, previous *generation }

// generation is the secrets of one rotation.
type generation struct {
	number  uint64 // cookie time divided by rotation
	secret  [32]byte
	private *ecdh.PrivateKey
	share   [32]byte
}

// NewGate makes a Gate. It reads 64 bytes from rand now and after each rotation,
// and 16 bytes for every TCP handshake; calls to rand never overlap. The time has
// to be monotonic: cookies count from now on.
func NewGate(rand io.Reader, now time.Time) (*Gate, error) {
	g := &Gate{start: now, rand: rand}
	if _, err := g.rotate(0); err != nil {
		return nil, err
	}
	return g, nil
}

// Tick replaces secrets that are due. Challenge and Confirm do so by themselves;
// Tick is for a node that gets neither, to forget old keys in time.
func (g *Gate) Tick(now time.Time) error {
	_, err := g.at(g.clock(now))
	return err
}

// Challenge checks a Hello from src whose cid0 belongs to base and appends the
// answer to dst. An error is a [wire.Refusal] and gets no answer, unless rand
// failed. Without one, the mac was good: the caller may charge cid0 and src before
// it sends.
func (g *Gate) Challenge(dst []byte, now time.Time, src netip.AddrPort, raw []byte, base *Base) ([]byte, error) {
	h, suite, err := checkHello(raw, base)
	if err != nil {
		return dst, err
	}
	ms := g.clock(now)
	gen, err := g.at(ms)
	if err != nil {
		return dst, err
	}
	ms = max(ms, gen.number*rotationMs)
	cookie, ns := gen.cookie(ms, src, h.CID0, h.Nc, suite, h.X25519)
	return appendChallenge(dst, base, &h, suite, gen, cookie, ns), nil
}

// Ended checks a Hello whose cid0 belongs to base, a stay that ended with code, and
// appends what tells its client so to dst. An error is a [wire.Refusal] and gets no
// answer. Without one, the mac was good: the caller may charge cid0 before it sends.
func Ended(dst []byte, raw []byte, base *EndedBase, code wire.CloseCode) ([]byte, error) {
	h, err := wire.ParseHello(raw)
	switch {
	case err != nil:
		return dst, err
	case h.CID0 != base.cid0:
		return dst, RefusedCID
	case !base.checkMAC(raw):
		return dst, RefusedMac
	}
	start := len(dst)
	e := wire.Ended{Code: code, CID0: h.CID0, Nc: h.Nc}
	dst = e.AppendTo(dst)
	base.sign(dst[start:])
	return dst, nil
}

// Checked is a Confirm whose cookie is good, before its payload was opened. The
// transport compares CookieTime and Hash with the last Confirm it accepted for
// this sid: an equal one is a repeat, any other that is not newer is dropped.
type Checked struct {
	// CookieTime is when the Challenge was made, in ms on the Gate's clock, from 1.
	CookieTime uint64
	Hash       [32]byte // SHA-256 of bytes 0..99
	Suite      Suite
	X25519     bool
	Resume     bool

	raw    []byte
	packet wire.Confirm
	base   Base
	gen    *generation
	stream bool
}

// Confirm checks all of a Confirm from src that costs little: layout, cookie,
// nonces, suite. The result refers to raw. An error is a [wire.Refusal] and gets no
// answer, unless rand failed.
func (g *Gate) Confirm(now time.Time, src netip.AddrPort, raw []byte, base *Base) (*Checked, error) {
	p, err := checkConfirm(raw, base)
	if err != nil {
		return nil, err
	}
	clock := g.clock(now)
	if _, err := g.at(clock); err != nil {
		return nil, err
	}
	ms := cookieTime(&p.Cookie)
	if clock > ms+cookieTTLMs {
		return nil, RefusedExpired
	}
	gen := g.good.Load().numbered(ms / rotationMs)
	if gen == nil {
		return nil, RefusedCookie
	}
	cookie, ns := gen.cookie(ms, src, p.CID0, p.Nc, Suite(p.Suite), p.X25519)
	if !hmac.Equal(cookie[:], p.Cookie[:]) {
		return nil, RefusedCookie
	}
	if !hmac.Equal(ns[:], p.Ns[:]) {
		return nil, RefusedNonce
	}
	return newChecked(raw, p, base, gen, ms), nil
}

// ConfirmHash returns the Checked.Hash of a Confirm, to recognise a repeat before
// any other work.
func ConfirmHash(raw []byte) ([32]byte, bool) {
	if len(raw) < wire.ConfirmHeaderBytes+wire.TagBytes {
		return [32]byte{}, false
	}
	return sha256.Sum256(raw[:wire.ConfirmHeaderBytes]), true
}

// Open agrees on the keys and opens the frames in place, in the bytes that were
// given to Confirm. The error is [RefusedSecret] or [RefusedPayload]; raw is
// overwritten then.
func (c *Checked) Open() (*Accepted, error) {
	var share [32]byte
	var shared []byte
	if c.X25519 {
		var err error
		share = c.gen.share
		if shared, err = agree(c.gen.private, &c.packet.Share); err != nil {
			return nil, err
		}
	}
	a := &Accepted{
		CookieTime: c.CookieTime, Hash: c.Hash, Suite: c.Suite, X25519: c.X25519, Resume: c.Resume,
		cid0: c.base.cid0, stream: c.stream,
	}
	a.c2s, a.s2c = c.base.session(c.raw, &share, shared)
	a.key = newPacketKey(c.Suite, &a.c2s)
	sealed := c.packet.Sealed
	frames, err := a.key.aead.Open(sealed[:0], a.key.iv[:], sealed, c.raw[:wire.ConfirmHeaderBytes])
	if err != nil {
		return nil, RefusedPayload
	}
	a.Frames = frames
	return a, nil
}

// Accepted is a Confirm that opened: its sender holds the credentials.
type Accepted struct {
	CookieTime uint64 // as in Checked; 0 over TCP
	Hash       [32]byte
	Suite      Suite
	X25519     bool
	Resume     bool
	Frames     []byte // aliases the packet; may be empty

	cid0     wire.CID
	stream   bool
	key      packetKey // client to server; aead is nil once used
	c2s, s2c [32]byte
}

// Accept appends the packet that ends the handshake to dst and returns the keys
// of the connection. It panics when called again: two packets would be sealed
// under one number.
func (a *Accepted) Accept(now time.Time, dst []byte, body wire.Accept, p RekeyPolicy) ([]byte, *Sealer, *Opener) {
	if a.key.aead == nil {
		panic("secure: Accepted.Accept called twice")
	}
	s := newSealer(KeyOptions{Suite: a.Suite, Secret: a.s2c, Stream: a.stream, Rekey: p}, now)
	start := len(dst)
	dst = wire.AppendAcceptHeader(dst, a.cid0)
	dst = s.seal(dst, body.AppendTo(nil), dst[start:])
	o := newOpener(KeyOptions{Suite: a.Suite, Secret: a.c2s, FromClient: true, Stream: a.stream}, a.key)
	a.key, a.c2s, a.s2c = packetKey{}, [32]byte{}, [32]byte{}
	return dst, s, o
}

// clock returns the time of cookies at now. It never is 0.
func (g *Gate) clock(now time.Time) uint64 {
	return uint64(max(0, now.Sub(g.start).Milliseconds())) + 1
}

// at returns the generation to use at ms, and makes it when its time has come. A
// caller whose time was read before another's gets one that is still good.
func (g *Gate) at(ms uint64) (*generation, error) {
	number := ms / rotationMs
	good := g.good.Load()
	if number > good.current.number {
		return g.rotate(number)
	}
	if gen := good.numbered(number); gen != nil {
		return gen, nil
	}
	return good.current, nil
}

// rotate makes the generation with this number current, unless that was done.
func (g *Gate) rotate(number uint64) (*generation, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	good := g.good.Load()
	if good != nil && good.current.number >= number {
		return good.current, nil
	}
	next := &generation{number: number}
	if _, err := io.ReadFull(g.rand, next.secret[:]); err != nil {
		return nil, fmt.Errorf("read random bytes for cookie secret: %w", err)
	}
	private, err := newPrivate(g.rand)
	if err != nil {
		return nil, err
	}
	next.private, next.share = private, shareOf(private)
	replaced := &generations{current: next}
	if good != nil && good.current.number+1 == number {
		replaced.previous = good.current
	}
	g.good.Store(replaced)
	return next, nil
}

// numbered returns the generation with this number, or nil.
func (g *generations) numbered(number uint64) *generation {
	switch {
	case g.current.number == number:
		return g.current
	case g.previous != nil && g.previous.number == number:
		return g.previous
	}
	return nil
}

// cookie returns the cookie made at ms for this client and handshake, and its Ns.
func (g *generation) cookie(ms uint64, src netip.AddrPort, cid0 wire.CID, nc wire.Nonce, s Suite, x25519 bool) (cookie [20]byte, ns wire.Nonce) {
	var at [8]byte
	binary.BigEndian.PutUint64(at[:], ms)
	copy(cookie[:cookieTimeBytes], at[8-cookieTimeBytes:])
	ip := src.Addr().As16()
	flag := byte(0)
	if x25519 {
		flag = 1
	}
	h := hmac.New(sha256.New, g.secret[:])
	h.Write(cookie[:cookieTimeBytes])
	h.Write(ip[:])
	h.Write(binary.BigEndian.AppendUint16(nil, src.Port()))
	h.Write(cid0[:])
	h.Write(nc[:])
	h.Write([]byte{byte(s), flag})
	sum := h.Sum(nil)
	copy(cookie[cookieTimeBytes:], sum)
	copy(ns[:], sum[16:])
	return cookie, ns
}

func cookieTime(cookie *[20]byte) uint64 {
	var at [8]byte
	copy(at[8-cookieTimeBytes:], cookie[:cookieTimeBytes])
	return binary.BigEndian.Uint64(at[:])
}

// checkHello checks all of a Hello and returns the suite it leads to.
func checkHello(raw []byte, base *Base) (wire.Hello, Suite, error) {
	h, err := wire.ParseHello(raw)
	switch {
	case err != nil:
		return h, 0, err
	case h.CID0 != base.cid0:
		return h, 0, RefusedCID
	case !base.checkMAC(raw):
		return h, 0, RefusedMac
	}
	suite, err := Offer(h.Offer).choose()
	return h, suite, err
}

// checkConfirm checks what a Confirm says by itself: that nobody made it ask for a
// weaker suite than its offer leads to.
func checkConfirm(raw []byte, base *Base) (wire.Confirm, error) {
	p, err := wire.ParseConfirm(raw)
	if err != nil {
		return p, err
	}
	if p.CID0 != base.cid0 {
		return p, RefusedCID
	}
	suite, err := Offer(p.Offer).choose()
	if err != nil || suite != Suite(p.Suite) {
		return p, RefusedSuite
	}
	return p, nil
}

func newChecked(raw []byte, p wire.Confirm, base *Base, gen *generation, ms uint64) *Checked {
	hash, _ := ConfirmHash(raw)
	return &Checked{
		CookieTime: ms, Hash: hash, Suite: Suite(p.Suite), X25519: p.X25519, Resume: p.Resume,
		raw: raw, packet: p, base: *base, gen: gen,
	}
}

func appendChallenge(dst []byte, base *Base, h *wire.Hello, s Suite, gen *generation, cookie [20]byte, ns wire.Nonce) []byte {
	c := wire.Challenge{
		Suite: uint8(s), X25519: h.X25519, CID0: h.CID0, NcHead: [8]byte(h.Nc[:8]), Ns: ns, Cookie: cookie,
	}
	if h.X25519 {
		c.Share = gen.share
	}
	start := len(dst)
	dst = c.AppendTo(dst)
	base.sign(dst[start:])
	return dst
}
