package lifecycle

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Diarkis/diarkis/internal/config"
)

const testSecret = "9ab0c1d2e3f405162738495a6b7c8d9eafb0c1d2e3f40516273849506172839f"

// writeKey makes a file with a mode, whatever the umask is.
func writeKey(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
	return name
}

// A check goes on after the first mistake, and says nothing that only follows from one.
func TestCheckListsEveryProblem(t *testing.T) {
	dir, missing := t.TempDir(), filepath.Join(t.TempDir(), "missing")
	for _, c := range []struct {
		name string
		role config.Role
		env  []string
		want []string // each in one line, in order
	}{
		{"a secret, an address, a directory", config.RoleUDP,
			[]string{"DIARKIS_CLUSTER_SECRET", "short", "DIARKIS_UDP_ADDRESS", "10.251.252.253", "DIARKIS_UDP_NIC", "eth98", "DIARKIS_RUN_DIR", missing},
			[]string{"DIARKIS_CLUSTER_SECRET: ", "run directory: ", "udp.address (DIARKIS_UDP_ADDRESS): 10.251.252.253 is not an address"}},
		{"a secret on a mesh that needs one", config.RoleUDP, []string{"DIARKIS_CLUSTER_SECRET", "short", "DIARKIS_MESH_MARS_ADDRESS", "10.1.2.3", "DIARKIS_MESH_ADDRESS", "127.0.0.1", "DIARKIS_UDP_PUBLIC_ADDRESS", "a.example"},
			[]string{"DIARKIS_CLUSTER_SECRET: "}},
		{"an address of the mesh, and what proves membership", config.RoleTCP,
			[]string{"DIARKIS_MESH_NIC", "eth98", "DIARKIS_MESH_TLS_CERT", missing, "DIARKIS_MESH_TLS_KEY", missing, "DIARKIS_MESH_TLS_CA", missing},
			[]string{`mesh.nic (DIARKIS_MESH_NIC): network interface "eth98"`, "tls.cert: file " + missing, "tls.key: file " + missing, "tls.ca: file " + missing}},
		{"a public address without a secret", config.RoleHTTP, []string{"DIARKIS_MESH_MARS_ADDRESS", "10.1.2.3", "DIARKIS_MESH_ADDRESS", "8.8.8.8"},
			[]string{"address 8.8.8.8 is public", "mesh address 10.1.2.3 is not loopback, so nodes need a common identity"}},
		{"what players are told", config.RoleUDP, []string{"DIARKIS_UDP_ADDRESS", "0.0.0.0", "DIARKIS_UDP_PUBLIC_ADDRESS", "a b"}, []string{"DIARKIS_UDP_PUBLIC_ADDRESS: "}},
		{"a ticket key", config.RoleHTTP, []string{"DIARKIS_HTTP_AUTH", "ticket", "DIARKIS_TICKET_KEY", "short", "DIARKIS_HTTP_ADDRESS", "10.251.252.253"},
			[]string{"DIARKIS_TICKET_KEY: ", "http.address (DIARKIS_HTTP_ADDRESS)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			t.Setenv("DIARKIS_RUN_DIR", dir)
			for i := 0; i < len(c.env); i += 2 {
				t.Setenv(c.env[i], c.env[i+1])
			}
			_, _, err := CheckSettings(t.Context(), config.Options{Role: c.role})
			if err == nil {
				t.Fatal("nothing is wrong")
			}
			lines := strings.Split(err.Error(), "\n")
			for i, want := range c.want {
				if len(lines) != len(c.want) || !strings.Contains(lines[i], want) {
					t.Fatalf("found\n%v\nwant %q", err, c.want)
				}
			}
			if strings.HasPrefix(lines[0], "DIARKIS_") && CodeOf(err) != ExitConfig {
				t.Errorf("exit %d", CodeOf(err))
			}
		})
	}
}

