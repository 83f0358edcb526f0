package config

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/Diarkis/diarkis/configs"
)

// documented is a row of a table of settings.
type documented struct{ key, value string }

// settingsTables reads the tables of docs/operations.md: by section, each key with the
// default that stands beside it.
func settingsTables(t *testing.T) map[string][]documented {
	t.Helper()
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), "\n## Settings\n")
	text, _, ok := strings.Cut(text, "\n## Environment\n")
	if !ok {
		t.Fatal("docs/operations.md has no settings")
	}
	out := map[string][]documented{}
	add := func(section, keys, defaults string) {
		names := regexp.MustCompile("`([A-Za-z0-9.]+)`").FindAllStringSubmatch(keys, -1)
		values := strings.Split(defaults, ", ")
		for i, n := range names {
			v := ""
			if i < len(values) {
				v = strings.Trim(values[i], "`")
			} else if len(values) == 1 { // one default for all, such as no file
				v = strings.Trim(values[0], "`")
			}
			out[section] = append(out[section], documented{n[1], v})
		}
	}
	heading, file := "", ""
	for l := range strings.SplitSeq(text, "\n") {
		if h, ok := strings.CutPrefix(l, "### "); ok {
			heading = h
		}
		cells := strings.Split(strings.Trim(l, "|"), " | ")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if !strings.HasPrefix(l, "|") || len(cells) < 3 || cells[0] == "key" || cells[0] == "file" {
			continue
		}
		switch heading {
		case "mars", "http":
			add(heading, cells[0], cells[1])
		case "udp and tcp":
			for i, role := range []string{"udp", "tcp"} {
				if cells[i+1] != "–" {
					add(role, cells[0], cells[i+1])
				}
			}
		case "shared":
			if cells[0] != "" {
				file = strings.TrimSuffix(strings.Trim(cells[0], "`"), ".json")
			}
			add(file, cells[1], cells[2])
		}
	}
	return out
}

// TestSettingsAreAsDocumented: each setting is in the tables with its default, and each
// row of them is a setting.
func TestSettingsAreAsDocumented(t *testing.T) {
	tables := settingsTables(t)
	clean(t)
	for _, s := range (&Config{}).sections() {
		raw := map[string]any{}
		b, err := configs.Defaults.ReadFile(s.path)
		if err == nil {
			err = json.Unmarshal(b, &raw)
		}
		if err != nil {
			t.Fatal(err)
		}
		rows := tables[s.name]
		for _, f := range s.fields {
			i := slices.IndexFunc(rows, func(d documented) bool { return d.key == f.key })
			if i < 0 {
				t.Errorf("%s.%s is not documented", s.name, f.key)
				continue
			}
			v := any(raw)
			for part := range strings.SplitSeq(f.key, ".") {
				v = v.(map[string]any)[part]
			}
			want, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if got := rows[i].value; got != strings.Trim(string(want), `"`) && got != string(want) {
				t.Errorf("%s.%s: %s is documented as default, it is %s", s.name, f.key, got, want)
			}
		}
		for _, d := range rows {
			if _, ok := s.field(d.key); !ok {
				t.Errorf("%s.%s is documented and no setting", s.name, d.key)
			}
		}
	}
}

// TestVariablesAreAsDocumented: the table of the environment has every variable, and no other.
func TestVariablesAreAsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(b), "\n## Environment\n")
	text, _, _ = strings.Cut(text, "\nIn Kubernetes a Service")
	var found []string
	for l := range strings.SplitSeq(text, "\n") {
		first, _, ok := strings.Cut(strings.TrimPrefix(l, "| "), " | ")
		if ok {
			found = append(found, regexp.MustCompile(envPrefix+"[A-Z_]+").FindAllString(first, -1)...)
		}
	}
	slices.Sort(found)
	want := slices.Clone(envNames)
	slices.Sort(want)
	if fmt.Sprint(found) != fmt.Sprint(want) {
		t.Errorf("documented are\n%v\nthere are\n%v", found, want)
	}
}
