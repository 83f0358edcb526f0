//go:build unix

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// mapPort is a container's port mapping: what arrives at a UDP port of its own goes to
// the node's, and answers go back to who asked. It returns its port.
func mapPort(t *testing.T, to int) int {
	t.Helper()
	outside, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = outside.Close() })
	go func() {
		inside := map[string]*net.UDPConn{}
		defer func() {
			for _, c := range inside {
				_ = c.Close()
			}
		}()
		b := make([]byte, 2048)
		for {
			n, from, err := outside.ReadFromUDP(b)
			if err != nil {
				return
			}
			c := inside[from.String()]
			if c == nil {
				if c, err = net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: to}); err != nil {
					return
				}
				inside[from.String()] = c
				go func() {
					b := make([]byte, 2048)
					for {
						n, err := c.Read(b)
						if err != nil {
							return
						}
						_, _ = outside.WriteToUDP(b[:n], from)
					}
				}()
			}
			_, _ = c.Write(b[:n])
		}
	}()
	return outside.LocalAddr().(*net.UDPAddr).Port
}

// Players of a node behind a port mapping are told the mapped port and the name that was
// set, everywhere alike, and play through it; health checks knock at the bound port.
func TestPlayersAreToldThePublicAddress(t *testing.T) {
	c := newCluster(t)
	bound := freePort(t)
	mapped := mapPort(t, bound)
	for _, name := range []string{"DIARKIS_UDP_PUBLIC_ADDRESS=localhost", "DIARKIS_CLOUD_ENV=localhost"} {
		n := start(t, "udp", nodeOptions{
			args: []string{"--role=udp", "--port", strconv.Itoa(bound), "--mars-port", strconv.Itoa(c.marsPort)},
			env:  []string{name, "DIARKIS_UDP_PUBLIC_PORT=" + strconv.Itoa(mapped), "DIARKIS_UDP_ADDRESS=0.0.0.0"},
		}).waitStarted().waitReady()
		c.waitHandsOut("UDP")
		public := fmt.Sprintf("localhost:%d", mapped)
		if n.Public != public {
			t.Errorf("%s: the node says %s, want %s", name, n.Public, public)
		}
		if _, body := get(t, c.url()+"/endpoint/type/UDP/user/eve"); !strings.Contains(body, fmt.Sprintf(`"serverHost":"localhost","serverPort":%d`, mapped)) {
			t.Errorf("%s: /endpoint does not answer %s", name, public)
		}
		if _, body := get(t, c.url()+"/auth/eve"); !strings.Contains(body, `"UDP":"`+public+`"`) {
			t.Errorf("%s: /auth does not answer %s", name, public)
		}
		if _, body := get(t, c.url()+"/debug/server/list/type/UDP"); !strings.Contains(body, `"endpoint":"`+public+`"`) {
			t.Errorf("%s: the directory has %s", name, body)
		}
		if code, body := get(t, c.url()+"/debug/endpoint/type/UDP/user/eve/address/"+public); code != 200 {
			t.Errorf("%s: a place on %s: %d %s", name, public, code, body)
		}
		if b, err := os.ReadFile(filepath.Join(n.runDir, "DIARKIS_PUBLIC_ADDR")); err != nil || string(b) != public {
			t.Errorf("%s: address file %q, %v", name, b, err)
		}
		if code, out, errOut := healthCheck(t, n, "out"); code != 0 {
			t.Errorf("%s: health-check out = %d %s%s", name, code, out, errOut)
		}
		p := c.connect("ann", "UDP")
		if p.Addr() != public {
			t.Errorf("%s: ann plays at %s, want %s", name, p.Addr(), public)
		}
		n.signal(syscall.SIGTERM)
		n.waitExit()
	}
	taken := start(t, "udp", nodeOptions{args: []string{"--role=udp", "--port", strconv.Itoa(c.marsPort), "--mars-port", strconv.Itoa(c.marsPort)},
		env: []string{"DIARKIS_UDP_PUBLIC_PORT=31000"}})
	if code := taken.waitExit(); code != 69 || !strings.Contains(taken.log(), "udp.port (flag): 127.0.0.1:"+strconv.Itoa(c.marsPort)+" is taken by another process, and no other port is tried because udp.publicPort (DIARKIS_UDP_PUBLIC_PORT) is mapped to this one: set DIARKIS_UDP_PORT") {
		t.Errorf("a port that another is mapped to, taken: exit %d\n%s", code, taken.log())
	}
}

// With mars on the IPv6 loopback address everything is there.
func TestClusterOnIPv6Loopback(t *testing.T) {
	if l, err := net.ListenPacket("udp", "[::1]:0"); err != nil {
		t.Skip("no IPv6 here")
	} else {
		_ = l.Close()
	}
	c := newCluster(t, "DIARKIS_MESH_MARS_ADDRESS=::1")
	for _, role := range []string{"udp", "tcp"} {
		n := c.start(role).waitReady()
		if !strings.HasPrefix(n.Mesh, "[::1]:") || !strings.HasPrefix(n.Public, "[::1]:") {
			t.Errorf("%s: mesh %s, public %s", role, n.Mesh, n.Public)
		}
		c.waitHandsOut(strings.ToUpper(role))
		c.connect("ann", strings.ToUpper(role))
		if code, out, errOut := healthCheck(t, n, "out"); code != 0 {
			t.Errorf("%s: health-check out = %d %s%s", role, code, out, errOut)
		}
	}
	if !strings.HasPrefix(c.mars.Mesh, "[::1]:") || !strings.HasPrefix(c.http.Public, "[::1]:") {
		t.Errorf("mars %s, http %s", c.mars.Mesh, c.http.Public)
	}
}

