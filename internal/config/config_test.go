package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/configs"
)

// clean hides the environment and the working directory of whoever runs the tests.
func clean(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, envPrefix) {
			t.Setenv(name, "") // restores it afterwards
			if err := os.Unsetenv(name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// write makes a configuration directory of files by path.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t *testing.T, o Options) *Config {
	t.Helper()
	c, err := Load(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// problems loads and returns one line per problem, with dir cut from the paths.
func problems(t *testing.T, o Options) []string {
	t.Helper()
	_, err := Load(o)
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*Errors](err)
	if !ok || e.ExitCode() != 78 {
		t.Fatalf("Load = %v, want an *Errors with exit code 78", err)
	}
	text := e.Error()
	if o.Dir != "" {
		text = strings.ReplaceAll(text, o.Dir+"/", "")
	}
	return strings.Split(text, "\n")
}

func TestEveryKeyHasAnEmbeddedDefault(t *testing.T) {
	clean(t)
	c := load(t, Options{})
	for _, s := range c.sections() {
		for _, f := range s.fields {
			if !c.IsDefault(s.name + "." + f.key) {
				t.Errorf("%s: key %s came from %q, want its default embedded", s.path, f.key, c.Source(s.name+"."+f.key))
			}
			if f.is != "" && !strings.Contains(f.is, "|") && f.is != "port" && textKinds[f.is] == nil {
				t.Errorf("%s: key %s is of unknown kind %q", s.path, f.key, f.is)
			}
		}
		src, err := configs.Defaults.ReadFile(s.path)
		if err != nil || !json.Valid(src) {
			t.Errorf("%s is not embedded JSON: %v", s.path, err)
		}
	}
	if c.UDP.Port != 7100 || c.UDP.ConnectionTTL != 10*time.Second || c.UDP.HandleRUDPInterval != 100*time.Millisecond ||
		c.Mesh.MARSAddress != "127.0.0.1" || c.UDP.PacketsBurst != 400 || c.Metrics.Port != 9400 || c.Room.MaxMembers != 1000 ||
		!slices.Equal(c.MARS.FullSyncRoles, []string{"HTTP"}) || c.Env.ShutdownTimeout != 10*time.Second || len(c.Warnings) != 0 {
		t.Errorf("defaults = %+v", c)
	}
}

// The files in configs/ are there to be copied: a copy sets nothing.
func TestCopiedDefaultsAreDefaults(t *testing.T) {
	clean(t)
	dir := t.TempDir()
	if err := os.CopyFS(dir, configs.Defaults); err != nil {
		t.Fatal(err)
	}
	c := load(t, Options{Dir: dir, Flags: map[string]string{"udp.port": "7100", "tcp.port": "7201"}})
	for _, s := range c.sections() {
		for _, f := range s.fields {
			if key := s.name + "." + f.key; c.IsDefault(key) == (key == "tcp.port") {
				t.Errorf("%s from %s: IsDefault = %v", key, c.Source(key), c.IsDefault(key))
			}
		}
	}
}

func TestPrecedence(t *testing.T) {
	clean(t)
	dir := write(t, map[string]string{
		"udp/main.json":    `{"port": "7101", "maxRetry": 4, "resumeTTL": 5, "nic": "net1"}`,
		"shared/mesh.json": `{"seeds": ["a", "b:1"], "tls": {"cert": "c", "key": "k", "ca": "a"}}`,
	})
	t.Setenv("DIARKIS_UDP_RESUME_TTL", "6")
	t.Setenv("DIARKIS_UDP_MAX_RETRY", "5")
	t.Setenv("DIARKIS_UDP_NIC", "") // empty counts as unset
	t.Setenv("DIARKIS_MESH_TLS_CA", "/ca.pem")
	t.Setenv("DIARKIS_MARS_FULL_SYNC_ROLES", `["http", "udp"]`)
	t.Setenv("DIARKIS_MESH_SEEDS", "c, [::1]:6779 , [::1],")
	t.Setenv("DIARKIS_LOG_COLOR", "FALSE")
	c := load(t, Options{Role: RoleUDP, Dir: dir, Flags: map[string]string{"udp.maxRetry": "7", "health-check.port": "1"}})
	for _, tt := range []struct{ what, got, want string }{
		{"default", fmt.Sprint(c.UDP.ConnectionTTL), "10s"},
		{"file over default", fmt.Sprint(c.UDP.Port), "7101"},
		{"environment over file", fmt.Sprint(c.UDP.ResumeTTL), "6s"},
		{"flag over environment", fmt.Sprint(c.UDP.MaxRetry), "7"},
		{"empty variable", c.UDP.NIC, "net1"},
		{"nested", fmt.Sprint(c.Mesh.TLS), "{c k /ca.pem}"},
		{"list as JSON", fmt.Sprint(c.MARS.FullSyncRoles), "[http udp]"},
		{"list with commas", fmt.Sprint(c.Mesh.Seeds), "[c [::1]:6779 ::1]"},
		{"choice in any case", c.Log.Color, "false"},
		{"dashed file", fmt.Sprint(c.HealthCheck.Port), "1"},
		{"source of a default", c.Source("udp.connectionTTL"), "default"},
		{"source of a file", c.Source("udp.port"), filepath.Join(dir, "udp/main.json") + ":1"},
		{"source of a variable", c.Source("udp.resumeTTL"), "DIARKIS_UDP_RESUME_TTL"},
		{"source of a flag", c.Source("udp.maxRetry"), "flag"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.what, tt.got, tt.want)
		}
	}
}

func TestDirectories(t *testing.T) {
	clean(t)
	if got := problems(t, Options{Dir: "/no/such/directory"}); len(got) != 1 || !strings.Contains(got[0], "--config-dir: ") {
		t.Errorf("missing --config-dir: %q", got)
	}
	t.Setenv(envConfigRoot, "/no/such/directory")
	if got := problems(t, Options{}); len(got) != 1 || !strings.Contains(got[0], envConfigRoot) {
		t.Errorf("missing %s: %q", envConfigRoot, got)
	}
	t.Setenv(envConfigRoot, write(t, map[string]string{"http/main.json": `{"port": 1}`}))
	if c := load(t, Options{Role: RoleHTTP}); c.HTTP.Port != 1 {
		t.Errorf("%s is not read: port %d", envConfigRoot, c.HTTP.Port)
	}
	if c := load(t, Options{Role: RoleHTTP, Dir: write(t, map[string]string{"http/main.json": `{"port": 2}`})}); c.HTTP.Port != 2 {
		t.Errorf("--config-dir does not win: port %d", c.HTTP.Port)
	}
	if c := load(t, Options{Role: RoleUDP}); c.HTTP.Port != 7000 {
		t.Errorf("another role's file was read: port %d", c.HTTP.Port)
	}
	t.Setenv(envConfigRoot, "")
	t.Chdir(write(t, map[string]string{"configs/http/main.json": `{"port": 3}`}))
	if c := load(t, Options{}); c.HTTP.Port != 3 || c.Dir != "configs" {
		t.Errorf("./configs is not read: port %d", c.HTTP.Port)
	}
	file := filepath.Join(write(t, map[string]string{"x.json": `{"port": 4}`}), "x.json")
	if c := load(t, Options{Role: RoleHTTP, File: file}); c.HTTP.Port != 4 {
		t.Errorf("--config is not read: port %d", c.HTTP.Port)
	}
	if got := problems(t, Options{Role: RoleHTTP, File: file + "x"}); len(got) != 1 {
		t.Errorf("missing --config: %q", got)
	}
	if got := problems(t, Options{File: file}); len(got) != 1 || !strings.Contains(got[0], "--role") {
		t.Errorf("--config without a role: %q", got)
	}
}

// Any node may have to keep the registry, so each knows what mars/main.json says of
// that, and no more: the rest of the file is the business of mars.
func TestClusterWideKeys(t *testing.T) {
	clean(t)
	files := map[string]string{
		"mars/main.json": `{"port": 1, "address": "{$DIARKIS_NONE}", "colour": "red", "fullSyncRoles": ["UDP"], "recovery": "manual"}`,
		"udp/main.json":  `{"port": 2}`,
	}
	dir := write(t, files)
	c := load(t, Options{Role: RoleUDP, Dir: dir, File: filepath.Join(dir, "udp/main.json")})
	if fmt.Sprint(c.MARS.FullSyncRoles) != "[UDP]" || c.MARS.Recovery != "manual" || c.MARS.Port != 1 || c.Mesh.MARSPort != 1 {
		t.Errorf("a udp node reads %+v of mars", c.MARS)
	}
	t.Setenv("DIARKIS_MARS_RECOVERY", "auto")
	if c = load(t, Options{Role: RoleUDP, Dir: dir}); c.MARS.Recovery != "auto" {
		t.Errorf("the variable does not win: %s", c.MARS.Recovery)
	}
	files["mars/main.json"] = `{"recovery": "never"}`
	if got := problems(t, Options{Role: RoleUDP, Dir: write(t, files)}); len(got) != 1 || !strings.Contains(got[0], "recovery: expected one of auto, manual") {
		t.Errorf("a key every role reads is wrong: %q", got)
	}
}

func TestProblemsOfFiles(t *testing.T) {
	clean(t)
	t.Setenv("DIARKIS_WORD", "word")
	t.Setenv("DIARKIS_EVIL", `7100, "exposeDebugAPI": true`)
	t.Setenv("DIARKIS_OBJECT", `{"port": 1}`)
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"unknown key", "{\n  \"Port\": 1,\n  \"recoveri\": \"auto\",\n  \"colour\": 1\n}", []string{
			`mars/main.json:2:3: Port: unknown key; did you mean "port"?`,
			`mars/main.json:3:3: recoveri: unknown key; did you mean "recovery"?`,
			`mars/main.json:4:3: colour: unknown key; valid keys are address, port, fullSyncRoles, enableMetricsLogging, recovery`}},
		{"duplicate key", `{"port": 1, "port": 2}`, []string{`mars/main.json:1:13: port: key appears twice, first on line 1`}},
		{"duplicate key in other spelling", `{"port": 1, "p\u006frt": 2}`, []string{`mars/main.json:1:13: port: key appears twice, first on line 1`}},
		{"trailing data", "{}\n {}", []string{`mars/main.json:2:2: expected the end of the file, got '{'`}},
		{"nothing", "", []string{`mars/main.json:1:1: expected a value, got the end of the file`}},
		{"no object", `[1]`, []string{`mars/main.json:1:1: expected an object of settings, got a list`}},
		{"wrong types", `{"address": 1, "port": true, "fullSyncRoles": "HTTP", "enableMetricsLogging": "true", "recovery": null}`, []string{
			`mars/main.json:1:13: address: expected text in quotes, got 1`,
			`mars/main.json:1:24: port: expected a port from 1 to 65535, got true`,
			`mars/main.json:1:47: fullSyncRoles: expected a list of texts, got the text "HTTP"`,
			`mars/main.json:1:79: enableMetricsLogging: expected true or false, got the text "true"`,
			`mars/main.json:1:99: recovery: expected one of auto, manual, got null`}},
		{"out of range", `{"port": 65536}`, []string{`mars/main.json:1:10: port: expected a port from 1 to 65535, got 65536`}},
		{"not whole", `{"port": 1.5}`, []string{`mars/main.json:1:10: port: expected a port from 1 to 65535, got 1.5`}},
		{"beyond every integer", `{"port": 99999999999999999999}`, []string{`mars/main.json:1:10: port: expected a port from 1 to 65535, got 99999999999999999999`}},
		{"port as a word", `{"port": "http"}`, []string{`mars/main.json:1:10: port: expected a port from 1 to 65535, got the text "http"`}},
		{"choice", `{"recovery": "automatic"}`, []string{`mars/main.json:1:14: recovery: expected one of auto, manual, got "automatic"`}},
		{"list entries", `{"fullSyncRoles": ["HTTP", 1]}`, []string{`mars/main.json:1:28: fullSyncRoles: expected a list of texts, got 1 in it`}},
		{"unknown role", `{"fullSyncRoles": ["WEB"]}`, []string{`mars/main.json:1:20: fullSyncRoles: expected roles among MARS, HTTP, UDP, TCP, got "WEB"`}},
		{"address with a port", `{"address": "1.2.3.4:5"}`, []string{`mars/main.json:1:13: address: expected an IP address or a host name without a port, got "1.2.3.4:5"; leave out the port, which is a setting of its own`}},
		{"comma at the end", `{"port": 1,}`, []string{`mars/main.json:1:11: a comma with nothing behind it but '}': take it out`}},
		{"no comma", `{"port": 1 "recovery": "auto"}`, []string{`mars/main.json:1:12: expected ',' or '}', got '"'`}},
		{"cut off", `{"port": `, []string{`mars/main.json:1:10: port: expected a value, got the end of the file`}},
		{"bad number", `{"port": 01}`, []string{`mars/main.json:1:10: port: "01" is not a JSON value; text is written in double quotes, a number without zeros in front`}},
		{"text over lines", "{\"address\": \"a\nb\"}", []string{`mars/main.json:1:15: address: control character 0x0a in text; is a closing quote missing?`}},
		{"columns count characters", `{"é": 1, "port": 0}`, []string{
			`mars/main.json:1:2: é: unknown key; valid keys are address, port, fullSyncRoles, enableMetricsLogging, recovery`,
			`mars/main.json:1:18: port: expected a port from 1 to 65535, got 0`}},
		{"missing variables", "{\"address\": \"{$DIARKIS_NONE}\",\n\"port\": {$DIARKIS_NONE}, \"recovery\": \"x\"}", []string{
			`mars/main.json:1:14: address: environment variable DIARKIS_NONE is not set`,
			`mars/main.json:2:9: port: environment variable DIARKIS_NONE is not set`,
			`mars/main.json:2:38: recovery: expected one of auto, manual, got "x"`}},
		{"variable of another program", `{"address": "{$HOME}"}`, []string{`mars/main.json:1:14: address: a placeholder is written {$DIARKIS_NAME}, in capitals, digits and underscores`}},
		{"variable that is no JSON", `{"port": {$DIARKIS_WORD}}`, []string{`mars/main.json:1:10: port: environment variable DIARKIS_WORD does not hold one JSON value; put the placeholder in quotes to use it as text`}},
		{"variable that adds a key", `{"port": {$DIARKIS_EVIL}}`, []string{`mars/main.json:1:10: port: environment variable DIARKIS_EVIL does not hold one JSON value; put the placeholder in quotes to use it as text`}},
		{"variable of a wrong type", `{"port": {$DIARKIS_OBJECT}}`, []string{`mars/main.json:1:10: port: expected a port from 1 to 65535, got an object from DIARKIS_OBJECT`}},
		{"values of variables are not shown", `{"recovery": "{$DIARKIS_WORD}"}`, []string{`mars/main.json:1:14: recovery: expected one of auto, manual, got text in quotes from DIARKIS_WORD`}},
		{"too deep", strings.Repeat("[", 20), []string{`mars/main.json:1:17: more than 16 levels deep`}},
		{"not UTF-8", "{\"address\": \"\xff\"}", []string{`mars/main.json:1:1: file is not UTF-8`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := problems(t, Options{Role: RoleMARS, Dir: write(t, map[string]string{"mars/main.json": tt.text})})
			if !slices.Equal(got, tt.want) {
				t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(tt.want, "\n\t"))
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	clean(t)
	t.Setenv("DIARKIS_UDP_PORT", "many")
	t.Setenv("DIARKIS_SHUTDOWN_TIMEOUT", "soon")
	t.Setenv("DIARKIS_JSON_LOG", "maybe")
	t.Setenv("DIARKIS_CLUSTER_SECRET", "short and secret")
	t.Setenv("DIARKIS_APP_NAME", "a/b")
	dir := write(t, map[string]string{
		"udp/main.json":          `{"enableEncryption": false, "sendUDPInterval": 5, "bytesPerSecond": 1500}`,
		"shared/mesh.json":       `{"tls": {"cert": "c"}, "seeds": ["a:b"]}`,
		"shared/log.json":        `{"level": "debgu"}`,
		"shared/group.json":      `{`,
		"shared/matching.json":   `{"anything": 1}`,
		"shared/metrics.json":    `{"port": 1`,
		"shared/own-things.json": `not even JSON`,
	})
	got := problems(t, Options{Role: RoleUDP, Dir: dir, Flags: map[string]string{"udp.maxRetri": "1"}})
	for _, want := range []string{
		`udp/main.json:1:22: enableEncryption: only true is supported: the client protocol has no unencrypted form`,
		`udp/main.json:1:48: sendUDPInterval: expected 0 (no send buffering) or at least 10 milliseconds, got 5`,
		`udp/main.json:1:69: bytesPerSecond: expected a multiple of 1024`,
		`shared/mesh.json:1:18: tls.cert: cert, key and ca have to be set together; missing: key, ca`,
		`shared/mesh.json:1:34: seeds: expected host or host:port, got "a:b"`,
		`shared/log.json:1:11: level: expected one of trace, debug, info, warn, error, fatal, got "debgu"; did you mean "debug"?`,
		`shared/group.json:1:2: expected a key in double quotes, got the end of the file`,
		`shared/metrics.json:1:11: expected ',' or '}', got the end of the file`,
		`flag: udp.maxRetri: unknown setting; did you mean "maxRetry"?`,
		`DIARKIS_UDP_PORT: udp.port: expected a port from 0 to 65535, got "many"`,
		`DIARKIS_SHUTDOWN_TIMEOUT: expected a whole number of seconds from 1 to 86400, got "soon"`,
		`DIARKIS_JSON_LOG: expected TRUE or FALSE, got "maybe"`,
		`DIARKIS_APP_NAME: expected at most 64 bytes`,
		`DIARKIS_CLUSTER_SECRET: cluster secret: line 1, of 16 characters, is not 32 random bytes in hexadecimal or base64: make one with "openssl rand -hex 32"`,
	} {
		if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("no problem says %s", want)
		}
	}
	all := strings.Join(got, "\n")
	if strings.Contains(all, "secret\"") || strings.Contains(all, "short and") || len(got) != 14 {
		t.Errorf("%d problems:\n%s", len(got), all)
	}
}

func TestPlaceholders(t *testing.T) {
	clean(t)
	t.Setenv("DIARKIS_HOST", `we"ird\`)
	t.Setenv("DIARKIS_PORT_NUMBER", " 7105 ")
	t.Setenv("DIARKIS_SEED_LIST", `["{$DIARKIS_HOST}a", "b"]`)
	t.Setenv("DIARKIS_NAMES", "mars")
	dir := write(t, map[string]string{
		"udp/main.json":    "\ufeff{\"port\": {$DIARKIS_PORT_NUMBER}, \"nic\": \"a-{$DIARKIS_HOST}-{$DIARKIS_NAMES}-\\u007b$DIARKIS_HOST}\"}",
		"shared/mesh.json": `{"marsAddress": "{$DIARKIS_NAMES}.local", "marsPort": "{$DIARKIS_PORT_DIGITS}"}`,
	})
	t.Setenv("DIARKIS_PORT_DIGITS", "6000")
	c := load(t, Options{Role: RoleUDP, Dir: dir})
	if c.UDP.Port != 7105 || c.UDP.NIC != `a-we"ird\-mars-{$DIARKIS_HOST}` || c.Mesh.MARSAddress != "mars.local" || c.Mesh.MARSPort != 6000 {
		t.Errorf("udp %+v, mesh %+v", c.UDP, c.Mesh)
	}
	// A variable is not searched for further placeholders.
	got := problems(t, Options{Dir: write(t, map[string]string{"shared/mesh.json": `{"seeds": {$DIARKIS_SEED_LIST}}`})})
	if len(got) != 1 || !strings.Contains(got[0], "seeds: expected a list of texts, got a list from DIARKIS_SEED_LIST") {
		t.Errorf("nested placeholder: %q", got)
	}
}

func TestWarnings(t *testing.T) {
	clean(t)
	t.Setenv("DIARKIS_UDP_PROT", "7100")
	t.Setenv("DIARKIS_MY_GAME", "x")
	t.Setenv("DIARKIS_HTTP_PORT", "tcp://10.0.0.1:7000")
	dir := write(t, map[string]string{"shared/group.json": `{"x": 1}`, "shared/rooms.json": `?`, "shared/readme.txt": "x"})
	c := load(t, Options{Dir: dir})
	want := []string{
		"holds no settings file of any role",
		"DIARKIS_HTTP_PORT=tcp://10.0.0.1:7000 was ignored: it is the link to a Kubernetes service",
		"group.json was ignored: this version has no settings for it",
		`rooms.json was ignored: no settings file has that name; did you mean "room.json"?`,
		`DIARKIS_UDP_PROT was ignored: no setting has that name; did you mean "DIARKIS_UDP_PORT"?`,
	}
	for _, w := range want {
		if !slices.ContainsFunc(c.Warnings, func(s string) bool { return strings.Contains(s, w) }) {
			t.Errorf("no warning says %s", w)
		}
	}
	if len(c.Warnings) != len(want) || c.HTTP.Port != 7000 {
		t.Errorf("port %d, warnings %q", c.HTTP.Port, c.Warnings)
	}
	if c := load(t, Options{Dir: t.TempDir(), Role: RoleUDP}); !strings.Contains(strings.Join(c.Warnings, "\n"), "holds no settings file for this role") {
		t.Errorf("an empty directory gave the warnings %q", c.Warnings)
	}
}

func TestFilesThatCannotBeRead(t *testing.T) {
	clean(t)
	dir := write(t, map[string]string{"udp/main.json/x": "", "shared/log.json": strings.Repeat(" ", fileBytesMax+1)})
	got := problems(t, Options{Role: RoleUDP, Dir: dir})
	if len(got) != 2 || !strings.Contains(got[0], "udp/main.json: not a regular file") || !strings.Contains(got[1], "at most 1048576 are read") {
		t.Errorf("problems %q", got)
	}
}

func TestEnvironmentNames(t *testing.T) {
	for _, tt := range []struct{ section, key, want string }{
		{"udp", "port", "DIARKIS_UDP_PORT"},
		{"mesh", "marsAddress", "DIARKIS_MESH_MARS_ADDRESS"},
		{"mesh", "marsAddressCacheTTL", "DIARKIS_MESH_MARS_ADDRESS_CACHE_TTL"},
		{"mesh", "tls.cert", "DIARKIS_MESH_TLS_CERT"},
		{"udp", "sendUDPInterval", "DIARKIS_UDP_SEND_UDP_INTERVAL"},
		{"udp", "handleRUDPInterval", "DIARKIS_UDP_HANDLE_RUDP_INTERVAL"},
		{"udp", "enableP2P", "DIARKIS_UDP_ENABLE_P2P"},
		{"http", "exposeDebugAPI", "DIARKIS_HTTP_EXPOSE_DEBUG_API"},
		{"health-check", "level", "DIARKIS_HEALTH_CHECK_LEVEL"},
	} {
		if got := envName(tt.section, tt.key); got != tt.want {
			t.Errorf("envName(%s, %s) = %s, want %s", tt.section, tt.key, got, tt.want)
		}
	}
}

func TestTicketSettings(t *testing.T) {
	clean(t)
	const line = "3f8a1c5d7e9b2046a8c0e1f35b7d9a2c4e6f8091b3d5a7c9e0f2143658790bad"
	t.Setenv("DIARKIS_HTTP_AUTH", "ticket")
	for _, role := range []Role{RoleHTTP, ""} {
		got := problems(t, Options{Role: role})
		if len(got) != 1 || !strings.Contains(got[0], "DIARKIS_HTTP_AUTH: http.auth: ticket needs a key: set DIARKIS_TICKET_KEY_FILE") {
			t.Errorf("role %q: problems %q", role, got)
		}
	}
	load(t, Options{Role: RoleUDP}) // which asks for no ticket
	t.Setenv("DIARKIS_HTTP_TICKET_KEYS", "/run/keys.json")
	load(t, Options{Role: RoleHTTP})
	t.Setenv("DIARKIS_HTTP_TICKET_KEYS", "")
	for _, c := range []struct{ key, want string }{
		{"too short", "has 9 bytes, at least 32 are needed"},
		{line[:32], "has 32 hex digits, at least 64 are needed"},
		{"Zk3v9QpLr7Tn2XwYb5Hs8JdMf4Gc6KeA", "has 32 characters of base64, at least 43 are needed"},
		{"Zk3v9!pLr7Tn2XwYb5Hs8JdMf4Gc6KeA", "has 32 characters, at least 40 are needed"},
		{strings.Repeat("ab", 32), "not random"},
		{strings.Repeat("x", 64), "not random"},
		{"a sentence is easily guessed, however long it may be", "something else than letters"},
		{line + "\n" + line[:40], "line 2"},
		{`"` + line + `"`, "in quotation marks"},
		{line + "\n'" + line + "'", "line 2 is in quotation marks"},
	} {
		t.Setenv(envTicketKey, c.key)
		got := problems(t, Options{Role: RoleHTTP})
		if !slices.ContainsFunc(got, func(p string) bool {
			return strings.Contains(p, "DIARKIS_TICKET_KEY: ticket key: ") && strings.Contains(p, c.want)
		}) {
			t.Errorf("problems of a key %q: %q", c.want, got)
		}
		load(t, Options{Role: RoleUDP}) // which has no use for it
		if strings.Contains(strings.Join(got, "\n"), c.key) {
			t.Errorf("the key is in %q", got)
		}
	}
	file := filepath.Join(write(t, map[string]string{"key": "\ufeff" + line + " \r\n\n\t" + line[:60] + "Zk3v\n"}), "key")
	t.Setenv(envTicketKeyFile, file)
	c := load(t, Options{Role: RoleHTTP})
	if got := c.Env.TicketKey.Reveal(); got != line+"\n"+line[:60]+"Zk3v" || c.Env.TicketKeyFile != file {
		t.Errorf("ticket key of the file = %q", got)
	}
	if text := string(c.Show()); strings.Contains(text, line) || !strings.Contains(text, "(redacted)") {
		t.Error("the ticket key is shown")
	}
	t.Setenv("DIARKIS_HTTP_TICKET_AUDIENCE", "")
	t.Setenv("DIARKIS_HTTP_AUTH", "none")
	if c := load(t, Options{Role: RoleHTTP}); !strings.Contains(strings.Join(c.Warnings, "\n"), "no ticket is asked for") {
		t.Errorf("a key that nothing asks for gave the warnings %q", c.Warnings)
	}
	t.Setenv("DIARKIS_HTTP_AUTH", "tickets")
	if got := problems(t, Options{Role: RoleHTTP}); len(got) == 0 || !strings.Contains(got[0], "did you mean") {
		t.Errorf("problems %q", got)
	}
}

func TestPrefixes(t *testing.T) {
	clean(t)
	t.Setenv("DIARKIS_HTTP_TRUSTED_PROXIES", "10.1.2.3/8, 203.0.113.7,[2001:db8::1], 2001:db8::/32 , ::ffff:192.0.2.1")
	var got []string
	for _, s := range load(t, Options{Role: RoleHTTP}).HTTP.TrustedProxies {
		p, err := ParsePrefix(s)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p.String())
	}
	if want := "10.0.0.0/8 203.0.113.7/32 2001:db8::1/128 2001:db8::/32 192.0.2.1/32"; strings.Join(got, " ") != want {
		t.Errorf("prefixes %v, want %s", got, want)
	}
	for _, bad := range []string{"proxy.example", "10.0.0.0/33", "10.0.0", "fe80::1%eth0", "10.0.0.1:80", "::ffff:10.0.0.0/104"} {
		t.Setenv("DIARKIS_HTTP_TRUSTED_PROXIES", bad)
		if got := problems(t, Options{Role: RoleHTTP}); len(got) != 1 || !strings.Contains(got[0], "an IP address or a prefix such as") {
			t.Errorf("%s: problems %q", bad, got)
		}
	}
}

