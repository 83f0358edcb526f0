//go:build unix

package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// beside starts a node of a role that shares the run directory of another.
func (c *cluster) beside(n *node, role string, env ...string) *node {
	c.t.Helper()
	return c.add(start(c.t, role, nodeOptions{
		args: []string{"--role=" + role, "--port=0", "--mars-port", strconv.Itoa(c.marsPort)}, runDir: n.runDir, env: env,
	}).waitStarted())
}

// want runs diarkisd beside a node and checks its exit code and what it says.
func (n *node) want(code int, text string, args ...string) {
	n.t.Helper()
	got, out, errOut := n.run(args...)
	if got != code || !strings.Contains(out+errOut, text) {
		n.t.Errorf("%v = %d %q %q, want %d with %q", args, got, out, errOut, code, text)
	}
	if code == 0 || slices.Contains(args, "health-check") {
		return
	}
	lines := strings.Split(strings.TrimSpace(errOut), "\n")
	if last := lines[len(lines)-1]; !strings.HasSuffix(last, fmt.Sprintf("(exit %d)", code)) {
		n.t.Errorf("%v ends with %q, want a line with the exit code", args, last)
	}
}

// sleeper is a process that is no node.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "3600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// requireAlive fails the test if a child has ended. One that was killed is a zombie
// until it is waited for, so that a signal would not tell.
func requireAlive(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if pid, _ := syscall.Wait4(cmd.Process.Pid, nil, syscall.WNOHANG, nil); pid != 0 {
		t.Errorf("%s ended", cmd.Path)
	}
}

