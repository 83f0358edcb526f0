package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What players are told is a cloud's name, or a host that they can connect to, and never
// a cloud that was mistyped.
func TestCloudOrPublicAddress(t *testing.T) {
	for _, c := range []struct{ value, cloud, address, problem string }{
		{"", "", "", ""},
		{" aws\n", "AWS", "", ""},
		{"GCP", "GCP", "", ""},
		{"game.example.com", "", "game.example.com", ""},
		{"203.0.113.7", "", "203.0.113.7", ""},
		{"[2001:db8::7]", "", "2001:db8::7", ""},
		{"2001:db8::7", "", "2001:db8::7", ""},
		{"localhost", "", "localhost", ""},
		{"GPC", "", "", `expected a cloud (GCP, AWS, AZURE, TENCENT, ALIBABA, LINODE) or the host name or IP address that players are told, got "GPC"; did you mean "GCP"?`},
		{"host", "", "", `that players are told, got "host"`},
		{"game.example.com:7100", "", "", "leave out the port"},
		{"https://game.example.com/", "", "", "leave out the scheme"},
		{"game example.com", "", "", "there is a space in it"},
		{`"game.example.com"`, "", "", "quotation marks are part of the value"},
		{"1.2.3", "", "", "no whole IPv4 address"},
		{"[game.example.com]", "", "", "brackets are for IPv6 addresses only"},
		{"[203.0.113.7]", "", "", "brackets are for IPv6 addresses only"},
		{"0.0.0.0", "", "", "stands for every address"},
		{"::", "", "", "stands for every address"},
		{"224.0.0.1", "", "", "no meaning elsewhere"},
		{"fe80::1%eth0", "", "", "no meaning elsewhere"},
		{"spël.example", "", "", "xn-- form"},
	} {
		clean(t)
		t.Setenv(envCloud, c.value)
		got, err := Load(Options{Role: RoleHTTP})
		if c.problem != "" {
			if err == nil || !strings.HasPrefix(err.Error(), envCloud+": ") || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%s=%q: %v, want %q", envCloud, c.value, err, c.problem)
			}
			continue
		}
		if err != nil || got.Env.Cloud != c.cloud || got.Env.PublicAddress != c.address {
			t.Errorf("%s=%q: cloud %q, address %q, %v", envCloud, c.value, got.Env.Cloud, got.Env.PublicAddress, err)
		}
	}
}

func TestPublicAddressAndPort(t *testing.T) {
	clean(t)
	t.Setenv("DIARKIS_UDP_PUBLIC_ADDRESS", "gamehost") // any host name: who sets this knows what it is
	t.Setenv("DIARKIS_UDP_PUBLIC_PORT", "31000")
	t.Setenv("DIARKIS_TCP_PUBLIC_ADDRESS", "[::1]")
	c := load(t, Options{})
	if c.UDP.Public != (Public{"gamehost", 31000}) || c.TCP.Public != (Public{"::1", 0}) {
		t.Errorf("udp %+v, tcp %+v", c.UDP.Public, c.TCP.Public)
	}
	t.Setenv("DIARKIS_UDP_PUBLIC_ADDRESS", "game.example.com:31000")
	t.Setenv("DIARKIS_UDP_PORT", "0")
	got := problems(t, Options{Role: RoleUDP})
	if len(got) != 2 || !strings.Contains(got[0], "udp.publicAddress") || !strings.Contains(got[0], "leave out the port") ||
		!strings.Contains(got[1], "DIARKIS_UDP_PUBLIC_PORT: udp.publicPort: ") {
		t.Errorf("problems %q", got)
	}
}

// One of the two ports of mars is enough, whichever it is and wherever it was set: that is
// how a second cluster on a machine is set up.
func TestOneMARSPortIsEnough(t *testing.T) {
	for _, name := range []string{"DIARKIS_MARS_PORT", "DIARKIS_MESH_MARS_PORT"} {
		clean(t)
		t.Setenv(name, "6780")
		for _, role := range append([]Role{""}, Roles...) {
			if c := load(t, Options{Role: role}); c.MARS.Port != 6780 || c.Mesh.MARSPort != 6780 {
				t.Errorf("with %s role %q: mars listens on %d, is looked for at %d", name, role, c.MARS.Port, c.Mesh.MARSPort)
			}
		}
	}
	clean(t)
	dir := write(t, map[string]string{"mars/main.json": `{"port": 6780}`, "shared/mesh.json": `{"marsPort": 6781}`})
	for _, role := range append([]Role{""}, Roles...) {
		got := problems(t, Options{Role: role, Dir: dir})
		if len(got) != 1 || !strings.HasPrefix(got[0], "shared/mesh.json:1:14: marsPort: nodes look for mars at port 6781, but mars listens on 6780 (mars.port from ") {
			t.Errorf("role %q: unequal ports: %q", role, got)
		}
	}
	t.Setenv("DIARKIS_MESH_MARS_ADDRESS", "mars.example") // which has settings of its own
	if c := load(t, Options{Role: RoleUDP, Dir: dir}); c.Mesh.MARSPort != 6781 {
		t.Errorf("mars elsewhere is looked for at %d", c.Mesh.MARSPort)
	}
	if c := load(t, Options{Role: RoleMARS, Dir: dir}); len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "6781") {
		t.Errorf("warnings of mars: %q", c.Warnings)
	}
}