func TestRoles(t *testing.T) {
	clean(t)
	for _, tt := range []struct {
		flag, env string
		want      Role
		problem   string
	}{
		{"udp", "", RoleUDP, ""},
		{"UDP", "RANKED", RoleUDP, ""},
		{"", "Tcp", RoleTCP, ""},
		{"mars", "http", RoleMARS, ""},
		{"", "", "", "no role: give --role or set DIARKIS_SERVER_TYPE; roles are mars, http, udp, tcp"},
		{"", "RANKED", "", `DIARKIS_SERVER_TYPE="RANKED" names no role, so --role is needed; roles are mars, http, udp, tcp`},
		{"ftp", "udp", "", `unknown role "ftp"; roles are mars, http, udp, tcp`},
	} {
		t.Setenv(envServerType, tt.env)
		got, err := ResolveRole(tt.flag)
		if got != tt.want || (err == nil) != (tt.problem == "") || err != nil && err.Error() != tt.problem {
			t.Errorf("ResolveRole(%q) with %q = %q, %v", tt.flag, tt.env, got, err)
		}
		if usage, ok := errors.AsType[*UsageError](err); err != nil && (!ok || usage.ExitCode() != 64) {
			t.Errorf("error %v has no exit code 64", err)
		}
	}
	t.Setenv(envServerType, "RANKED")
	if c := load(t, Options{Role: RoleUDP}); c.Env.ServerType != "RANKED" {
		t.Errorf("type = %q, want RANKED", c.Env.ServerType)
	}
	t.Setenv(envServerType, "")
	if c := load(t, Options{Role: RoleUDP}); c.Env.ServerType != "UDP" {
		t.Errorf("type = %q, want UDP", c.Env.ServerType)
	}
}

