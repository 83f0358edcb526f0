//go:build unix

package e2e

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// healthCheck runs the probe beside a node.
func healthCheck(t *testing.T, n *node, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return run(t, []string{"DIARKIS_RUN_DIR=" + n.runDir}, append([]string{"health-check"}, args...)...)
}

// sendJunk sends random bytes of many lengths to a public port.
func sendJunk(t *testing.T, network, addr string) {
	t.Helper()
	for size := range 300 {
		conn, err := net.Dial(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, size)
		if _, err := rand.Read(b); err != nil {
			t.Fatal(err)
		}
		if size > 0 && size%3 == 0 {
			b[0] = byte(size % 7) // a type that exists
		}
		_, _ = conn.Write(b) // a node may close before it has read everything
		if network == "udp" {
			// An answer to junk would be an amplifier: the socket must stay quiet. Loopback
			// delivers before the next write returns, so a short look is enough.
			_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
			if n, err := conn.Read(make([]byte, 1500)); err == nil {
				t.Fatalf("%d bytes of junk were answered with %d bytes", size, n)
			}
		}
		_ = conn.Close()
	}
}

func TestHealthChecks(t *testing.T) {
	c := newCluster(t)
	for _, role := range []string{"udp", "tcp"} {
		n := c.start(role).waitReady()
		for _, what := range []string{"in", "out", "mars"} {
			if code, out, errOut := healthCheck(t, n, what); code != 0 || strings.TrimSpace(out+errOut) == "" {
				t.Errorf("%s: health-check %s = %d %q %q, want 0 and a line", role, what, code, out, errOut)
			}
		}
		if code, out, errOut := healthCheck(t, n, n.Mesh, "in"); code != 0 {
			t.Errorf("%s: the original form = %d %q %q, want 0", role, code, out, errOut)
		}
		n.kill()
		for _, what := range []string{"in", "out", "mars"} {
			if code, out, errOut := healthCheck(t, n, what); code != 3 {
				t.Errorf("%s dead: health-check %s = %d %q %q, want 3", role, what, code, out, errOut)
			}
		}
	}
	if code, _, _ := healthCheck(t, c.http, "out"); code != 0 {
		t.Errorf("http: health-check out = %d, want 0", code)
	}
	if code, _, _ := healthCheck(t, c.mars, "mars"); code != 0 {
		t.Errorf("mars: health-check mars = %d, want 0", code)
	}
	if code, _, _ := healthCheck(t, c.http, "nonsense"); code != 2 {
		t.Errorf("health-check nonsense = %d, want 2", code)
	}
}

func TestHealthCheckOfADrainingNode(t *testing.T) {
	c := newCluster(t)
	n := c.start("udp", "DIARKIS_SHUTDOWN_TIMEOUT=3600").waitReady()
	c.waitHandsOut("UDP")
	c.connect("ann", "UDP")
	n.signal(syscall.SIGTERM)
	n.waitLog(`"draining started"`)
	if code, out, _ := healthCheck(t, n, "out"); code != 1 {
		t.Errorf("draining: health-check out = %d %q, want 1", code, out)
	}
	if code, out, _ := healthCheck(t, n, "in"); code != 0 {
		t.Errorf("draining: health-check in = %d %q: a draining node is alive", code, out)
	}
}

