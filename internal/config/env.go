package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const envPrefix = "DIARKIS_"

// Variables that are settings of their own, not keys of a file.
const (
	envConfigRoot        = "DIARKIS_CONFIG_ROOT_PATH"
	envCloud             = "DIARKIS_CLOUD_ENV"
	envShutdownTimeout   = "DIARKIS_SHUTDOWN_TIMEOUT"
	envServerType        = "DIARKIS_SERVER_TYPE"
	envStructErr         = "DIARKIS_USE_STRUCT_ERR"
	envJSONLog           = "DIARKIS_JSON_LOG"
	envAppName           = "DIARKIS_APP_NAME"
	envAppVersion        = "DIARKIS_APP_VERSION"
	envClientKey         = "DIARKIS_CLIENT_KEY"
	envStopOnSIGHUP      = "DIARKIS_STOP_PROCESS_ON_SIGHUP"
	envRunDir            = "DIARKIS_RUN_DIR"
	envClusterSecret     = "DIARKIS_CLUSTER_SECRET"
	envClusterSecretFile = "DIARKIS_CLUSTER_SECRET_FILE"
	envTicketKey         = "DIARKIS_TICKET_KEY"
	envTicketKeyFile     = "DIARKIS_TICKET_KEY_FILE"

	envMemory = "AUTOMEMLIMIT" // named by whoever reads it, not by us
)

var envNames = []string{envConfigRoot, envCloud, envShutdownTimeout, envServerType, envStructErr, envJSONLog, envAppName,
	envAppVersion, envClientKey, envStopOnSIGHUP, envRunDir, envClusterSecret, envClusterSecretFile, envTicketKey, envTicketKeyFile}

// Bounds of the environment's settings.
const (
	SecretBytesMin     = 32 // of one line of the cluster secret
	clientKeyBytesMax  = 1024
	labelBytesMax      = 64 // server type, app name and version
	secretLinesMax     = 8
	shutdownDefault    = 10 * time.Second
	shutdownSecondsMax = 86400
)

// Env is the settings that only the environment has.
type Env struct {
	Cloud           string        // of Clouds, whose metadata knows the public address; "" means none
	PublicAddress   string        // what DIARKIS_CLOUD_ENV is when it is no cloud: the host or IP that players are told
	ShutdownTimeout time.Duration // whole time from the signal to the exit
	ServerType      string        // label of this node; the role in capitals unless set
	StructErr       bool          // errors to clients are a code and a text
	JSONLog         bool
	StopOnSIGHUP    bool
	AppName         string // namespace of the cluster, with AppVersion
	AppVersion      string
	ClientKey       Secret
	RunDir          string // the OS temporary directory unless set

	// ClusterSecret is the lines the mesh derives its identity from: the first
	// signs, all verify. Empty when nothing is configured. It comes from
	// ClusterSecretFile when that is set, which may be read again when it changes.
	ClusterSecret     Secret
	ClusterSecretFile string

	// TicketKey is the lines that tickets may be signed with, any of them. Empty when
	// nothing is configured and on nodes of other roles than http. It comes from TicketKeyFile when that is set, which may be
	// read again when it changes.
	TicketKey     Secret
	TicketKeyFile string
}

// Secret is a value that prints as "(redacted)" with every verb.
type Secret struct{ text string }

// NewSecret wraps text.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal returns the value. Keep it out of logs, errors and metrics.
func (s Secret) Reveal() string { return s.text }

// IsSet tells whether there is a value.
func (s Secret) IsSet() bool { return s.text != "" }

// String returns a fixed text, never the value.
func (s Secret) String() string {
	if s.text == "" {
		return ""
	}
	return "(redacted)"
}

// Format keeps every verb from printing the value.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// MarshalText keeps JSON from printing the value.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// env reads and checks the settings of the environment.
func (l *loader) env() Env {
	e := Env{
		ShutdownTimeout: shutdownDefault,
		ServerType:      l.label(envServerType),
		StructErr:       l.bool(envStructErr),
		JSONLog:         l.bool(envJSONLog),
		StopOnSIGHUP:    l.bool(envStopOnSIGHUP),
		AppName:         l.label(envAppName),
		AppVersion:      l.label(envAppVersion),
		RunDir:          getenv(envRunDir),
	}
	l.cloud(&e)
	l.memory()
	if e.ServerType == "" {
		e.ServerType = l.options.Role.Type()
	}
	if e.RunDir == "" {
		e.RunDir = os.TempDir()
	}
	if s := getenv(envShutdownTimeout); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > shutdownSecondsMax {
			l.report(envShutdownTimeout, "", "expected a whole number of seconds from 1 to %d, got %s", shutdownSecondsMax, shorten(s))
		}
		e.ShutdownTimeout = time.Duration(n) * time.Second
	}
	key := getenv(envClientKey)
	if len(key) > clientKeyBytesMax || !utf8.ValidString(key) || strings.ContainsFunc(key, unicode.IsControl) {
		l.report(envClientKey, "", "expected at most %d bytes of UTF-8 in one line, without control characters; it has %d bytes", clientKeyBytesMax, len(key))
	}
	if inQuotes(key) {
		l.report(envClientKey, "", "it is in quotation marks%s", hintQuoted)
	}
	e.ClientKey = Secret{key}
	e.ClusterSecretFile = getenv(envClusterSecretFile)
	e.ClusterSecret = l.secret(envClusterSecret, envClusterSecretFile, "cluster secret", ClusterSecretLines)
	if r := l.options.Role; r == RoleHTTP || r == "" { // only http nodes check tickets, and may be the only ones with the file
		e.TicketKeyFile = getenv(envTicketKeyFile)
		e.TicketKey = l.secret(envTicketKey, envTicketKeyFile, "ticket key", TicketKeyLines)
	}
	return e
}

