package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Bounds of one settings file.
const (
	fileBytesMax = 1 << 20
	depthMax     = 16
)

type kind uint8

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindArray
	kindObject
)

func (k kind) String() string {
	return [...]string{"null", "a bool", "a number", "text in quotes", "a list", "an object"}[k]
}

// node is one JSON value and where it stands.
type node struct {
	kind      kind
	text      string // decoded string, or the number, true and false as written
	elems     []node
	members   []member
	line, col int
	env       string // variable a placeholder took the value from; such values are never shown
	broken    bool   // a problem is recorded already, the value means nothing
}

type member struct {
	key       string
	line, col int
	val       node
}

// errStop ends the parse of a file whose syntax is broken; the problem is recorded.
var errStop = errors.New("syntax error")

// placeholder is a variable of the environment inside a settings file.
var placeholder = regexp.MustCompile(`^\{\$(DIARKIS_[A-Z0-9_]+)\}`)

// parser reads one file. encoding/json knows neither positions nor duplicate
// keys nor placeholders, hence a parser of our own; a fuzz test holds it against
// encoding/json.
type parser struct {
	file      string
	src       []byte
	off       int
	line      int
	lineStart int
	counted   int // characters in this line before countedTo
	countedTo int
	depth     int
	path      []string                    // keys down to the value being read
	lookup    func(string) (string, bool) // nil inside the value of a variable
	problems  []Problem
}

// parseFile reads a whole file, which must be one JSON value. ok is false when
// it ended early; problems may be there in either case.
func parseFile(file string, src []byte, lookup func(string) (string, bool)) (n node, problems []Problem, ok bool) {
	p := &parser{file: file, src: bytes.TrimPrefix(src, []byte("\xef\xbb\xbf")), line: 1, lookup: lookup}
	n, err := p.document()
	return n, p.problems, err == nil
}

func (p *parser) document() (node, error) {
	if len(p.src) > fileBytesMax {
		return node{}, p.fail(1, 1, fmt.Sprintf("file has %d bytes, at most %d are read", len(p.src), fileBytesMax))
	}
	if !utf8.Valid(p.src) {
		return node{}, p.fail(1, 1, "file is not UTF-8")
	}
	n, err := p.value()
	if err != nil {
		return n, err
	}
	p.space()
	if p.off < len(p.src) {
		line, col := p.at()
		return n, p.fail(line, col, "expected the end of the file, got "+p.here())
	}
	return n, nil
}

// at is the current position; columns count characters. It counts on from where
// it was asked last: one long line is not counted again for every value in it.
func (p *parser) at() (line, col int) {
	if p.countedTo < p.lineStart {
		p.countedTo, p.counted = p.lineStart, 0
	}
	p.counted += utf8.RuneCount(p.src[p.countedTo:p.off])
	p.countedTo = p.off
	return p.line, p.counted + 1
}

// here describes the next character for an error.
func (p *parser) here() string {
	if p.off >= len(p.src) {
		return "the end of the file"
	}
	r, _ := utf8.DecodeRune(p.src[p.off:])
	return fmt.Sprintf("%q", r)
}

func (p *parser) report(line, col int, text string) {
	p.problems = append(p.problems, Problem{p.file, line, col, strings.Join(p.path, "."), text})
}

func (p *parser) fail(line, col int, text string) error {
	p.report(line, col, text)
	return errStop
}

func (p *parser) space() {
	for p.off < len(p.src) {
		switch p.src[p.off] {
		case '\n':
			p.line++
			p.lineStart = p.off + 1
		case ' ', '\t', '\r':
		default:
			return
		}
		p.off++
	}
}

// next skips space and returns the next byte without consuming it, 0 at the end.
func (p *parser) next() byte {
	p.space()
	if p.off >= len(p.src) {
		return 0
	}
	return p.src[p.off]
}