// What gets around a value by accident does not become part of it.
func TestAccidentsAroundValues(t *testing.T) {
	clean(t)
	const secret = "4d1f0c5be2a98736c1d2e3f4051627384950a1b2c3d4e5f60718293a4b5c6d7e"
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("\ufeff"+secret+" \r\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]string{
		envClientKey: "key of the game\n", envServerType: "UDP ", envAppName: " game", envClusterSecretFile: file + "\n",
		"DIARKIS_UDP_PORT": "7105\n", "DIARKIS_UDP_ADDRESS": " 127.0.0.1 ", "DIARKIS_UDP_NIC": "eth1 ",
		"DIARKIS_MESH_MARS_ADDRESS": "\ufeff10.0.0.1", envShutdownTimeout: "5 ", envJSONLog: "TRUE\n",
	} {
		t.Setenv(name, v)
	}
	dir := write(t, map[string]string{"shared/log.json": `{"level": "debug "}`})
	c := load(t, Options{Role: RoleUDP, Dir: dir})
	got := fmt.Sprint(c.Env.ClientKey.Reveal(), ",", c.Env.ServerType, ",", c.Env.AppName, ",", c.Env.ClusterSecret.Reveal(), ",", c.UDP.Port, ",",
		c.UDP.Address, ",", c.UDP.NIC, ",", c.Mesh.MARSAddress, ",", c.Env.ShutdownTimeout, ",", c.Env.JSONLog, ",", c.Log.Level)
	if want := "key of the game,UDP,game," + secret + ",7105,127.0.0.1,eth1,10.0.0.1,5s,true,debug"; got != want {
		t.Errorf("read as %q, want %q", got, want)
	}
	if r, err := ResolveRole(""); r != RoleUDP || err != nil {
		t.Errorf("role of %q: %q, %v", os.Getenv(envServerType), r, err)
	}
	t.Setenv(envClientKey, "two\nlines")
	if got := problems(t, Options{Role: RoleUDP, Dir: dir}); len(got) != 1 || !strings.Contains(got[0], envClientKey+": expected at most 1024 bytes of UTF-8 in one line") {
		t.Errorf("a client key of two lines: %q", got)
	}
	t.Setenv(envClientKey, "")
	if err := os.WriteFile(file, []byte("\xff\xfe0\x001\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := problems(t, Options{Role: RoleUDP, Dir: dir}); len(got) != 1 || !strings.Contains(got[0], "UTF-16") {
		t.Errorf("a secret in UTF-16: %q", got)
	}
}

// Each message says where the mistake is and what to do, once.
func TestMistakesAreExplained(t *testing.T) {
	for _, c := range []struct {
		name, file, text string
		want             []string
	}{
		{"quote in a value", "udp/main.json", `{"address": "a"b"}`, []string{`udp/main.json:1:16: expected ',' or '}', got 'b'; a quotation mark inside text is written \"`}},
		{"trailing comma and more", "udp/main.json", "{\"port\": true,\n \"nic\": 1,\n}", []string{
			`udp/main.json:1:10: port: expected a port from 0 to 65535, got true`,
			`udp/main.json:2:9: nic: expected text in quotes, got 1`,
			`udp/main.json:2:10: a comma with nothing behind it but '}': take it out`,
		}},
		{"trailing comma in a list", "shared/mesh.json", `{"seeds": ["a",]}`, []string{`shared/mesh.json:1:15: seeds: a comma with nothing behind it but ']': take it out`}},
		{"comma missing", "udp/main.json", "{\"port\": 7100\n \"nic\": 1}", []string{
			`udp/main.json:1:14: a comma is missing here: the next key follows`,
			`udp/main.json:2:9: nic: expected text in quotes, got 1`,
		}},
		{"comment", "udp/main.json", "{\"port\": 7100 // players\n}", []string{`udp/main.json:1:15: expected ',' or '}', got '/'; JSON has no comments`}},
		{"comment in front", "udp/main.json", "{// players\n\"port\": 7100}", []string{`udp/main.json:1:2: expected a key in double quotes, got '/'; JSON has no comments`}},
		{"single quotes", "udp/main.json", `{'port': 1}`, []string{`udp/main.json:1:2: expected a key in double quotes, got '\''; JSON has double quotes only`}},
		{"three bad seeds", "shared/mesh.json", `{"seeds": ["a b", "ok:8000", "http://x", 5]}`, []string{
			`shared/mesh.json:1:12: seeds: expected host or host:port, got "a b"; there is a space in it`,
			`shared/mesh.json:1:30: seeds: expected host or host:port, got "http://x"; leave out the scheme, everything up to //, and what may follow the host`,
			`shared/mesh.json:1:42: seeds: expected a list of texts, got 5 in it`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			clean(t)
			got := problems(t, Options{Dir: write(t, map[string]string{c.file: c.text})})
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(c.want, "\n\t"))
			}
		})
	}
	for _, c := range []struct {
		name, value string
		flags       map[string]string
		want        []string
	}{
		{"DIARKIS_MESH_SEEDS", "a b,http://x,1.2.3", nil, []string{
			`DIARKIS_MESH_SEEDS: mesh.seeds: expected host or host:port, got "a b"; there is a space in it`,
			`DIARKIS_MESH_SEEDS: mesh.seeds: expected host or host:port, got "http://x"; leave out the scheme, everything up to //, and what may follow the host`,
			`DIARKIS_MESH_SEEDS: mesh.seeds: expected host or host:port, got "1.2.3"; that is no whole IPv4 address`,
		}},
		{"DIARKIS_UDP_PORT", `"7100"`, nil, []string{`DIARKIS_UDP_PORT: udp.port: expected a port from 0 to 65535, got "\"7100\""; the quotation marks are part of the value: leave them out`}},
		{"DIARKIS_MESH_MARS_ADDRESS", `"10.0.0.1"`, nil, []string{`DIARKIS_MESH_MARS_ADDRESS: mesh.marsAddress: expected an IP address or a host name without a port, got "\"10.0.0.1\""; the quotation marks are part of the value: leave them out`}},
		{"AUTOMEMLIMIT", "7", nil, []string{`AUTOMEMLIMIT: expected a share of the container's memory above 0 and up to 1, such as 0.8, or off, got "7"`}},
		{"AUTOMEMLIMIT", "abc", nil, []string{`AUTOMEMLIMIT: expected a share of the container's memory above 0 and up to 1, such as 0.8, or off, got "abc"`}},
		{"", "", map[string]string{"udp.address": "10.0.0.1:7100"}, []string{`--address: udp.address: expected an IP address or a host name without a port, got "10.0.0.1:7100"; leave out the port, which is a setting of its own`}},
		{"", "", map[string]string{"mesh.marsPort": "many"}, []string{`--mars-port: mesh.marsPort: expected a port from 1 to 65535, got "many"`}},
	} {
		clean(t)
		t.Setenv(envMemory, "")
		if c.name != "" {
			t.Setenv(c.name, c.value)
		}
		if got := problems(t, Options{Role: RoleUDP, Flags: c.flags}); !slices.Equal(got, c.want) {
			t.Errorf("%s=%s %v: got\n\t%s\nwant\n\t%s", c.name, c.value, c.flags, strings.Join(got, "\n\t"), strings.Join(c.want, "\n\t"))
		}
	}
	clean(t)
	t.Setenv("AUTOMEMLIMIT", "")
	t.Setenv("DIARKIS_HTTP_AUTH", "ticket")
	t.Setenv(envTicketKey, "short")
	if got := problems(t, Options{Role: RoleHTTP}); len(got) != 1 || !strings.HasPrefix(got[0], envTicketKey+": ticket key: line 1 has 5 bytes") {
		t.Errorf("a short ticket key: %q", got)
	}
}

