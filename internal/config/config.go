// Package config turns files, environment and flags into checked, typed settings.
//
// A setting is looked for in four layers; the first that has it wins:
//
//	flag          Options.Flags, "udp.port"
//	environment   DIARKIS_UDP_PORT
//	file          <directory>/udp/main.json, key port
//	default       the same file embedded in the binary
//
// [Load] is strict: it refuses what it does not understand, and says about all
// problems at once where they are and what was expected. The structs in
// settings.go are the only description of the keys; the embedded files hold
// every key with its default.
//
// A file may contain {$DIARKIS_NAME}, which stands for that variable: inside
// quotes as text, bare as one whole JSON value. A variable is parsed by itself
// and so can't add keys or close the text or object around it.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/viper"

	"github.com/Diarkis/diarkis/configs"
)

// Options says where settings come from.
type Options struct {
	// Role is the role whose main.json is read. Empty means all of them, for
	// `diarkisd dev` and `diarkisd config`.
	Role Role
	// Dir is --config-dir: the directory with <role>/main.json and shared/. Empty
	// means DIARKIS_CONFIG_ROOT_PATH, else ./configs, else /configs, else only the
	// embedded defaults. A directory named by the first two must exist.
	Dir string
	// File is --config: read instead of <Dir>/<Role>/main.json. Needs Role.
	File string
	// Flags are settings from the command line by "file.key", such as "udp.port"
	// or "health-check.level", as text.
	Flags map[string]string
}

// Config is the settings of one node. Load fills all of it: files of other roles
// than Options.Role hold what environment and defaults say, but for the keys that
// every role reads.
type Config struct {
	Role        Role
	MARS        MARS
	HTTP        HTTP
	UDP         UDP
	TCP         TCP
	Mesh        Mesh
	Metrics     Metrics
	Log         Log
	HealthCheck HealthCheck
	Room        Room
	Env         Env

	// Dir is the configuration directory in use, "" when there is none.
	Dir string
	// Files are the settings files that were read.
	Files []string
	// Warnings are sentences to log once the logger exists.
	Warnings []string

	sources map[string]string // "udp.port" → where its value came from
	changed map[string]bool   // "udp.port" → its value is not the built-in one
	wrong   map[string]bool   // keys and sources that LoadAnyway found something wrong with
}

// Load reads and checks the settings. The error is an [*Errors].
func Load(o Options) (*Config, error) {
	c, err := LoadAnyway(o)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// LoadAnyway is [Load] for whoever looks for further mistakes: with an error it returns
// the settings all the same, with the built-in value of what was wrong. No node may run
// with those.
func LoadAnyway(o Options) (*Config, error) {
	c := &Config{Role: o.Role}
	l := newLoader(o, c)
	l.findDir()
	for _, s := range c.sections() {
		l.defaults(s)
		l.file(s)
	}
	c.Files = l.files
	if c.Dir != "" && len(l.files) == 0 {
		whom := "of any role"
		if o.Role != "" {
			whom = "for this role"
		}
		l.warn("%s holds no settings file %s, such as udp/main.json or shared/mesh.json: defaults are used", c.Dir, whom)
	}
	l.strayFiles()
	l.flags()
	for _, s := range c.sections() {
		l.environment(s)
		l.store(s)
	}
	l.strayVariables()
	c.Env = l.env()
	l.together()
	if len(l.problems) > 0 {
		for _, p := range l.problems {
			c.wrong[p.Source], c.wrong[p.Key] = true, true
		}
		return c, &Errors{l.problems}
	}
	return c, nil
}

// LoadHealthCheck reads only what the health-check command needs: a mistake in a
// node's other settings must not make a probe kill the node. A file given by name
// takes the place of shared/health-check.json. The error is an [*Errors]; the
// settings are usable all the same, without what was wrong.
func LoadHealthCheck(file string) (HealthCheck, Env, error) {
	c := &Config{}
	l := newLoader(Options{}, c)
	l.instead = file
	l.findDir()
	for _, s := range c.sections() {
		if s.target != &c.HealthCheck {
			continue
		}
		l.defaults(s)
		l.file(s)
		l.environment(s)
		l.store(s)
	}
	env := Env{RunDir: cmp.Or(getenv(envRunDir), os.TempDir())}
	if len(l.problems) > 0 {
		return c.HealthCheck, env, &Errors{l.problems}
	}
	return c.HealthCheck, env, nil
}

// Source says where a setting ("udp.nic") came from: "default", a file with its
// line, an environment variable, or "flag".
func (c *Config) Source(key string) string { return c.sources[key] }

// IsDefault tells whether a setting ("udp.nic") has its built-in value, whoever says
// so: a copy of the files in configs/, which spell all of them out, changes nothing.
func (c *Config) IsDefault(key string) bool { return !c.changed[key] }

// IsWrong tells whether [LoadAnyway] found something wrong with one of these settings:
// "udp.nic", "DIARKIS_CLUSTER_SECRET" or the name of a file. What else is to be said of
// them follows from that.
func (c *Config) IsWrong(names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return n != "" && c.wrong[n] })
}

