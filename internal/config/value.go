package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// A setting's raw value is a string, bool, int64 or []string, whatever layer it
// comes from; set turns it into the struct's type.

var durationType = reflect.TypeFor[time.Duration]()

// expects says in words what the field takes.
func (f field) expects() string {
	switch f.typ.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list of texts"
	case reflect.String:
		if strings.Contains(f.is, "|") {
			return "one of " + strings.ReplaceAll(f.is, "|", ", ")
		}
		return "text in quotes"
	}
	what := "a whole number"
	switch f.unit {
	case time.Second:
		what += " of seconds"
	case time.Millisecond:
		what += " of milliseconds"
	}
	if f.is == "port" {
		what = "a port"
	}
	if f.bounded {
		what += fmt.Sprintf(" from %d to %d", f.min, f.max)
	}
	return what
}

// fromNode reads the field's raw value from a file.
func (f field) fromNode(n node) (any, error) {
	mismatch := func() error { return fmt.Errorf("expected %s, got %s", f.expects(), n.describe()) }
	switch f.typ.Kind() {
	case reflect.Bool:
		if n.kind == kindBool {
			return f.check(n.text == "true")
		}
	case reflect.String:
		if n.kind == kindString || f.is == "auto|true|false" && n.kind == kindBool {
			return f.check(trim(n.text))
		}
	case reflect.Slice:
		if n.kind != kindArray {
			return nil, mismatch()
		}
		list := []string{}
		for _, e := range n.elems {
			if e.kind != kindString {
				return nil, fmt.Errorf("expected %s, got %s in it", f.expects(), e.describe())
			}
			list = append(list, trim(e.text))
		}
		return f.check(list)
	default:
		if n.kind == kindNumber || n.kind == kindString && f.is == "port" {
			i, err := strconv.ParseInt(trim(n.text), 10, 64)
			if err != nil {
				return nil, mismatch()
			}
			return f.check(i)
		}
	}
	return nil, mismatch()
}

// describe names what was found in a file; a value from a variable is not shown.
func (n node) describe() string {
	switch {
	case n.env != "":
		return n.kind.String() + " from " + n.env
	case n.kind == kindString:
		return "the text " + shorten(n.text)
	case n.kind == kindNumber && len(n.text) <= shownMax:
		return n.text
	case n.kind == kindBool:
		return n.text
	}
	return n.kind.String()
}

// trim takes off what gets around a value by accident: a line end behind what a file or
// a secret's mount holds, spaces, the byte order mark that some editors write.
func trim(s string) string { return strings.TrimSpace(strings.TrimPrefix(s, byteOrderMark)) }

const (
	byteOrderMark = "\ufeff"
	hintQuoted    = "; the quotation marks are part of the value: leave them out"
)

// inQuotes tells whether a value has quotation marks around it, which a shell would have
// taken off and a file of variables (docker --env-file) has not.
func inQuotes(s string) bool {
	return len(s) > 1 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0]
}

// fromOutside is fromText of what came as a variable or a flag, where no text is meant to
// be in quotation marks.
func (f field) fromOutside(s string) (any, error) {
	if f.typ.Kind() == reflect.String && f.is == "" && inQuotes(trim(s)) {
		return nil, fmt.Errorf("expected text, got %s%s", shorten(trim(s)), hintQuoted)
	}
	return f.fromText(s)
}

// fromText reads the field's raw value from a variable or a flag. A list is
// separated by commas or written as JSON. The error may join several.
func (f field) fromText(s string) (any, error) {
	s = trim(s)
	v, err := f.parse(s)
	if err != nil && inQuotes(s) && !strings.HasSuffix(err.Error(), hintQuoted) {
		err = fmt.Errorf("%w%s", err, hintQuoted)
	}
	return v, err
}

func (f field) parse(s string) (any, error) {
	switch f.typ.Kind() {
	case reflect.Bool:
		b, err := strconv.ParseBool(strings.ToLower(s))
		if err != nil {
			return nil, fmt.Errorf("expected %s, got %s", f.expects(), shorten(s))
		}
		return f.check(b)
	case reflect.String:
		if f.is == "auto|true|false" {
			s = strings.ToLower(s)
		}
		return f.check(s)
	case reflect.Slice:
		list := []string{}
		if strings.HasPrefix(strings.TrimSpace(s), "[") {
			if err := json.Unmarshal([]byte(s), &list); err != nil {
				return nil, fmt.Errorf("expected %s, got %s", f.expects(), shorten(s))
			}
			return f.check(list)
		}
		for e := range strings.SplitSeq(s, ",") {
			if e = strings.TrimSpace(e); e != "" {
				list = append(list, e)
			}
		}
		return f.check(list)
	}
	i, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("expected %s, got %s", f.expects(), shorten(s))
	}
	return f.check(i)
}

