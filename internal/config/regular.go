package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// ReadRegular reads a regular file of at most most bytes. Anything else could make the
// process wait, as a pipe does until somebody writes into it. Its errors don't have the
// name in them: it may be a secret that was put into the wrong variable.
func ReadRegular(name string, most int64) ([]byte, error) {
	return readChecked(name, most, func(fs.FileInfo) error { return nil })
}

// ReadKey is [ReadRegular] of a file of keys or secrets. One that everybody on this
// machine may write is refused: whoever writes it decides who is let in.
func ReadKey(name string, most int64) ([]byte, error) {
	return readChecked(name, most, func(info fs.FileInfo) error {
		if writableByAll(info) {
			return fmt.Errorf("everybody may write it (mode %v): chmod o-w", info.Mode().Perm())
		}
		return nil
	})
}

// ReadableByAll returns the mode of a file that everybody on this machine may read, and
// whether it is one. A secret is none any more there.
func ReadableByAll(name string) (fs.FileMode, bool) {
	info, err := os.Stat(name)
	if err != nil || !readableByAll(info) {
		return 0, false
	}
	return info.Mode().Perm(), true
}

func readChecked(name string, most int64, check func(fs.FileInfo) error) ([]byte, error) {
	f, err := openAtOnce(name)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w%s", nameless(err), whoMayNot(name))
	}
	if err != nil {
		return nil, nameless(err)
	}
	defer f.Close()
	info, err := f.Stat() // of what is open, whatever has the name by now
	switch {
	case err != nil:
		return nil, nameless(err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("not a regular file but %s", kindOf(info.Mode()))
	case info.Size() > most:
		return nil, fmt.Errorf("file has %d bytes, at most %d are read", info.Size(), most)
	}
	if err := check(info); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	switch {
	case err != nil:
		return nil, nameless(err)
	case int64(len(b)) > most:
		return nil, fmt.Errorf("file has more than %d bytes", most)
	}
	return b, nil
}

func nameless(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", e.Op, e.Err)
	}
	return err
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&os.ModeNamedPipe != 0:
		return "a named pipe"
	case m&os.ModeSocket != 0:
		return "a socket"
	case m&os.ModeDevice != 0:
		return "a device"
	}
	return "something else"
}
