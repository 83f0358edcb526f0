//go:build unix

package rundir

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// other is a process that is no node.
func other(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "3600")
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func claim(t *testing.T, d *Dir, role string, pid int) *Claim {
	t.Helper()
	c, err := d.Claim(role, pid)
	must(t, err)
	return c
}

// crash ends a node as kill -9 does: the lock goes, the files stay.
func (c *Claim) crash() { _ = c.lock.Close() }

// nobody is above every pid_max.
const nobody = 1 << 30

func TestAReusedPidIsNoNode(t *testing.T) {
	d := open(t)
	cmd := other(t)
	c := claim(t, d, "udp", cmd.Process.Pid)
	must(t, d.WriteNode(Node{Role: "udp", PID: cmd.Process.Pid, Start: "an earlier boot/1"}))
	nodes, err := d.Nodes()
	must(t, err)
	if len(nodes) != 1 {
		t.Fatalf("a node whose lock is held is not listed: %v", nodes)
	}
	if err := d.Signal(nodes[0]); canTellStart && !errors.Is(err, ErrNotThisProcess) {
		t.Errorf("signal to a process that began at another time = %v", err)
	}
	c.crash() // from now on its pid is the other process's alone
	if nodes, _ := d.Nodes(); len(nodes) != 0 {
		t.Errorf("a dead node whose pid lives on is listed: %v", nodes)
	}
	if err := d.Signal(nodes[0]); !errors.Is(err, ErrNotThisProcess) {
		t.Errorf("signal to a dead node's pid = %v", err)
	}
	// As it was written before there were locks.
	must(t, os.Remove(d.nodeLock("udp", cmd.Process.Pid)))
	if nodes, _ := d.Nodes(); canTellStart && len(nodes) != 0 {
		t.Errorf("without a lock the record of another process is believed: %v", nodes)
	}
	must(t, d.WriteNode(Node{Role: "tcp", PID: cmd.Process.Pid}))
	nodes, err = d.Nodes()
	must(t, err)
	if len(nodes) != 1 || canTellStart && nodes[0].Start == "" {
		t.Errorf("without a lock the record of a process that runs is %+v", nodes)
	}
	if !alive(cmd.Process.Pid) {
		t.Error("the other process died of it")
	}
}

