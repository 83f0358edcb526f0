package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// clockEnv names the file by which a build with a clock is set wrong: seconds to add.
const clockEnv = "CHAOS_CLOCK"

// binaryWithClock builds a diarkisd whose wall clock a test can set. Nothing in the
// daemon knows of that: what differs is the function time.Now of the Go it is built
// with, replaced by -overlay. (A time namespace shifts the clocks since boot, never the
// wall clock, and what is linked statically takes no library between.) Durations and
// timers stay right, as they do when an operator or NTP sets a clock.
func binaryWithClock(t *testing.T) string {
	t.Helper()
	dir := filepath.Dir(binary) // as long as the tests run
	out := filepath.Join(dir, "diarkisd-clock")
	if _, err := os.Stat(out); err == nil {
		return out
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("go env GOROOT: %v", err)
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	const now = "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n"
	if bytes.Count(text, []byte(now)) != 1 {
		t.Fatalf("time.Now in %s is not what it was when this was written; the overlay has to follow", source)
	}
	text = bytes.Replace(text, []byte(now), []byte(now+"\tsec += clockWrong.Load()\n"), 1)
	text = bytes.Replace(text, []byte("import (\n"), []byte("import (\n\t\"internal/runtime/atomic\"\n\t\"syscall\"\n"), 1)
	text = append(text, []byte(clockSetter)...)
	patched, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {source: patched}})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{patched: text, overlay: replace} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-overlay", overlay, "-o", out, "../cmd/diarkisd")
	if message, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build diarkisd with a clock: %v\n%s", err, message)
	}
	return out
}

// clockIsOff tells whether the node's wall clock is wrong by so much, as the date of its
// answers says.
func (n *node) clockIsOff(wrong time.Duration) bool {
	res, err := n.place.client().Get("http://" + n.Admin + "/livez")
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	date, err := http.ParseTime(res.Header.Get("Date"))
	return err == nil && (time.Until(date)-wrong).Abs() < 3*time.Second
}

// clockSetter reads the file now and then.
var clockSetter = fmt.Sprintf(`
var clockWrong atomic.Int64

func init() {
	name, ok := syscall.Getenv(%q)
	if !ok {
		return
	}
	read := func() {
		fd, err := syscall.Open(name, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		b := make([]byte, 32)
		n, _ := syscall.Read(fd, b)
		_ = syscall.Close(fd)
		var sec int64
		sign := int64(1)
		for _, c := range b[:max(n, 0)] {
			if c == '-' {
				sign = -1
			}
			if c >= '0' && c <= '9' {
				sec = sec*10 + int64(c-'0')
			}
		}
		clockWrong.Store(sign * sec)
	}
	read()
	go func() {
		for {
			Sleep(50 * Millisecond)
			read()
		}
	}()
}
`, clockEnv)
