package mesh

import (
	"context"
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// watched starts an idle node that looks at its secret file all the time.
func watched(t *testing.T, file string) (*Mesh, *syncBuffer) {
	t.Helper()
	log := new(syncBuffer)
	cfg := testConfig(t)
	cfg.Identity, cfg.Log, cfg.identityEvery = Identity{SecretFile: file}, zerolog.New(log), time.Millisecond
	return start(t, cfg, map[uint16]Handler{cmdEcho: echo}), log
}

func writeFile(t *testing.T, name, text string) { writeMode(t, name, text, 0o600) }

// writeMode changes content and mode at once.
func writeMode(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	next := name + ".new"
	if err := errors.Join(os.WriteFile(next, []byte(text), mode), os.Chmod(next, mode), os.Rename(next, name)); err != nil {
		t.Fatal(err)
	}
}

// Every change of the file is one line, also on a node to which nobody connects.
func TestIdleNodeReadsItsSecretAgain(t *testing.T) {
	if identityEvery > 8*time.Second {
		t.Errorf("the file is read every %v, want what changes logged within 10 s", identityEvery)
	}
	file := filepath.Join(t.TempDir(), "secret")
	writeFile(t, file, testSecret)
	m, log := watched(t, file)
	lines := func() (reloaded, refused int) {
		s := log.String()
		return strings.Count(s, "mesh identity reloaded"), strings.Count(s, "mesh identity change refused")
	}
	steps := []struct {
		name              string
		change            func()
		reloaded, refused int // so far
	}{
		{"a second line", func() { writeFile(t, file, testSecret+"\n"+nextSecret) }, 1, 0},
		{"a poor one", func() { writeFile(t, file, "hush-hush-hush-hush-hush-hush-hush-hush") }, 1, 1},
		{"open to everybody", func() { writeMode(t, file, nextSecret, 0o666) }, 1, 2},
		{"a named pipe", func() {
			if err := makePipe(file + ".pipe"); err != nil {
				t.Skip(err)
			}
			_ = os.Rename(file+".pipe", file)
		}, 1, 3},
		{"gone", func() { _ = os.Remove(file) }, 1, 4},
		{"back", func() { writeFile(t, file, "\ufeff"+nextSecret+"\r\n") }, 2, 4},
	}
	for _, s := range steps {
		s.change()
		eventually(t, s.name, func() bool {
			reloaded, refused := lines()
			return reloaded >= s.reloaded && refused >= s.refused
		})
		for range 3 { // nothing more is said of it
			m.refreshIdentity()
		}
		if reloaded, refused := lines(); reloaded != s.reloaded || refused != s.refused {
			t.Errorf("%s: %d lines of reloads and %d of refusals:\n%s", s.name, reloaded, refused, log.String())
		}
	}
	for _, secret := range []string{testSecret, nextSecret, "hush-hush"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log shows a secret:\n%s", log.String())
		}
	}
}

// A connection does not outlive the line it was made under.
func TestRemovedSecretEndsConnections(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		writeFile(t, filepath.Join(dir, name), text)
		return filepath.Join(dir, name)
	}
	a, logA := watched(t, file("a", testSecret+"\n"+nextSecret))
	old, _ := watched(t, file("old", testSecret))
	fresh, _ := watched(t, file("fresh", nextSecret+"\n"+testSecret))
	busy, _ := watched(t, file("busy", testSecret))
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	a.Handle(cmdOther, func(context.Context, Peer, []byte) ([]byte, error) { <-stop; return nil, nil })
	for _, m := range []*Mesh{old, fresh, busy} {
		if _, err := m.Request(t.Context(), a.Self().Node, cmdEcho, nil); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan error, 1)
	go func() { // one that keeps its connection busy ends too
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := busy.Request(ctx, a.Self().Node, cmdOther, nil)
		ended <- err
	}()
	file("a", nextSecret)
	if err := <-ended; !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrTimeout) {
		t.Errorf("a request under a removed line = %v", err)
	}
	eventually(t, "the end of the connections", func() bool { return len(a.connections()) == 1 })
	if p, ok := a.Peer(fresh.Self().Node); !ok || p != fresh.Self() {
		t.Error("the connection under the line that stays has ended")
	}
	if _, err := old.Request(t.Context(), a.Self().Node, cmdEcho, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a node that knows only the removed line = %v", err)
	}
	if !strings.Contains(logA.String(), `"links_ended":2`) {
		t.Errorf("the log does not say how many links ended:\n%s", logA.String())
	}
}

