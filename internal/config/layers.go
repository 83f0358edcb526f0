package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// reading is what one file said.
type reading struct {
	values   map[string]any     // checked raw values by key
	places   map[string]Problem // where each stands, as a Problem without text
	problems []Problem
}

// read parses a section's file and checks every key in it.
func (l *loader) read(s section, name string, src []byte, lookup func(string) (string, bool)) reading {
	r := reading{values: map[string]any{}, places: map[string]Problem{}}
	root, problems, ok := parseFile(name, src, lookup)
	r.problems = problems
	switch {
	case !ok || root.broken:
	case root.kind != kindObject:
		r.problems = append(r.problems, Problem{name, root.line, root.col, "", "expected an object of settings, got " + root.describe()})
		return r
	}
	r.walk(s, name, root, "")
	slices.SortStableFunc(r.problems, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return r
}

func (r *reading) walk(s section, file string, n node, prefix string) {
	for _, m := range n.members {
		key := prefix + m.key
		f, ok := s.field(key)
		switch {
		case ok && !strings.Contains(m.key, "."):
			r.keep(f, file, m.val)
		case s.isObject(key) && m.val.kind == kindObject:
			r.walk(s, file, m.val, key+".")
		case s.isObject(key):
			if !m.val.broken {
				r.problems = append(r.problems, Problem{file, m.val.line, m.val.col, key, "expected an object, got " + m.val.describe()})
			}
		default:
			keys := s.keysUnder(prefix)
			hint := nearest(m.key, keys)
			if hint == "" {
				hint = "; valid keys are " + strings.Join(keys, ", ")
			}
			r.problems = append(r.problems, Problem{file, m.line, m.col, key, "unknown key" + hint})
		}
	}
}

func (r *reading) keep(f field, file string, n node) {
	if n.broken || slices.ContainsFunc(n.elems, func(e node) bool { return e.broken }) || r.badElems(f, file, n) {
		return
	}
	v, err := f.fromNode(n)
	if err != nil {
		text := err.Error()
		if n.env != "" && f.only == "" { // a variable's value may be a secret put in the wrong place
			text = "expected " + f.expects() + ", got " + n.describe()
		}
		r.problems = append(r.problems, Problem{file, n.line, n.col, f.key, text})
		return
	}
	r.values[f.key], r.places[f.key] = v, Problem{Source: file, Line: n.line, Column: n.col, Key: f.key}
}

// badElems reports what is wrong with each entry of a list, where it stands.
func (r *reading) badElems(f field, file string, n node) (bad bool) {
	if f.typ.Kind() != reflect.Slice || n.kind != kindArray || n.env != "" {
		return false
	}
	for _, e := range n.elems {
		text := ""
		if err := f.checkText(trim(e.text)); e.kind != kindString {
			text = "expected " + f.expects() + ", got " + e.describe() + " in it"
		} else if err != nil && e.env != "" {
			text = "expected " + f.expects() + ", got something else in it, " + e.describe()
		} else if err != nil {
			text = err.Error()
		} else {
			continue
		}
		r.problems, bad = append(r.problems, Problem{file, e.line, e.col, f.key, text}), true
	}
	return bad
}

// flags puts the command line on top of everything.
func (l *loader) flags() {
	sections := l.config.sections()
	for key, text := range l.options.Flags {
		name, rest, _ := strings.Cut(key, ".")
		i := slices.IndexFunc(sections, func(s section) bool { return s.name == name })
		if i < 0 {
			l.report("flag", key, "unknown setting")
			continue
		}
		f, ok := sections[i].field(rest)
		if !ok {
			l.report("flag", key, "unknown setting%s", nearest(rest, sections[i].keysUnder("")))
			continue
		}
		v, err := f.fromOutside(text)
		if err != nil {
			l.reportEach(flagOf(key), key, err)
			continue
		}
		l.viper.Set(key, v)
		l.config.sources[key] = sourceFlag
		l.places[key] = Problem{Source: flagOf(key), Key: key}
	}
}

// flagOf is the flag that sets a key.
func flagOf(key string) string {
	switch key {
	case "mesh.marsAddress":
		return "--mars-address"
	case "mesh.marsPort":
		return "--mars-port"
	case "metrics.port":
		return "--admin-port"
	case "log.level":
		return "--log-level"
	}
	_, name, _ := strings.Cut(key, ".")
	return "--" + name // address and port, of the role
}

// serviceLink is what Kubernetes sets for a Service named like one of our files:
// DIARKIS_HTTP_PORT=tcp://10.0.0.1:7000. It is not meant for us.
var serviceLink = regexp.MustCompile(`^(tcp|udp|sctp)://`)

// environment binds every key of a section to its variable. An empty variable
// counts as unset.
func (l *loader) environment(s section) {
	for _, f := range s.fields {
		name, key := envName(s.name, f.key), s.name+"."+f.key
		text := getenv(name)
		if text == "" {
			continue
		}
		if serviceLink.MatchString(text) {
			l.warn("%s=%s was ignored: it is the link to a Kubernetes service, not a setting (enableServiceLinks: false stops these)", name, text)
			continue
		}
		if _, err := f.fromOutside(text); err != nil {
			l.reportEach(name, key, err)
			continue
		}
		if err := l.viper.BindEnv(key, name); err != nil {
			l.report(name, key, "%v", err)
		}
		if l.config.sources[key] != sourceFlag {
			l.config.sources[key] = name
			l.places[key] = Problem{Source: name, Key: key}
		}
	}
}

// store copies the winning layer of each key into the section's struct.
func (l *loader) store(s section) {
	for _, f := range s.fields {
		key := s.name + "." + f.key
		v := l.viper.Get(key)
		if text, ok := v.(string); ok { // from a variable, or a text
			var err error
			if v, err = f.fromText(text); err != nil {
				continue // reported where it was read
			}
		}
		f.set(s.target, v)
		if !reflect.DeepEqual(v, l.builtIn[key]) {
			l.config.changed[key] = true
		}
	}
}

// strayFiles looks for files in shared/ that nothing reads. Their syntax counts
// when they belong to a module; a name we don't know is only a warning, since
// games keep files of their own there.
func (l *loader) strayFiles() {
	if l.config.Dir == "" {
		return
	}
	var known []string
	for _, s := range l.config.sections() {
		if name, ok := strings.CutPrefix(s.path, "shared/"); ok {
			known = append(known, name)
		}
	}
	found, _ := filepath.Glob(filepath.Join(l.config.Dir, "shared", "*.json"))
	for _, path := range found {
		name := filepath.Base(path)
		switch {
		case slices.Contains(known, name):
		case slices.Contains(moduleFiles, strings.TrimSuffix(name, ".json")):
			src, err := readRegular(path)
			if err != nil {
				l.report(path, "", "%v", err)
				continue
			}
			_, problems, _ := parseFile(path, src, os.LookupEnv)
			l.problems = append(l.problems, problems...)
			l.warn("%s was ignored: this version has no settings for it", path)
		default:
			l.warn("%s was ignored: no settings file has that name%s", path, nearest(name, known))
		}
	}
}

// strayVariables warns about variables that look like a misspelt setting.
func (l *loader) strayVariables() {
	var known []string
	for _, s := range l.config.sections() {
		for _, f := range s.fields {
			known = append(known, envName(s.name, f.key))
		}
	}
	known = append(known, envNames...)
	for _, kv := range os.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) || slices.Contains(known, name) || serviceLink.MatchString(value) {
			continue
		}
		for _, k := range known {
			if editDistance(name, k) <= 2 {
				l.warn("%s was ignored: no setting has that name; did you mean %q?", name, k)
				break
			}
		}
	}
}

