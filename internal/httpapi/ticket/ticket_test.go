package ticket

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	lineA = "3f8a1c5d7e9b2046a8c0e1f35b7d9a2c4e6f8091b3d5a7c9e0f2143658790bad"
	lineB = "Zk3v9QpLr7Tn2XwYb5Hs8JdMf4Gc6KeA1uRi0oPq+S4="
)

// signers holds one private key of each kind.
type signers struct {
	ed   ed25519.PrivateKey
	es   *ecdsa.PrivateKey
	p384 *ecdsa.PrivateKey
}

func newSigners(t testing.TB) signers {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	es, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signers{ed, es, p384}
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func edJWK(k ed25519.PrivateKey, kid string) map[string]any {
	return map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(k.Public().(ed25519.PublicKey)), "kid": kid}
}

func ecJWK(t testing.TB, k *ecdsa.PrivateKey, kid string) map[string]any {
	t.Helper()
	p, err := k.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	n := (len(p) - 1) / 2
	return map[string]any{"kty": "EC", "crv": k.Params().Name, "x": b64(p[1 : 1+n]), "y": b64(p[1+n:]), "kid": kid}
}

func jwks(t testing.TB, keys ...map[string]any) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func sign(t testing.TB, m jwt.SigningMethod, key any, header map[string]any, c jwt.MapClaims) string {
	t.Helper()
	tok := jwt.NewWithClaims(m, c)
	for k, v := range header {
		tok.Header[k] = v
	}
	s, err := tok.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAttacks is the table of tickets that somebody might try. "" is a good one.
func TestAttacks(t *testing.T) {
	k := newSigners(t)
	file := filepath.Join(t.TempDir(), "keys.json")
	write(t, file, jwks(t, edJWK(k.ed, "ed1"), ecJWK(t, k.es, "es1")))
	now := time.Unix(1_800_000_000, 0)
	v, err := New(Options{Secret: lineA + "\n" + lineB, KeysFile: file, Audience: "diarkis", Now: func() time.Time { return now }, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	exp := func(d time.Duration) int64 { return now.Add(d).Unix() }
	claims := func(change ...any) jwt.MapClaims {
		c := jwt.MapClaims{"sub": "ann", "aud": "diarkis", "exp": exp(time.Minute)}
		for i := 0; i < len(change); i += 2 {
			if change[i+1] == nil {
				delete(c, change[i].(string))
			} else {
				c[change[i].(string)] = change[i+1]
			}
		}
		return c
	}
	hs := func(change ...any) string {
		return sign(t, jwt.SigningMethodHS256, []byte(lineA), nil, claims(change...))
	}
	edKey := k.ed.Public().(ed25519.PublicKey)
	spki, err := x509.MarshalPKIXPublicKey(edKey)
	if err != nil {
		t.Fatal(err)
	}
	point, err := k.es.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	kid := func(id any) map[string]any { return map[string]any{"kid": id} }
	raw := func(header, payload string) string {
		s := b64([]byte(header)) + "." + b64([]byte(payload))
		sig, err := jwt.SigningMethodHS256.Sign(s, []byte(lineA))
		if err != nil {
			t.Fatal(err)
		}
		return s + "." + b64(sig)
	}
	good := hs()
	for _, c := range []struct{ name, ticket, want string }{
		{"HS256 by the first line", good, ""},
		{"HS256 by the second line, during a rotation", sign(t, jwt.SigningMethodHS256, []byte(lineB), nil, claims()), ""},
		{"EdDSA", sign(t, jwt.SigningMethodEdDSA, k.ed, kid("ed1"), claims()), ""},
		{"EdDSA without a kid", sign(t, jwt.SigningMethodEdDSA, k.ed, nil, claims()), ""},
		{"ES256", sign(t, jwt.SigningMethodES256, k.es, kid("es1"), claims()), ""},
		{"a list of audiences", hs("aud", []string{"shop", "diarkis"}), ""},
		{"expired within the slack", hs("exp", exp(-29*time.Second)), ""},
		{"10 min ahead", hs("exp", exp(10*time.Minute)), ""},
		{"valid from within the slack", hs("nbf", exp(29*time.Second)), ""},

		{"alg none", sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil, claims()), "signature"},
		{"alg none with the signature of another", sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil, claims()) + good[strings.LastIndexByte(good, '.')+1:], "signature"},
		{"alg None", raw(`{"alg":"None"}`, `{"sub":"ann","aud":"diarkis","exp":1800000060}`), "signature"},
		{"no alg", raw(`{}`, `{"sub":"ann","aud":"diarkis","exp":1800000060}`), "signature"},
		{"no signature", good[:strings.LastIndexByte(good, '.')+1], "signature"},
		{"HS256 by the bytes of the public key", sign(t, jwt.SigningMethodHS256, []byte(edKey), kid("ed1"), claims()), "signature"},
		{"HS256 by the public key in SPKI", sign(t, jwt.SigningMethodHS256, spki, kid("ed1"), claims()), "signature"},
		{"HS256 by the public key in PEM", sign(t, jwt.SigningMethodHS256, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), nil, claims()), "signature"},
		{"HS256 by the point of the P-256 key", sign(t, jwt.SigningMethodHS256, point, kid("es1"), claims()), "signature"},
		{"HS256 by nothing", sign(t, jwt.SigningMethodHS256, []byte{}, nil, claims()), "signature"},
		{"HS256 by both lines at once", sign(t, jwt.SigningMethodHS256, []byte(lineA+"\n"+lineB), nil, claims()), "signature"},
		{"HS384 by the right secret", sign(t, jwt.SigningMethodHS384, []byte(lineA), nil, claims()), "signature"},
		{"HS512 by the right secret", sign(t, jwt.SigningMethodHS512, []byte(lineA), nil, claims()), "signature"},
		{"ES384 by a P-384 key", sign(t, jwt.SigningMethodES384, k.p384, kid("es1"), claims()), "signature"},
		{"EdDSA by somebody else", sign(t, jwt.SigningMethodEdDSA, newSigners(t).ed, kid("ed1"), claims()), "signature"},
		{"the kid of another key", sign(t, jwt.SigningMethodEdDSA, k.ed, kid("es1"), claims()), "signature"},
		{"an unknown kid", sign(t, jwt.SigningMethodES256, k.es, kid("../../dev/null"), claims()), "signature"},
		{"a kid that is no text", sign(t, jwt.SigningMethodES256, k.es, kid(1), claims()), "signature"},
		{"a key of its own", sign(t, jwt.SigningMethodEdDSA, newSigners(t).ed, map[string]any{"jwk": map[string]any{"kty": "OKP"}}, claims()), "signature"},
		{"a critical header", sign(t, jwt.SigningMethodHS256, []byte(lineA), map[string]any{"crit": []string{"exp"}}, claims()), "malformed"},

		{"another audience", hs("aud", "shop"), "audience"},
		{"the audience in capitals", hs("aud", "DIARKIS"), "audience"},
		{"no audience", hs("aud", nil), "audience"},
		{"no exp", hs("exp", nil), "lifetime"},
		{"EXP instead of exp", hs("exp", nil, "EXP", exp(time.Minute)), "lifetime"},
		{"exp null", raw(`{"alg":"HS256"}`, `{"sub":"ann","aud":"diarkis","exp":null}`), "malformed"},
		{"exp 11 min ahead", hs("exp", exp(11*time.Minute)), "lifetime"},
		{"exp in the far future", raw(`{"alg":"HS256"}`, `{"sub":"ann","aud":"diarkis","exp":1e300}`), "malformed"},
		{"exp in a far future that can be written", hs("exp", int64(1)<<52), "lifetime"},
		{"exp is a text", hs("exp", "soon"), "malformed"},
		{"exp 31 s ago", hs("exp", exp(-31*time.Second)), "expired"},
		{"exp before 1970", hs("exp", -1), "expired"},
		{"nbf past all time", hs("nbf", 1e300), "malformed"},
		{"nbf past what seconds can count", hs("nbf", 1e19), "malformed"},
		{"nbf before all time", hs("nbf", -1e300), "malformed"},
		{"nbf 31 s ahead", hs("nbf", exp(31*time.Second)), "not_yet"},
		{"no sub", hs("sub", nil), "subject"},
		{"an empty sub", hs("sub", ""), "subject"},
		{"SUB instead of sub", hs("sub", nil, "SUB", "ann"), "subject"},
		{"a sub that is a number", hs("sub", 7), "subject"},
		{"half a surrogate pair in sub", raw(`{"alg":"HS256"}`, `{"sub":"\ud800","aud":"diarkis","exp":1800000060}`), "subject"},
		{"bytes in sub that are no UTF-8", raw(`{"alg":"HS256"}`, "{\"sub\":\"\xff\",\"aud\":\"diarkis\",\"exp\":1800000060}"), "malformed"},
		{"a type that is a list", hs("type", []string{"UDP"}), "malformed"},

		{"nothing", "", "malformed"},
		{"dots", "..", "malformed"},
		{"four parts", good + ".x", "malformed"},
		{"padding", strings.Replace(good, ".", "=.", 1), "malformed"},
		{"a payload that is null", raw(`{"alg":"HS256"}`, `null`), "lifetime"},
		{"a payload that is a list", raw(`{"alg":"HS256"}`, `[]`), "malformed"},
		{"trailing bits in the base64", good[:len(good)-1] + nextDigit(good[len(good)-1]), "malformed"},
		{"huge", hs("pad", strings.Repeat("x", BytesMax)), "malformed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := v.Verify(c.ticket)
			reason := ""
			if e, ok := errors.AsType[*Error](err); ok {
				reason = e.Reason
			}
			if reason != c.want || (err == nil) != (c.want == "") {
				t.Fatalf("Verify = %+v, %v (%s), want %q", got, err, reason, c.want)
			}
			if err == nil && got.UID != "ann" {
				t.Errorf("uid %q", got.UID)
			}
			if err != nil && c.ticket != "" && len(c.ticket) > 8 && strings.Contains(err.Error(), c.ticket[:8]) {
				t.Errorf("the error holds the ticket: %v", err)
			}
		})
	}
}

