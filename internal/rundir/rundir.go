// Package rundir keeps the small files by which a node is found and steered on
// its own machine.
//
// In the run directory itself (DIARKIS_RUN_DIR, by default the temporary
// directory, so possibly shared with strangers):
//
//	DIARKIS_MESH_ADDR, DIARKIS_PUBLIC_ADDR      host:port of the node that holds the lock
//	DIARKIS_MESH_ADDR.<role>.<pid>, …           host:port of each node
//	DIARKIS_SIGUSR1, DIARKIS_SIGUSR2 (.<pid>)   tasks an operator leaves for a node
//
// In diarkis-<uid>, a subdirectory nobody else can enter:
//
//	node.<role>.<pid>.json    [Node]: where health-check finds the node
//	node.<role>.<pid>.lock    locked while the node runs ([Claim])
//	probe.<role>.<pid>        the key of its probe
//	task.<role>.<pid>.<id>    a task that somebody waits for ([Dir.Ask])
//	running.…, withdrawn.…    the same while the node runs it; after its asker gave up
//	outcome.<role>.<pid>.<id> what came of it
//	DIARKIS_*.lock            who owns the plain names
//
// A process id is never believed by itself: the next process may have it. A node
// runs while its lock is held, and is signalled only when the process with its pid
// also began when the node did.
//
// Everything is written beside its name, created exclusively, and renamed: a
// reader never sees half a file, and no link left by somebody else is followed.
package rundir

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Exit codes of sysexits.h that errors of this package ask for.
const (
	ExitCantCreate = 73
	ExitPermission = 77
)

