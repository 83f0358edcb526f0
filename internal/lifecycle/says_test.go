package lifecycle

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/listener"
)

// settings loads what a node of a role reads, with variables by name and value.
func settings(t *testing.T, role config.Role, env ...string) *config.Config {
	t.Helper()
	t.Chdir(t.TempDir())
	for i := 0; i < len(env); i += 2 {
		t.Setenv(env[i], env[i+1])
	}
	cfg, err := config.Load(config.Options{Role: role})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// A node listens where MARS can be reached from.
func TestBindAddress(t *testing.T) {
	for _, c := range []struct {
		name, mars, address, nic, want string
	}{
		{"loopback", "127.0.0.1", "", "", "127.0.0.1"},
		{"by name", "localhost", "", "", "127.0.0.1"},
		{"IPv6 loopback", "::1", "", "", "::1"},
		{"a default interface does not count on loopback", "::1", "", "eth0", "::1"},
		{"set", "::1", "127.0.0.2", "", "127.0.0.2"},
		{"set by name", "127.0.0.1", "localhost", "", "127.0.0.1"},
		{"elsewhere", "10.1.2.3", "", "", "0.0.0.0"},
		{"elsewhere over IPv6", "fd00::77", "", "", "::"},
		{"no such default interface", "10.1.2.3", "", "no-such-nic0", "0.0.0.0"},
	} {
		cfg := settings(t, config.RoleTCP, "DIARKIS_MESH_MARS_ADDRESS", c.mars)
		got, err := bindAddress(t.Context(), cfg, "tcp", c.address, c.nic)
		if err != nil || got.String() != c.want {
			t.Errorf("%s: %v, %v, want %s", c.name, got, err, c.want)
		}
	}
	for mars, want := range map[string]string{"127.0.0.1": "127.0.0.1", "::1": "::1", "10.1.2.3": "127.0.0.1"} {
		cfg := settings(t, config.RoleMARS, "DIARKIS_MESH_MARS_ADDRESS", mars)
		if got, err := marsBind(t.Context(), cfg); err != nil || got.String() != want {
			t.Errorf("mars that is looked for at %s listens on %v, %v, want %s", mars, got, err, want)
		}
	}
}

func TestPublicHost(t *testing.T) {
	any4, bound := netip.IPv4Unspecified(), netip.MustParseAddr("10.1.2.3")
	for _, c := range []struct {
		name, public, env string
		address           netip.Addr
		want, problem     string
	}{
		{"bound", "", "", bound, "10.1.2.3", ""},
		{"for the machine", "", "game.example.com", any4, "game.example.com", ""},
		{"for the node", "udp.example.com", "game.example.com", bound, "udp.example.com", ""},
		{"IPv6", "2001:db8::7", "", any4, "2001:db8::7", ""},
		{"nothing", "", "", any4, "", "udp.address is not set and no interface either, so this node listens on every address"},
	} {
		cfg := settings(t, config.RoleUDP, "DIARKIS_UDP_PUBLIC_ADDRESS", c.public, "DIARKIS_CLOUD_ENV", c.env)
		got, err := publicHost(t.Context(), cfg, cfg.UDP.Public, c.address)
		if c.problem != "" {
			if err == nil || !strings.Contains(err.Error(), c.problem) || CodeOf(err) != ExitUnavailable {
				t.Errorf("%s: %v, want %q", c.name, err, c.problem)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}

// Whoever may have more connections than descriptors is told at the start, whatever the
// role; nobody is in `diarkisd dev`.
func TestFewDescriptorsAreSaid(t *testing.T) {
	for _, c := range []struct {
		descriptors, connections int
		trial                    bool
		want                     string
	}{
		{1024, 10_000, false, `"setting":"http.maxConnections","descriptors":1024,"for_connections":896,"needed":10512,"full_at":896`},
		{1 << 20, 10_000, false, ""},
		{1024, 10_000, true, ""},
		{0, 10_000, false, ""}, // not known
	} {
		log := &bytes.Buffer{}
		n := &Node{cfg: &config.Config{Role: config.RoleHTTP}, log: zerolog.New(log), trial: c.trial}
		n.checkDescriptors(listener.NewDescriptors(c.descriptors), "http.maxConnections", c.connections, c.connections)
		if got := log.String(); !strings.Contains(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%d descriptors for %d connections: %q, want %q", c.descriptors, c.connections, got, c.want)
		}
	}
}

// A taken port names the setting to change, of every listener.
func TestTakenPortsNameTheirSetting(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	port := l.Addr().(*net.TCPAddr).Port
	cfg := settings(t, config.RoleHTTP)
	for section, want := range map[string]string{
		"http": "http.port (default): ", "metrics": "metrics.port (default): ", "mesh": "set DIARKIS_MESH_PORT", "mars": "set DIARKIS_MESH_MARS_PORT on all of its nodes",
	} {
		_, err := listenTCP(loopback, port, 0)
		if err = listenError(cfg, section, loopback, port, 0, err); CodeOf(err) != ExitUnavailable || !strings.Contains(err.Error(), want) ||
			!strings.Contains(err.Error(), l.Addr().String()+" is taken") {
			t.Errorf("%s: %v, want %q", section, err, want)
		}
	}
	mapped := settings(t, config.RoleUDP, "DIARKIS_UDP_PUBLIC_PORT", "31000")
	_, err = listenTCP(loopback, port, 0)
	if err = listenError(mapped, "udp", loopback, port, 0, err); !strings.Contains(err.Error(), "no other port is tried because udp.publicPort (DIARKIS_UDP_PUBLIC_PORT) is mapped to this one") {
		t.Errorf("with a public port: %v", err)
	}
	elsewhere := netip.MustParseAddr("10.250.251.252")
	if _, err := listenTCP(elsewhere, port, 1000); err == nil || !strings.Contains(err.Error(), ":"+strconv.Itoa(port)+":") {
		t.Errorf("an address that is not here was tried at other ports: %v", err)
	}

	// The next free port is taken, and said to be.
	log := &bytes.Buffer{}
	c := *cfg
	c.Metrics.Port = port
	n := &Node{cfg: &c, log: zerolog.New(log), reg: prometheus.NewRegistry()}
	s := newStack(zerolog.Nop())
	if err := n.startAdmin(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	s.stop(t.Context())
	if !strings.Contains(log.String(), `"setting":"metrics.port"`) || !strings.Contains(log.String(), "port taken, next free one bound") {
		t.Errorf("log %q", log)
	}
}

// A field that says nothing is left out: who reads a log asks what it is that is missing.
func TestNoLogLineHasAnEmptyField(t *testing.T) {
	d := newDev(t, 0)
	log := &lockedBuffer{}
	for _, n := range d.nodes {
		n.log = zerolog.New(log).With().Str("role", string(n.cfg.Role)).Logger()
	}
	if err := runAll(t.Context(), t.Context(), d.nodes, d.awaitPlayable); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	for _, l := range lines {
		if strings.Contains(l, `:""`) {
			t.Errorf("a field is empty: %s", l)
		}
	}
	if n := strings.Count(log.String(), `"message":"node started"`); n != len(d.nodes) {
		t.Errorf("%d of %d nodes said that they started", n, len(d.nodes))
	}
}

// A check of good settings leaves nothing on the machine, and one of bad ones names all.
func TestCheckLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	for _, role := range append([]config.Role{""}, config.Roles...) {
		cfg := settings(t, role, "DIARKIS_RUN_DIR", dir)
		if _, err := Check(t.Context(), cfg); err != nil {
			t.Errorf("role %q: %v", role, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("role %q: left behind %v, %v", role, left, err)
		}
	}
	cfg := settings(t, "", "DIARKIS_RUN_DIR", dir, "DIARKIS_TCP_ADDRESS", "0.0.0.0", "DIARKIS_METRICS_ADDRESS", "10.250.251.252", "DIARKIS_MESH_ADDRESS", "8.8.8.8")
	_, err := Check(t.Context(), cfg)
	for _, want := range []string{
		"metrics.address (DIARKIS_METRICS_ADDRESS): 10.250.251.252 is not an address of this machine",
		"role http, udp, tcp: mesh configuration: address 8.8.8.8 is public", "role tcp: tcp.address (DIARKIS_TCP_ADDRESS) is 0.0.0.0",
	} {
		if err == nil || !strings.Contains(err.Error(), want) || CodeOf(err) != ExitConfig {
			t.Errorf("no %q, or not exit 78, in: %v", want, err)
		}
	}
}

// What is missing is not said as if it had been given, and the words are those of people.
func TestTextsForPeople(t *testing.T) {
	n := &Node{cfg: &config.Config{}, marsNode: nil}
	cfg := settings(t, config.RoleTCP, "DIARKIS_MESH_MARS_ADDRESS", "10.1.2.3")
	mars := settings(t, config.RoleMARS, "DIARKIS_MARS_ADDRESS", "0.0.0.0")
	_, noLevel := n.changeLogLevel(t.Context(), nil)
	_, noNode := n.marsTransfer(t.Context(), nil)
	_, noAddress := n.marsTransfer(t.Context(), []string{"nohost:1"})
	for _, c := range []struct {
		got, want string
	}{
		{noLevel.Error(), "give one level, such as debug: there are 0 parameters"},
		{noNode.Error(), "give the mesh address of one node: there are 0 parameters"},
		{noAddress.Error(), `node address "nohost:1" is no IP address with a port, such as 10.0.0.7:8000`},
		{advertiseSetting(cfg), "mesh.address"},
		{advertiseSetting(mars), "mars.address"},
		{advertiseSetting(settings(t, config.RoleUDP, "DIARKIS_MESH_NIC", "eth98")), "mesh.nic"},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

// A drain of nobody is one line.
func TestDrainOfNobodyIsOneLine(t *testing.T) {
	d := newDev(t, 0)
	log := &lockedBuffer{}
	for _, n := range d.nodes {
		n.log = zerolog.New(log)
	}
	if err := runAll(t.Context(), t.Context(), d.nodes, d.awaitPlayable); err != nil {
		t.Fatal(err)
	}
	if s := log.String(); strings.Contains(s, "draining started") || strings.Count(s, "draining ended, nobody is left to wait for") != 2 {
		t.Errorf("a udp and a tcp node without users say\n%s", s)
	}
}