func (p *parser) value() (node, error) {
	c := p.next()
	line, col := p.at()
	n := node{line: line, col: col}
	if p.depth >= depthMax {
		return n, p.fail(line, col, fmt.Sprintf("more than %d levels deep", depthMax))
	}
	p.depth++
	defer func() { p.depth-- }()
	var err error
	switch {
	case c == '{' && bytes.HasPrefix(p.src[p.off:], []byte("{$")):
		err = p.bare(&n)
	case c == '{':
		n.kind = kindObject
		err = p.object(&n)
	case c == '[':
		n.kind = kindArray
		err = p.array(&n)
	case c == '"':
		n.kind = kindString
		before := len(p.problems)
		n.text, n.env, err = p.str(true)
		n.broken = len(p.problems) > before
	default:
		err = p.scalar(&n)
	}
	return n, err
}

func (p *parser) object(n *node) error {
	p.off++
	seen := map[string]int{}
	if p.next() == '}' {
		p.off++
		return nil
	}
	for {
		c := p.next()
		m := member{}
		m.line, m.col = p.at()
		if c != '"' {
			return p.fail(m.line, m.col, "expected a key in double quotes, got "+p.here()+p.hint())
		}
		var err error
		if m.key, _, err = p.str(false); err != nil {
			return err
		}
		p.path = append(p.path, m.key)
		if first, ok := seen[m.key]; ok {
			p.report(m.line, m.col, fmt.Sprintf("key appears twice, first on line %d", first))
		} else {
			seen[m.key] = m.line
		}
		if c := p.next(); c != ':' {
			line, col := p.at()
			return p.fail(line, col, "expected ':' after the key, got "+p.here())
		}
		p.off++
		if m.val, err = p.value(); err != nil {
			return err
		}
		p.path = p.path[:len(p.path)-1]
		n.members = append(n.members, m)
		more, err := p.separator('}', m.val)
		if !more {
			return err
		}
	}
}

func (p *parser) array(n *node) error {
	p.off++
	if p.next() == ']' {
		p.off++
		return nil
	}
	for {
		e, err := p.value()
		if err != nil {
			return err
		}
		n.elems = append(n.elems, e)
		more, err := p.separator(']', e)
		if !more {
			return err
		}
	}
}

// separator reads the comma between two members, or the closing bracket, behind the
// value last. The two mistakes that everybody makes don't end the parse.
func (p *parser) separator(closing byte, last node) (more bool, err error) {
	endLine, endCol := p.at()
	adjacent := p.off
	switch c := p.next(); {
	case c == ',':
		line, col := p.at()
		p.off++
		if p.next() == closing {
			p.report(line, col, fmt.Sprintf("a comma with nothing behind it but %q: take it out", closing))
			p.off++
			return false, nil
		}
		return true, nil
	case c == closing:
		p.off++
		return false, nil
	case c == '"' && closing == '}' && p.line > endLine:
		p.report(endLine, endCol, "a comma is missing here: the next key follows")
		return true, nil
	}
	line, col := p.at()
	hint := p.hint()
	if last.kind == kindString && p.off == adjacent {
		hint = "; a quotation mark inside text is written \\\""
	}
	return false, p.fail(line, col, fmt.Sprintf("expected ',' or %q, got %s%s", closing, p.here(), hint))
}

// hint says what the next character is meant to be, where JSON does not have it.
func (p *parser) hint() string {
	rest := p.src[p.off:]
	switch {
	case bytes.HasPrefix(rest, []byte("//")), bytes.HasPrefix(rest, []byte("/*")), bytes.HasPrefix(rest, []byte("#")):
		return "; JSON has no comments"
	case bytes.HasPrefix(rest, []byte("'")):
		return "; JSON has double quotes only"
	}
	return ""
}

func (p *parser) scalar(n *node) error {
	start := p.off
	for p.off < len(p.src) && !strings.ContainsRune(" \t\r\n,:[]{}\"", rune(p.src[p.off])) {
		p.off++
	}
	n.text = string(p.src[start:p.off])
	switch {
	case n.text == "true" || n.text == "false":
		n.kind = kindBool
	case n.text == "null":
		n.kind = kindNull
	case n.text != "" && json.Valid([]byte(n.text)):
		n.kind = kindNumber
	case n.text == "":
		return p.fail(n.line, n.col, "expected a value, got "+p.here()+p.hint())
	default:
		p.off = start
		hint := p.hint()
		if hint == "" {
			hint = "; text is written in double quotes, a number without zeros in front"
		}
		return p.fail(n.line, n.col, fmt.Sprintf("%s is not a JSON value%s", shorten(n.text), hint))
	}
	return nil
}

