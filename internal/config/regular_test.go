//go:build unix

package config

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestReadRegular: what is no file is named as what it is, at once, also a pipe into
// which nobody writes.
func TestReadRegular(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := syscall.Mkfifo(at("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"good": "12345", "large": "123456"} {
		if err := os.WriteFile(at(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(at("good"), at("link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, want string }{
		{at("good"), ""},
		{at("link"), ""},
		{at("pipe"), "a named pipe"},
		{dir, "a directory"},
		{"/dev/null", "a device"},
		{at("large"), "6 bytes, at most 5"},
		{at("missing"), "no such file"},
	} {
		b, err := ReadRegular(c.name, 5)
		switch {
		case c.want == "" && (err != nil || string(b) != "12345"):
			t.Errorf("%s: %q, %v", c.name, b, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), c.name)):
			t.Errorf("%s: %v, want %s and no name", c.name, err, c.want)
		}
	}
}

// TestSecretInsteadOfFile: a secret that was put where its file belongs is not shown.
func TestSecretInsteadOfFile(t *testing.T) {
	clean(t)
	for _, secret := range []string{
		"3f8a1c5d7e9b2046a8c0e1f35b7d9a2c4e6f8091b3d5a7c9e0f2143658790bad", "q/3v9QpLr7Tn2XwYb5Hs8JdMf4Gc6KeAZk3v9QpLr7Tn=", strings.Repeat("long", 2000),
	} {
		for _, variable := range []string{envTicketKeyFile, envClusterSecretFile} {
			t.Setenv(variable, secret)
			got := problems(t, Options{Role: RoleHTTP})
			if len(got) != 1 || !strings.Contains(got[0], variable+": the file that it names: ") || strings.Contains(got[0], secret) {
				t.Errorf("%s: problems %q", variable, got)
			}
			t.Setenv(variable, "")
		}
	}
}
