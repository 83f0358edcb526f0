package mesh

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
)

const (
	alpn         = "diarkis-mesh/1"
	secretMin    = 32             // bytes of each line of a cluster secret
	leafLifetime = 24 * time.Hour // of a certificate a process makes for itself
	leafRenewal  = leafLifetime / 3
	clockSkewMax = time.Hour // a leaf is valid from this long before it was made
	leafScheme   = "diarkis" // diarkis://ROLE/INCARNATION in the leaf's names
)

// errForeign is why a peer of another cluster is refused.
var errForeign = errors.New("certificate is not from this cluster")

// material is what proves and checks membership, until the files it came from change.
type material struct {
	roots *x509.CertPool
	// leaf returns a certificate valid at now. It is called with identity.mu held.
	leaf func(now time.Time) (*tls.Certificate, error)
	// named: leaves carry role and incarnation, and a peer without them is refused.
	named bool
	// seed is secret bytes that stay the same over restarts of the process.
	seed []byte
}

// identity is what this node is known by. It is safe for concurrent use.
type identity struct {
	now     func() time.Time
	log     zerolog.Logger
	load    func() (*material, error)
	stamp   func() string // differs when the files changed; nil when nothing is to be watched
	source  string
	mu      sync.Mutex
	current *material
	seen    string
	checked time.Time
}

// reloadCheckMin is how often the files are looked at, at most.
const reloadCheckMin = time.Second

func newIdentity(load func() (*material, error), stamp func() string, source string, now func() time.Time, log zerolog.Logger) (*identity, error) {
	i := &identity{now: now, log: log, load: load, stamp: stamp, source: source}
	if stamp != nil {
		i.seen = stamp()
	}
	var err error
	i.current, err = load()
	i.checked = now()
	return i, err
}

// materialLocked returns the current material after looking whether the files
// changed. A change that can't be used is logged once and the old material stays.
func (i *identity) materialLocked() *material {
	now := i.now()
	if i.stamp == nil || now.Sub(i.checked) < reloadCheckMin {
		return i.current
	}
	i.checked = now
	stamp := i.stamp()
	if stamp == i.seen {
		return i.current
	}
	i.seen = stamp
	fresh, err := i.load()
	if err != nil {
		i.log.Error().Err(err).Str("source", i.source).Msg("mesh identity change refused, old one kept")
		return i.current
	}
	i.current = fresh
	i.log.Info().Str("source", i.source).Msg("mesh identity reloaded")
	return fresh
}

func (i *identity) certificate() (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.materialLocked().leaf(i.now())
}

// claims is what a peer's certificate says of it.
type claims struct {
	named       bool
	role        string
	incarnation id.Incarnation
}

// verify checks the peer's chain. Host names play no part: whoever holds a leaf
// of this cluster is a member, wherever it runs.
func (i *identity) verify(cs tls.ConnectionState) (claims, error) {
	i.mu.Lock()
	m := i.materialLocked()
	i.mu.Unlock()
	if cs.NegotiatedProtocol != alpn || len(cs.PeerCertificates) == 0 {
		return claims{}, fmt.Errorf("%w: protocol %q, %d certificates", errForeign, cs.NegotiatedProtocol, len(cs.PeerCertificates))
	}
	intermediates := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		intermediates.AddCert(c)
	}
	leaf := cs.PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: m.roots, Intermediates: intermediates, CurrentTime: i.now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return claims{}, fmt.Errorf("%w: %w", errForeign, err)
	}
	c, err := claimsOf(leaf)
	if err == nil && m.named && !c.named {
		err = fmt.Errorf("%w: certificate names no role and incarnation", errForeign)
	}
	return c, err
}

func claimsOf(leaf *x509.Certificate) (claims, error) {
	for _, u := range leaf.URIs {
		if u.Scheme != leafScheme {
			continue
		}
		raw, err := hex.DecodeString(strings.TrimPrefix(u.Path, "/"))
		if err != nil || len(raw) != len(id.Incarnation{}) || u.Host == "" {
			return claims{}, fmt.Errorf("%w: malformed name", errForeign)
		}
		return claims{true, u.Host, id.Incarnation(raw)}, nil
	}
	return claims{}, nil
}

// tlsConfigs returns what this node presents and demands as a server and as a client.
func (i *identity) tlsConfigs() (server, client *tls.Config) {
	check := func(cs tls.ConnectionState) error {
		_, err := i.verify(cs)
		return err
	}
	server = &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{alpn}, SessionTicketsDisabled: true,
		ClientAuth:       tls.RequireAnyClientCert, // VerifyConnection checks it
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.certificate() },
		VerifyConnection: check,
	}
	client = &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{alpn}, SessionTicketsDisabled: true,
		InsecureSkipVerify:   true, // VerifyConnection checks the chain; there are no host names to check
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.certificate() },
		VerifyConnection:     check,
	}
	return server, client
}

// resetKey returns the key of stateless resets: the same for every process that
// ever listens on node, so that a restarted one can end the connections of its predecessor.
func (i *identity) resetKey(node id.Node) ([32]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	b, err := hkdf.Key(sha256.New, i.current.seed, []byte(alpn), "stateless reset "+string(node), 32)
	if err != nil {
		return [32]byte{}, fmt.Errorf("derive reset key: %w", err)
	}
	return [32]byte(b), nil
}

// parseSecrets splits a secret file into its lines.
func parseSecrets(text, setting string) ([]string, error) {
	var out []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if len(line) < secretMin {
			return nil, fmt.Errorf("%w: %s: a cluster secret has at least %d bytes, line %d has %d",
				ErrConfig, setting, secretMin, len(out)+1, len(line))
		}
		out = append(out, line)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: %s is empty", ErrConfig, setting)
	}
	return out, nil
}

// authority is the certificate authority every holder of a secret derives alike.
type authority struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

func deriveAuthority(secret string) (authority, error) {
	seed, err := hkdf.Key(sha256.New, []byte(secret), []byte(alpn), "certificate authority", ed25519.SeedSize)
	if err != nil {
		return authority{}, fmt.Errorf("derive authority: %w", err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	// Every field is a constant, so that all nodes derive the same certificate.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "diarkis cluster"},
		NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return authority{}, fmt.Errorf("derive authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return authority{}, fmt.Errorf("derive authority: %w", err)
	}
	return authority{cert, key}, nil
}

// sign makes a short-lived certificate for this process.
func (a authority) sign(now time.Time, role string, inc id.Incarnation) (*tls.Certificate, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make node key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make node certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "diarkis " + role},
		NotBefore: now.Add(-clockSkewMax), NotAfter: now.Add(leafLifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:        []*url.URL{{Scheme: leafScheme, Host: role, Path: "/" + inc.String()}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("make node certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make node certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// secretMaterial derives everything from the lines of a cluster secret.
func secretMaterial(secrets []string, role string, inc id.Incarnation) (*material, error) {
	roots := x509.NewCertPool()
	var signer authority
	for n, s := range secrets {
		a, err := deriveAuthority(s)
		if err != nil {
			return nil, err
		}
		roots.AddCert(a.cert)
		if n == 0 {
			signer = a
		}
	}
	var cached *tls.Certificate
	leaf := func(now time.Time) (*tls.Certificate, error) {
		if cached != nil && now.Before(cached.Leaf.NotAfter.Add(-leafRenewal)) {
			return cached, nil
		}
		fresh, err := signer.sign(now, role, inc)
		if err == nil {
			cached = fresh
		}
		return fresh, err
	}
	return &material{roots: roots, leaf: leaf, named: true, seed: []byte(secrets[0])}, nil
}