func TestSecretsStaySecret(t *testing.T) {
	clean(t)
	const clientKey, one, two = "the client key", "4d1f0c5be2a98736c1d2e3f4051627384950a1b2c3d4e5f60718293a4b5c6d7e", "9ab0c1d2e3f405162738495a6b7c8d9eafb0c1d2e3f40516273849506172839f"
	file := filepath.Join(write(t, map[string]string{"secret": "\n" + one + "\r\n\n" + two + "\n"}), "secret")
	t.Setenv(envClientKey, clientKey)
	t.Setenv(envClusterSecret, strings.Repeat("x", 40))
	t.Setenv(envClusterSecretFile, file)
	c := load(t, Options{})
	if got := c.Env.ClusterSecret.Reveal(); got != one+"\n"+two {
		t.Errorf("cluster secret of the file = %q", got)
	}
	if c.Env.ClientKey.Reveal() != clientKey || !c.Env.ClientKey.IsSet() {
		t.Error("client key is not there")
	}
	text := string(c.Show()) + fmt.Sprintf("%v %+v %#v %s %x %q", c, c, c.Env, c.Env.ClientKey, c.Env.ClientKey, c.Env.ClientKey)
	for _, secret := range []string{clientKey, one, two, strings.Repeat("x", 40), fmt.Sprintf("%x", clientKey)} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is printed", secret)
		}
	}
	var shown map[string]map[string]struct {
		Value any
		From  string
	}
	if err := json.Unmarshal(c.Show(), &shown); err != nil {
		t.Fatal(err)
	}
	if s := shown["environment"][envClientKey]; s.Value != "(redacted)" || s.From != envClientKey {
		t.Errorf("client key is shown as %+v", s)
	}
	if s := shown["udp"]["connectionTTL"]; s.Value != 10.0 || s.From != "default" {
		t.Errorf("udp.connectionTTL is shown as %+v", s)
	}
	for name, content := range map[string]string{"missing": "", "empty": "\n", "short line": one + "\nshort\n"} {
		t.Setenv(envClusterSecretFile, file+"-missing")
		if name != "missing" {
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv(envClusterSecretFile, file)
		}
		if got := problems(t, Options{}); len(got) != 1 || strings.Contains(got[0], one) {
			t.Errorf("%s secret file: %q", name, got)
		}
	}
}