func TestClaim(t *testing.T) {
	d := open(t)
	must(t, os.WriteFile(filepath.Join(d.Path(), "DIARKIS_SIGUSR1.7"), []byte("Offline\n"), 0o600))
	must(t, d.WriteNode(Node{Role: "udp", PID: 7}))
	c := claim(t, d, "udp", 7)
	if exists(filepath.Join(d.Path(), "DIARKIS_SIGUSR1.7")) {
		t.Error("a task for an earlier process with this pid waits for this one")
	}
	if _, err := d.Claim("udp", 7); err == nil || !strings.Contains(err.Error(), "DIARKIS_RUN_DIR") {
		t.Errorf("a second claim of the same role and pid = %v", err)
	} else if e, ok := errors.AsType[*Error](err); !ok || e.ExitCode() != ExitCantCreate {
		t.Errorf("it asks for another exit code: %v", err)
	}
	must(t, c.Release())
	must(t, claim(t, d, "udp", 7).Release())
	left, err := os.ReadDir(d.Private())
	must(t, err)
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestSweep(t *testing.T) {
	d := open(t)
	put := func(name string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(d.Path(), name), []byte("x"), 0o600))
	}
	cmd := other(t)
	reused := cmd.Process.Pid
	files := func(role string, pid int) *Claim {
		t.Helper()
		c := claim(t, d, role, pid)
		must(t, d.WriteNode(Node{Role: role, PID: pid, Start: "then"}))
		_, err := d.WriteProbeKey(role, pid, []byte("key"))
		must(t, err)
		_, err = d.Ask(Node{Role: role, PID: pid}, Task{Name: "Online"})
		must(t, err)
		put(perProcess(MeshAddr, role, pid))
		put(perProcess(PublicAddr, role, pid))
		return c
	}
	live := files("udp", nobody) // perhaps of another container: its pid says nothing here
	files("tcp", nobody+1).crash()
	files("http", reused).crash()
	put("DIARKIS_SIGUSR1." + strconv.Itoa(nobody))
	put("DIARKIS_SIGUSR2." + strconv.Itoa(nobody+1))
	put("DIARKIS_SIGUSR1." + strconv.Itoa(reused)) // may be for a node of another user
	put("DIARKIS_SIGUSR1")
	put(MeshAddr)
	put("DIARKIS_MESH_ADDR.udp.notes")
	put("precious")
	must(t, os.Symlink("precious", filepath.Join(d.Path(), PublicAddr)))
	half := filepath.Join(d.Private(), ".node.udp.9.json.ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	young := half[:len(half)-1] + "2"
	for _, f := range []string{half, young} {
		must(t, os.WriteFile(f, nil, 0o600))
	}
	long := time.Now().Add(-2 * halfMax)
	must(t, os.Chtimes(half, long, long))

	foreign := []string{MeshAddr + ".mars." + strconv.Itoa(nobody+2), "DIARKIS_SIGUSR1." + strconv.Itoa(nobody+2)}
	for _, name := range foreign {
		if os.Geteuid() == 0 { // only root can make another user's file
			put(name)
			must(t, os.Chown(filepath.Join(d.Path(), name), 4711, 4711))
		}
	}

	swept := d.Sweep()
	slices.Sort(swept)
	for _, name := range foreign {
		if os.Geteuid() == 0 && !exists(filepath.Join(d.Path(), name)) {
			t.Errorf("%s of another user was swept", name)
		}
		_ = os.Remove(filepath.Join(d.Path(), name))
	}
	want := []string{"DIARKIS_SIGUSR2." + strconv.Itoa(nobody+1), "http " + strconv.Itoa(reused), "tcp " + strconv.Itoa(nobody+1)}
	if !slices.Equal(swept, want) {
		t.Errorf("swept %q, want %q", swept, want)
	}
	var left []string
	for _, dir := range []string{d.Path(), d.Private()} {
		entries, err := os.ReadDir(dir)
		must(t, err)
		for _, e := range entries {
			left = append(left, e.Name())
		}
	}
	id := strconv.Itoa(nobody)
	for _, name := range []string{"DIARKIS_MESH_ADDR.udp." + id, "DIARKIS_PUBLIC_ADDR.udp." + id, "DIARKIS_SIGUSR1." + id, "DIARKIS_SIGUSR1." + strconv.Itoa(reused),
		"DIARKIS_SIGUSR1", "DIARKIS_MESH_ADDR.udp.notes", "precious", PublicAddr, "node.udp." + id + ".json", "node.udp." + id + ".lock", "probe.udp." + id, filepath.Base(young)} {
		if !slices.Contains(left, name) {
			t.Errorf("%s was swept: left %q", name, left)
		}
	}
	if len(left) != 12+2 { // and its task, and the private directory
		t.Errorf("left %q", left)
	}
	must(t, live.Release())
}