// What [Config.Source] says besides files and variables.
const (
	sourceDefault = "default"
	sourceFlag    = "flag"
)

// loader is one Load.
type loader struct {
	options  Options
	config   *Config
	viper    *viper.Viper
	builtIn  map[string]any // raw values by "udp.port"
	instead  string         // read instead of a section's file, whatever its name; "" normally
	files    []string       // read from the directory or given by name
	problems []Problem
	places   map[string]Problem // where a setting that is no default stands, by "udp.port"; without text
}

func newLoader(o Options, c *Config) *loader {
	c.sources, c.changed, c.wrong = map[string]string{}, map[string]bool{}, map[string]bool{}
	return &loader{options: o, config: c, viper: viper.New(), builtIn: map[string]any{}, places: map[string]Problem{}}
}

func (l *loader) report(source, key, format string, args ...any) {
	l.problems = append(l.problems, Problem{Source: source, Key: key, Text: fmt.Sprintf(format, args...)})
}

// reportEach reports every error that err joins.
func (l *loader) reportEach(source, key string, err error) {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			l.reportEach(source, key, e)
		}
		return
	}
	l.report(source, key, "%v", err)
}

func (l *loader) warn(format string, args ...any) {
	l.config.Warnings = append(l.config.Warnings, fmt.Sprintf(format, args...))
}

// findDir picks the configuration directory.
func (l *loader) findDir() {
	dir, from := l.options.Dir, "--config-dir"
	if dir == "" {
		dir, from = getenv(envConfigRoot), envConfigRoot
	}
	if dir == "" {
		for _, d := range []string{"configs", "/configs"} {
			if isDir(d) {
				l.config.Dir = d
				return
			}
		}
		return
	}
	switch info, err := os.Stat(dir); {
	case err != nil:
		l.report(from, "", "%v", err)
	case !info.IsDir():
		l.report(from, "", "%s is not a directory", dir)
	default:
		l.config.Dir = dir
	}
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// defaults reads a section's embedded file, which has to be perfect.
func (l *loader) defaults(s section) {
	src, err := configs.Defaults.ReadFile(s.path)
	if err != nil {
		panic(err)
	}
	r := l.read(s, "embedded "+s.path, src, nil)
	for key, v := range r.values {
		l.viper.SetDefault(s.name+"."+key, v)
		l.builtIn[s.name+"."+key] = v
		l.config.sources[s.name+"."+key] = sourceDefault
	}
	l.problems = append(l.problems, r.problems...)
}

// file merges a section's file from the configuration directory, if there is one.
func (l *loader) file(s section) {
	name, must, foreign := "", false, false
	if l.config.Dir != "" {
		name = filepath.Join(l.config.Dir, filepath.FromSlash(s.path))
	}
	if l.instead != "" {
		name, must = l.instead, true
	}
	if !strings.HasPrefix(s.path, "shared/") {
		switch role := l.options.Role; {
		case role != "" && s.name != string(role):
			if s, foreign = s.clusterWide(), true; len(s.fields) == 0 {
				return // another role's file is that role's business
			}
		case role != "" && l.options.File != "":
			name, must = l.options.File, true
		}
	}
	if name == "" {
		return
	}
	src, err := readRegular(name)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return
	}
	if err != nil {
		l.report(name, "", "%v", err)
		return
	}
	r := l.read(s, name, src, os.LookupEnv)
	if foreign { // what is wrong with the rest of it stops only its own role
		r.problems = slices.DeleteFunc(r.problems, func(p Problem) bool { _, ours := s.field(p.Key); return !ours })
	} else {
		l.files = append(l.files, name)
	}
	l.problems = append(l.problems, r.problems...)
	for _, p := range r.problems { // whose keys are those in the file
		l.config.wrong[s.name+"."+p.Key] = true
	}
	tree := map[string]any{}
	for key, v := range r.values {
		nest(tree, s.name+"."+key, v)
		at := r.places[key]
		l.config.sources[s.name+"."+key] = fmt.Sprintf("%s:%d", name, at.Line)
		l.places[s.name+"."+key] = at
	}
	if err := l.viper.MergeConfigMap(tree); err != nil {
		l.report(name, "", "%v", err)
	}
}

// nest stores v in tree under a dotted key, as viper keeps files.
func nest(tree map[string]any, key string, v any) {
	for {
		head, rest, ok := strings.Cut(key, ".")
		if !ok {
			tree[key] = v
			return
		}
		sub, ok := tree[head].(map[string]any)
		if !ok {
			sub = map[string]any{}
			tree[head] = sub
		}
		tree, key = sub, rest
	}
}

// readRegular reads a settings file.
func readRegular(name string) ([]byte, error) { return ReadRegular(name, fileBytesMax) }
