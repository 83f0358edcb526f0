package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// Options configures an [Env].
type Options struct {
	Quick      bool
	Pin        bool
	ProfileDir string
}

// NewEnv prepares to run benches. Close it at the end.
func NewEnv(o Options) (*Env, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	source, err := sourceDir()
	if err != nil {
		return nil, err
	}
	temp, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, fmt.Errorf("make a folder for programs: %w", err)
	}
	e := &Env{Quick: o.Quick, Pin: o.Pin, self: self, source: source, temp: temp}
	if o.ProfileDir != "" {
		if e.ProfileDir, err = filepath.Abs(o.ProfileDir); err != nil {
			return nil, fmt.Errorf("find the folder for profiles: %w", err)
		}
		if err := os.MkdirAll(e.ProfileDir, 0o755); err != nil {
			return nil, fmt.Errorf("make the folder for profiles: %w", err)
		}
	}
	if o.Pin {
		e.servers, e.loads = split()
	}
	return e, nil
}

// Close removes what was compiled.
func (e *Env) Close() { _ = os.RemoveAll(e.temp) }

// sourceDir is the folder of bench/, where C sources and the way to docs/ are.
func sourceDir() (string, error) {
	_, file, _, _ := runtime.Caller(0)
	dir := filepath.Join(filepath.Dir(file), "..", "..")
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		return "", fmt.Errorf("find the sources of the benchmarks (run them with go run): %w", err)
	}
	return dir, nil
}

// Source is a path below bench/.
func (e *Env) Source(path ...string) string {
	return filepath.Join(append([]string{e.source}, path...)...)
}

// Compile compiles a C program of bench/c once and returns its path. Without a
// compiler or one of the headers it needs, the error wraps [ErrSkip]; hint says how
// to get them.
func (e *Env) Compile(ctx context.Context, source, hint string, flags ...string) (string, error) {
	out := filepath.Join(e.temp, strings.TrimSuffix(source, ".c"))
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	if _, err := os.Stat(e.Source("c", source)); err != nil {
		return "", fmt.Errorf("compile %s: %w", source, err)
	}
	cc, err := compiler()
	if err != nil {
		return "", err
	}
	args := append([]string{"-O2", "-Wall", "-o", out, e.Source("c", source)}, flags...)
	text, err := exec.CommandContext(ctx, cc, args...).CombinedOutput()
	switch {
	case err == nil:
		return out, nil
	case strings.Contains(string(text), "No such file or directory"), strings.Contains(string(text), "cannot find -l"):
		return "", Skip("%s needs what is not installed: %s", source, hint)
	}
	return "", fmt.Errorf("compile %s: %w\n%s", source, err, text)
}

// compiler finds a C compiler.
func compiler() (string, error) {
	for _, name := range []string{os.Getenv("CC"), "cc", "gcc", "clang"} {
		if name == "" {
			continue
		}
		path, err := exec.LookPath(name)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("look for a C compiler: %w", err)
		}
	}
	return "", Skip("there is no C compiler: apt-get install gcc libc6-dev")
}
