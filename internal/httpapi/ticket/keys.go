package ticket

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/Diarkis/diarkis/internal/config"
)

const (
	// keysMax bounds a JWKS: each key of an algorithm is tried on a ticket that names none.
	keysMax = 16
	// fileBytesMax bounds what is read of a file of keys.
	fileBytesMax = 64 << 10
	// reloadInterval is how often the files are looked at.
	reloadInterval = 2 * time.Second
)

// key is a key that checks signatures of one algorithm.
type key struct {
	id    string // kid of a JWKS, "" for none
	alg   string
	value any // []byte, ed25519.PublicKey or *ecdsa.PublicKey
}

// source is where keys come from.
type source struct {
	name    string // as the setting is called
	path    string // "" when it is a variable, which doesn't change
	secret  bool   // reading it is enough to sign tickets
	parse   func([]byte) ([]key, error)
	content []byte // read last
	problem string // why it could not be read last, "" when it could
	keys    []key  // of the last content that could be used
}

func sourcesOf(o Options) []*source {
	var out []*source
	switch {
	case o.SecretFile != "":
		out = append(out, &source{name: "DIARKIS_TICKET_KEY_FILE", path: o.SecretFile, secret: true, parse: parseSecret})
	case o.Secret != "":
		out = append(out, &source{name: "DIARKIS_TICKET_KEY", content: []byte(o.Secret), parse: parseSecret})
	}
	if o.KeysFile != "" {
		out = append(out, &source{name: "http.ticketKeys", path: o.KeysFile, parse: parseJWKS})
	}
	return out
}

// read takes the keys from the source when it changed. Each problem is returned once.
func (s *source) read() (changed bool, err error) {
	content := s.content
	if s.path != "" {
		if content, err = s.readFile(); err != nil {
			if s.problem == err.Error() {
				return false, nil
			}
			s.problem = err.Error()
			return false, err
		}
		s.problem = ""
		if s.content != nil && bytes.Equal(content, s.content) {
			return false, nil
		}
	}
	s.content = content
	keys, err := s.parse(content)
	if err != nil {
		return false, err
	}
	s.keys = keys
	return true, nil
}

// readFile reads the file of a source. A name without a file is not in the error, unless
// there was one before: it may be a secret that was put into the wrong variable.
func (s *source) readFile() ([]byte, error) {
	b, err := config.ReadKey(s.path, fileBytesMax)
	switch {
	case err == nil:
		return b, nil
	case s.content == nil && errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the file that it names: %w", err)
	}
	return nil, fmt.Errorf("%s: %w", s.path, err)
}

// Run looks at the files every few seconds until ctx ends, and takes the keys of those
// that changed. What can't be used is logged once, and the old keys stay.
func (v *Verifier) Run(ctx context.Context) error {
	t := time.NewTicker(reloadInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		// By a goroutine of its own: a file system that went away doesn't answer.
		done := make(chan struct{})
		go func() { v.reload(); close(done) }()
		select {
		case <-ctx.Done():
			return nil
		case <-done:
		}
	}
}

func (v *Verifier) reload() {
	for _, s := range v.sources {
		switch changed, err := s.read(); {
		case err != nil:
			v.log.Error().Err(err).Str("source", s.name).Msg("ticket key change refused, old ones kept")
		case changed:
			v.publish()
			v.log.Info().Str("source", s.name).Int("keys", len(s.keys)).Msg("ticket keys reloaded")
		}
	}
}

func (v *Verifier) publish() {
	var all []key
	for _, s := range v.sources {
		all = append(all, s.keys...)
	}
	v.keys.Store(&all)
}

func parseSecret(b []byte) ([]key, error) {
	lines, err := config.TicketKeyLines(b)
	if err != nil {
		return nil, err
	}
	var out []key
	for _, l := range lines {
		out = append(out, key{alg: hs256, value: l})
	}
	return out, nil
}

// jwk is a public key as RFC 7517 and RFC 8037 write it.
type jwk struct {
	Kty string          `json:"kty"`
	Crv string          `json:"crv"`
	X   string          `json:"x"`
	Y   string          `json:"y"`
	Kid string          `json:"kid"`
	Alg string          `json:"alg"`
	Use string          `json:"use"`
	D   json.RawMessage `json:"d"` // of a private key
	K   json.RawMessage `json:"k"` // of a symmetric one
}

// parseJWKS reads a set of public keys. It takes only what it can use, so that a
// wrong file shows when it is put there and not when players stay out.
func parseJWKS(b []byte) ([]key, error) {
	var set struct {
		Keys []jwk `json:"keys"`
	}
	b = bytes.TrimPrefix(b, []byte("\ufeff")) // a byte order mark
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		return nil, errors.New("not a JWKS but PEM: write the public key as a JWK, with kty, crv, x and, for P-256, y")
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, errors.New("not a JWKS: expected an object with a list of keys")
	}
	if len(set.Keys) == 0 || len(set.Keys) > keysMax {
		return nil, fmt.Errorf("%d keys, expected 1 to %d", len(set.Keys), keysMax)
	}
	var out []key
	for i, j := range set.Keys {
		k, err := j.key()
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		for _, other := range out {
			if k.id != "" && k.id == other.id {
				return nil, fmt.Errorf("key %d: has the kid of another", i+1)
			}
		}
		out = append(out, k)
	}
	return out, nil
}

func (j jwk) key() (key, error) {
	k := key{id: j.Kid}
	switch {
	case j.Kty == "oct" || j.K != nil:
		return key{}, errors.New("is a symmetric key (oct), which does not belong among public ones: use DIARKIS_TICKET_KEY_FILE")
	case j.D != nil:
		return key{}, errors.New("is a private key: only the signer may have it")
	case j.Use != "" && j.Use != "sig":
		return key{}, errors.New("is not for signatures")
	case j.Kty == "OKP" && j.Crv == "Ed25519":
		x, err := coordinate(j.X)
		if err != nil {
			return key{}, err
		}
		if err := checkEd25519(x); err != nil {
			return key{}, err
		}
		k.alg, k.value = edDSA, ed25519.PublicKey(x)
	case j.Kty == "EC" && j.Crv == "P-256":
		x, err := coordinate(j.X)
		if err != nil {
			return key{}, err
		}
		y, err := coordinate(j.Y)
		if err != nil {
			return key{}, err
		}
		p, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append(append([]byte{4}, x...), y...))
		if err != nil {
			return key{}, errors.New("is not a point of P-256")
		}
		k.alg, k.value = es256, p
	default:
		return key{}, fmt.Errorf("kty %.16q, crv %.16q: only OKP with Ed25519 (EdDSA) and EC with P-256 (ES256) are supported", j.Kty, j.Crv)
	}
	if j.Alg != "" && j.Alg != k.alg {
		return key{}, fmt.Errorf("alg %.16q does not fit the key, which is for %s", j.Alg, k.alg)
	}
	return k, nil
}

func coordinate(s string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != 32 {
		return nil, errors.New("x and y must be 32 bytes in base64url without padding")
	}
	return b, nil
}