// A leaf made while the clock was ahead is not kept once it is right, and does not lock the
// node out as long as it was ahead; small differences of clocks do no harm either way.
func TestClocks(t *testing.T) {
	right := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	var shift atomic.Int64
	cfg := testConfig(t).withDefaults()
	cfg.now = func() time.Time { return right.Add(time.Duration(shift.Load())) }
	who, err := openIdentity(cfg)
	if err != nil {
		t.Fatal(err)
	}
	other := testConfig(t).withDefaults()
	other.now = func() time.Time { return right }
	judge, err := openIdentity(other)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		ahead time.Duration
		want  bool
	}{{0, true}, {7 * time.Hour, true}, {48 * time.Hour, false}, {0, true}, {-7 * time.Hour, true}, {-48 * time.Hour, false}, {0, true}} {
		shift.Store(int64(tt.ahead))
		leaf, err := who.certificate()
		if err != nil {
			t.Fatal(err)
		}
		if err := judge.verifyChain([]*x509.Certificate{leaf.Leaf}); (err == nil) != tt.want {
			t.Errorf("a leaf of a clock that is %v ahead: %v", tt.ahead, err)
		}
	}
	// The same with clocks that run: time.Now has a second reading that nobody sets back.
	shift.Store(0)
	cfg.now = func() time.Time { return time.Now().Add(time.Duration(shift.Load())) }
	if who, err = openIdentity(cfg); err != nil {
		t.Fatal(err)
	}
	shift.Store(int64(time.Hour))
	ahead, _ := who.certificate()
	shift.Store(0)
	if back, _ := who.certificate(); back == ahead {
		t.Error("a leaf from the future is kept")
	}
}

// Where certificates name a role, nobody takes another.
func TestRoleOfCertificateFiles(t *testing.T) {
	ca, _ := deriveAuthority(testSecret)
	pair := func(role string) Identity {
		return writeNamedPair(t, t.TempDir(), ca, time.Now(), &url.URL{Scheme: leafScheme, Host: role})
	}
	cfg := testConfig(t)
	cfg.Identity = pair("http")
	if _, err := New(cfg); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "http") {
		t.Errorf("a udp node with the certificate of an http node = %v", err)
	}
	cfg.Role = "http"
	a := start(t, cfg, nil)
	cfg = testConfig(t)
	cfg.Identity = pair("udp")
	b := start(t, cfg, map[uint16]Handler{CmdReserve: echo})
	if _, err := a.Request(t.Context(), b.Self().Node, CmdReserve, nil); err != nil {
		t.Errorf("request of a node with the role of its certificate = %v", err)
	}
	liar := testConfig(t)
	liar.Identity = pair("udp")
	c, err := New(liar)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	c.self.Role = "http" // it says so, its certificate does not
	if _, err := c.Request(t.Context(), b.Self().Node, CmdReserve, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("request of a node that takes another role = %v", err)
	}
}

func TestFilesOpenToEverybody(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes")
	}
	var log syncBuffer
	file := filepath.Join(t.TempDir(), "secret")
	writeFile(t, file, testSecret)
	cfg := testConfig(t)
	cfg.Identity, cfg.Log = Identity{SecretFile: file}, zerolog.New(&log)
	for mode, want := range map[os.FileMode]struct{ refused, warned bool }{0o600: {}, 0o640: {}, 0o644: {warned: true}, 0o602: {refused: true}} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		before := strings.Count(log.String(), "may read the secret")
		_, err := New(cfg)
		if refused := errors.Is(err, ErrConfig); refused != want.refused || refused && !strings.Contains(err.Error(), "chmod") {
			t.Errorf("mode %v: %v", mode, err)
		}
		if warned := strings.Count(log.String(), "may read the secret") > before; warned != want.warned {
			t.Errorf("mode %v: warned %v", mode, warned)
		}
	}
}

// Who may rename the file away may put another in its place, whatever its own mode is.
func TestDirectoryOpenToEverybody(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes")
	}
	const warning = "put another file in place"
	open := filepath.Join(t.TempDir(), "open")
	file := filepath.Join(open, "sub", "secret")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, file, testSecret)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for mode, warned := range map[os.FileMode]bool{0o700: false, 0o777: true, 0o777 | os.ModeSticky: false, 0o703: true} {
		if err := os.Chmod(open, mode); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{file, link} {
			var log syncBuffer
			cfg := testConfig(t)
			cfg.Identity, cfg.Log = Identity{SecretFile: path}, zerolog.New(&log)
			if _, err := New(cfg); err != nil {
				t.Fatal(err)
			}
			if text := log.String(); strings.Contains(text, warning) != warned || warned && !strings.Contains(text, `"dir":"`+open+`"`) {
				t.Errorf("%s in a directory of mode %v: %s", path, mode, text)
			}
		}
	}
}

// A cleaner takes the development secret while nodes run: the next node has it all the same.
func TestDevelopmentSecretIsKept(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig(t)
	cfg.Identity, cfg.identityEvery = Identity{DevelopmentDir: dir}, 5*time.Millisecond
	start(t, cfg, nil)
	secret, path, err := developmentSecret(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the secret's return", func() bool { again, err := readOwned(path); return err == nil && again == secret })
	long := time.Now().Add(-2 * developmentSecretAge)
	if err := os.Chtimes(path, long, long); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a touch", func() bool {
		st, err := os.Stat(path)
		return err == nil && time.Since(st.ModTime()) < developmentSecretAge
	})
}
