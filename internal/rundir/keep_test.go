//go:build unix

package rundir

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestThePrivateDirectoryIsKept: whoever cleans up takes directories whole.
func TestThePrivateDirectoryIsKept(t *testing.T) {
	d := open(t)
	n := Node{Role: "udp", PID: nobody, Mesh: "10.0.0.1:1"}
	c := claim(t, d, n.Role, n.PID)
	write := func() (err error) {
		if n.ProbeKeyFile, err = d.WriteProbeKey(n.Role, n.PID, []byte("key")); err != nil {
			return err
		}
		return d.WriteNode(n)
	}
	must(t, write())
	a, err := d.WriteAddresses(n.Role, n.PID, n.Mesh, "10.0.0.1:2")
	must(t, err)
	keep := func() {
		t.Helper()
		must(t, c.Keep(write, n.ProbeKeyFile))
		must(t, a.Refresh())
	}
	must(t, os.RemoveAll(d.Private()))
	keep()
	if nodes, err := d.Nodes(); err != nil || len(nodes) != 1 {
		t.Errorf("after the private directory was removed: Nodes = %v, %v", nodes, err)
	}
	if info, err := os.Stat(d.Private()); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the private directory is %v, %v", info, err)
	}
	for _, lock := range []string{d.nodeLock(n.Role, n.PID), d.plainLock(MeshAddr, 0), d.plainLock(PublicAddr, 0)} {
		if held, err := lockHeld(lock); err != nil || !held {
			t.Errorf("%s is not held: %v", lock, err)
		}
	}
	must(t, os.Remove(n.ProbeKeyFile)) // alone
	keep()
	if key, err := ReadProbeKey(n.ProbeKeyFile); err != nil || string(key) != "key" {
		t.Errorf("the key of the probe is %q, %v", key, err)
	}

	// Another node has got the plain name meanwhile: it is that one's now.
	must(t, os.RemoveAll(d.Private()))
	must(t, d.ensure())
	b, err := d.WriteAddresses("udp", nobody+1, "10.0.0.2:1", "")
	must(t, err)
	keep()
	must(t, b.Refresh())
	if got := read(t, filepath.Join(d.Path(), MeshAddr)); got != "10.0.0.2:1" || a.Owns(MeshAddr) {
		t.Errorf("the plain name holds %q", got)
	}
	must(t, b.Remove())
	must(t, a.Remove())
	must(t, c.Release())
}

// TestThePrivateDirectoryIsLookedAtEachTime: in a directory that everybody may write, another
// may take its place while the node runs.
func TestThePrivateDirectoryIsLookedAtEachTime(t *testing.T) {
	d := open(t)
	n := Node{Role: "udp", PID: nobody}
	c := claim(t, d, n.Role, n.PID)
	must(t, d.WriteNode(n))
	theirs := t.TempDir()
	must(t, os.Rename(d.Private(), d.Private()+".away"))
	must(t, os.Symlink(theirs, d.Private()))
	for what, do := range map[string]func() error{
		"Keep":          func() error { return c.Keep(func() error { return d.WriteNode(n) }) },
		"WriteNode":     func() error { return d.WriteNode(n) },
		"WriteProbeKey": func() error { _, err := d.WriteProbeKey("udp", 1, []byte("key")); return err },
		"Ask":           func() error { _, err := d.Ask(n, Task{Name: "Online"}); return err },
		"Finish":        func() error { return (&Asked{dir: d, tail: "udp.1.X"}).Finish(Outcome{}) },
		"Claim":         func() error { _, err := d.Claim("udp", 1); return err },
		"Addresses":     func() error { _, err := d.WriteAddresses("udp", 1, "10.0.0.1:1", ""); return err },
	} {
		if err := do(); err == nil || !strings.Contains(err.Error(), "mode 0700") {
			t.Errorf("%s through another's link = %v", what, err)
		}
	}
	must(t, os.WriteFile(filepath.Join(theirs, "task.udp."+strconv.Itoa(nobody)+".X"), []byte("Offline\n"), 0o600))
	if asked, _ := d.TakeTasks("udp", nobody); len(asked) != 0 {
		t.Errorf("a task in another's directory was taken: %+v", asked[0])
	}
	must(t, c.Release())
	d.Sweep()
	if left, err := os.ReadDir(theirs); err != nil || len(left) != 1 {
		t.Errorf("in another's directory: %v, %v", left, err)
	}
}

func TestExposed(t *testing.T) {
	d := open(t)
	for mode, want := range map[os.FileMode]bool{0o755: false, 0o777: true, 0o777 | os.ModeSticky: false, 0o770: false} {
		must(t, os.Chmod(d.Path(), mode))
		if got, exposed := d.Exposed(); exposed != want {
			t.Errorf("mode %v: exposed %v", got, exposed)
		}
	}
}

