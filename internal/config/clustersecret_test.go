package config

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
)

func TestClusterSecretLines(t *testing.T) {
	var b [32]byte
	_, _ = rand.Read(b[:])
	inHex, std := hex.EncodeToString(b[:]), base64.StdEncoding.EncodeToString(b[:])
	tests := []struct {
		name, text, want string // want: the lines joined by a space, "" when it is refused
	}{
		{"hex", inHex, inHex},
		{"capital hex", strings.ToUpper(inHex), strings.ToUpper(inHex)},
		{"base64", std, std},
		{"base64 without padding", strings.TrimRight(std, "="), strings.TrimRight(std, "=")},
		{"base64 for addresses", base64.URLEncoding.EncodeToString(b[:]), base64.URLEncoding.EncodeToString(b[:])},
		{"byte order mark, Windows line ends, blank lines", "\ufeff\r\n " + inHex + " \r\n\r\n" + std + "\r\n", inHex + " " + std},
		{"empty", " \n", ""},
		{"short", "hush-hush", ""},
		{"16 bytes of hex", inHex[:32], ""},
		{"31 bytes of hex", inHex[:62], ""},
		{"24 bytes of base64", std[:32], ""},
		{"one character", strings.Repeat("a", 64), ""},
		{"one character of base64", strings.Repeat("aA", 32), ""},
		{"counted", strings.Repeat("0123456789abcdef", 4), ""},
		{"a pass phrase", "correct-horse-battery-staple-correct-horse-battery-staple", ""},
		{"words", strings.Repeat("another secret ", 4), ""},
		{"something else in it", inHex + "!", ""},
		{"a poor second line", inHex + "\nhush-hush\n", ""},
		{"nine lines", strings.Repeat(inHex+"\n", 9), ""},
	}
	for _, tt := range tests {
		lines, err := ClusterSecretLines([]byte(tt.text))
		var got []string
		for _, l := range lines {
			got = append(got, string(l))
		}
		if s := strings.Join(got, " "); s != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%s: %q, %v, want %q", tt.name, s, err, tt.want)
		}
		if err != nil && (strings.Contains(err.Error(), inHex[:8]) || strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "horse")) {
			t.Errorf("%s: the error shows the secret: %v", tt.name, err)
		}
	}
	if _, err := ClusterSecretLines([]byte("password")); err == nil || !strings.Contains(err.Error(), "openssl rand -hex 32") {
		t.Errorf("no word on what to do instead: %v", err)
	}
}
