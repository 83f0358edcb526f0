package config

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// plain turns a node into what encoding/json makes of the same bytes.
func (n node) plain() any {
	switch n.kind {
	case kindBool:
		return n.text == "true"
	case kindNumber:
		return json.Number(n.text)
	case kindString:
		return n.text
	case kindArray:
		list := []any{}
		for _, e := range n.elems {
			list = append(list, e.plain())
		}
		return list
	case kindObject:
		object := map[string]any{}
		for _, m := range n.members {
			object[m.key] = m.val.plain()
		}
		return object
	}
	return nil
}

// TestLongLine holds a file of one long line against its bound: positions must
// not be counted from the start for every value.
func TestLongLine(t *testing.T) {
	src := []byte("[" + strings.Repeat("1,", fileBytesMax/2-2) + "x]")
	_, problems, ok := parseFile("f", src, nil)
	if ok || len(problems) != 1 || problems[0].Column != len(src)-1 {
		t.Errorf("problems %v, want one at column %d", problems, len(src)-1)
	}
}

// FuzzParse holds the parser against encoding/json, which accepts the same bytes
// apart from what the comments name.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`{}`, ` {"a": [1, -2.5e3, true, null, "x\u00e9\n"]}`, `{"a":1,"a":2}`, `[`, `"\ud800"`, `{"a" 1}`, "\xef\xbb\xbf{}",
		`{"{$DIARKIS_X}": "{$"}`, `01`, `"\x"`, "\"\t\"", `tru`, `1 2`, `{"a":1,}`, `"\\"`, `"\"`, `-`, `[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		n, problems, ok := parseFile("f", src, nil)
		for _, p := range problems {
			if p.Line < 1 || p.Column < 1 || p.Line > bytes.Count(src, []byte("\n"))+1 || p.Text == "" {
				t.Fatalf("bad position: %+v", p)
			}
		}
		if ok && len(problems) == 0 {
			dec := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(src, []byte("\xef\xbb\xbf"))))
			dec.UseNumber()
			var want any
			if err := dec.Decode(&want); err != nil {
				t.Fatalf("accepted what encoding/json refuses: %v", err)
			}
			if got := n.plain(); !reflect.DeepEqual(got, want) {
				t.Fatalf("got %#v, want %#v", got, want)
			}
			return
		}
		if len(problems) == 0 {
			t.Fatal("stopped without a problem")
		}
		// Stricter on purpose: depth, duplicates, UTF-8 and placeholders where none can be.
		for _, p := range problems {
			if strings.Contains(p.Text, "levels deep") || strings.Contains(p.Text, "appears twice") || strings.Contains(p.Text, "placeholder") {
				return
			}
		}
		if json.Valid(src) && utf8.Valid(src) {
			t.Fatalf("refused what encoding/json accepts: %v", problems)
		}
	})
}

// FuzzPlaceholders puts any value in a variable, in quotes and bare: the file
// keeps its two keys whatever the variable holds.
func FuzzPlaceholders(f *testing.F) {
	for _, s := range []string{"", "7100", `"x"`, `", "c": "`, `1, "c": 2`, `}`, "{$DIARKIS_X}", `\`, "\x00", "\n", `{"c": 1}`, `[1`, "\xff"} {
		f.Add(s)
	}
	src := []byte(`{"a": "<{$DIARKIS_X}>", "b": {$DIARKIS_X}}`)
	f.Fuzz(func(t *testing.T, value string) {
		n, problems, ok := parseFile("f", src, func(name string) (string, bool) { return value, name == "DIARKIS_X" })
		if !ok {
			t.Fatalf("the file broke: %v", problems)
		}
		if len(n.members) != 2 || n.members[0].key != "a" || n.members[1].key != "b" {
			t.Fatalf("keys changed: %+v", n.members)
		}
		if a := n.members[0].val; a.kind != kindString || a.text != "<"+value+">" {
			t.Errorf("in quotes: %+v, want <%s>", a, value)
		}
		b := n.members[1].val
		if b.broken != (len(problems) > 0) {
			t.Errorf("broken = %v with problems %v", b.broken, problems)
		}
		if !b.broken && !json.Valid([]byte(strings.TrimPrefix(value, "\ufeff"))) {
			t.Errorf("bare: %q was taken for a JSON value", value)
		}
		for _, p := range problems {
			if len(value) > 12 && strings.Contains(p.Text, value) {
				t.Errorf("the problem shows the value: %v", p)
			}
		}
	})
}