// filesWith lists the files of a run directory, and of its private one, whose names match.
func filesWith(t *testing.T, runDir, pattern string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(runDir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && regexp.MustCompile(pattern).MatchString(filepath.Base(path)) {
			found = append(found, filepath.Base(path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// taskFiles are what a task may leave behind.
const taskFiles = `SIGUSR|^\.?(task|running|withdrawn|outcome)\.`

func TestHealthCheckMeansOneNode(t *testing.T) {
	c := newCluster(t)
	udp := c.beside(c.mars, "udp").waitReady() // mars came first: it has the plain name
	udp.want(3, "", "health-check", "garbage", "out")
	udp.want(3, "", "health-check", "", "out")
	udp.want(3, "", "health-check", "127.0.0.1:1", "mars")
	udp.want(2, "", "health-check", "out")
	udp.want(0, "udp port", "health-check", udp.Public, "out")
	udp.want(0, "", "health-check", udp.Mesh, "in", "out", "mars", "ready")
	udp.want(0, "udp port", "health-check", "--role=udp", "ready")
	udp.want(0, "no public port", "health-check", c.mars.Mesh, "out", "ready")

	udp.want(0, "state is offline", "task", "offline", "--role=udp")
	udp.want(1, "offline", "health-check", udp.Mesh, "ready")
	udp.want(0, "", "health-check", c.mars.Mesh, "ready")
	udp.want(0, "state is online", "task", "Online", "--role=udp")
	udp.want(0, "", "health-check", udp.Mesh, "ready")
	udp.want(2, "health-check", "--log-level=debug", "health-check", "out") // it was 0, and nothing asked

	udp.signal(syscall.SIGSTOP)
	udp.want(3, "stopped", "health-check", udp.Mesh, "in")
	udp.want(3, "", "health-check", udp.Mesh, "out", "ready", "--timeout=300ms")
	udp.want(0, "", "health-check", c.mars.Mesh, "in", "mars", "ready") // another process: no business of its
	udp.signal(syscall.SIGCONT)
	udp.waitReady()
	udp.want(0, "", "health-check", udp.Mesh, "in")

	// Behind NAT or a name, and bound to every address.
	away := c.start("udp", "DIARKIS_UDP_ADDRESS=0.0.0.0", "DIARKIS_UDP_PUBLIC_ADDRESS=game.example.com").waitReady()
	_, port, err := net.SplitHostPort(away.Public)
	if err != nil || away.Public != "game.example.com:"+port {
		t.Fatalf("players are told %s, %v", away.Public, err)
	}
	for _, address := range []string{away.Public, "127.0.0.1:" + port, "0.0.0.0:" + port, "localhost:" + port} {
		away.want(0, "answers, state online", "health-check", address, "in", "out", "mars", "ready")
	}
	away.want(3, "", "health-check", "192.0.2.1:"+port, "out")

	alone := start(t, "udp", nodeOptions{args: []string{"--role=udp", "--port=0", "--mars-port", strconv.Itoa(freePort(t))}}).waitStarted()
	alone.want(0, "", "health-check", "in")
	alone.want(0, "", "health-check", "out")
	alone.want(1, "not joined", "health-check", "ready")
	alone.want(1, "authority", "mars", "status")
}

func TestHealthCheckReadyOfADrainingNode(t *testing.T) {
	c := newCluster(t)
	n := c.start("udp", "DIARKIS_SHUTDOWN_TIMEOUT=3600").waitReady()
	c.waitHandsOut("UDP")
	c.connect("ann", "UDP")
	n.signal(syscall.SIGTERM)
	n.waitLog(`"draining started"`, `"such_as":["ann"]`, `"until"`)
	n.want(0, "", "health-check", "in")
	n.want(1, "draining", "health-check", "ready")
	n.want(1, "terminating", "task", "Online")
	n.signal(syscall.SIGTERM)
	if code := n.waitExit(); code != 0 {
		t.Errorf("after a second signal: exit %d", code)
	}
	n.waitLog(`"draining ended with users left"`, "second signal")
	if left := filesWith(t, n.runDir, `\.[0-9]+(\.|$)`); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestDrainDoesNotWaitForTheDead: a player whose machine is gone may resume for minutes,
// and the node does not wait for that.
func TestDrainDoesNotWaitForTheDead(t *testing.T) {
	c := newCluster(t)
	n := c.start("udp", "DIARKIS_SHUTDOWN_TIMEOUT=3600", "DIARKIS_UDP_RESUME_TTL=600").waitReady()
	c.waitHandsOut("UDP")
	dies := exec.Command(binary, "bot", "--http", c.url(), "--count", "2", "--duration", "0")
	dies.Env = append(dies.Environ(), c.env...)
	if err := dies.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bots play", func() bool { return n.metric("diarkis_users") == 2 })
	_ = dies.Process.Kill()
	_ = dies.Wait()
	n.signal(syscall.SIGTERM)
	n.waitLog(`"draining started"`)
	n.waitLog(`"draining ended, nobody is left to wait for"`, `"users":0`, `"not_waited_for":2`)
	if code := n.waitExit(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestTaskSignalsNodesOnly(t *testing.T) {
	c := newCluster(t)
	n := c.http
	stranger := sleeper(t)
	pid := strconv.Itoa(stranger.Process.Pid)
	n.want(3, "no running node", "task", "Offline", "--pid", pid)
	n.want(3, "no running node", "task", "Offline", "--role=tcp")
	for _, bad := range []string{"-1", "0", "x"} {
		n.want(64, "", "task", "Offline", "--pid", bad)
	}
	// The record of a dead node whose pid the stranger got.
	record := fmt.Sprintf(`{"role":"udp","pid":%s,"start":"long ago","mesh":"127.0.0.1:1","admin":"127.0.0.1:1"}`, pid)
	path := filepath.Join(n.runDir, "diarkis-"+strconv.Itoa(os.Geteuid()), "node.udp."+pid+".json")
	if err := os.WriteFile(path, []byte(record), 0o600); err != nil {
		t.Fatal(err)
	}
	n.want(3, "no running node", "task", "Offline", "--pid", pid)
	n.want(3, "no running node", "health-check", "in", "--pid", pid)
	n.want(0, "", "health-check", "in")
	n.want(0, "done", "task", "DumpDirectory")
	requireAlive(t, stranger)

	second := c.beside(n, "udp")
	if left := filesWith(t, n.runDir, pid); len(left) > 0 {
		t.Errorf("a node that starts leaves the record of a dead one whose pid lives on: %q", left)
	}
	n.want(64, "name one with --pid or --role", "task", "Offline")
	second.kill()
	n.want(3, "no running node", "task", "Offline", "--role=udp")
	if left := filesWith(t, n.runDir, taskFiles); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestTaskSaysWhatCameOfIt(t *testing.T) {
	c := newCluster(t)
	n := c.http
	n.want(64, "no task is called", "task", "Bogus")
	n.want(64, "foo", "task", "ChangeLogLevel", "foo")
	n.want(64, "one level", "task", "ChangeLogLevel")
	n.want(64, "takes no parameter", "task", "Offline", "now")
	n.want(64, "one line", "task", "ChangeLogLevel", "a\nb")
	n.want(1, "no rooms", "task", "DumpRooms")
	n.want(1, "nothing to recover", "mars", "recover")
	n.want(1, "is no member", "mars", "transfer", "10.9.9.9:8000")
	n.want(1, "is the authority already", "mars", "transfer", c.mars.Mesh)
	n.want(64, "", "mars", "transfer", "mars")
	n.want(0, "was online", "task", "offline")
	n.want(0, "already", "task", "OFFLINE")
	n.want(0, "is online", "task", "Online")
	n.want(0, "was info", "task", "ChangeLogLevel", "warn")
	n.waitLog(`"task done"`, "ChangeLogLevel", "log level is warn")
	n.want(0, "members logged", "task", "DumpDirectory")
	n.waitLog(`"directory member"`, c.mars.Mesh) // also at warn: it was asked for

	var together sync.WaitGroup
	for i := range 4 {
		together.Go(func() { n.want(0, "log level is", "task", "ChangeLogLevel", []string{"warn", "error"}[i%2]) })
	}
	together.Wait()

	// Nobody takes the task of a stopped node: it is withdrawn, and never done.
	n.signal(syscall.SIGSTOP)
	ask := exec.Command(binary, "task", "Offline")
	ask.Env = append(ask.Environ(), "DIARKIS_RUN_DIR="+n.runDir)
	var said strings.Builder
	ask.Stderr = &said
	if err := ask.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the task is there", func() bool { return len(filesWith(t, n.runDir, `^task\.http\.`)) == 1 })
	if err := ask.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if exit, ok := errors.AsType[*exec.ExitError](ask.Wait()); !ok || exit.ExitCode() != 1 || !strings.Contains(said.String(), "withdrawn") {
		t.Errorf("a task given up: %v %s", exit, &said)
	}
	n.signal(syscall.SIGCONT)
	n.want(0, "was online already", "task", "Online")

	// A node that dies does not keep who asked waiting.
	n.signal(syscall.SIGSTOP)
	var dies sync.WaitGroup
	dies.Go(func() { n.want(1, "ended without saying", "task", "Online") })
	eventually(t, "the task is there", func() bool { return len(filesWith(t, n.runDir, `^task\.http\.`)) == 1 })
	n.kill()
	dies.Wait()
	if left := filesWith(t, n.runDir, taskFiles); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestFilesOfTheDead: a node that was killed leaves nothing that the next one does not
// remove, and what another process or user put there stays.
func TestFilesOfTheDead(t *testing.T) {
	c := newCluster(t)
	tcp := c.start("tcp")
	udp := c.beside(tcp, "udp")
	plain := func() string {
		b, err := os.ReadFile(filepath.Join(tcp.runDir, "DIARKIS_PUBLIC_ADDR"))
		if err != nil {
			return ""
		}
		return string(b)
	}
	if got := plain(); got != udp.Public {
		t.Errorf("DIARKIS_PUBLIC_ADDR names %s, want the udp node at %s", got, udp.Public)
	}
	http := c.beside(tcp, "http")
	if got := plain(); got != udp.Public {
		t.Errorf("DIARKIS_PUBLIC_ADDR names %s beside an http node at %s", got, http.Public)
	}
	dead := strconv.Itoa(udp.cmd.Process.Pid)
	for name, text := range map[string]string{"DIARKIS_SIGUSR1." + dead: "Offline\n", "notes." + dead: "mine"} {
		if err := os.WriteFile(filepath.Join(tcp.runDir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	udp.kill()
	eventually(t, "the plain name goes to the tcp node", func() bool { return plain() == tcp.Public })
	next := c.beside(tcp, "udp").waitReady()
	next.waitLog(`"files of ended processes removed"`, "udp "+dead)
	if left := filesWith(t, tcp.runDir, `\.`+dead+`(\.|$)`); len(left) != 1 || left[0] != "notes."+dead {
		t.Errorf("of the dead node is left %q", left)
	}
	for _, n := range []*node{tcp, http, next} {
		pid := strconv.Itoa(n.cmd.Process.Pid)
		n.want(0, "", "health-check", "in", "--pid", pid)
		n.want(0, "", "task", "DumpDirectory", "--pid", pid)
		n.signal(syscall.SIGTERM)
	}
	for _, n := range []*node{tcp, http, next} {
		n.waitExit()
	}
	if left := filesWith(t, tcp.runDir, `ADDR($|\.[a-z]+\.[0-9])|^(node|probe)\.`); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestNodesOfAnotherUser are not there for health-check and task, which say so.
func TestNodesOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be two users")
	}
	c := newCluster(t)
	dir := c.http.runDir
	copied := filepath.Join(dir, "diarkisd") // TestMain's directory is closed to others
	b, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.WriteFile(copied, b, 0o755), os.Chmod(dir, 0o1777), os.Chmod(filepath.Dir(dir), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"health-check", "in"}, {"task", "Offline"}, {"mars", "status"}, {"task", "Offline", "--pid", strconv.Itoa(c.http.cmd.Process.Pid)}} {
		cmd := exec.Command(copied, args...)
		cmd.Dir, cmd.Env = dir, append(cmd.Environ(), "DIARKIS_RUN_DIR="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4711, Gid: 4711}}
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 3 || !strings.Contains(string(out), "files of the user with id 0") {
			t.Errorf("%v as another user = %d %s, want 3", args, code, out)
		}
	}
	if left := filesWith(t, dir, taskFiles+`|4711`); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	c.http.want(0, "", "health-check", "ready")
}

// TestALogNobodyReads: the node plays on.
func TestALogNobodyReads(t *testing.T) {
	c := newCluster(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "--role=udp", "--port=0", "--mars-port", strconv.Itoa(c.marsPort))
	dir := t.TempDir()
	cmd.Dir, cmd.Stderr, cmd.Stdout = dir, w, w
	cmd.Env = append([]string{"DIARKIS_RUN_DIR=" + dir, "DIARKIS_MESH_PORT=0", "DIARKIS_METRICS_PORT=0"}, "DIARKIS_CLUSTER_SECRET="+secret)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for _, f := range []*os.File{w, r} {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	health := func(args ...string) int {
		code, _, _ := run(t, []string{"DIARKIS_RUN_DIR=" + dir}, args...)
		return code
	}
	eventually(t, "ready though its log is closed", func() bool { return health("health-check", "ready") == 0 })
	if code := health("task", "DumpDirectory"); code != 0 {
		t.Errorf("a task of it: exit %d", code)
	}
	requireAlive(t, cmd)
}

// TestAFullRunDirectory is exit 73, whatever the settings.
func TestAFullRunDirectory(t *testing.T) {
	const script = `mount -t tmpfs -o size=4k,mode=700 tmpfs "$DIARKIS_RUN_DIR" || exit 99; head -c 4096 /dev/zero >"$DIARKIS_RUN_DIR"/full; exec "$@"`
	for _, key := range []string{"", secret} {
		for _, role := range []string{"mars", "udp"} {
			dir := t.TempDir()
			cmd := exec.Command("unshare", "-Urm", "sh", "-c", script, "sh", binary, "--role="+role, "--port="+strconv.Itoa(freePort(t)))
			cmd.Dir = dir
			cmd.Env = append(cmd.Environ(), "DIARKIS_RUN_DIR="+dir, "DIARKIS_CLUSTER_SECRET="+key, "DIARKIS_METRICS_PORT=0", "DIARKIS_MESH_PORT=0")
			out, _ := cmd.CombinedOutput() // the exit code is what counts
			switch code := cmd.ProcessState.ExitCode(); {
			case code == 99 || code == 1 && strings.Contains(string(out), "unshare"):
				t.Skipf("no file system of our own here: %s", out)
			case code != 73 || !strings.Contains(string(out), "no space left on device (exit 73)"):
				t.Errorf("%s with the secret %q: exit %d, want 73:\n%s", role, key, code, out)
			}
		}
	}
}

// TestEveryCommandSaysHowItEnded walks through the commands as somebody does who mistypes.
func TestEveryCommandSaysHowItEnded(t *testing.T) {
	empty := &node{t: t, name: "nothing", runDir: t.TempDir()}
	for _, tc := range []struct {
		code int
		args string
	}{
		{64, "bogus"}, {64, "--bogus"}, {64, "--role=bogus"}, {64, "--role=udp extra"}, {64, ""},
		{64, "help bogus"}, {64, "mars bogus"}, {64, "config bogus"}, {64, "help mars bogus"},
		{64, "task"}, {64, "task --bogus"}, {64, "task a/b"}, {3, "task Online"}, {64, "task Online --role=bogus"}, {64, "task Online --pid=0"},
		{3, "task Online --run-dir=/nonexistent"},
		{64, "mars"}, {64, "mars status extra"}, {3, "mars status"}, {64, "mars status --timeout=0s"}, {64, "mars status --pid=-1"}, {64, "mars status --role="},
		{3, "mars recover"}, {64, "mars recover extra"}, {64, "mars transfer"}, {3, "mars transfer 10.0.0.1:8000"}, {64, "mars transfer 10.0.0.1"},
		{64, "config"}, {64, "config check --role=bogus"}, {78, "config check --config-dir=/nonexistent"}, {78, "config show --config-dir=/nonexistent"}, {64, "config show extra"},
		{64, "version extra"}, {64, "version --bogus"}, {64, "dev extra"}, {64, "dev --bots=x"}, {64, "bot"}, {64, "bot extra"},
		{78, "--role=udp --config-dir=/nonexistent"}, {78, "--role=udp --config=/nonexistent"},
		{2, "health-check"}, {2, "health-check bogus"}, {2, "health-check in --bogus"}, {3, "health-check in"}, {3, "health-check garbage ready"}, {2, "health-check in --config=/nonexistent"}, {2, "health-check 1.2.3.4:5 in /nonexistent"},
		{0, "version"}, {0, "--help"}, {0, "help"}, {0, "help mars transfer"}, {0, "config check"}, {0, "config show"},
		{0, "task --help"}, {0, "mars --help"}, {0, "mars status --help"}, {0, "mars recover --help"}, {0, "mars transfer --help"}, {0, "config --help"}, {0, "config check --help"},
		{0, "dev --help"}, {0, "bot --help"}, {0, "version --help"}, {0, "health-check --help"}, {0, "help health-check"},
	} {
		args := strings.Fields(tc.args)
		code, out, errOut := empty.run(args...)
		if code != tc.code {
			t.Errorf("diarkisd %s = %d %q %q, want %d", tc.args, code, out, errOut, tc.code)
		}
		switch lines := strings.Split(strings.TrimSpace(errOut), "\n"); {
		case code == 0 && (out == "" || errOut != ""):
			t.Errorf("diarkisd %s says %q and on stderr %q", tc.args, out, errOut)
		case code > 3 && !strings.HasSuffix(lines[len(lines)-1], fmt.Sprintf("(exit %d)", code)):
			t.Errorf("diarkisd %s ends with %q, want a line with the exit code", tc.args, lines[len(lines)-1])
		case strings.Contains(out+errOut, "panic"):
			t.Errorf("diarkisd %s panics: %s", tc.args, errOut)
		}
	}
	if _, err := os.Stat("/dev/full"); err == nil {
		for _, args := range []string{"version", "--help", "config show", "config check", "help mars"} {
			cmd := exec.Command("sh", "-c", `exec "$0" `+args+` >/dev/full`, binary)
			cmd.Dir = t.TempDir()
			out, _ := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(string(out), "not written") {
				t.Errorf("diarkisd %s that can't be written = %d %s, want 1", args, code, out)
			}
		}
	}
}

// TestCalledHealthCheck is how the original probe is called.
func TestCalledHealthCheck(t *testing.T) {
	c := newCluster(t)
	link := filepath.Join(t.TempDir(), "health-check")
	if err := os.Symlink(binary, link); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "health.json")
	if err := os.WriteFile(config, []byte(`{"level": "error"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		code int
		args []string
	}{
		{0, []string{c.http.Public, "out"}}, {0, []string{c.http.Mesh, "in", config}}, {0, []string{c.http.Mesh, "mars"}}, {0, []string{"ready"}},
		{3, []string{"127.0.0.1:1", "in", config}}, {2, []string{c.http.Mesh, "up"}}, {2, []string{}},
	} {
		cmd := exec.Command(link, tc.args...)
		cmd.Env = append(cmd.Environ(), "DIARKIS_RUN_DIR="+c.http.runDir)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != tc.code {
			t.Errorf("health-check %q = %d %s, want %d", tc.args, code, out, tc.code)
		}
	}
}