func TestTaskFiles(t *testing.T) {
	c := newCluster(t)
	n := c.start("udp").waitReady()
	c.waitHandsOut("UDP")
	file := filepath.Join(n.runDir, "DIARKIS_SIGUSR1")
	ask := func(refused string, prepare func() error) {
		t.Helper()
		_ = os.Remove(file)
		if err := prepare(); err != nil {
			t.Fatal(err)
		}
		before := strings.Count(n.log(), `"task file refused"`)
		n.signal(syscall.SIGUSR1)
		eventually(t, refused+" refused", func() bool { return strings.Count(n.log(), `"task file refused"`) > before })
	}
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, []byte("Offline\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ask("a missing file", func() error { return nil })
	ask("an empty file", func() error { return os.WriteFile(file, nil, 0o600) })
	ask("a symlink", func() error { return os.Symlink(target, file) })
	ask("a FIFO", func() error { return syscall.Mkfifo(file, 0o600) })
	ask("an oversized file", func() error { return os.WriteFile(file, []byte("Offline\n"+strings.Repeat("x", 64<<10)), 0o600) })
	ask("a world-writable file", func() error {
		if err := os.WriteFile(file, []byte("Offline\n"), 0o600); err != nil {
			return err
		}
		return os.Chmod(file, 0o666)
	})
	ask("a directory", func() error { return os.Mkdir(file, 0o700) })
	_ = os.Remove(file)

	task := func(args ...string) {
		t.Helper()
		if code, out, errOut := run(t, []string{"DIARKIS_RUN_DIR=" + n.runDir}, append([]string{"task"}, args...)...); code != 0 {
			t.Fatalf("task %v: exit %d %s %s", args, code, out, errOut)
		}
	}
	task("DumpDirectory")
	n.waitLog(`"directory member"`, n.Mesh)
	task("ChangeLogLevel", "debug")
	n.waitLog(`"task done"`, "ChangeLogLevel")
	task("Offline")
	eventually(t, "an offline node is not handed out", func() bool { return !c.handsOut("UDP") })
	task("Online", "--pid", strconv.Itoa(n.cmd.Process.Pid))
	c.waitHandsOut("UDP")
	if !n.running() {
		t.Error("the node died of its task files")
	}
}

func TestConfigErrors(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "udp"), 0o700); err != nil {
		t.Fatal(err)
	}
	bad := "{\n  \"port\": \"seventy\",\n  \"conectionTTL\": 5,\n  \"enableEncryption\": false\n}\n"
	if err := os.WriteFile(filepath.Join(dir, "udp", "main.json"), []byte(bad), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--role=udp", "--config-dir", dir}, {"config", "check", "--config-dir", dir}} {
		code, _, errOut := run(t, nil, args...)
		if code != 78 {
			t.Errorf("%v: exit %d, want 78", args, code)
		}
		for _, want := range []string{"main.json:2", "port", "main.json:3", "conectionTTL", "connectionTTL", "main.json:4", "enableEncryption"} {
			if !strings.Contains(errOut, want) {
				t.Errorf("%v: no %q in:\n%s", args, want, errOut)
			}
		}
	}
	for _, tc := range []struct {
		name string
		env  []string
		args []string
		code int
		want string
	}{
		{"no role", nil, nil, 64, "mars, http, udp, tcp"},
		{"unknown role", nil, []string{"--role=quic"}, 64, "quic"},
		{"unknown flag", nil, []string{"--nonsense"}, 64, "nonsense"},
		{"missing directory", nil, []string{"--role=udp", "--config-dir", filepath.Join(dir, "none")}, 78, "none"},
		{"bad environment", []string{"DIARKIS_UDP_PORT=x"}, []string{"--role=udp"}, 78, "DIARKIS_UDP_PORT"},
		{"short secret", []string{"DIARKIS_CLUSTER_SECRET=short"}, []string{"--role=mars"}, 78, "DIARKIS_CLUSTER_SECRET"},
		{"no secret off loopback", []string{"DIARKIS_CLUSTER_SECRET=", "DIARKIS_MESH_ADDRESS=10.20.30.40"}, []string{"--role=udp"}, 78, "DIARKIS_CLUSTER_SECRET"},
		{"tickets without a key", []string{"DIARKIS_HTTP_AUTH=ticket"}, []string{"--role=http"}, 78, "auth: ticket needs a key: set DIARKIS_TICKET_KEY_FILE"},
		{"tickets with a poor key", []string{"DIARKIS_HTTP_AUTH=ticket", "DIARKIS_TICKET_KEY=" + strings.Repeat("a", 64)}, []string{"--role=http"}, 78, "DIARKIS_TICKET_KEY: ticket key: line 1 is not random"},
		{"tickets with keys that are none", []string{"DIARKIS_HTTP_AUTH=ticket", "DIARKIS_HTTP_TICKET_KEYS=" + filepath.Join(dir, "udp", "main.json")}, []string{"--role=http", "--port=0"}, 78, "http.ticketKeys: 0 keys"},
		{"run directory missing", []string{"DIARKIS_RUN_DIR=/nonexistent/run"}, []string{"--role=mars"}, 73, "/nonexistent/run"},
	} {
		code, _, errOut := run(t, tc.env, tc.args...)
		if code != tc.code || !strings.Contains(errOut, tc.want) {
			t.Errorf("%s: exit %d, want %d with %q, got:\n%s", tc.name, code, tc.code, tc.want, errOut)
		}
	}
}

func TestSecretsStayOutOfSight(t *testing.T) {
	const ticketKey = "3f8a1c5d7e9b2046a8c0e1f35b7d9a2c4e6f8091b3d5a7c9e0f2143658790bad"
	c := newCluster(t, "DIARKIS_CLIENT_KEY=very-secret-client-key", "DIARKIS_LOG_LEVEL=trace", "DIARKIS_TICKET_KEY="+ticketKey)
	udp := c.start("udp").waitReady()
	if _, err := c.tryConnect("ann", "UDP", "very-secret-client-key"); err != nil {
		eventually(t, "ann connects", func() bool {
			_, err := c.tryConnect("ann", "UDP", "very-secret-client-key")
			return err == nil
		})
	}
	_, out, _ := run(t, c.env, "config", "show")
	_, metrics := get(t, "http://"+udp.Admin+"/metrics")
	for where, text := range map[string]string{"log of mars": c.mars.log(), "log of http": c.http.log(), "log of udp": udp.log(), "config show": out, "metrics": metrics} {
		for _, s := range []string{"very-secret-client-key", secret, ticketKey} {
			if strings.Contains(text, s) {
				t.Errorf("%s shows a secret", where)
			}
		}
	}
}

func TestTakenPortIsSearchedUpward(t *testing.T) {
	c := newCluster(t)
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	port := taken.LocalAddr().(*net.UDPAddr).Port
	n := start(t, "udp", nodeOptions{args: []string{"--role=udp", "--port", strconv.Itoa(port), "--mars-port", strconv.Itoa(c.marsPort)}}).waitStarted()
	if n.Public == fmt.Sprintf("127.0.0.1:%d", port) {
		t.Errorf("bound the taken port %d", port)
	}
	n.waitReady()
	c.waitHandsOut("UDP")
	c.connect("ann", "UDP")
	second := start(t, "second mars", nodeOptions{args: []string{"--role=mars", "--port", strconv.Itoa(c.marsPort)}})
	if code := second.waitExit(); code != 69 {
		t.Errorf("a second MARS on the same port: exit %d, want 69", code)
	}
}