// check returns v when the field takes it.
func (f field) check(v any) (any, error) {
	switch v := v.(type) {
	case bool:
		if f.only != "" && strconv.FormatBool(v) != f.only {
			return nil, fmt.Errorf("only %s is supported: %s", f.only, f.refused)
		}
	case int64:
		if f.bounded && (v < f.min || v > f.max) {
			return nil, fmt.Errorf("expected %s, got %d", f.expects(), v)
		}
		if f.key == "sendUDPInterval" && v > 0 && v < 10 {
			return nil, fmt.Errorf("expected 0 (no send buffering) or at least 10 milliseconds, got %d", v)
		}
	case string:
		return v, f.checkText(v)
	case []string:
		if f.bounded && int64(len(v)) > f.max {
			return nil, fmt.Errorf("expected at most %d entries, got %d", f.max, len(v))
		}
		var errs []error
		for _, e := range v {
			errs = append(errs, f.checkText(e))
		}
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// textKinds are the values of the tag is that are not a choice.
var textKinds = map[string]func(string) error{
	"":         func(string) error { return nil },
	"host":     checkHost,
	"public":   checkPublic,
	"hostport": checkHostPort,
	"origin":   checkOrigin,
	"role":     checkRole,
	"prefix":   checkPrefix,
}

func (f field) checkText(s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return errors.New("expected text without control characters")
	}
	if strings.Contains(f.is, "|") {
		choices := strings.Split(f.is, "|")
		if slices.Contains(choices, s) {
			return nil
		}
		return fmt.Errorf("expected %s, got %s%s", f.expects(), shorten(s), nearest(s, choices))
	}
	return textKinds[f.is](s)
}

// hostName is a DNS name; underscores occur in names of containers.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?$`)

func checkHost(s string) error {
	if s == "" || isHost(s) {
		return nil
	}
	return fmt.Errorf("expected an IP address or a host name without a port, got %s%s", shorten(s), hostFault(s))
}

func isHost(s string) bool {
	if a, err := netip.ParseAddr(unbracket(s)); err == nil {
		return a.Is6() || unbracket(s) == s
	}
	return !isNumeric(s) && len(s) <= 253 && hostName.MatchString(s)
}

// isNumeric: a name of nothing but digits and dots is a mistyped IPv4 address.
func isNumeric(s string) bool { return strings.Trim(s, "0123456789.") == "" }

// hostFault says what is wrong with something that is no host, when that is plain.
func hostFault(s string) string {
	host, port, hasPort := cutPort(s)
	_, notPort := strconv.ParseUint(port, 10, 16)
	switch {
	case strings.ContainsAny(s, "\"'"):
		return hintQuoted
	case strings.Contains(s, "://"):
		return "; leave out the scheme, everything up to //, and what may follow the host"
	case strings.ContainsFunc(s, unicode.IsSpace):
		return "; there is a space in it"
	case strings.Contains(s, "/"):
		return "; there is a slash in it"
	case hasPort && notPort == nil && isHost(host):
		return "; leave out the port, which is a setting of its own"
	case strings.ContainsAny(s, "[]"):
		return "; brackets are for IPv6 addresses only, and may be left out"
	case s != "" && isNumeric(s):
		return "; that is no whole IPv4 address"
	case strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII }):
		return "; write such a name in its xn-- form"
	}
	return ""
}

// checkPublic is checkHost of something that players, who are elsewhere, connect to.
func checkPublic(s string) error {
	if err := checkHost(s); err != nil {
		return err
	}
	a, err := netip.ParseAddr(unbracket(s))
	switch {
	case err != nil: // a name, or nothing
	case a.IsUnspecified():
		return fmt.Errorf("expected what players connect to, got %s: that stands for every address of a machine", shorten(s))
	case a.IsMulticast() || a.Zone() != "":
		return fmt.Errorf("expected what players connect to, got %s, which has no meaning elsewhere", shorten(s))
	}
	return nil
}

// IsLoopback tells whether a host setting is this machine's loopback address.
func IsLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && a.Unmap().IsLoopback()
}

func checkHostPort(s string) error {
	if checkHost(s) == nil && s != "" {
		return nil
	}
	host, port, ok := cutPort(s)
	n, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil || n == 0 || !isHost(host) || strings.Contains(host, ":") && unbracket(host) == host {
		return fmt.Errorf("expected host or host:port, got %s%s", shorten(s), hostFault(s))
	}
	return nil
}

func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

func checkOrigin(s string) error {
	if s == "" || s == "*" {
		return nil
	}
	for o := range strings.SplitSeq(s, ",") {
		u, err := url.Parse(strings.TrimSpace(o))
		hint := ""
		switch {
		case strings.TrimSpace(o) == "":
			hint = ": one is empty"
		case strings.TrimSpace(o) == "*":
			hint = ": * stands alone, for all"
		case err == nil && u.Path == "/" && u.Host != "":
			hint = ": an origin has no slash at its end"
		case err == nil && strings.Contains(u.Host, "*"):
			hint = ": a part of a host can't be *, name each"
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		default:
			continue
		}
		return fmt.Errorf("expected *, or origins such as https://game.example separated by commas, got %s%s", shorten(s), hint)
	}
	return nil
}

func checkRole(s string) error {
	if _, ok := ParseRole(s); !ok {
		return fmt.Errorf("expected roles among MARS, HTTP, UDP, TCP, got %s", shorten(s))
	}
	return nil
}

// ParsePrefix reads an IP address, or the prefix of many such as 10.0.0.0/8.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(unbracket(s)); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("expected an IP address or a prefix such as 10.0.0.0/8, got %s", shorten(s))
	}
	return p.Masked(), nil
}

func checkPrefix(s string) error {
	_, err := ParsePrefix(s)
	return err
}

// set stores a raw value that check accepted into the section's struct.
func (f field) set(target any, v any) {
	dst := reflect.ValueOf(target).Elem().FieldByIndex(f.index)
	switch v := v.(type) {
	case bool:
		dst.SetBool(v)
	case string:
		if f.is == "host" || f.is == "public" {
			v = unbracket(v)
		}
		dst.SetString(v)
	case []string:
		v = slices.Clone(v)
		for i := range v {
			if f.is == "hostport" {
				v[i] = unbracket(v[i])
			}
		}
		dst.Set(reflect.ValueOf(v))
	case int64:
		if f.typ == durationType {
			v *= int64(f.unit)
		}
		dst.SetInt(v)
	}
}

// unbracket takes the brackets from an IPv6 literal without a port.
func unbracket(host string) string {
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		return host[1 : len(host)-1]
	}
	return host
}
