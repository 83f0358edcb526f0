package secure

import (
	"crypto/hmac"
	"fmt"
	"io"
	"time"

	"github.com/Diarkis/diarkis/internal/wire"
)

// StreamGate is the server's side of the handshake on one TCP connection, which
// remembers what over UDP a cookie brings back. The cookie is zeros and Ns fresh.
// After any error the connection has nothing more to say and is closed. It is not
// safe for concurrent use.
type StreamGate struct {
	gate *Gate
	step streamStep

	// Set by Challenge.
	base  Base
	hello wire.Hello
	suite Suite
	ns    wire.Nonce
	gen   *generation
}

type streamStep uint8

const (
	awaitHello streamStep = iota
	awaitConfirm
	streamSpent
)

// Stream returns the gate for a new TCP connection.
func (g *Gate) Stream() *StreamGate { return &StreamGate{gate: g} }

// Challenge is [Gate.Challenge] for the one Hello of this connection.
func (s *StreamGate) Challenge(dst []byte, now time.Time, raw []byte, base *Base) ([]byte, error) {
	step := s.step
	s.step = streamSpent
	if step != awaitHello {
		return dst, RefusedSpent
	}
	h, suite, err := checkHello(raw, base)
	if err != nil {
		return dst, err
	}
	gen, ns, err := s.gate.fresh(now)
	if err != nil {
		return dst, err
	}
	s.base, s.hello, s.suite, s.gen, s.ns = *base, h, suite, gen, ns
	s.step = awaitConfirm
	return appendChallenge(dst, base, &h, suite, gen, [20]byte{}, ns), nil
}

// Confirm checks the one Confirm of this connection and opens its frames in place.
// The CookieTime of the result is 0: a fresh Ns makes a replay impossible.
func (s *StreamGate) Confirm(raw []byte) (*Accepted, error) {
	step := s.step
	s.step = streamSpent
	if step != awaitConfirm {
		return nil, RefusedSpent
	}
	p, err := checkConfirm(raw, &s.base)
	switch {
	case err != nil:
		return nil, err
	case p.Suite != uint8(s.suite) || p.Offer != s.hello.Offer:
		return nil, RefusedSuite
	case p.Nc != s.hello.Nc || !hmac.Equal(p.Ns[:], s.ns[:]):
		return nil, RefusedNonce
	case p.Cookie != [20]byte{}:
		return nil, RefusedCookie
	case p.X25519 != s.hello.X25519 || p.Share != s.hello.Share:
		return nil, wire.RefusedShare
	}
	c := newChecked(raw, p, &s.base, s.gen, 0)
	c.stream = true
	return c.Open()
}

// fresh returns the current secrets and an Ns that is in use nowhere else.
func (g *Gate) fresh(now time.Time) (gen *generation, ns wire.Nonce, err error) {
	if gen, err = g.at(g.clock(now)); err != nil {
		return nil, ns, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := io.ReadFull(g.rand, ns[:]); err != nil {
		return nil, ns, fmt.Errorf("read random bytes for challenge: %w", err)
	}
	return gen, ns, nil
}