func TestPublicAddressBelongsToUDP(t *testing.T) {
	d := open(t)
	plain := func() string { return read(t, filepath.Join(d.Path(), PublicAddr)) }
	write := func(role string, pid int, public string) *Addresses {
		t.Helper()
		a, err := d.WriteAddresses(role, pid, "10.0.0.1:1", public)
		must(t, err)
		return a
	}
	http := write("http", 1, "h:1")
	if got := plain(); !strings.Contains(got, "no such file") || http.Owns(PublicAddr) {
		t.Errorf("with an http node alone the plain name holds %q", got)
	}
	tcp := write("tcp", 2, "t:1")
	if got := plain(); got != "t:1" {
		t.Errorf("with a tcp node it holds %q", got)
	}
	udp := write("udp", 3, "u:1")
	must(t, tcp.Refresh())
	if got := plain(); got != "u:1" || !udp.Owns(PublicAddr) || tcp.Owns(PublicAddr) {
		t.Errorf("with a udp node beside it it holds %q", got)
	}
	second := write("udp", 4, "u:2")
	if got := plain(); got != "u:1" {
		t.Errorf("with a second udp node it holds %q", got)
	}
	must(t, os.WriteFile(filepath.Join(d.Path(), PublicAddr), []byte("nonsense"), 0o600))
	must(t, udp.Refresh())
	if got := plain(); got != "u:1" {
		t.Errorf("after somebody overwrote it it holds %q", got)
	}
	must(t, udp.Remove())
	must(t, tcp.Refresh())
	must(t, second.Refresh())
	must(t, tcp.Refresh())
	if got := plain(); got != "u:2" {
		t.Errorf("after the first udp node it holds %q", got)
	}
	must(t, second.Remove())
	must(t, tcp.Refresh())
	if got := plain(); got != "t:1" {
		t.Errorf("after the last udp node it holds %q", got)
	}
	must(t, tcp.Remove())
	must(t, http.Remove())
	if got := plain(); !strings.Contains(got, "no such file") {
		t.Errorf("at the end it holds %q", got)
	}
}

