package mesh

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

const (
	alpn         = "diarkis-mesh/1"
	leafLifetime = 24 * time.Hour // of a certificate a process makes for itself
	leafRenewal  = leafLifetime / 3
	// A leaf is valid from leafRenewal before it was made and made anew leafRenewal before
	// it ends, so clocks may differ by that either way.
	leafScheme = "diarkis" // diarkis://ROLE/INCARNATION in the leaf's names
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
	// Set by newIdentity, then constant.
	now    func() time.Time
	source string                            // names it in logs
	read   func() ([][]byte, error)          // what it is made of; of files, their content
	make   func([][]byte) (*material, error) // the material in that

	mu      sync.Mutex // guards the fields below
	current *material
	seen    [sha256.Size]byte // of what was read last, usable or not
}

// newIdentity reads an identity for the first time.
func newIdentity(source string, now func() time.Time, read func() ([][]byte, error), make func([][]byte) (*material, error)) (*identity, error) {
	i := &identity{now: now, source: source, read: read, make: make}
	_, err := i.refresh()
	return i, err
}

// refresh reads the identity again and tells whether it is another one than before. An
// error means that it has changed to something that can't be used, and that the old one
// stays; it is returned once for each such change.
func (i *identity) refresh() (changed bool, err error) {
	parts, err := i.read()
	sum := stampOf(parts, err)
	i.mu.Lock()
	defer i.mu.Unlock()
	if sum == i.seen {
		return false, nil
	}
	i.seen = sum
	if err != nil {
		return false, err
	}
	fresh, err := i.make(parts)
	if err != nil {
		return false, err
	}
	i.current = fresh
	return true, nil
}

// stampOf is the same for the same content, or the same problem. The content does not
// stay in memory for it.
func stampOf(parts [][]byte, err error) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, p := range parts {
		_ = binary.Write(h, binary.BigEndian, uint64(len(p))) // a hash takes all
		h.Write(p)
	}
	if err != nil {
		h.Write([]byte(err.Error()))
	}
	h.Sum(sum[:0])
	return sum
}

func (i *identity) material() *material {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.current
}

func (i *identity) certificate() (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.current.leaf(i.now())
}

// claims is what a peer's certificate says of it: nothing, its role, or also which run
// of a process it is.
type claims struct {
	role        string         // "" when it says nothing
	incarnation id.Incarnation // zero when it does not say
}

// agree tells whether a hello says nothing else than the certificate.
func (c claims) agree(h hello) bool {
	return (c.role == "" || c.role == h.role) && (c.incarnation == id.Incarnation{} || c.incarnation == h.incarnation)
}

// verify checks what a peer presents in the handshake.
func (i *identity) verify(cs tls.ConnectionState) error {
	if cs.NegotiatedProtocol != alpn {
		return fmt.Errorf("%w: protocol %q", errForeign, cs.NegotiatedProtocol)
	}
	return i.verifyChain(cs.PeerCertificates)
}

// verifyChain checks a peer's chain against the identity as it is now. Host names play no
// part: whoever holds a leaf of this cluster is a member, wherever it runs.
func (i *identity) verifyChain(chain []*x509.Certificate) error {
	m := i.material()
	if len(chain) == 0 {
		return fmt.Errorf("%w: there is none", errForeign)
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: m.roots, Intermediates: intermediates, CurrentTime: i.now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return fmt.Errorf("%w: %w", errForeign, err)
	}
	c, err := claimsOf(chain[0])
	if err == nil && m.named && (c.role == "" || c.incarnation == id.Incarnation{}) {
		err = fmt.Errorf("%w: it names no role and incarnation", errForeign)
	}
	return err
}

// claimsOf reads diarkis://ROLE/INCARNATION in the leaf's names, or diarkis://ROLE, which
// an operator's certificate may have.
func claimsOf(leaf *x509.Certificate) (claims, error) {
	for _, u := range leaf.URIs {
		if u.Scheme != leafScheme {
			continue
		}
		c := claims{role: u.Host}
		raw, err := hex.DecodeString(strings.TrimPrefix(u.Path, "/"))
		if err != nil || u.Host == "" || len(raw) != len(c.incarnation) && len(raw) != 0 {
			return claims{}, fmt.Errorf("%w: malformed name", errForeign)
		}
		copy(c.incarnation[:], raw)
		return c, nil
	}
	return claims{}, nil
}

// tlsConfigs returns what this node presents and demands as a server and as a client.
func (i *identity) tlsConfigs() (server, client *tls.Config) {
	server = &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{alpn}, SessionTicketsDisabled: true,
		ClientAuth:       tls.RequireAnyClientCert, // VerifyConnection checks it
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.certificate() },
		VerifyConnection: i.verify,
	}
	client = &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{alpn}, SessionTicketsDisabled: true,
		InsecureSkipVerify:   true, // VerifyConnection checks the chain; there are no host names to check
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.certificate() },
		VerifyConnection:     i.verify,
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
		NotBefore: now.Add(-leafRenewal), NotAfter: now.Add(leafLifetime),
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
func secretMaterial(secrets [][]byte, role string, inc id.Incarnation) (*material, error) {
	roots := x509.NewCertPool()
	var signer authority
	for n, s := range secrets {
		a, err := deriveAuthority(string(s))
		if err != nil {
			return nil, err
		}
		roots.AddCert(a.cert)
		if n == 0 {
			signer = a
		}
	}
	var cached *tls.Certificate
	var made time.Time
	leaf := func(now time.Time) (*tls.Certificate, error) {
		// By the wall clock, as others judge it: one made before that was set back is from
		// the future, and others may refuse it for as long as it was ahead.
		now = now.Round(0)
		if age := now.Sub(made); cached != nil && age >= 0 && age < leafLifetime-leafRenewal {
			return cached, nil
		}
		fresh, err := signer.sign(now, role, inc)
		if err == nil {
			cached, made = fresh, now
		}
		return fresh, err
	}
	return &material{roots: roots, leaf: leaf, named: true, seed: secrets[0]}, nil
}