// getenv is a variable without what got around its value by accident.
func getenv(name string) string { return trim(os.Getenv(name)) }

// Clouds are the providers whose metadata service is asked for the public address.
var Clouds = []string{"GCP", "AWS", "AZURE", "TENCENT", "ALIBABA", "LINODE"}

// cloud reads which cloud this is or, when it is none that we know, what players are
// told. One word is neither: most likely a cloud that was mistyped, and players would
// be sent to a host of that name.
func (l *loader) cloud(e *Env) {
	s := getenv(envCloud)
	if c := strings.ToUpper(s); slices.Contains(Clouds, c) {
		e.Cloud = c
		return
	}
	if err := checkPublic(s); err != nil {
		l.report(envCloud, "", "%v", err)
		return
	}
	if s != "" && !strings.ContainsAny(s, ".:") && !strings.EqualFold(s, "localhost") {
		l.report(envCloud, "", "expected a cloud (%s) or the host name or IP address that players are told, got %s%s",
			strings.Join(Clouds, ", "), shorten(s), nearest(s, Clouds))
		return
	}
	e.PublicAddress = unbracket(s)
}

// memory checks the variable that sets the share of the container's memory, which is
// read where the limit is set.
func (l *loader) memory() {
	s := os.Getenv(envMemory)
	if s == "" || s == "off" {
		return
	}
	if n, err := strconv.ParseFloat(s, 64); err != nil || !(n > 0 && n <= 1) {
		l.report(envMemory, "", "expected a share of the container's memory above 0 and up to 1, such as 0.8, or off, got %s", shorten(s))
	}
}

func (l *loader) bool(name string) bool {
	s := getenv(name)
	if s == "" {
		return false
	}
	b, err := strconv.ParseBool(strings.ToLower(s))
	if err != nil {
		l.report(name, "", "expected TRUE or FALSE, got %s", shorten(s))
	}
	return b
}

func (l *loader) label(name string) string {
	s := getenv(name)
	if inQuotes(s) {
		l.report(name, "", "it is in quotation marks%s", hintQuoted)
		return ""
	}
	control := strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == '/' })
	if len(s) > labelBytesMax || control || !utf8.ValidString(s) {
		l.report(name, "", "expected at most %d bytes of UTF-8 without control characters and slashes", labelBytesMax)
		return ""
	}
	return s
}

// secret reads a secret of some lines from the file that one variable names, else
// from another variable. The value never gets into a problem's text.
func (l *loader) secret(variable, fileVariable, what string, split func([]byte) ([][]byte, error)) Secret {
	text, from := os.Getenv(variable), variable
	file := getenv(fileVariable)
	if file != "" {
		src, err := ReadKey(file, fileBytesMax)
		if err != nil {
			l.report(fileVariable, "", "the file that it names: %v", err)
			return Secret{}
		}
		text, from = string(src), file
	}
	if text == "" && file == "" {
		return Secret{}
	}
	if strings.HasPrefix(text, "\xff\xfe") || strings.HasPrefix(text, "\xfe\xff") {
		l.report(from, "", "%s: it is UTF-16: write it as ASCII or UTF-8", what)
		return Secret{}
	}
	lines, err := split([]byte(text))
	if err != nil {
		l.report(from, "", "%s: %v", what, err)
		return Secret{}
	}
	return Secret{string(bytes.Join(lines, []byte("\n")))}
}

// Of a ticket key's line: how many characters 32 random bytes take in hexadecimal, in
// base64, and in all printable ones; and how many different ones are in every random
// line, as of 64 hexadecimal digits fewer than one in 10^9 has less.
const (
	ticketKeyHexMin       = 64
	ticketKeyBase64Min    = 43
	ticketKeyPrintableMin = 40
	ticketKeyDistinctMin  = 8
)

// TicketKeyLines splits the content of a ticket key into its lines, any of which a
// ticket may be signed with: the text of the line is the key, without blank lines, line
// ends, space around a line and a byte order mark. As the key is guessed offline by
// whoever has one ticket, a line that can't hold 32 random
// bytes is refused.
func TicketKeyLines(content []byte) ([][]byte, error) {
	lines, err := secretLines(content)
	if err != nil {
		return nil, err
	}
	for i, line := range lines {
		if err := checkTicketKey(string(line)); err != nil {
			return nil, fmt.Errorf("line %d %w", i+1, err)
		}
	}
	return lines, nil
}

func checkTicketKey(line string) error {
	if len(line) < SecretBytesMin {
		return fmt.Errorf("has %d bytes, at least %d are needed", len(line), SecretBytesMin)
	}
	const hex = "0123456789abcdefABCDEF"
	const base64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_="
	distinct := map[rune]bool{}
	for _, c := range line {
		if c <= ' ' || c > '~' {
			return errors.New("has something else than letters, digits and punctuation in it: write random bytes as hex or base64")
		}
		distinct[c] = true
	}
	least, what := ticketKeyPrintableMin, "characters"
	switch {
	case strings.Trim(line, hex) == "":
		least, what = ticketKeyHexMin, "hex digits"
	case strings.Trim(line, base64) == "":
		least, what = ticketKeyBase64Min, "characters of base64"
	}
	if len(line) < least {
		return fmt.Errorf("has %d %s, at least %d are needed for 32 random bytes", len(line), what, least)
	}
	if len(distinct) < ticketKeyDistinctMin {
		return errors.New("is not random")
	}
	return nil
}