// str reads a string; with expand, placeholders in it become the variable's
// value. They are looked for in the text as written, so \u007b$… stays literal
// and nothing a variable holds can end the string.
func (p *parser) str(expand bool) (text, env string, err error) {
	line, col := p.at()
	p.off++
	var b strings.Builder
	flush := func(seg []byte) error {
		var s string
		if json.Unmarshal(append(append([]byte{'"'}, seg...), '"'), &s) != nil {
			return p.fail(line, col, "bad escape in text")
		}
		b.WriteString(s)
		return nil
	}
	start := p.off
	for p.off < len(p.src) {
		switch c := p.src[p.off]; {
		case c == '"':
			err = flush(p.src[start:p.off])
			p.off++
			return b.String(), env, err
		case c == '\\':
			p.off = min(p.off+2, len(p.src))
		case c < 0x20:
			line, col := p.at()
			return "", "", p.fail(line, col, fmt.Sprintf("control character %#02x in text; is a closing quote missing?", c))
		case c == '{' && expand && p.lookup != nil && bytes.HasPrefix(p.src[p.off:], []byte("{$")):
			if err = flush(p.src[start:p.off]); err != nil {
				return "", "", err
			}
			var v string
			if v, env, err = p.variable(); err != nil {
				return "", "", err
			}
			b.WriteString(v)
			start = p.off
		default:
			p.off++
		}
	}
	return "", "", p.fail(line, col, "text has no closing quote")
}

// variable reads a placeholder and returns the variable's value and name. A
// variable that is missing is reported and counts as empty, so that the rest of
// the file is still checked.
func (p *parser) variable() (value, name string, err error) {
	line, col := p.at()
	m := placeholder.FindSubmatch(p.src[p.off:])
	if m == nil {
		return "", "", p.fail(line, col, "a placeholder is written {$DIARKIS_NAME}, in capitals, digits and underscores")
	}
	p.off += len(m[0])
	name = string(m[1])
	value, ok := p.lookup(name)
	if !ok {
		p.report(line, col, fmt.Sprintf("environment variable %s is not set", name))
	}
	return value, name, nil
}

// bare reads a placeholder that stands for a whole JSON value. The variable is
// parsed by itself, so it can't add keys or close the object around it.
func (p *parser) bare(n *node) error {
	if p.lookup == nil {
		return p.fail(n.line, n.col, "a placeholder can't stand here")
	}
	value, name, err := p.variable()
	if err != nil {
		return err
	}
	if _, ok := p.lookup(name); !ok {
		n.broken = true // reported by variable
		return nil
	}
	sub := &parser{src: []byte(value), line: 1, depth: p.depth}
	v, err := sub.document()
	if err != nil || len(sub.problems) > 0 {
		p.report(n.line, n.col, fmt.Sprintf("environment variable %s does not hold one JSON value; put the placeholder in quotes to use it as text", name))
		v = node{broken: true}
	}
	v.relocate(n.line, n.col, name)
	*n = v
	return nil
}

// relocate gives everything in a variable's value the position of its placeholder.
func (n *node) relocate(line, col int, env string) {
	n.line, n.col, n.env = line, col, env
	for i := range n.elems {
		n.elems[i].relocate(line, col, env)
	}
	for i := range n.members {
		n.members[i].line, n.members[i].col = line, col
		n.members[i].val.relocate(line, col, env)
	}
}

// shownMax is how many characters of a value an error shows.
const shownMax = 40

// shorten quotes s for an error, cut to a readable length.
func shorten(s string) string {
	if r := []rune(s); len(r) > shownMax {
		s = string(r[:shownMax]) + "…"
	}
	return fmt.Sprintf("%q", s)
}