// Every setting can be set by its variable, and by the one that EnvName tells.
func TestEverySettingHasAVariable(t *testing.T) {
	clean(t)
	all := (&Config{}).sections()
	for _, s := range all {
		for _, f := range s.fields {
			t.Setenv(envName(s.name, f.key), sample(f))
		}
	}
	t.Setenv("DIARKIS_MARS_PORT", "6780") // unequal ones are refused
	t.Setenv("DIARKIS_MESH_MARS_PORT", "6780")
	t.Setenv(envTicketKey, "3f8a1c5d7e9b2046a8c0e1f35b7d9a2c4e6f8091b3d5a7c9e0f2143658790bad")
	c := load(t, Options{})
	for _, s := range all {
		for _, f := range s.fields {
			key := s.name + "." + f.key
			if c.Source(key) != EnvName(key) || c.IsDefault(key) && f.only == "" {
				t.Errorf("%s: %s came from %q and is the default: %v", key, EnvName(key), c.Source(key), c.IsDefault(key))
			}
		}
	}
}

// sample is a value that the field takes and that is not its default.
func sample(f field) string {
	switch {
	case f.only != "":
		return f.only
	case f.key == "sendUDPInterval":
		return "10"
	case f.key == "bytesPerSecond":
		return "1024"
	case f.key == "sendQueueBytes":
		return "4096"
	case f.key == "sendQueueBytesMax":
		return "65536"
	case f.key == "enableP2P" || f.key == "noDelay":
		return "false"
	case f.key == "auth":
		return "ticket"
	case f.key == "recovery":
		return "manual"
	case f.is == "origin":
		return "https://game.example"
	case f.is == "role":
		return "UDP"
	case f.is == "prefix", f.is == "host", f.is == "public", f.is == "hostport":
		return "10.0.0.7"
	case strings.Contains(f.is, "|"):
		return strings.Split(f.is, "|")[1]
	case f.typ.Kind().String() == "bool":
		return "true"
	case f.typ.Kind().String() == "string":
		return "some"
	}
	return fmt.Sprint(f.min + 1)
}

