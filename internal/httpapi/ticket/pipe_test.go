//go:build unix

package ticket

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

func pipe(t *testing.T, path string) {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

// within fails the test when f hangs, and then lets it go by writing into the pipe.
func within(t *testing.T, path string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("hangs at a pipe")
		if w, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			_ = w.Close()
		}
		<-done
	}
}

// TestPipeForKeys: a pipe in place of a file of keys is an error and no wait, at start and
// later, and the good file after it is taken.
func TestPipeForKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	pipe(t, path)
	for _, o := range []Options{{SecretFile: path}, {Secret: lineA, KeysFile: path}} {
		o.Audience, o.Log = "diarkis", zerolog.Nop()
		within(t, path, func() {
			if _, err := New(o); err == nil || !strings.Contains(err.Error(), "a named pipe") {
				t.Errorf("error %v", err)
			}
		})
	}
	replace := func(f func(string)) {
		f(path + ".new")
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	replace(func(p string) { write(t, p, []byte(lineA)) })
	v, err := New(Options{SecretFile: path, Audience: "diarkis", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	replace(func(p string) { pipe(t, p) })
	within(t, path, v.reload)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	within(t, path, func() { _ = v.Run(ctx) })
	replace(func(p string) { write(t, p, []byte(lineB)) })
	within(t, path, v.reload)
	s, err := NewSigner([]byte(lineB), "diarkis")
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.Sign("ann", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(text); err != nil {
		t.Errorf("the good file after the pipe: %v", err)
	}
}

// TestRunEndsWhileAFileHangs: a file system that doesn't answer holds up no stop.
func TestRunEndsWhileAFileHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	write(t, path, []byte(lineA))
	synctest.Test(t, func(t *testing.T) {
		v, err := New(Options{SecretFile: path, Audience: "diarkis", Log: zerolog.Nop()})
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		v.sources[0].content = nil // so that it is read as new
		v.sources[0].parse = func([]byte) ([]key, error) { <-release; return nil, nil }
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- v.Run(ctx) }()
		time.Sleep(2 * reloadInterval)
		cancel()
		synctest.Wait()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("Run waits for the file")
		}
		close(release)
	})
}
