package mesh

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
)

// identityFileMax bounds what is read of a file of the identity, in bytes.
const identityFileMax = 64 << 10

const secretFileSetting = "DIARKIS_CLUSTER_SECRET_FILE"

// openIdentity picks the first identity that cfg names.
func openIdentity(cfg Config) (*identity, error) {
	who, now := cfg.Identity, cfg.now
	text := func(s string) func() ([][]byte, error) {
		return func() ([][]byte, error) { return [][]byte{[]byte(s)}, nil }
	}
	secret := func(setting string) func([][]byte) (*material, error) {
		return func(parts [][]byte) (*material, error) {
			lines, err := config.ClusterSecretLines(parts[0])
			if err != nil {
				return nil, fmt.Errorf("%w: %s: cluster secret: %w", ErrConfig, setting, err)
			}
			return secretMaterial(lines, cfg.Role, cfg.Incarnation)
		}
	}
	switch {
	case who.CertFile != "" || who.KeyFile != "" || who.CAFile != "":
		if who.CertFile == "" || who.KeyFile == "" || who.CAFile == "" {
			return nil, fmt.Errorf("%w: tls needs all of cert, key and ca", ErrConfig)
		}
		files := []identityFile{{"tls.cert", who.CertFile, false}, {"tls.key", who.KeyFile, true}, {"tls.ca", who.CAFile, false}}
		warnOpen(cfg.Log, files)
		return newIdentity("tls", now, readAll(files), func(parts [][]byte) (*material, error) {
			return fileMaterial(parts[0], parts[1], parts[2], cfg.Role, now())
		})
	case who.SecretFile != "":
		files := []identityFile{{secretFileSetting, who.SecretFile, true}}
		warnOpen(cfg.Log, files)
		return newIdentity("cluster secret file", now, readAll(files), secret(secretFileSetting))
	case who.Secret != "":
		return newIdentity("cluster secret", now, text(who.Secret), secret("DIARKIS_CLUSTER_SECRET"))
	}
	for _, a := range cfg.addresses() {
		if !a.IsLoopback() {
			return nil, fmt.Errorf("%w: mesh address %v is not loopback, so nodes need a common identity: set "+
				"DIARKIS_CLUSTER_SECRET_FILE to a file made with \"openssl rand -hex 32\" (or DIARKIS_CLUSTER_SECRET to its content), "+
				"or tls.cert, tls.key and tls.ca in shared/mesh.json", ErrConfig, a)
		}
	}
	made, path, err := developmentSecret(who.DevelopmentDir)
	if err != nil {
		return nil, err
	}
	cfg.Log.Warn().Str("file", path).Msg("no cluster secret configured: using the development secret, on loopback only")
	read := func() ([][]byte, error) {
		if err := keepDevelopmentSecret(path, made); err != nil {
			cfg.Log.Debug().Err(err).Str("file", path).Msg("development secret not kept")
		}
		return [][]byte{[]byte(made)}, nil
	}
	return newIdentity("development secret", now, read, secret("development secret"))
}

// identityFile is a file that proves, or decides, who is in the cluster.
type identityFile struct {
	setting, path string
	secret        bool // reading it is enough to be the cluster
}

// readAll returns what reads the files. One that others may write is refused: whoever
// writes it decides who is in the cluster.
func readAll(files []identityFile) func() ([][]byte, error) {
	return func() ([][]byte, error) {
		var parts [][]byte
		var errs []error
		for _, f := range files {
			b, err := config.ReadRegular(f.path, identityFileMax)
			if st, statErr := os.Stat(f.path); err == nil && statErr == nil && writableByAll(st) {
				err = fmt.Errorf("everybody may write it (mode %v): chmod o-w", st.Mode().Perm())
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%w: %s: file %s: %w", ErrConfig, f.setting, f.path, err))
			}
			parts = append(parts, b)
		}
		return parts, errors.Join(errs...)
	}
}

// warnOpen says which secrets everybody on this machine may read, and in whose place
// everybody may put another file.
func warnOpen(log zerolog.Logger, files []identityFile) {
	for _, f := range files {
		if dir, mode := replaceableIn(f.path); dir != "" {
			log.Warn().Str("setting", f.setting).Str("file", f.path).Str("dir", dir).Stringer("mode", mode).
				Msg("everybody on this machine may put another file in place of this one and so decide who is in the cluster: chmod o-w")
		}
		if st, err := os.Stat(f.path); err == nil && f.secret && readableByAll(st) {
			log.Warn().Str("setting", f.setting).Str("file", f.path).Stringer("mode", st.Mode().Perm()).
				Msg("everybody on this machine may read the secret of the cluster: chmod o-r")
		}
	}
}

// replaceableIn returns the directory on the way to a file, or to what it links to, in
// which everybody may rename what is there. In one with the sticky bit, such as a mounted
// secret of Kubernetes, only owners may.
func replaceableIn(path string) (dir string, mode fs.FileMode) {
	paths := []string{path}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		paths = append(paths, real)
	}
	for _, p := range paths {
		p, err := filepath.Abs(p)
		if err != nil {
			continue
		}
		for d := filepath.Dir(p); ; d = filepath.Dir(d) {
			if st, err := os.Stat(d); err == nil && writableByAll(st) && st.Mode()&fs.ModeSticky == 0 {
				return d, st.Mode()
			}
			if d == filepath.Dir(d) {
				break
			}
		}
	}
	return "", 0
}

// fileMaterial takes a certificate, its key and the CA, and checks that they belong
// together and, when the certificate names a role, that it is this node's.
func fileMaterial(cert, key, ca []byte, role string, now time.Time) (*material, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%w: tls.cert and tls.key: %w", ErrConfig, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%w: tls.ca holds no certificate", ErrConfig)
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
	switch c, err := claimsOf(pair.Leaf); {
	case err != nil:
		return nil, fmt.Errorf("%w: tls.cert: %w", ErrConfig, err)
	case c.role != "" && c.role != role:
		return nil, fmt.Errorf("%w: tls.cert is for the role %s, this node is %s", ErrConfig, c.role, role)
	}
	seed, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("%w: tls.key: %w", ErrConfig, err)
	}
	leaf := func(time.Time) (*tls.Certificate, error) { return &pair, nil }
	return &material{roots: roots, leaf: leaf, seed: bytes.Clone(seed)}, nil
}

// cgnat is the shared address space of RFC 6598: not public.
var cgnat = netip.MustParsePrefix("100.64.0.0/10")

func isPublic(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsGlobalUnicast() && !a.IsPrivate() && !cgnat.Contains(a)
}
