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

	"golang.org/x/sys/unix"
)

func open(t *testing.T) *Dir {
	t.Helper()
	d, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		return "(" + err.Error() + ")"
	}
	return string(b)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(dir string) string // returns the path to open
		code    int
	}{
		{"a missing directory", func(d string) string { return filepath.Join(d, "none") }, ExitCantCreate},
		{"a file", func(d string) string {
			must(t, os.WriteFile(filepath.Join(d, "f"), nil, 0o600))
			return filepath.Join(d, "f")
		}, ExitCantCreate},
		{"a private directory others can enter", func(d string) string {
			must(t, os.Mkdir(privateIn(d), 0o700))
			must(t, os.Chmod(privateIn(d), 0o755))
			return d
		}, ExitPermission},
		{"a link in place of the private directory", func(d string) string {
			must(t, os.Mkdir(filepath.Join(d, "elsewhere"), 0o700))
			must(t, os.Symlink("elsewhere", privateIn(d)))
			return d
		}, ExitPermission},
		{"a file in place of the private directory", func(d string) string {
			must(t, os.WriteFile(privateIn(d), nil, 0o600))
			return d
		}, ExitPermission},
	} {
		_, err := Open(tt.prepare(t.TempDir()))
		if e, ok := errors.AsType[*Error](err); !ok || e.ExitCode() != tt.code {
			t.Errorf("%s: error %v, want exit code %d", tt.name, err, tt.code)
		}
	}
}

func privateIn(dir string) string {
	return filepath.Join(dir, "diarkis-"+strconv.Itoa(os.Geteuid()))
}

