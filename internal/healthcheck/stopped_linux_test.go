package healthcheck

import (
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/rundir"
)

// Who asks a stopped process is told that, and what lets it go on.
func TestAskOfAStoppedProcess(t *testing.T) {
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Process.Kill(); _ = child.Wait() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	node := rundir.Node{Role: "udp", PID: child.Process.Pid, Admin: "127.0.0.1:1"}
	var v any
	if err := Ask(ctx, node, "/mars", &v); err == nil || strings.Contains(err.Error(), "SIGCONT") {
		t.Errorf("of a process that runs: %v", err)
	}
	if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(child.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("not stopped: %v, %v", status, err)
	}
	if err := Ask(ctx, node, "/mars", &v); err == nil || !strings.Contains(err.Error(), "does not answer") || !strings.HasSuffix(err.Error(), "(the process is stopped: SIGCONT lets it go on)") {
		t.Errorf("of a stopped process: %v", err)
	}
}