// Error is a file that can't be made, or one that somebody else controls.
type Error struct {
	Code int // ExitCantCreate or ExitPermission
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ExitCode is what the process exits with because of this error.
func (e *Error) ExitCode() int { return e.Code }

func cantCreate(format string, args ...any) error {
	return &Error{ExitCantCreate, fmt.Errorf(format, args...)}
}

// Dir is a run directory. Its methods are safe for concurrent use.
type Dir struct {
	path    string
	private string
}

// privatePrefix begins the name of the private directory; the user's id follows.
const privatePrefix = "diarkis-"

// Open checks the run directory and makes the private one inside it. Empty means
// the OS temporary directory. The error is an [*Error].
func Open(path string) (*Dir, error) {
	d, err := find(path)
	if err != nil {
		return nil, err
	}
	if err := d.ensure(); err != nil {
		return nil, err
	}
	return d, nil
}

// ensure makes the private directory where there is none.
func (d *Dir) ensure() error {
	if err := os.Mkdir(d.private, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return cantCreate("private run directory: %w", err)
	}
	return d.usable()
}

// usable is check for those who write: a private directory that is gone is one where
// nothing can be created.
func (d *Dir) usable() error {
	err := d.check()
	if errors.Is(err, fs.ErrNotExist) {
		return cantCreate("private run directory: %w", err)
	}
	return err
}

// Look is Open for those who only read: it makes nothing. Where there is no private
// directory [Dir.Nodes] finds none.
func Look(path string) (*Dir, error) {
	d, err := find(path)
	if err != nil {
		return nil, err
	}
	if err := d.check(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return d, nil
}

func find(path string) (*Dir, error) {
	if path == "" {
		path = os.TempDir()
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, cantCreate("run directory: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, cantCreate("run directory: %w", err)
	}
	if !info.IsDir() {
		return nil, cantCreate("run directory %s is not a directory", path)
	}
	return &Dir{path: path, private: filepath.Join(path, privatePrefix+strconv.Itoa(os.Geteuid()))}, nil
}

// check refuses a private directory that others may have a hand in. It comes before each
// use: where the run directory is open to everybody, another may take its place at any time.
func (d *Dir) check() error {
	// Lstat: a link here would let its maker choose where our keys go.
	info, err := os.Lstat(d.private)
	if err != nil {
		return err
	}
	if info.IsDir() && ownedBy(info, os.Geteuid()) && privateMode(info) {
		return nil
	}
	return &Error{ExitPermission, fmt.Errorf("%s has to be a directory of this user with mode 0700: %s", d.private, whatIsWrong(info))}
}

// whatIsWrong names the one thing about the private directory that is not as it has to be.
func whatIsWrong(info fs.FileInfo) string {
	switch {
	case !info.IsDir():
		return fmt.Sprintf("it is no directory but %v", info.Mode())
	case !ownedBy(info, os.Geteuid()):
		return fmt.Sprintf("it belongs to user %s, not to %d", ownerOf(info), os.Geteuid())
	}
	return fmt.Sprintf("its mode is %#o", info.Mode().Perm())
}

// Exposed tells whether everybody may rename and remove what is in the run directory, and
// its mode: it can be written by all and lacks the sticky bit.
func (d *Dir) Exposed() (mode fs.FileMode, exposed bool) {
	info, err := os.Stat(d.path)
	if err != nil {
		return 0, false
	}
	return info.Mode(), openToAll(info) && info.Mode()&fs.ModeSticky == 0
}

// Path returns the run directory.
func (d *Dir) Path() string { return d.path }

// Private returns the subdirectory only this user can enter.
func (d *Dir) Private() string { return d.private }

// writePrivate is writeFile in the private directory.
func (d *Dir) writePrivate(name string, content []byte) error {
	if err := d.usable(); err != nil {
		return err
	}
	_, err := writeFile(d.private, name, content, 0o600)
	return err
}

// tryLock is tryLock of a file in the private directory.
func (d *Dir) tryLock(path string) (*os.File, error) {
	if err := d.usable(); err != nil {
		return nil, err
	}
	return tryLock(path)
}

// writeFile puts content under dir/name in one step and returns the file's
// identity.
func writeFile(dir, name string, content []byte, mode os.FileMode) (fs.FileInfo, error) {
	tmp := filepath.Join(dir, "."+name+"."+rand.Text())
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|noFollow, 0o600)
	if err != nil {
		return nil, cantCreate("write %s: %w", filepath.Join(dir, name), withoutPath(err))
	}
	info, err := fill(f, content, mode)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	if err != nil {
		_ = os.Remove(tmp) // the error that matters is err
		return nil, cantCreate("write %s: %w", filepath.Join(dir, name), withoutPath(err))
	}
	return info, nil
}

func fill(f *os.File, content []byte, mode os.FileMode) (fs.FileInfo, error) {
	if _, err := f.Write(content); err != nil {
		return nil, err
	}
	if err := f.Chmod(mode); err != nil { // whatever the umask
		return nil, err
	}
	return f.Stat()
}

// same tells whether two looks were at one file. The time counts too: a file system
// may give a removed file's number to the next one.
func same(a, b fs.FileInfo) bool { return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) }

// removeOurs removes path if it still is the file that info describes.
func removeOurs(path string, info fs.FileInfo) error {
	now, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !same(now, info) {
		return nil
	}
	if err != nil {
		return err
	}
	return ignoreMissing(os.Remove(path))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// readSmall reads a file that may have been left by somebody else: never through
// a link, never waiting for a pipe, never more than limit bytes.
func readSmall(path string, limit int64, trusted func(fs.FileInfo) error) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|noFollow|nonBlock, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if err := trusted(info); err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, err
}

// perProcess names a file of one node: prefix.role.pid.
func perProcess(prefix, role string, pid int) string {
	return prefix + "." + role + "." + strconv.Itoa(pid)
}

// checkRole keeps a role from naming a path.
func checkRole(role string) error {
	if role == "" || strings.Trim(role, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return fmt.Errorf("role %q can't be part of a file name", role)
	}
	return nil
}

// withoutPath is what went wrong with a file whose name is said already: the error of the
// system has that of the temporary one.
func withoutPath(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}