// reportAt reports what is wrong with a setting that can be read but does not go with others.
func (l *loader) reportAt(key, format string, args ...any) {
	p, ok := l.places[key]
	if !ok {
		p = Problem{Source: l.config.sources[key], Key: key}
	}
	p.Text = fmt.Sprintf(format, args...)
	l.problems = append(l.problems, p)
}

// together checks what no key can tell by itself.
func (l *loader) together() {
	l.tls()
	if l.options.File != "" && l.options.Role == "" {
		l.report("--config", "", "a settings file belongs to a role: give --role")
	}
	l.tickets()
	l.proxies()
	l.marsPort()
	l.nics()
	for _, b := range []struct {
		role   Role
		limits Limits
		public Public
		port   int
	}{
		{RoleUDP, l.config.UDP.Limits, l.config.UDP.Public, l.config.UDP.Port},
		{RoleTCP, l.config.TCP.Limits, l.config.TCP.Public, l.config.TCP.Port},
	} {
		if b.limits.BytesPerSecond%1024 != 0 {
			l.reportAt(string(b.role)+".bytesPerSecond", "expected a multiple of 1024, since clients are told KiB, got %d", b.limits.BytesPerSecond)
		}
		if n := b.limits; n.SendQueueBytesMax < n.SendQueueBytes {
			l.reportAt(string(b.role)+".sendQueueBytesMax", "expected at least sendQueueBytes, which is %d, got %d", n.SendQueueBytes, n.SendQueueBytesMax)
		}
		if b.public.PublicPort != 0 && b.port == 0 {
			l.reportAt(string(b.role)+".publicPort", "it is mapped to one port, but port is 0, any that is free: set port too")
		}
	}
}

