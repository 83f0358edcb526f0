package mesh

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
)

func TestConfigProblems(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no address", func(c *Config) { c.Address = "" }, "address"},
		{"a host name", func(c *Config) { c.Address = "localhost" }, "address"},
		{"everywhere without a name", func(c *Config) { c.Address = "0.0.0.0" }, "announce"},
		{"public", func(c *Config) { c.Address = "8.8.8.8" }, "allowPublic"},
		{"announced in public", func(c *Config) { c.Advertise = netip.MustParseAddr("2001:4860::1") }, "allowPublic"},
		{"port", func(c *Config) { c.Port = 70000 }, "port"},
		{"search without a port", func(c *Config) { c.PortSearch = 5 }, "port"},
		{"role", func(c *Config) { c.Role = "U D P" }, "role"},
		{"incarnation", func(c *Config) { c.Incarnation = id.Incarnation{} }, "incarnation"},
		{"short secret", func(c *Config) { c.Identity.Secret = "hush-hush" }, "DIARKIS_CLUSTER_SECRET"},
		{"short second secret", func(c *Config) { c.Identity.Secret = testSecret + "\nhush-hush\n" }, "line 2"},
		{"missing secret file", func(c *Config) { c.Identity.SecretFile = "/nonexistent" }, "DIARKIS_CLUSTER_SECRET_FILE"},
		{"half a certificate", func(c *Config) { c.Identity.CertFile = "x" }, "cert, key and ca"},
		{"no identity off loopback", func(c *Config) { c.Address, c.Identity = "192.168.1.2", Identity{} }, "DIARKIS_CLUSTER_SECRET_FILE"},
		{"no identity, MARS off loopback", func(c *Config) {
			c.Remotes, c.Identity = []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Identity{}
		}, "10.0.0.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t)
			tt.change(&cfg)
			_, err := New(cfg)
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New = %v, want a configuration error about %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "hush-hush") {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
}

func TestPortSearch(t *testing.T) {
	a := start(t, testConfig(t), nil)
	addr, _ := a.Self().Node.AddrPort()
	cfg := testConfig(t)
	cfg.Port = int(addr.Port())
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Listen(); err == nil {
		t.Error("Listen took a taken port")
	}
	_ = b.Close()
	cfg.PortSearch = 100
	c := start(t, cfg, nil)
	if got, _ := c.Self().Node.AddrPort(); got.Port() <= addr.Port() || int(got.Port()) > cfg.Port+100 {
		t.Errorf("search from %d found %d", addr.Port(), got.Port())
	}
}

func TestDerivedAuthorityIsTheSameEverywhere(t *testing.T) {
	a, err := deriveAuthority(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := deriveAuthority(testSecret)
	if !a.cert.Equal(b.cert) || !a.key.Equal(b.key) {
		t.Error("one secret derives two authorities")
	}
	c, _ := deriveAuthority(nextSecret)
	if a.key.Equal(c.key) {
		t.Error("two secrets derive one authority")
	}
}

func TestLeafIsRenewedBeforeItExpires(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	cfg := testConfig(t).withDefaults()
	cfg.now = func() time.Time { return now }
	who, err := openIdentity(cfg)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := who.certificate()
	if again, _ := who.certificate(); again != first {
		t.Error("a fresh leaf for every handshake")
	}
	now = now.Add(leafLifetime - leafRenewal + time.Minute)
	second, _ := who.certificate()
	if second == first || !second.Leaf.NotAfter.After(now.Add(leafLifetime-time.Minute)) {
		t.Errorf("leaf valid to %v at %v", second.Leaf.NotAfter, now)
	}
}

func TestAnotherClusterIsRefused(t *testing.T) {
	var logA, logB syncBuffer
	cfgA, cfgB := testConfig(t), testConfig(t)
	cfgA.Log, cfgB.Log = zerolog.New(&logA), zerolog.New(&logB)
	cfgB.Identity.Secret = nextSecret
	a := start(t, cfgA, nil)
	b := start(t, cfgB, map[uint16]Handler{cmdEcho: echo})
	for range 3 {
		if _, err := a.Request(t.Context(), b.Self().Node, cmdEcho, nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("request to another cluster = %v", err)
		}
		p, _ := a.peer(b.Self().Node)
		p.mu.Lock()
		p.retryAt = time.Time{} // do not wait for the back-off
		p.mu.Unlock()
	}
	_, _ = a.Close(), b.Close() // both have logged what they will
	for name, tt := range map[string]struct {
		log  *syncBuffer
		peer id.Node
	}{"dialer": {&logA, b.Self().Node}, "acceptor": {&logB, a.Self().Node}} {
		text := tt.log.String()
		if n := strings.Count(text, "mesh peer refused"); n != 1 {
			t.Errorf("%s logged the refusal %d times:\n%s", name, n, text)
		}
		for _, want := range []string{string(tt.peer), "different cluster secret"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s log lacks %q:\n%s", name, want, text)
			}
		}
	}
}

func TestSecretRotation(t *testing.T) {
	const next = nextSecret
	cfgOld, cfgBoth, cfgNew := testConfig(t), testConfig(t), testConfig(t)
	cfgBoth.Identity.Secret = next + "\n" + testSecret + "\n"
	cfgNew.Identity.Secret = next
	handlers := map[uint16]Handler{cmdEcho: echo}
	oldNode, both, newNode := start(t, cfgOld, handlers), start(t, cfgBoth, handlers), start(t, cfgNew, handlers)
	if _, err := both.Request(t.Context(), newNode.Self().Node, cmdEcho, nil); err != nil {
		t.Errorf("first line does not sign: %v", err)
	}
	// A node that knows only the old secret refuses what the new one signs.
	if _, err := oldNode.Request(t.Context(), both.Self().Node, cmdEcho, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("old secret alone accepts the new one: %v", err)
	}
	// Step one of a rotation: sign with the old, know both.
	cfgStep := testConfig(t)
	cfgStep.Identity.Secret = testSecret + "\n" + next
	step := start(t, cfgStep, handlers)
	for _, other := range []*Mesh{oldNode, both} {
		if _, err := step.Request(t.Context(), other.Self().Node, cmdEcho, nil); err != nil {
			t.Errorf("step one of a rotation can't reach %v: %v", other.Self().Node, err)
		}
	}
}

// writePair writes a certificate of a, its key and a's own certificate.
func writePair(t *testing.T, dir string, a authority, now time.Time) Identity {
	t.Helper()
	return writeNamedPair(t, dir, a, now) // without the names a process would put in
}

func writeNamedPair(t *testing.T, dir string, a authority, now time.Time, names ...*url.URL) Identity {
	t.Helper()
	who := Identity{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"), CAFile: filepath.Join(dir, "ca.pem")}
	leaf, err := a.sign(now, "files", id.Incarnation{1})
	if err != nil {
		t.Fatal(err)
	}
	template := *leaf.Leaf
	template.URIs = names
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	der, err := x509.CreateCertificate(rand.Reader, &template, a.cert, pub, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, _ := x509.MarshalPKCS8PrivateKey(key)
	for file, block := range map[string]*pem.Block{
		who.CertFile: {Type: "CERTIFICATE", Bytes: der},
		who.KeyFile:  {Type: "PRIVATE KEY", Bytes: keyDER},
		who.CAFile:   {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return who
}

func TestCertificateFiles(t *testing.T) {
	ca, _ := deriveAuthority(testSecret)
	dir := t.TempDir()
	who := writePair(t, dir, ca, time.Now())
	cfgA, cfgB := testConfig(t), testConfig(t)
	cfgA.Identity, cfgB.Identity = who, who
	a := start(t, cfgA, nil)
	b := start(t, cfgB, map[uint16]Handler{cmdEcho: echo})
	if _, err := a.Request(t.Context(), b.Self().Node, cmdEcho, nil); err != nil {
		t.Fatal(err)
	}
	if p, _ := a.Peer(b.Self().Node); p != b.Self() {
		t.Errorf("peer = %v, want %v", p, b.Self())
	}

	now := time.Now()
	cfg := testConfig(t).withDefaults()
	cfg.Identity = who
	i, err := openIdentity(cfg)
	if err != nil {
		t.Fatal(err)
	}
	first, _ := i.certificate()
	if err := os.WriteFile(who.CertFile, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		if changed, err := i.refresh(); changed || (err != nil) != (n == 0) {
			t.Errorf("look %d at a bad pair = %v, %v, want one error", n, changed, err)
		}
		if kept, _ := i.certificate(); kept != first {
			t.Error("a bad pair replaced the good one")
		}
	}
	writePair(t, dir, ca, now)
	if changed, err := i.refresh(); !changed || err != nil {
		t.Errorf("a new pair = %v, %v", changed, err)
	}
	if fresh, _ := i.certificate(); fresh == first {
		t.Error("the new pair was not taken")
	}
}

func TestDevelopmentSecret(t *testing.T) {
	dir := t.TempDir()
	first, path, err := developmentSecret(dir)
	if err != nil || len(strings.TrimSpace(first)) != 64 {
		t.Fatalf("developmentSecret = %d bytes, %v", len(first), err)
	}
	if again, _, err := developmentSecret(dir); err != nil || again != first {
		t.Errorf("second use: same %v, %v", again == first, err)
	}
	st, _ := os.Stat(path)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	folder := filepath.Dir(path)
	if left, _ := os.ReadDir(folder); len(left) != 1 {
		t.Errorf("files left beside it: %v", left)
	}
	bad := []struct {
		name  string
		spoil func() error
	}{
		{"file open to others", func() error { return os.Chmod(path, 0o644) }},
		{"symbolic link", func() error {
			target := filepath.Join(dir, "elsewhere")
			return errors.Join(os.Rename(path, target), os.Chmod(target, 0o600), os.Symlink(target, path))
		}},
		{"folder open to others", func() error { return errors.Join(os.Remove(path), os.Chmod(folder, 0o777)) }},
		{"folder is a link", func() error {
			other := filepath.Join(dir, "other")
			return errors.Join(os.Remove(folder), os.Mkdir(other, 0o700), os.Symlink(other, folder))
		}},
	}
	for _, tt := range bad {
		if err := tt.spoil(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := developmentSecret(dir); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestDevelopmentSecretConnects(t *testing.T) {
	dir := t.TempDir()
	var log syncBuffer
	cfgA, cfgB := testConfig(t), testConfig(t)
	cfgA.Identity, cfgB.Identity = Identity{DevelopmentDir: dir}, Identity{DevelopmentDir: dir}
	cfgA.Log = zerolog.New(&log)
	a := start(t, cfgA, nil)
	b := start(t, cfgB, map[uint16]Handler{cmdEcho: echo})
	if _, err := a.Request(t.Context(), b.Self().Node, cmdEcho, nil); err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "development secret"); n != 1 {
		t.Errorf("said so %d times: %s", n, log.String())
	}
}
