package config

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// utf8BOM is what some editors put before a text.
var utf8BOM = []byte("\xef\xbb\xbf")

// secretDistinctMin is how many different bytes 32 random ones have at least: they
// have about 30, and fewer than 16 less often than once in 10^18.
const secretDistinctMin = 16

// errPoorSecret says what to do instead of typing one in.
var errPoorSecret = errors.New(`is not 32 random bytes in hexadecimal or base64: make one with "openssl rand -hex 32"`)

// secretLines splits the content of a secret of either kind into its lines. Blank lines,
// line ends, space around a line and a byte order mark don't count.
func secretLines(content []byte) ([][]byte, error) {
	var lines [][]byte
	for line := range bytes.Lines(bytes.TrimPrefix(content, utf8BOM)) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			lines = append(lines, bytes.Clone(line))
		}
	}
	switch {
	case len(lines) == 0:
		return nil, errors.New("no line in it")
	case len(lines) > secretLinesMax:
		return nil, fmt.Errorf("%d lines, at most %d are read", len(lines), secretLinesMax)
	}
	for i, line := range lines {
		if inQuotes(string(line)) {
			return nil, fmt.Errorf("line %d is in quotation marks, which would be part of the value: leave them out", i+1)
		}
	}
	return lines, nil
}

// ClusterSecretLines splits the content of a cluster secret into its lines, of which
// the first signs and all verify: the text of a line as it stands is the secret. Blank
// lines, line ends, space around a line and a byte order mark don't count. Whoever has
// the secret is the cluster and may guess it offline, so a line that is not at least
// [SecretBytesMin] bytes as hex or base64, or is plainly not random, is refused. Errors
// name no secret.
func ClusterSecretLines(content []byte) ([][]byte, error) {
	lines, err := secretLines(content)
	if err != nil {
		return nil, err
	}
	for i, line := range lines {
		if b := randomBytes(string(line)); len(b) < SecretBytesMin || distinctBytes(b) < secretDistinctMin {
			return nil, fmt.Errorf("line %d, of %d characters, %w", i+1, len(line), errPoorSecret)
		}
	}
	return lines, nil
}

// randomBytes reads hex or base64, of either alphabet, padded or not; nil when line is
// neither. Random base64 has letters of both cases: what has not is a text someone typed.
func randomBytes(line string) []byte {
	if strings.Trim(line, "0123456789abcdefABCDEF") == "" {
		b, _ := hex.DecodeString(line) // nil when the count is odd
		return b
	}
	if strings.ToLower(line) == line || strings.ToUpper(line) == line {
		return nil
	}
	line = strings.TrimRight(line, "=")
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if b, err := enc.DecodeString(line); err == nil {
			return b
		}
	}
	return nil
}

func distinctBytes(b []byte) int {
	var seen [256]bool
	n := 0
	for _, c := range b {
		if !seen[c] {
			seen[c] = true
			n++
		}
	}
	return n
}