func (l *loader) tls() {
	t := l.config.Mesh.TLS
	var missing []string
	at := ""
	for _, f := range []struct{ key, value string }{{"cert", t.Cert}, {"key", t.Key}, {"ca", t.CA}} {
		if f.value == "" {
			missing = append(missing, f.key)
		} else {
			at = "mesh.tls." + f.key
		}
	}
	if at != "" && len(missing) > 0 {
		l.reportAt(at, "cert, key and ca have to be set together; missing: %s", strings.Join(missing, ", "))
	}
}

// nics says which interface, of an address to listen on, has no say: the address has it.
func (l *loader) nics() {
	for _, section := range []string{"mesh", "udp", "tcp"} {
		if r := l.options.Role; section != "mesh" && r != "" && section != string(r) || section == "mesh" && r == RoleMARS {
			continue
		}
		address, nic := section+".address", section+".nic"
		if !l.config.IsDefault(address) && !l.config.IsDefault(nic) {
			l.warn("%s (%s) has no effect: %s (%s) is set", nic, l.config.sources[nic], address, l.config.sources[address])
		}
	}
}

// marsPort makes the port that mars listens on and the one that nodes look for it at the
// same, when only one of them was set: for a second cluster on a machine either will do.
// A mars node elsewhere has settings of its own.
func (l *loader) marsPort() {
	c := l.config
	here := IsLoopback(c.Mesh.MARSAddress)
	if !here && c.Role != RoleMARS {
		return
	}
	const own, told = "mars.port", "mesh.marsPort"
	switch {
	case c.MARS.Port == c.Mesh.MARSPort:
	case c.IsDefault(told):
		c.Mesh.MARSPort, c.changed[told], c.sources[told] = c.MARS.Port, true, own+" from "+c.sources[own]
	case c.IsDefault(own):
		c.MARS.Port, c.changed[own], c.sources[own] = c.Mesh.MARSPort, true, told+" from "+c.sources[told]
	case here:
		l.reportAt(told, "nodes look for mars at port %d, but mars listens on %d (%s from %s): set one of the two, the other follows",
			c.Mesh.MARSPort, c.MARS.Port, own, c.sources[own])
	default:
		l.warn("mars listens on port %d (%s), but nodes are told to look for it at %d (%s)", c.MARS.Port, c.sources[own], c.Mesh.MARSPort, c.sources[told])
	}
}

// The shortest prefixes of proxies: 10.0.0.0/8 and fc00::/7, the largest private networks.
const (
	proxyBitsMin4 = 8
	proxyBitsMin6 = 7
)

// proxies refuses to trust so many addresses that clients are among them: each of those
// would say by itself whom its requests count for.
func (l *loader) proxies() {
	for _, s := range l.config.HTTP.TrustedProxies {
		p, err := ParsePrefix(s)
		if err != nil {
			continue // reported
		}
		least := proxyBitsMin6
		if p.Addr().Is4() {
			least = proxyBitsMin4
		}
		if p.Bits() < least {
			l.reportAt("http.trustedProxies",
				"expected the addresses of your proxies, got %s: whoever comes from there is believed to be any client", s)
		}
	}
}

// tickets checks that tickets can be asked for where they shall be, and tells who set a
// key and forgot to.
func (l *loader) tickets() {
	h, e := l.config.HTTP, l.config.Env
	if r := l.options.Role; r != "" && r != RoleHTTP {
		return
	}
	keyed := h.TicketKeys != "" || getenv(envTicketKey) != "" || e.TicketKeyFile != ""
	switch {
	case h.Auth == "ticket" && !keyed:
		l.reportAt("http.auth", "ticket needs a key: set %s, %s or ticketKeys", envTicketKeyFile, envTicketKey)
	case h.Auth == "ticket" && h.TicketAudience == "":
		l.reportAt("http.ticketAudience", "expected who tickets are for, got nothing")
	case h.Auth != "ticket" && keyed && l.options.Role == RoleHTTP:
		l.warn("a ticket key is set, but no ticket is asked for: http.auth is %s", h.Auth)
	}
}
