//go:build unix

package lifecycle

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/Diarkis/diarkis/internal/rundir"
)

// TestFilesThatAreNotKeptAreOneLine: and a cleaner costs none.
func TestFilesThatAreNotKeptAreOneLine(t *testing.T) {
	n, log := taskNode(t, "info")
	if err := os.Chmod(n.dir.Path(), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := n.claimFiles(); err != nil {
		t.Fatal(err)
	}
	if text := log.String(); strings.Count(text, "may replace files") != 1 || !strings.Contains(text, "chmod +t") {
		t.Errorf("of a run directory that everybody may write: %s", text)
	}
	n.record = rundir.Node{Role: "udp", PID: os.Getpid(), Mesh: "10.0.0.1:1"}
	var err error
	if n.files, err = n.dir.WriteAddresses("udp", os.Getpid(), "10.0.0.1:1", ""); err != nil {
		t.Fatal(err)
	}
	known := func() bool {
		nodes, err := n.dir.Nodes()
		return err == nil && len(nodes) == 1
	}
	private := n.dir.Private()
	if err := os.RemoveAll(private); err != nil {
		t.Fatal(err)
	}
	if n.keepFiles(); !known() {
		t.Error("the node is unknown after its private directory was removed")
	}
	const lost, back = "files in the run directory not kept", "files in the run directory are there again"
	if text := log.String(); strings.Contains(text, lost) || strings.Contains(text, back) {
		t.Errorf("a cleaner costs lines: %s", text)
	}
	for range 2 {
		if err := os.RemoveAll(private); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(t.TempDir(), private); err != nil { // somebody else is there
			t.Fatal(err)
		}
		for range 5 {
			n.keepFiles()
		}
		if err := os.Remove(private); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			n.keepFiles()
		}
	}
	if text := log.String(); strings.Count(text, lost) != 2 || strings.Count(text, back) != 2 || strings.Count(text, `"level":"warn"`) != 3 {
		t.Errorf("want one line at the beginning and one at the end of each episode: %s", text)
	}
	if !known() {
		t.Error("the node is unknown at the end")
	}
	n.removeFiles()
}

// TestTakenAddressFilesAreOneLine: another user may have made files with this node's names.
func TestTakenAddressFilesAreOneLine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make another user's file")
	}
	n, log := taskNode(t, "info")
	if err := n.claimFiles(); err != nil {
		t.Fatal(err)
	}
	n.record = rundir.Node{Role: "udp", PID: os.Getpid(), Mesh: "10.0.0.1:1"}
	taken := filepath.Join(n.dir.Path(), "DIARKIS_MESH_ADDR.udp."+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(taken, 0o755); err != nil { // a file root could replace
		t.Fatal(err)
	}
	if err := os.Chown(taken, 4711, 4711); err != nil {
		t.Fatal(err)
	}
	var err error
	if n.files, err = n.dir.WriteAddresses("udp", os.Getpid(), "10.0.0.1:1", ""); err != nil {
		t.Fatalf("another user keeps the node from starting: %v", err)
	}
	for range 3 {
		n.keepFiles()
	}
	if text := log.String(); strings.Count(text, "another user made files") != 1 || !strings.Contains(text, filepath.Base(taken)) {
		t.Errorf("want one line that names the file: %s", text)
	}
	n.removeFiles()
}

// TestForeignTaskFilesArePassedOver: they must not keep the operator's plain file from counting.
func TestForeignTaskFilesArePassedOver(t *testing.T) {
	n, log := taskNode(t, "info")
	plain := filepath.Join(n.dir.Path(), "DIARKIS_SIGUSR1")
	own := plain + "." + strconv.Itoa(os.Getpid())
	if err := os.WriteFile(plain, []byte("ChangeLogLevel\nerror\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(plain, own); err != nil { // as anybody may make who owns nothing here
		t.Fatal(err)
	}
	n.runTasks(t.Context(), 1)
	if n.level.String() != "error" || strings.Count(log.String(), "task file passed over") != 1 {
		t.Errorf("level is %s, log:\n%s", n.level, log)
	}
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	// One of the operator's own is used up, whatever is wrong with it, and no other is run for it.
	if err := os.WriteFile(own, make([]byte, 65<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.level.Set("warn"); err != nil {
		t.Fatal(err)
	}
	n.runTasks(t.Context(), 1)
	if n.level.String() != "warn" || !strings.Contains(log.String(), "task file refused") {
		t.Errorf("level is %s, log:\n%s", n.level, log)
	}
	n.runTasks(t.Context(), 1)
	if n.level.String() != "error" {
		t.Errorf("level is %s: a file that was refused shadows the plain one", n.level)
	}
}