// A second cluster on a machine needs one variable, and whoever forgets it is told.
func TestSecondClusterOnAMachine(t *testing.T) {
	first := newCluster(t)
	second := start(t, "mars", nodeOptions{args: []string{"--role=mars"}, env: []string{"DIARKIS_MESH_MARS_PORT=" + strconv.Itoa(first.marsPort)}})
	want := fmt.Sprintf("127.0.0.1:%d is taken, perhaps by a mars node that runs already; for a second cluster on this machine set DIARKIS_MESH_MARS_PORT on all of its nodes", first.marsPort)
	if code := second.waitExit(); code != 69 || !strings.Contains(second.log(), want) {
		t.Errorf("exit %d\n%s\nwant %s", code, second.log(), want)
	}
	env := []string{"DIARKIS_MESH_MARS_PORT=" + strconv.Itoa(freePort(t)), "DIARKIS_CLUSTER_SECRET=9ab0c1d2e3f405162738495a6b7c8d9eafb0c1d2e3f40516273849506172839f"}
	for _, role := range []string{"mars", "http", "udp"} {
		start(t, role, nodeOptions{args: []string{"--role=" + role}, env: append(env, "DIARKIS_HTTP_PORT=0", "DIARKIS_UDP_PORT=0")}).waitStarted().waitReady()
	}
}

// What keeps a node from starting is found by config check, in the same words and with
// the same exit code, and says which setting it is.
func TestConfigCheckSaysWhatTheStartSays(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing.pem")
	for _, c := range []struct {
		role string
		env  []string
		code int
		want []string
	}{
		{"udp", []string{"DIARKIS_MESH_ADDRESS=no-such-host.invalid"}, 69, []string{`mesh.address (DIARKIS_MESH_ADDRESS): there is no address of the name "no-such-host.invalid"`}},
		{"http", []string{"DIARKIS_HTTP_ADDRESS=no-such-host.invalid"}, 69, []string{`http.address (DIARKIS_HTTP_ADDRESS): there is no address of the name "no-such-host.invalid"`}},
		{"http", []string{"DIARKIS_HTTP_ADDRESS=10.250.251.252"}, 69, []string{`http.address (DIARKIS_HTTP_ADDRESS): 10.250.251.252 is not an address of this machine`}},
		{"udp", []string{"DIARKIS_UDP_NIC=eth99"}, 69, []string{`udp.nic (DIARKIS_UDP_NIC): network interface "eth99": no such network interface; this machine has `}},
		{"tcp", []string{"DIARKIS_MESH_NIC=eth99"}, 69, []string{`mesh.nic (DIARKIS_MESH_NIC): network interface "eth99"`}},
		{"tcp", []string{"DIARKIS_TCP_ADDRESS=0.0.0.0"}, 69, []string{`tcp.address (DIARKIS_TCP_ADDRESS) is 0.0.0.0, which is every address of the machine`, "set tcp.publicAddress (DIARKIS_TCP_PUBLIC_ADDRESS)"}},
		{"udp", []string{"DIARKIS_UDP_ADDRESS=::"}, 69, []string{`udp.address (DIARKIS_UDP_ADDRESS) is ::, which is every`}},
		{"mars", []string{"DIARKIS_MESH_TLS_CERT=" + missing, "DIARKIS_MESH_TLS_KEY=" + missing, "DIARKIS_MESH_TLS_CA=" + missing}, 78, []string{"tls.cert", missing}},
		{"mars", []string{"DIARKIS_METRICS_ADDRESS=10.250.251.252"}, 69, []string{`metrics.address (DIARKIS_METRICS_ADDRESS): 10.250.251.252 is not an address of this machine`}},
		{"mars", []string{"DIARKIS_RUN_DIR=" + missing}, 73, []string{"run directory: ", missing}},
		{"udp", []string{"DIARKIS_CLOUD_ENV=GPC"}, 78, []string{`DIARKIS_CLOUD_ENV: expected a cloud`, `did you mean "GCP"?`}},
		{"udp", []string{"DIARKIS_MARS_PORT=6780", "DIARKIS_MESH_MARS_PORT=6781"}, 78, []string{"DIARKIS_MESH_MARS_PORT: mesh.marsPort: nodes look for mars at port 6781, but mars listens on 6780 (mars.port from DIARKIS_MARS_PORT)"}},
		{"udp", []string{"DIARKIS_UDP_NIC=eth99", "DIARKIS_METRICS_ADDRESS=10.250.251.252", "DIARKIS_MESH_ADDRESS=8.8.8.8"}, 78,
			[]string{"udp.nic", "metrics.address", "8.8.8.8 is public", "3 problems, listed above"}},
	} {
		for _, args := range [][]string{{"--role=" + c.role}, {"config", "check", "--role=" + c.role}} {
			code, out, errOut := run(t, c.env, args...)
			if code != c.code {
				t.Errorf("%v %v: exit %d, want %d", c.env, args, code, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(errOut, want) {
					t.Errorf("%v %v: no %q in\n%s%s", c.env, args, want, out, errOut)
				}
			}
		}
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "shared"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "shared", "log.json")
	if err := os.WriteFile(file, []byte(`{"level": "debug"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "settings of every role (mars, http, udp, tcp) are good; no directory of settings files: environment and defaults\n"},
		{[]string{"--role=udp", "--config-dir", dir}, "settings of the role udp are good; directory " + dir + ", files " + file + "\n"},
	} {
		if code, out, errOut := run(t, nil, append([]string{"config", "check"}, c.args...)...); code != 0 || !strings.HasSuffix("\n"+out, "\n"+c.want) {
			t.Errorf("config check %v = %d %q %q, want %q", c.args, code, out, errOut, c.want)
		}
	}
}