// Quotation marks are part of a value, and never meant to be: who writes them is told so,
// whatever the value is for. A secret is not in what they are told.
func TestQuotationMarksAreSaid(t *testing.T) {
	clean(t)
	const secret = "3f8a1c5d7e9b2046a8c0e1f35b7d9a2c4e6f8091b3d5a7c9e0f2143658790bad"
	for _, name := range []string{
		envClientKey, envClusterSecret, envTicketKey, envAppName, envAppVersion, envServerType,
		"DIARKIS_UDP_NIC", "DIARKIS_MESH_MARS_ADDRESS", "DIARKIS_MESH_MARS_PORT", "DIARKIS_HTTP_TICKET_AUDIENCE", "DIARKIS_LOG_LEVEL", "DIARKIS_MESH_SEEDS",
	} {
		for _, mark := range []string{`"`, "'"} {
			t.Run(name+mark, func(t *testing.T) {
				t.Setenv(name, mark+secret+mark)
				got := problems(t, Options{})
				if len(got) != 1 || !strings.HasPrefix(got[0], name+": ") || !strings.Contains(got[0], "quotation marks") || !strings.Contains(got[0], "leave them out") {
					t.Errorf("problems %q", got)
				}
				if slices.Contains([]string{envClientKey, envClusterSecret, envTicketKey}, name) && strings.Contains(strings.Join(got, ""), secret[:8]) {
					t.Errorf("the secret is in %q", got)
				}
			})
		}
	}
	t.Setenv(envClientKey, `a "b" c`)
	load(t, Options{})
}

// What is said of an empty entry, and of a number that is no address.
func TestEmptyEntries(t *testing.T) {
	clean(t)
	for entry, want := range map[string]string{`["",""]`: `got ""`, `["10.1"]`: `got "10.1"; that is no whole IPv4 address`} {
		t.Setenv("DIARKIS_MESH_SEEDS", entry)
		for _, p := range problems(t, Options{}) {
			if !strings.HasSuffix(p, want) {
				t.Errorf("%s: %s", entry, p)
			}
		}
	}
}

// LoadAnyway knows what was wrong, and has the built-in value of that.
func TestLoadAnyway(t *testing.T) {
	clean(t)
	t.Setenv("DIARKIS_UDP_PORT", "many")
	t.Setenv("DIARKIS_UDP_NIC", "eth7")
	t.Setenv(envClusterSecret, "short")
	dir := write(t, map[string]string{"udp/main.json": `{"publicAddress": "a b", "address": "127.0.0.1"}`})
	c, err := LoadAnyway(Options{Role: RoleUDP, Dir: dir})
	if err == nil || c == nil || c.UDP.Port != 7100 || c.UDP.NIC != "eth7" {
		t.Fatalf("LoadAnyway = %+v, %v", c, err)
	}
	if !c.IsWrong("udp.publicAddress") || c.IsWrong("tcp.publicAddress") || !c.IsWrong("udp.port") || !c.IsWrong("udp.nic", envClusterSecret) || c.IsWrong("udp.nic", "udp.address", "") {
		t.Error("what is wrong is not known")
	}
}