// What a start warns of a check says too, and goes on being content.
func TestCheckSaysWhatAStartWarnsOf(t *testing.T) {
	secret, ticket := writeKey(t, testSecret, 0o644), writeKey(t, testSecret, 0o644)
	for _, c := range []struct {
		name string
		role config.Role
		env  []string
		want []string
	}{
		{"a secret that all may read", config.RoleMARS, []string{"DIARKIS_CLUSTER_SECRET_FILE", secret}, []string{"everybody on this machine may read the secret of the cluster", "file=" + secret}},
		{"a ticket key that all may read", config.RoleHTTP, []string{"DIARKIS_HTTP_AUTH", "ticket", "DIARKIS_TICKET_KEY_FILE", ticket},
			[]string{"everybody on this machine may read the key of the tickets", "setting=DIARKIS_TICKET_KEY_FILE"}},
		{"more connections than descriptors", config.RoleHTTP, []string{"DIARKIS_HTTP_MAX_CONNECTIONS", "1000000"}, []string{"fewer descriptors than connections may come", "setting=http.maxConnections"}},
		{"more players than descriptors", config.RoleTCP, []string{"DIARKIS_TCP_MAX_USERS", "1000000"}, []string{"fewer descriptors than connections may come", "setting=tcp.maxUsers"}},
		{"an open door", config.RoleHTTP, []string{"DIARKIS_HTTP_ADDRESS", "0.0.0.0"}, []string{"whoever reaches this port can take any user id", "address=0.0.0.0:7000"}},
		{"no secret", config.RoleMARS, nil, []string{"no cluster secret configured"}},
		{"an interface that has no say", config.RoleUDP, []string{"DIARKIS_UDP_ADDRESS", "127.0.0.1", "DIARKIS_UDP_NIC", "eth98"}, []string{"udp.nic (DIARKIS_UDP_NIC) has no effect: udp.address (DIARKIS_UDP_ADDRESS) is set"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			settings(t, c.role, append(c.env, "DIARKIS_RUN_DIR", dir)...)
			_, warnings, err := CheckSettings(t.Context(), config.Options{Role: c.role})
			all := strings.Join(warnings, "\n")
			for _, want := range c.want {
				if err != nil || !strings.Contains(all, want) {
					t.Errorf("warnings %q, %v, want %q", warnings, err, want)
				}
			}
		})
	}
}

// Whoever may write a file of keys decides who is let in: it is refused, whichever it is.
func TestKeysThatEverybodyMayWriteAreRefused(t *testing.T) {
	jwks, err := json.Marshal(map[string]any{"keys": []map[string]string{{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, text string
		role       config.Role
		env        []string // the last is set to the file
	}{
		{"cluster secret", testSecret, config.RoleMARS, []string{"DIARKIS_CLUSTER_SECRET_FILE"}},
		{"ticket key", testSecret, config.RoleHTTP, []string{"DIARKIS_HTTP_AUTH", "ticket", "DIARKIS_TICKET_KEY_FILE"}},
		{"ticket keys", string(jwks), config.RoleHTTP, []string{"DIARKIS_HTTP_AUTH", "ticket", "DIARKIS_HTTP_TICKET_KEYS"}},
		{"tls key", "any", config.RoleMARS, []string{"DIARKIS_MESH_TLS_CERT", "c", "DIARKIS_MESH_TLS_CA", "c", "DIARKIS_MESH_TLS_KEY"}},
	} {
		for mode, refused := range map[os.FileMode]bool{0o666: true, 0o602: true, 0o600: false} {
			t.Run(c.name+" "+mode.String(), func(t *testing.T) {
				t.Chdir(t.TempDir())
				t.Setenv("DIARKIS_RUN_DIR", t.TempDir())
				env := append(c.env[:len(c.env):len(c.env)], writeKey(t, c.text, mode))
				for i := 0; i < len(env); i += 2 {
					t.Setenv(env[i], env[i+1])
				}
				_, _, err := CheckSettings(t.Context(), config.Options{Role: c.role})
				if got := err != nil && strings.Contains(err.Error(), "everybody may write it"); got != refused {
					t.Errorf("%v, want refused: %v", err, refused)
				}
				if refused && CodeOf(err) != ExitConfig {
					t.Errorf("exit %d", CodeOf(err))
				}
			})
		}
	}
}
