package ticket

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/Diarkis/diarkis/internal/config"
)

// Lifetime is how long a ticket of a [Signer] is good.
const Lifetime = time.Minute

// Signer makes tickets, as a game's backend does. It is safe for concurrent use.
type Signer struct {
	method   jwt.SigningMethod
	key      any
	audience string
}

// NewSigner returns a signer with a private key in PEM (Ed25519 or P-256, in PKCS #8 or as
// EC PRIVATE KEY), or with the first line of a ticket secret.
func NewSigner(content []byte, audience string) (*Signer, error) {
	s := &Signer{audience: audience}
	if block := keyBlock(content); block != nil {
		k, err := parsePrivate(block)
		if err != nil {
			return nil, fmt.Errorf("ticket key: %w", err)
		}
		switch k := k.(type) {
		case ed25519.PrivateKey:
			s.method, s.key = jwt.SigningMethodEdDSA, k
		case *ecdsa.PrivateKey:
			if k.Params().BitSize != 256 {
				return nil, errors.New("ticket key: of the elliptic curves only P-256 is supported")
			}
			s.method, s.key = jwt.SigningMethodES256, k
		default:
			return nil, errors.New("ticket key: expected an Ed25519 or P-256 key")
		}
		return s, nil
	}
	if bytes.HasPrefix(bytes.TrimSpace(content), []byte("-----")) {
		return nil, errors.New("ticket key: malformed PEM")
	}
	lines, err := config.TicketKeyLines(content)
	if err != nil {
		return nil, fmt.Errorf("ticket key: %w", err)
	}
	s.method, s.key = jwt.SigningMethodHS256, lines[0]
	return s, nil
}

// keyBlock returns the block of a PEM file that holds the key, nil when it is no PEM.
func keyBlock(content []byte) *pem.Block {
	var last *pem.Block
	for {
		block, rest := pem.Decode(content)
		if block == nil {
			return last
		}
		if last = block; block.Type != "EC PARAMETERS" { // openssl ecparam writes them first
			return block
		}
		content = rest
	}
}

func parsePrivate(block *pem.Block) (any, error) {
	switch block.Type {
	case "PRIVATE KEY":
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("not a private key in PKCS #8")
		}
		return k, nil
	case "EC PRIVATE KEY":
		k, err := x509.ParseECPrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("not a good EC PRIVATE KEY, or one with a passphrase: openssl pkcs8 -topk8 -nocrypt -in FILE writes it anew")
		}
		return k, nil
	case "ENCRYPTED PRIVATE KEY":
		return nil, errors.New("the private key has a passphrase: openssl pkcs8 -in FILE writes it without")
	case "PUBLIC KEY", "CERTIFICATE":
		return nil, fmt.Errorf("the file holds a %s: to sign takes the private key", block.Type)
	}
	return nil, fmt.Errorf("a PEM block of type %.32q is not supported: openssl genpkey -algorithm ed25519 makes a key that is", block.Type)
}

// Sign returns a ticket for a user that is good from now for [Lifetime].
func (s *Signer) Sign(uid string, now time.Time) (string, error) {
	t, err := jwt.NewWithClaims(s.method, jwt.MapClaims{"sub": uid, "aud": s.audience, "exp": now.Add(Lifetime).Unix()}).SignedString(s.key)
	if err != nil {
		return "", fmt.Errorf("sign a ticket: %w", err)
	}
	return t, nil
}
