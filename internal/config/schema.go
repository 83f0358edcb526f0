package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// section is one settings file: its name, where it lies, and the struct it fills.
type section struct {
	name   string // "udp", "health-check"
	path   string // "udp/main.json", "shared/health-check.json"
	target any    // pointer to the struct inside a Config
	fields []field
}

// field is one key of a section, as its struct tags describe it.
type field struct {
	key      string // "port", "tls.cert"
	index    []int  // for reflect.Value.FieldByIndex
	typ      reflect.Type
	unit     time.Duration // zero unless the field is a time.Duration
	is       string
	min, max int64
	bounded  bool // min and max are set
	only     string
	refused  string
	cluster  bool // read by every role
}

// sections lists the files a Config is made of.
func (c *Config) sections() []section {
	list := []section{
		{name: "mars", path: "mars/main.json", target: &c.MARS},
		{name: "http", path: "http/main.json", target: &c.HTTP},
		{name: "udp", path: "udp/main.json", target: &c.UDP},
		{name: "tcp", path: "tcp/main.json", target: &c.TCP},
		{name: "log", path: "shared/log.json", target: &c.Log},
		{name: "mesh", path: "shared/mesh.json", target: &c.Mesh},
		{name: "room", path: "shared/room.json", target: &c.Room},
		{name: "metrics", path: "shared/metrics.json", target: &c.Metrics},
		{name: "health-check", path: "shared/health-check.json", target: &c.HealthCheck},
	}
	for i := range list {
		list[i].fields = fieldsOf(reflect.TypeOf(list[i].target).Elem(), "", nil)
	}
	return list
}

// moduleFiles are files of modules that have no settings in this version. They
// are checked for syntax and otherwise ignored with a warning.
var moduleFiles = []string{"group", "field", "dm", "matching", "dive", "session"}

func fieldsOf(t reflect.Type, prefix string, index []int) []field {
	var out []field
	for i := range t.NumField() {
		sf := t.Field(i)
		at := append(slices.Clone(index), i)
		key := prefix + sf.Tag.Get("key")
		if sf.Type.Kind() == reflect.Struct {
			if !sf.Anonymous {
				key += "."
			}
			out = append(out, fieldsOf(sf.Type, key, at)...)
			continue
		}
		f := field{key: key, index: at, typ: sf.Type, is: sf.Tag.Get("is"), only: sf.Tag.Get("only"), refused: sf.Tag.Get("refused"), cluster: sf.Tag.Get("cluster") == "yes"}
		f.unit = map[string]time.Duration{"s": time.Second, "ms": time.Millisecond}[sf.Tag.Get("unit")]
		f.min, _ = strconv.ParseInt(sf.Tag.Get("min"), 10, 64)
		f.max, _ = strconv.ParseInt(sf.Tag.Get("max"), 10, 64)
		f.bounded = sf.Tag.Get("max") != ""
		out = append(out, f)
	}
	return out
}

func (s section) field(key string) (field, bool) {
	i := slices.IndexFunc(s.fields, func(f field) bool { return f.key == key })
	if i < 0 {
		return field{}, false
	}
	return s.fields[i], true
}

// clusterWide returns s with only the fields that every role reads.
func (s section) clusterWide() section {
	s.fields = slices.DeleteFunc(slices.Clone(s.fields), func(f field) bool { return !f.cluster })
	return s
}

// isObject tells whether key is a nested object, such as tls.
func (s section) isObject(key string) bool {
	return slices.ContainsFunc(s.fields, func(f field) bool { return strings.HasPrefix(f.key, key+".") })
}

// keysUnder lists the names valid directly below prefix ("" or "tls.").
func (s section) keysUnder(prefix string) []string {
	var out []string
	for _, f := range s.fields {
		if rest, ok := strings.CutPrefix(f.key, prefix); ok {
			name, _, _ := strings.Cut(rest, ".")
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

// EnvName is the variable that sets a key such as "mesh.marsAddress".
func EnvName(key string) string {
	file, rest, _ := strings.Cut(key, ".")
	return envName(file, rest)
}

// envName is the variable that sets a key: DIARKIS_MESH_MARS_ADDRESS.
func envName(section, key string) string {
	return envPrefix + upperSnake(section) + "_" + upperSnake(key)
}

// upperSnake turns camelCase into capitals with underscores: sendUDPInterval is
// SEND_UDP_INTERVAL, enableP2P is ENABLE_P2P.
func upperSnake(s string) string {
	r := []rune(s)
	var b strings.Builder
	for i, c := range r {
		if c == '.' || c == '-' {
			c = '_'
		} else if i > 0 && unicode.IsUpper(c) {
			nextLower := i+1 < len(r) && unicode.IsLower(r[i+1])
			if unicode.IsLower(r[i-1]) || unicode.IsUpper(r[i-1]) && nextLower {
				b.WriteByte('_')
			}
		}
		b.WriteRune(unicode.ToUpper(c))
	}
	return b.String()
}

// nearest returns a hint naming the candidate closest to name, or "" when none
// is close enough to be meant.
func nearest(name string, candidates []string) string {
	best, dist := "", max(2, len(name)/3)+1
	for _, c := range candidates {
		if d := editDistance(strings.ToLower(name), strings.ToLower(c)); d < dist {
			best, dist = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance is the Levenshtein distance of a and b in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
