package secure

import (
	"crypto/ecdh"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// FramesMax is how many bytes of frames a Confirm may carry: over UDP it must fit
// the smallest datagram, over TCP Hello and Confirm share 2 KiB with their prefixes.
func FramesMax(stream bool) int {
	const overhead = wire.ConfirmHeaderBytes + wire.TagBytes
	if stream {
		return 2048 - (3 + wire.HelloBytes) - (3 + overhead)
	}
	return wire.DatagramBytesMin - overhead
}

// ErrFrames means the frames for a Confirm are longer than [FramesMax].
var ErrFrames = errors.New("frames do not fit into confirm")

// ClientOptions configures a [Client]. The zero value offers every suite, over
// UDP, without X25519.
type ClientOptions struct {
	// Offer is which suites to offer. Zero means all.
	Offer Offer
	// X25519 adds a key agreement, so that recorded packets stay secret when the
	// credentials leak later.
	X25519 bool
	// Stream says that the connection runs over TCP.
	Stream bool
	// Rekey is when this side takes its next key.
	Rekey RekeyPolicy
}

// Client is the client's side of one handshake. It is not safe for concurrent use.
// A new attempt needs a new Client.
type Client struct {
	base    Base
	opts    ClientOptions
	private *ecdh.PrivateKey // nil without X25519, and once used
	hello   wire.Hello
	raw     []byte // hello as sent

	// Set by Challenge.
	confirmed bool
	suite     Suite
	c2s, s2c  [32]byte

	accepted bool
}

// NewClient starts a handshake with the given credentials. It reads Nc, 16 bytes,
// and with X25519 the private key, 32 bytes, from rand.
func NewClient(c Credentials, clientKey string, o ClientOptions, rand io.Reader) (*Client, error) {
	if o.Offer == 0 {
		o.Offer = OfferAll
	}
	h := &Client{base: Derive(c, clientKey), opts: o}
	h.hello = wire.Hello{Offer: uint8(o.Offer), X25519: o.X25519, CID0: h.base.cid0}
	if _, err := io.ReadFull(rand, h.hello.Nc[:]); err != nil {
		return nil, fmt.Errorf("read random bytes for hello: %w", err)
	}
	if o.X25519 {
		private, err := newPrivate(rand)
		if err != nil {
			return nil, err
		}
		h.private = private
		h.hello.Share = shareOf(private)
	}
	h.raw = h.hello.AppendTo(make([]byte, 0, wire.HelloBytes))
	h.base.sign(h.raw)
	return h, nil
}

// CID0 returns the connection id that Challenge and Accept carry.
func (c *Client) CID0() wire.CID { return c.base.cid0 }

// Hello returns the packet that opens the handshake, the same bytes on every call.
func (c *Client) Hello() []byte { return c.raw }

// Challenge checks the server's answer to Hello and returns the Confirm, which
// carries frames. Repeats of it are sent byte-identical; the caller keeps it. Only
// the first valid challenge is used, any other gets a [wire.Refusal].
func (c *Client) Challenge(b []byte, resume bool, frames []byte) (confirm []byte, err error) {
	if c.confirmed {
		return nil, RefusedSpent
	}
	if len(frames) > FramesMax(c.opts.Stream) {
		return nil, ErrFrames
	}
	ch, err := c.checkChallenge(b)
	if err != nil {
		return nil, err
	}
	var shared []byte
	if c.opts.X25519 {
		if shared, err = agree(c.private, &ch.Share); err != nil {
			return nil, err
		}
	}
	p := wire.Confirm{
		Suite: ch.Suite, Offer: c.hello.Offer, X25519: ch.X25519, Resume: resume,
		CID0: c.base.cid0, Nc: c.hello.Nc, Ns: ch.Ns, Cookie: ch.Cookie, Share: c.hello.Share,
	}
	confirm = p.AppendTo(make([]byte, 0, wire.ConfirmHeaderBytes+len(frames)+wire.TagBytes))
	c.suite = Suite(ch.Suite)
	c.c2s, c.s2c = c.base.session(confirm, &ch.Share, shared)
	c.confirmed = true
	c.private = nil

	k := newPacketKey(c.suite, &c.c2s)
	return k.aead.Seal(confirm, k.iv[:], frames, confirm), nil // number 0: the nonce is the IV
}

func (c *Client) checkChallenge(b []byte) (wire.Challenge, error) {
	ch, err := wire.ParseChallenge(b)
	switch {
	case err != nil:
		return ch, err
	case ch.CID0 != c.base.cid0:
		return ch, RefusedCID
	case !c.base.checkMAC(b):
		return ch, RefusedMac
	case ch.NcHead != [8]byte(c.hello.Nc[:8]):
		return ch, RefusedNonce
	case !c.opts.Offer.Has(Suite(ch.Suite)):
		return ch, RefusedSuite
	case ch.X25519 != c.opts.X25519:
		return ch, wire.RefusedShare
	}
	return ch, nil
}

// Ended checks a packet that says the stay is over and returns the code it ended with.
// The server answers a Hello so, and a client may believe it until it has the Accept.
// Any packet but a valid one gets a [wire.Refusal].
func (c *Client) Ended(b []byte) (wire.CloseCode, error) {
	e, err := wire.ParseEnded(b)
	switch {
	case err != nil:
		return 0, err
	case c.accepted:
		return 0, RefusedSpent
	case e.CID0 != c.base.cid0:
		return 0, RefusedCID
	case e.Nc != c.hello.Nc:
		return 0, RefusedNonce
	case !c.base.checkMAC(b):
		return 0, RefusedMac
	}
	return e.Code, nil
}

// Accept opens the packet that ends the handshake and returns what it says and the
// keys of the connection. An Accept acknowledges the client's packet 0; the Sealer
// knows, the caller tells whoever else counts. The packet b stays as it is. Any
// packet but the first valid one gets a [wire.Refusal].
func (c *Client) Accept(now time.Time, b []byte) (wire.Accept, *Sealer, *Opener, error) {
	if !c.confirmed || c.accepted {
		return wire.Accept{}, nil, nil, RefusedSpent
	}
	cid0, sealed, err := wire.ParseAcceptHeader(b)
	if err != nil {
		return wire.Accept{}, nil, nil, err
	}
	if cid0 != c.base.cid0 {
		return wire.Accept{}, nil, nil, RefusedCID
	}
	k := newPacketKey(c.suite, &c.s2c)
	body, err := k.aead.Open(nil, k.iv[:], sealed, b[:wire.AcceptHeaderBytes])
	if err != nil {
		return wire.Accept{}, nil, nil, RefusedPayload
	}
	a, err := wire.ParseAccept(body)
	if err != nil {
		return wire.Accept{}, nil, nil, err
	}
	c.accepted = true
	s := NewSealer(KeyOptions{
		Suite: c.suite, Secret: c.c2s, FromClient: true, SCID: a.SCID,
		Stream: c.opts.Stream, Rekey: c.opts.Rekey,
	}, now)
	s.Acked(0)
	o := newOpener(KeyOptions{Suite: c.suite, Secret: c.s2c, Stream: c.opts.Stream}, k)
	c.c2s, c.s2c = [32]byte{}, [32]byte{}
	return a, s, o, nil
}