func TestLookMakesNothing(t *testing.T) {
	dir := t.TempDir()
	d, err := Look(dir)
	must(t, err)
	nodes, err := d.Nodes()
	if err != nil || len(nodes) != 0 {
		t.Errorf("Nodes = %v, %v", nodes, err)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 0 {
		t.Errorf("looking made %v", entries)
	}
	must(t, os.Mkdir(filepath.Join(dir, "diarkis-"+strconv.Itoa(os.Geteuid()+1)), 0o700))
	if os.Geteuid() == 0 {
		must(t, os.Chown(filepath.Join(dir, "diarkis-1"), 1, 1))
		if got := d.OtherUsers(); !strings.Contains(got, "id 1") {
			t.Errorf("OtherUsers = %q", got)
		}
	}
}

func TestAsk(t *testing.T) {
	d := open(t)
	n := Node{Role: "udp", PID: nobody}
	c := claim(t, d, n.Role, n.PID)
	defer func() { must(t, c.Release()) }()
	ask := func(name string) *Request {
		t.Helper()
		r, err := d.Ask(n, Task{Name: name})
		must(t, err)
		return r
	}
	first, second := ask("Offline"), ask("Online")
	early := time.Now().Add(-time.Minute)
	must(t, os.Chtimes(first.path(requestPrefix), early, early))
	asked, signals := d.TakeTasks("udp", nobody)
	if len(asked) != 2 || signals != 2 || asked[0].Task.Name != "Offline" || asked[1].Task.Name != "Online" {
		t.Fatalf("TakeTasks = %+v, %v", asked, signals)
	}
	if again, signals := d.TakeTasks("udp", nobody); len(again) != 0 || signals != 0 {
		t.Errorf("the tasks were handed out twice: %+v", again)
	}
	must(t, asked[1].Finish(Outcome{64, "no"}))
	if got, err := second.Wait(t.Context()); err != nil || got != (Outcome{64, "no"}) {
		t.Errorf("outcome of the second = %+v, %v", got, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := first.Wait(ended); !errors.Is(err, ErrNotFinished) {
		t.Errorf("a task under way at the end of the wait: %v", err)
	}
	must(t, asked[0].Finish(Outcome{0, "yes"}))
	if got, err := first.Wait(ended); err != nil || got.Text != "yes" {
		t.Errorf("an outcome that is there when the wait ends: %+v, %v", got, err)
	}

	late := ask("Offline")
	if _, err := late.Wait(ended); !errors.Is(err, ErrNotTaken) {
		t.Errorf("a task that nobody takes: %v", err)
	}
	if asked, signals := d.TakeTasks("udp", nobody); len(asked) != 0 || signals != 1 {
		t.Errorf("a withdrawn task was handed out, or the signal not accounted for: %+v, %v", asked, signals)
	}

	lost := ask("Online")
	asked, _ = d.TakeTasks("udp", nobody)
	must(t, os.Remove(asked[0].path(runningPrefix))) // as when the disk was full
	if _, err := lost.Wait(t.Context()); !errors.Is(err, ErrOutcomeLost) {
		t.Errorf("a task whose outcome can't be written: %v", err)
	}

	forged := ask("Online")
	must(t, os.WriteFile(forged.path(outcomePrefix), []byte(`{"code":0}`), 0o600))
	must(t, os.Chmod(forged.path(outcomePrefix), 0o666))
	if _, err := forged.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "open to others") {
		t.Errorf("an outcome anybody may have written: %v", err)
	}
	must(t, os.Remove(forged.path(outcomePrefix)))
	forged.Forget()

	dies := ask("Online")
	c.crash()
	if _, err := dies.Wait(t.Context()); !errors.Is(err, ErrEnded) {
		t.Errorf("a task of a node that dies: %v", err)
	}
	c = claim(t, d, n.Role, n.PID)
	for _, f := range d.privateFiles() {
		if f.kind != lockKind {
			t.Errorf("left behind: %s", f.name)
		}
	}
}

// TestFilesAreKept: a cleaner of temporary directories must not make a node that runs
// unknown to its health checks.
func TestFilesAreKept(t *testing.T) {
	d := open(t)
	n := Node{Role: "udp", PID: nobody, Mesh: "10.0.0.1:1"}
	c := claim(t, d, n.Role, n.PID)
	writes := 0
	write := func() error { writes++; return d.WriteNode(n) }
	must(t, write())
	a, err := d.WriteAddresses(n.Role, n.PID, n.Mesh, "10.0.0.1:2")
	must(t, err)
	keep := func() {
		t.Helper()
		must(t, c.Keep(write))
		must(t, a.Refresh())
	}
	keep()
	if writes != 1 {
		t.Errorf("a record that is there was written anew")
	}
	files := []string{filepath.Join(d.Private(), "node.udp."+strconv.Itoa(nobody)+".json"), c.lock.Name(),
		filepath.Join(d.Path(), MeshAddr), filepath.Join(d.Path(), perProcess(MeshAddr, "udp", nobody)), filepath.Join(d.Path(), PublicAddr)}
	for _, f := range files {
		must(t, os.Remove(f))
	}
	keep()
	for _, f := range files {
		if !exists(f) {
			t.Errorf("%s is gone", f)
		}
	}
	if nodes, err := d.Nodes(); err != nil || len(nodes) != 1 {
		t.Errorf("Nodes = %v, %v", nodes, err)
	}
	if held, err := lockHeld(c.lock.Name()); err != nil || !held {
		t.Errorf("the lock is not held anew: %v, %v", held, err)
	}
	long := time.Now().Add(-2 * fresh)
	for _, f := range files {
		must(t, os.Chtimes(f, long, long))
	}
	keep()
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || time.Since(info.ModTime()) > fresh {
			t.Errorf("%s is left to cleaners: %v", f, err)
		}
	}
	must(t, a.Remove())
	must(t, a.Refresh())
	must(t, c.Release())
	for _, f := range files {
		if exists(f) {
			t.Errorf("%s is left behind", f)
		}
	}
}

func TestAskOnAFullDisk(t *testing.T) {
	d := open(t)
	must(t, os.RemoveAll(d.Private())) // nothing can be written there
	_, err := d.Ask(Node{Role: "udp", PID: 1}, Task{Name: "Online"})
	if e, ok := errors.AsType[*Error](err); !ok || e.ExitCode() != ExitCantCreate {
		t.Errorf("Ask = %v, want exit code 73", err)
	}
}