func TestLoadHealthCheck(t *testing.T) {
	clean(t)
	t.Setenv("DIARKIS_UDP_PORT", "broken, and none of its business")
	dir := write(t, map[string]string{"shared/health-check.json": `{"level": "info", "port": 1}`, "shared/log.json": "{", "h.json": `{"port": 2, "x": 1}`})
	t.Setenv(envConfigRoot, dir)
	t.Setenv(envRunDir, "/run/x")
	if h, env, err := LoadHealthCheck(""); err != nil || h.Port != 1 || h.Level != "info" || env.RunDir != "/run/x" {
		t.Errorf("LoadHealthCheck() = %+v, %q, %v", h, env.RunDir, err)
	}
	if h, _, err := LoadHealthCheck(filepath.Join(dir, "h.json")); err == nil || h.Port != 2 || h.Level != "error" {
		t.Errorf("LoadHealthCheck(h.json) = %+v, %v", h, err)
	}
}

func TestTextKinds(t *testing.T) {
	for _, tt := range []struct {
		kind     string
		good, no []string
	}{
		{"host", []string{"", "1.2.3.4", "::1", "[::1]", "mars", "mars-0.mars.ns.svc.cluster.local.", "a_b"}, []string{"1.2.3", "999.1.1.1", "a b", "a:1", "-a", "a..b", "http://a"}},
		{"hostport", []string{"mars", "mars:6779", "[::1]:6779", "::1", "1.2.3.4:1"}, []string{"", "mars:", "mars:0", "mars:65536", ":6779", "a b:1"}},
		{"origin", []string{"", "*", "https://a.example", "https://a.example, http://localhost:3000"}, []string{"a.example", "https://a/b", "ftp://a", "https://u@a", "https://a\nx", "https://a.example/", "https://*.example", "https://a.example,", "*, https://a.example", "https://a.example#x"}},
	} {
		for _, s := range tt.good {
			if err := (field{is: tt.kind}).checkText(s); err != nil {
				t.Errorf("%s %q: %v", tt.kind, s, err)
			}
		}
		for _, s := range tt.no {
			if (field{is: tt.kind}).checkText(s) == nil {
				t.Errorf("%s %q was accepted", tt.kind, s)
			}
		}
	}
}

// TestTrustedProxiesAreProxies: trusting everybody's header is no limit at all.
func TestTrustedProxiesAreProxies(t *testing.T) {
	clean(t)
	for _, bad := range []string{"0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "2000::/3", "10.0.0.0/8,0.0.0.0/0"} {
		t.Setenv("DIARKIS_HTTP_TRUSTED_PROXIES", bad)
		if got := problems(t, Options{Role: RoleHTTP}); len(got) != 1 || !strings.Contains(got[0], "trustedProxies: expected the addresses of your proxies") {
			t.Errorf("%s: problems %q", bad, got)
		}
	}
	t.Setenv("DIARKIS_HTTP_TRUSTED_PROXIES", "10.0.0.0/8,fc00::/7,192.0.2.1,2001:db8::/32")
	load(t, Options{Role: RoleHTTP})
}