// nextDigit returns the base64url digit after one, so that a decoder that ignores trailing
// bits sees no difference.
func nextDigit(c byte) string {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(digits[strings.IndexByte(digits, c)^1])
}

func TestClaims(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	v, err := New(Options{Secret: lineA, Audience: "a", Now: func() time.Time { return now }, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	c, err := v.Verify(sign(t, jwt.SigningMethodHS256, []byte(lineA), nil, jwt.MapClaims{
		"sub": "Ann ", "SUB": "bob", "aud": "a", "exp": now.Unix() + 1, "type": "RANKED", "props": map[string]any{"rank": 7},
	}))
	if err != nil || c.UID != "Ann " || c.Type != "RANKED" || string(c.Props) != `{"rank":7}` {
		t.Errorf("claims %+v, %v", c, err)
	}
}

func TestBadKeySets(t *testing.T) {
	k := newSigners(t)
	with := func(m map[string]any, change ...any) map[string]any {
		for i := 0; i < len(change); i += 2 {
			m[change[i].(string)] = change[i+1]
		}
		return m
	}
	many := []map[string]any{}
	for range keysMax + 1 {
		many = append(many, edJWK(newSigners(t).ed, ""))
	}
	for _, c := range []struct {
		name string
		set  []byte
		want string
	}{
		{"nothing", nil, "not a JWKS"},
		{"a key alone", []byte(`{"kty":"OKP"}`), "0 keys"},
		{"no key", []byte(`{"keys":[]}`), "0 keys"},
		{"too many", jwks(t, many...), "17 keys"},
		{"oct", jwks(t, map[string]any{"kty": "oct", "k": b64([]byte(lineA))}), "oct"},
		{"oct in disguise", jwks(t, with(edJWK(k.ed, ""), "k", b64([]byte(lineA)))), "oct"},
		{"oct behind a good one", jwks(t, edJWK(k.ed, "a"), map[string]any{"kty": "oct", "k": "AAAA"}), "key 2: is a symmetric key"},
		{"a private key", jwks(t, with(edJWK(k.ed, ""), "d", b64(k.ed.Seed()))), "private key"},
		{"RSA", jwks(t, map[string]any{"kty": "RSA", "n": "AQAB", "e": "AQAB"}), "only OKP"},
		{"P-384", jwks(t, ecJWK(t, k.p384, "")), "only OKP"},
		{"P-384 called P-256", jwks(t, with(ecJWK(t, k.p384, ""), "crv", "P-256")), "32 bytes"},
		{"a point off the curve", jwks(t, with(ecJWK(t, k.es, ""), "y", b64(make([]byte, 32)))), "not a point"},
		{"X25519", jwks(t, with(edJWK(k.ed, ""), "crv", "X25519")), "only OKP"},
		{"a short key", jwks(t, with(edJWK(k.ed, ""), "x", "AAAA")), "32 bytes"},
		{"alg of another kind", jwks(t, with(edJWK(k.ed, ""), "alg", "HS256")), "does not fit"},
		{"none as alg", jwks(t, with(ecJWK(t, k.es, ""), "alg", "none")), "does not fit"},
		{"for encryption", jwks(t, with(ecJWK(t, k.es, ""), "use", "enc")), "not for signatures"},
		{"one kid twice", jwks(t, edJWK(k.ed, "a"), ecJWK(t, k.es, "a")), "kid of another"},
	} {
		if _, err := parseJWKS(c.set); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// logBuffer is a log that one goroutine writes and another reads.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns what was written since it was last called.
func (l *logBuffer) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

// TestKeysAreReadAgain changes both files under a running verifier: a good change is taken,
// a bad one is not, and each is one line in the log.
func TestKeysAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, dir := newSigners(t), t.TempDir()
		secret, set := filepath.Join(dir, "secret"), filepath.Join(dir, "keys.json")
		write(t, secret, []byte(lineA))
		write(t, set, jwks(t, edJWK(k.ed, "a")))
		log := &logBuffer{}
		v, err := New(Options{SecretFile: secret, KeysFile: set, Audience: "diarkis", Log: zerolog.New(log)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- v.Run(ctx) }()
		claims := func() jwt.MapClaims {
			return jwt.MapClaims{"sub": "ann", "aud": "diarkis", "exp": time.Now().Add(time.Minute).Unix()}
		}
		ok := func(step string, a, b, ed, es bool) {
			t.Helper()
			time.Sleep(5 * reloadInterval) // the bubble's clock
			synctest.Wait()
			for name, x := range map[string]struct {
				ticket string
				want   bool
			}{
				"line A":  {sign(t, jwt.SigningMethodHS256, []byte(lineA), nil, claims()), a},
				"line B":  {sign(t, jwt.SigningMethodHS256, []byte(lineB), nil, claims()), b},
				"Ed25519": {sign(t, jwt.SigningMethodEdDSA, k.ed, nil, claims()), ed},
				"P-256":   {sign(t, jwt.SigningMethodES256, k.es, nil, claims()), es},
			} {
				if _, err := v.Verify(x.ticket); (err == nil) != x.want {
					t.Errorf("%s, %s: %v, want good = %v", step, name, err, x.want)
				}
			}
		}
		lines := func(step string, want ...string) {
			t.Helper()
			text := log.take()
			got := strings.Split(strings.TrimSpace(text), "\n")
			if text == "" {
				got = nil
			}
			for i := range want {
				if i >= len(got) || !strings.Contains(got[i], want[i]) {
					t.Errorf("%s: log %q, want %q", step, got, want)
					break
				}
			}
			if len(got) != len(want) {
				t.Errorf("%s: %d log lines, want %d: %q", step, len(got), len(want), got)
			}
			if strings.Contains(text, lineA) || strings.Contains(text, lineB) {
				t.Errorf("%s: a key in the log", step)
			}
		}
		ok("at first", true, false, true, false)
		lines("at first")
		write(t, secret, []byte(lineA+"\n"+lineB+"\n"))
		ok("second line", true, true, true, false)
		lines("second line", "ticket keys reloaded")
		write(t, secret, []byte(lineB))
		ok("first line gone", false, true, true, false)
		lines("first line gone", "ticket keys reloaded")
		write(t, secret, []byte("changeme"))
		ok("bad secret", false, true, true, false)
		lines("bad secret", "ticket key change refused, old ones kept")
		write(t, set, jwks(t, edJWK(k.ed, "a"), ecJWK(t, k.es, "b")))
		ok("another public key", false, true, true, true)
		lines("another public key", "ticket keys reloaded")
		write(t, set, jwks(t, ecJWK(t, k.es, "b"), map[string]any{"kty": "oct", "k": "AAAA"}))
		ok("oct", false, true, true, true)
		lines("oct", "ticket key change refused")
		if err := os.Remove(set); err != nil {
			t.Fatal(err)
		}
		ok("file gone", false, true, true, true)
		lines("file gone", "ticket key change refused")
		write(t, set, jwks(t, ecJWK(t, k.es, "b")))
		ok("file back", false, true, false, true)
		lines("file back", "ticket keys reloaded")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestNewRefusesBadSources(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	write(t, bad, []byte("short"))
	big := filepath.Join(dir, "big")
	write(t, big, bytes.Repeat([]byte("x"), fileBytesMax+1))
	for name, o := range map[string]Options{
		"no source":       {},
		"short secret":    {Secret: "short"},
		"poor secret":     {Secret: strings.Repeat("ab", 32)},
		"bad file":        {SecretFile: bad},
		"missing file":    {SecretFile: filepath.Join(dir, "missing")},
		"a directory":     {KeysFile: dir},
		"large file":      {KeysFile: big},
		"no JWKS":         {Secret: lineA, KeysFile: bad},
		"good and no set": {Secret: lineA, KeysFile: filepath.Join(dir, "missing")},
	} {
		o.Audience, o.Log = "diarkis", zerolog.Nop()
		if _, err := New(o); err == nil {
			t.Errorf("%s went through", name)
		} else if strings.Contains(err.Error(), lineA) {
			t.Errorf("%s: a key in the error", name)
		}
	}
}

func TestSigner(t *testing.T) {
	k, now := newSigners(t), time.Now()
	inPEM := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	set := filepath.Join(t.TempDir(), "keys.json")
	write(t, set, jwks(t, edJWK(k.ed, "a"), ecJWK(t, k.es, "b")))
	v, err := New(Options{Secret: lineB, KeysFile: set, Audience: "game", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(k.es)
	if err != nil {
		t.Fatal(err)
	}
	// What openssl ecparam -name prime256v1 -genkey writes.
	ecparam := append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}}),
		pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})...)
	for name, content := range map[string][]byte{
		"secret": []byte(lineB + "\n" + lineA + "\n"), "Ed25519": inPEM(k.ed), "P-256": inPEM(k.es), "P-256 of openssl ecparam": ecparam,
	} {
		s, err := NewSigner(content, "game")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		text, err := s.Sign("bot-1", now)
		if c, verr := v.Verify(text); err != nil || verr != nil || c.UID != "bot-1" {
			t.Errorf("%s: %v, %v, %+v", name, err, verr, c)
		}
	}
	for name, content := range map[string][]byte{"P-384": inPEM(k.p384), "nothing": nil, "broken PEM": []byte("-----BEGIN PRIVATE KEY-----"), "short": []byte("abc")} {
		if _, err := NewSigner(content, "game"); err == nil {
			t.Errorf("%s went through", name)
		}
	}
	for kind, want := range map[string]string{
		"ENCRYPTED PRIVATE KEY": "passphrase", "PUBLIC KEY": "private", "RSA PRIVATE KEY": "genpkey", "OPENSSH PRIVATE KEY": "genpkey",
		"EC PRIVATE KEY": "topk8", "EC PARAMETERS": "genpkey",
	} {
		content := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte("x")})
		if _, err := NewSigner(content, "game"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want what to do: %s", kind, err, want)
		}
	}
}