func TestAddressFiles(t *testing.T) {
	d := open(t)
	a, err := d.WriteAddresses("udp", 10, "10.0.0.1:8000", "203.0.113.1:7100")
	must(t, err)
	b, err := d.WriteAddresses("tcp", 11, "10.0.0.1:8001", "")
	must(t, err)
	file := func(name string) string { return read(t, filepath.Join(d.Path(), name)) }
	for name, want := range map[string]string{
		MeshAddr: "10.0.0.1:8000", MeshAddr + ".udp.10": "10.0.0.1:8000", MeshAddr + ".tcp.11": "10.0.0.1:8001",
		PublicAddr: "203.0.113.1:7100", PublicAddr + ".udp.10": "203.0.113.1:7100",
	} {
		if got := file(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if got := file(PublicAddr + ".tcp.11"); !strings.Contains(got, "no such file") {
		t.Errorf("a node without a public address has a file for it: %q", got)
	}
	if !a.Owns(MeshAddr) || b.Owns(MeshAddr) {
		t.Error("the plain name does not belong to the first node")
	}

	must(t, a.Remove())
	if got := file(MeshAddr); !strings.Contains(got, "no such file") {
		t.Errorf("after Remove the plain name holds %q", got)
	}
	must(t, b.Refresh())
	if got := file(MeshAddr); got != "10.0.0.1:8001" || !b.Owns(MeshAddr) {
		t.Errorf("after Refresh the plain name holds %q", got)
	}
	must(t, a.Refresh()) // a removed node takes nothing back
	must(t, b.Remove())
	left, err := filepath.Glob(filepath.Join(d.Path(), "*DIARKIS*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestRemoveLeavesWhatIsNotOurs(t *testing.T) {
	d := open(t)
	a, err := d.WriteAddresses("udp", 10, "10.0.0.1:8000", "")
	must(t, err)
	path := filepath.Join(d.Path(), MeshAddr)
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, []byte("somebody else"), 0o644))
	must(t, a.Remove())
	if got := read(t, path); got != "somebody else" {
		t.Errorf("another's file now holds %q", got)
	}
}

func TestWritesNeverFollowLinks(t *testing.T) {
	d := open(t)
	victim := filepath.Join(t.TempDir(), "victim")
	must(t, os.WriteFile(victim, []byte("precious"), 0o600))
	must(t, os.Symlink(victim, filepath.Join(d.Path(), MeshAddr)))
	must(t, os.Symlink(victim, filepath.Join(d.Path(), MeshAddr+".udp.10")))
	a, err := d.WriteAddresses("udp", 10, "10.0.0.1:8000", "")
	must(t, err)
	if got := read(t, victim); got != "precious" {
		t.Errorf("the link's target holds %q", got)
	}
	if got := read(t, filepath.Join(d.Path(), MeshAddr)); got != "10.0.0.1:8000" {
		t.Errorf("the plain name holds %q", got)
	}
	must(t, a.Remove())
}

func TestWriteErrorsAskForExit73(t *testing.T) {
	d := open(t)
	must(t, os.RemoveAll(d.Path()))
	_, err := d.WriteAddresses("udp", 10, "10.0.0.1:8000", "")
	if e, ok := errors.AsType[*Error](err); !ok || e.ExitCode() != ExitCantCreate {
		t.Errorf("WriteAddresses = %v, want exit code 73", err)
	}
	if _, err := d.WriteProbeKey("udp", 10, []byte("k")); err == nil {
		t.Error("WriteProbeKey in a missing directory succeeded")
	}
	// A name that can't be replaced, as when the disk refuses.
	d = open(t)
	must(t, os.MkdirAll(filepath.Join(d.Path(), MeshAddr, "full"), 0o700))
	if _, err := d.WriteAddresses("udp", 10, "10.0.0.1:8000", ""); err == nil {
		t.Error("WriteAddresses over a directory succeeded")
	}
	left, _ := filepath.Glob(filepath.Join(d.Path(), "*.udp.10*"))
	if len(left) != 0 {
		t.Errorf("after the error these were left: %v", left)
	}
}

func TestRoleCantNameAPath(t *testing.T) {
	d := open(t)
	for _, role := range []string{"", "../udp", "a/b", "UDP"} {
		if _, err := d.WriteAddresses(role, 1, "a", ""); err == nil {
			t.Errorf("role %q was accepted", role)
		}
	}
}

func TestNodesAndProbeKeys(t *testing.T) {
	d := open(t)
	key, err := d.WriteProbeKey("udp", os.Getpid(), []byte("sixteen bytes ok"))
	must(t, err)
	info, err := os.Stat(key)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("probe key has mode %v", info.Mode())
	}
	want := Node{Role: "udp", PID: os.Getpid(), Mesh: "10.0.0.1:8000", Admin: "127.0.0.1:9400", ProbeKeyFile: key}
	must(t, d.WriteNode(want))
	must(t, d.WriteNode(Node{Role: "http", PID: os.Getpid()}))
	const nobody = 1 << 30 // above every pid_max
	must(t, d.WriteNode(Node{Role: "udp", PID: nobody}))
	must(t, os.WriteFile(filepath.Join(d.Private(), "node.tcp.1.json"), []byte("{"), 0o600))

	nodes, err := d.Nodes()
	must(t, err)
	if len(nodes) != 2 || nodes[0].Role != "http" || nodes[1].ProbeKeyFile != key || nodes[1].Mesh != want.Mesh {
		t.Errorf("Nodes = %+v", nodes)
	}
	if got, err := ReadProbeKey(key); err != nil || string(got) != "sixteen bytes ok" {
		t.Errorf("ReadProbeKey = %q, %v", got, err)
	}
	must(t, os.Chmod(key, 0o644))
	if _, err := ReadProbeKey(key); err == nil {
		t.Error("a probe key everyone can read was used")
	}
	must(t, d.RemoveProbeKey("udp", os.Getpid()))
	must(t, d.RemoveNode("udp", os.Getpid()))
	must(t, d.RemoveNode("udp", os.Getpid()))
	if nodes, _ := d.Nodes(); len(nodes) != 1 {
		t.Errorf("after RemoveNode: %+v", nodes)
	}
}

func TestReadTask(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "DIARKIS_SIGUSR1"), []byte("ChangeLogLevel\ndebug\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "DIARKIS_SIGUSR1.77"), []byte("Offline\n"), 0o600))
	for i, want := range []Task{{Name: "Offline"}, {Name: "ChangeLogLevel", Params: []string{"debug"}}, {Name: "ChangeLogLevel", Params: []string{"debug"}}} {
		got, err := ReadPIDTask(dir, 1, 77)
		if errors.Is(err, ErrNoTask) {
			got, err = ReadTask(dir, 1)
		}
		if err != nil || got.Name != want.Name || !slices.Equal(got.Params, want.Params) {
			t.Errorf("read %d = %+v, %v, want %+v", i, got, err, want)
		}
	}
	if _, err := ReadTask(dir, 2); !errors.Is(err, ErrNoTask) {
		t.Errorf("SIGUSR2 without a file = %v, want ErrNoTask", err)
	}
	if _, err := ReadTask(dir, 3); err == nil {
		t.Error("ReadTask for SIGUSR3 succeeded")
	}
	for _, bad := range []Task{{Name: ""}, {Name: "a b"}, {Name: "x", Params: []string{"1\n2"}}, {Name: "x", Params: []string{""}}, {Name: strings.Repeat("x", 65)}} {
		if err := bad.Check(); err == nil {
			t.Errorf("%+v can be asked for", bad)
		}
	}
}

func TestReadTaskRefuses(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(path string) error
		want    string
	}{
		{"a link", func(p string) error {
			must(t, os.WriteFile(p+".target", []byte("Offline\n"), 0o600))
			return os.Symlink(p+".target", p)
		}, "too many levels"},
		{"a pipe", func(p string) error { return unix.Mkfifo(p, 0o600) }, "not a regular file"},
		{"a directory", func(p string) error { return os.Mkdir(p, 0o700) }, "not a regular file"},
		{"a file the group can write", func(p string) error {
			must(t, os.WriteFile(p, []byte("Offline\n"), 0o600))
			return os.Chmod(p, 0o620)
		}, "written by others"},
		{"a file the world can write", func(p string) error {
			must(t, os.WriteFile(p, []byte("Offline\n"), 0o600))
			return os.Chmod(p, 0o602)
		}, "written by others"},
		{"too much", func(p string) error { return os.WriteFile(p, make([]byte, taskBytesMax+1), 0o600) }, "more than"},
		{"a name with a path", func(p string) error { return os.WriteFile(p, []byte("../../x\n"), 0o600) }, "task name"},
		{"nothing", func(p string) error { return os.WriteFile(p, []byte("\n\r\n"), 0o600) }, "no task"},
	} {
		for _, suffix := range []string{"", ".5"} {
			dir := t.TempDir()
			must(t, tt.prepare(filepath.Join(dir, "DIARKIS_SIGUSR1"+suffix)))
			task, file := func() (Task, error) { return ReadTask(dir, 1) }, filepath.Join(dir, "DIARKIS_SIGUSR1"+suffix)
			if suffix != "" {
				task = func() (Task, error) { return ReadPIDTask(dir, 1, 5) }
			}
			if got, err := task(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s%s: read %+v, %v, want an error with %q", tt.name, suffix, got, err, tt.want)
			}
			if there := exists(file); there != (suffix == "") {
				t.Errorf("%s%s: is there afterwards: %v", tt.name, suffix, there)
			}
		}
	}
}

