package mesh

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
)

// secretFileMax bounds what is read of a secret file, in bytes.
const secretFileMax = 64 << 10

// openIdentity picks the first identity that cfg names.
func openIdentity(cfg Config) (*identity, error) {
	who, now := cfg.Identity, cfg.now
	fromSecret := func(text, setting string) (*material, error) {
		secrets, err := parseSecrets(text, setting)
		if err != nil {
			return nil, err
		}
		return secretMaterial(secrets, cfg.Role, cfg.Incarnation)
	}
	switch {
	case who.CertFile != "" || who.KeyFile != "" || who.CAFile != "":
		if who.CertFile == "" || who.KeyFile == "" || who.CAFile == "" {
			return nil, fmt.Errorf("%w: tls needs all of cert, key and ca", ErrConfig)
		}
		load := func() (*material, error) { return fileMaterial(who.CertFile, who.KeyFile, who.CAFile, now()) }
		return newIdentity(load, stampOf(who.CertFile, who.KeyFile, who.CAFile), "tls", now, cfg.Log)
	case who.SecretFile != "":
		load := func() (*material, error) {
			b, err := os.ReadFile(who.SecretFile)
			if err == nil && len(b) > secretFileMax {
				err = errors.New("file is too large")
			}
			if err != nil {
				return nil, fmt.Errorf("%w: DIARKIS_CLUSTER_SECRET_FILE: %w", ErrConfig, err)
			}
			return fromSecret(string(b), "DIARKIS_CLUSTER_SECRET_FILE")
		}
		return newIdentity(load, stampOf(who.SecretFile), "cluster secret file", now, cfg.Log)
	case who.Secret != "":
		load := func() (*material, error) { return fromSecret(who.Secret, "DIARKIS_CLUSTER_SECRET") }
		return newIdentity(load, nil, "cluster secret", now, cfg.Log)
	}
	for _, a := range cfg.addresses() {
		if !a.IsLoopback() {
			return nil, fmt.Errorf("%w: mesh address %v is not loopback, so nodes need a common identity: set "+
				"DIARKIS_CLUSTER_SECRET_FILE (or DIARKIS_CLUSTER_SECRET) to at least %d bytes, or tls.cert, tls.key and tls.ca in shared/mesh.json",
				ErrConfig, a, secretMin)
		}
	}
	secret, path, err := developmentSecret(who.DevelopmentDir)
	if err != nil {
		return nil, err
	}
	cfg.Log.Warn().Str("file", path).Msg("no cluster secret configured: using the development secret, on loopback only")
	load := func() (*material, error) { return fromSecret(secret, "development secret") }
	return newIdentity(load, nil, "development secret", now, cfg.Log)
}

// stampOf returns a function whose result differs once one of the files changed.
func stampOf(files ...string) func() string {
	return func() string {
		var b strings.Builder
		for _, f := range files {
			if st, err := os.Stat(f); err == nil {
				fmt.Fprintf(&b, "%d.%d;", st.ModTime().UnixNano(), st.Size())
			} else {
				b.WriteString("-;")
			}
		}
		return b.String()
	}
}

// fileMaterial reads a certificate, its key and the CA, and checks that they belong together.
func fileMaterial(certFile, keyFile, caFile string, now time.Time) (*material, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("%w: tls.cert and tls.key: %w", ErrConfig, err)
	}
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("%w: tls.ca: %w", ErrConfig, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%w: tls.ca: %s holds no certificate", ErrConfig, caFile)
	}
	if pair.Leaf == nil {
		return nil, fmt.Errorf("%w: tls.cert: %s holds no certificate", ErrConfig, certFile)
	}
	intermediates := x509.NewCertPool()
	for _, der := range pair.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: tls.cert: %w", ErrConfig, err)
		}
		intermediates.AddCert(c)
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}); err != nil {
		return nil, fmt.Errorf("%w: tls.cert is not valid under tls.ca: %w", ErrConfig, err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("%w: tls.key: %w", ErrConfig, err)
	}
	leaf := func(time.Time) (*tls.Certificate, error) { return &pair, nil }
	return &material{roots: roots, leaf: leaf, seed: bytes.Clone(key)}, nil
}

// cgnat is the shared address space of RFC 6598: not public.
var cgnat = netip.MustParsePrefix("100.64.0.0/10")

func isPublic(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsGlobalUnicast() && !a.IsPrivate() && !cgnat.Contains(a)
}