// TestTextsNameTheClaim: who signs tickets reads what is wrong with them.
func TestTextsNameTheClaim(t *testing.T) {
	v, err := New(Options{Secret: lineA, Audience: "diarkis", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	exp := time.Now().Add(time.Minute).Unix()
	for want, claims := range map[string]jwt.MapClaims{
		"no aud":             {"sub": "ann", "exp": exp},
		"another audience":   {"sub": "ann", "exp": exp, "aud": "shop"},
		"no exp":             {"sub": "ann", "aud": "diarkis"},
		"exp at most":        {"sub": "ann", "aud": "diarkis", "exp": exp + 3600},
		"names no user":      {"aud": "diarkis", "exp": exp},
		"has expired":        {"sub": "ann", "aud": "diarkis", "exp": exp - 3600},
		"is not valid yet":   {"sub": "ann", "aud": "diarkis", "exp": exp, "nbf": exp + 600},
		"ticket has no exp:": {},
	} {
		secret, err := config.TicketKeyLines([]byte(lineA))
		if err != nil {
			t.Fatal(err)
		}
		text, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(secret[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", claims, err, want)
		}
	}
	if _, err := parseJWKS([]byte("-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n")); err == nil || !strings.Contains(err.Error(), "PEM") {
		t.Errorf("a public key in PEM: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	now := time.Unix(1_800_000_000, 0)
	v, err := New(Options{Secret: lineA, Audience: "diarkis", Now: func() time.Time { return now }, Log: zerolog.Nop()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("", "")
	f.Add(`{"alg":"HS256","kid":"a"}`, `{"sub":"ann","aud":["diarkis"],"exp":1800000060,"nbf":1.5,"type":"UDP","props":{"a":[1]}}`)
	f.Add(`{"alg":"none"}`, `null`)
	f.Fuzz(func(t *testing.T, header, payload string) {
		text := b64([]byte(header)) + "." + b64([]byte(payload))
		sig, err := jwt.SigningMethodHS256.Sign(text, []byte(lineA))
		if err != nil {
			t.Fatal(err)
		}
		c, err := v.Verify(text + "." + b64(sig)) // signed by us, so that everything behind is reached
		if err == nil && c.UID == "" {
			t.Error("a good ticket for nobody")
		}
		if _, err := v.Verify(text + "." + b64(sig[1:])); err == nil {
			t.Error("a signature that lacks a byte is good")
		}
		_, _ = v.Verify(header + payload)
	})
}

func FuzzParseJWKS(f *testing.F) {
	k := newSigners(f)
	f.Add(jwks(f, edJWK(k.ed, "a"), ecJWK(f, k.es, "b")))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := parseJWKS(b)
		if err != nil {
			return
		}
		for _, k := range keys {
			switch k.value.(type) {
			case ed25519.PublicKey:
				if k.alg != edDSA {
					t.Errorf("an Ed25519 key for %s", k.alg)
				}
			case *ecdsa.PublicKey:
				if k.alg != es256 {
					t.Errorf("a P-256 key for %s", k.alg)
				}
			default:
				t.Errorf("a key that is not public: %T", k.value)
			}
		}
	})
}