// TestForeignOwner needs a file of another user, which only root can make;
// otherwise root's own files stand in, which have to be accepted.
func TestForeignOwner(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "DIARKIS_SIGUSR1")
	must(t, os.WriteFile(path, []byte("Offline\n"), 0o600))
	info, err := os.Lstat(path)
	must(t, err)
	if !ownedBy(info, os.Geteuid()) || ownedBy(info, os.Geteuid()+1) {
		t.Error("ownedBy is wrong about a file of ours")
	}
	if os.Geteuid() == 0 {
		must(t, os.Chown(path, 4711, 4711))
		if _, err := ReadTask(dir, 1); err == nil || !strings.Contains(err.Error(), "another user") {
			t.Errorf("ReadTask of a stranger's file = %v", err)
		}
		own := path + ".1"
		must(t, os.Rename(path, own))
		if _, err := ReadPIDTask(dir, 1, 1); !errors.Is(err, ErrForeignTask) || !exists(own) {
			t.Errorf("ReadPIDTask of a stranger's file = %v, it is there afterwards: %v", err, exists(own))
		}
		must(t, os.Remove(own))
		must(t, os.Symlink("/etc/passwd", own))
		must(t, os.Lchown(own, 4711, 4711))
		if _, err := ReadPIDTask(dir, 1, 1); !errors.Is(err, ErrForeignTask) {
			t.Errorf("ReadPIDTask of a stranger's link = %v", err)
		}
	}
	own := filepath.Join(dir, "DIARKIS_SIGUSR1.2")
	must(t, os.WriteFile(own+".elsewhere", []byte("Offline\n"), 0o600))
	must(t, os.Link(own+".elsewhere", own))
	if _, err := ReadPIDTask(dir, 1, 2); !errors.Is(err, ErrForeignTask) {
		t.Errorf("ReadPIDTask of another file's further name = %v", err)
	}
}

func FuzzParseTask(f *testing.F) {
	for _, s := range []string{"", "Offline", "ChangeLogLevel\ndebug\n", "a\r\nb\r\n\r\n", "\x00", "../x", " x \n\n y"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		task, err := ParseTask(b)
		if err != nil {
			return
		}
		if !taskName.MatchString(task.Name) {
			t.Fatalf("accepted the name %q", task.Name)
		}
		again, err := task.content()
		if err != nil {
			return // a parameter with a carriage return inside can't be written by us
		}
		got, err := ParseTask(again)
		if err != nil || got.Name != task.Name || !slices.Equal(got.Params, task.Params) {
			t.Errorf("written and read again: %+v, %v, want %+v", got, err, task)
		}
	})
}

// A file that can't be written is named once.
func TestUnwrittenFilesAreNamedOnce(t *testing.T) {
	dir := t.TempDir()
	for name, blocked := range map[string]func(){
		"of no directory": func() { dir = filepath.Join(dir, "missing") },
		"a directory":     func() { dir = t.TempDir(); _ = os.MkdirAll(filepath.Join(dir, "probe.udp.1", "x"), 0o700) },
	} {
		blocked()
		_, err := writeFile(dir, "probe.udp.1", []byte("x"), 0o600)
		path := filepath.Join(dir, "probe.udp.1")
		if err == nil || !strings.HasPrefix(err.Error(), "write "+path+": ") || strings.Count(err.Error(), "probe.udp.1") != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