// TestNamesMadeByAnotherUser: in a shared directory anybody can guess the names of a node
// that starts next.
func TestNamesMadeByAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make another user's file")
	}
	d := open(t)
	own := perProcess(MeshAddr, "mars", nobody)
	for _, name := range []string{own, MeshAddr} { // directories: root could replace files
		must(t, os.Mkdir(filepath.Join(d.Path(), name), 0o755))
		must(t, os.Chown(filepath.Join(d.Path(), name), 4711, 4711))
	}
	a, err := d.WriteAddresses("mars", nobody, "10.0.0.1:1", "10.0.0.1:2")
	must(t, err)
	if got := a.Taken(); !slices.Equal(got, []string{own}) {
		t.Errorf("Taken = %q", got)
	}
	if got := read(t, filepath.Join(d.Path(), perProcess(PublicAddr, "mars", nobody))); got != "10.0.0.1:2" {
		t.Errorf("the other name holds %q", got)
	}
	must(t, os.Remove(filepath.Join(d.Path(), own)))
	must(t, a.Refresh())
	if got := a.Taken(); len(got) != 0 || read(t, filepath.Join(d.Path(), own)) != "10.0.0.1:1" {
		t.Errorf("after it was removed: Taken = %q", got)
	}
	must(t, a.Remove())
	left, err := os.ReadDir(d.Path())
	must(t, err)
	if len(left) != 2 { // theirs, and the private directory
		t.Errorf("left behind: %v", left)
	}
}

// TestAnOlderNodeIsNotSignalled: it would run its plain task file.
func TestAnOlderNodeIsNotSignalled(t *testing.T) {
	if !canTellStart {
		t.Skip("the record of every node is without a start here")
	}
	d := open(t)
	pid := other(t).Process.Pid
	record := filepath.Join(d.Private(), perProcess(nodePrefix, "udp", pid)+".json")
	must(t, os.WriteFile(record, []byte(`{"role":"udp","pid":`+strconv.Itoa(pid)+`,"admin":"127.0.0.1:9"}`), 0o600))
	nodes, err := d.Nodes()
	must(t, err)
	if len(nodes) != 1 {
		t.Fatalf("Nodes = %v", nodes)
	}
	err = d.Signal(nodes[0])
	if !errors.Is(err, ErrOlder) || errors.Is(err, ErrNotThisProcess) || !strings.Contains(err.Error(), "DIARKIS_SIGUSR1."+strconv.Itoa(pid)) {
		t.Errorf("Signal = %v, want one that says what to do", err)
	}
	if !alive(pid) {
		t.Error("it was signalled")
	}
}

func TestMakeTemp(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	made := func() (string, func() error) {
		t.Helper()
		dir, remove, err := MakeTemp("test-")
		must(t, err)
		must(t, os.Mkdir(filepath.Join(dir, "udp"), 0o700))
		return dir, remove
	}
	age := func(dir string, by time.Duration) {
		t.Helper()
		at := time.Now().Add(-by)
		must(t, os.Chtimes(dir, at, at))
	}
	bare := func(name string, by time.Duration) string {
		t.Helper()
		dir := filepath.Join(os.TempDir(), name)
		must(t, os.MkdirAll(filepath.Join(dir, "udp"), 0o700))
		age(dir, by)
		return dir
	}
	used, removeUsed := made()
	age(used, 2*tempUnlocked)
	dead, removeDead := made()
	lock := filepath.Join(dead, tempLock)
	must(t, removeDead())
	must(t, os.MkdirAll(filepath.Join(dead, "udp"), 0o700)) // as a killed process leaves it
	must(t, os.WriteFile(lock, nil, 0o600))
	age(dead, 2*tempYoung)
	begun := bare("test-begun", 2*tempYoung)
	old := bare("test-old", 2*tempUnlocked)
	running := bare("test-running", 0)
	d, err := Open(filepath.Join(running, "udp"))
	must(t, err)
	c := claim(t, d, "udp", nobody)
	must(t, d.WriteNode(Node{Role: "udp", PID: nobody}))
	age(running, 2*tempUnlocked)
	other := bare("other", 2*tempUnlocked)

	next, removeNext := made()
	for dir, want := range map[string]bool{used: true, dead: false, begun: true, old: false, running: true, other: true, next: true} {
		if exists(dir) != want {
			t.Errorf("%s is there: %v", dir, !want)
		}
	}
	must(t, c.Release())
	must(t, removeUsed())
	must(t, removeNext())
	if exists(used) || exists(next) {
		t.Error("a directory stays after its process")
	}
}
