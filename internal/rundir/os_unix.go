//go:build unix

package rundir

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	noFollow = unix.O_NOFOLLOW
	nonBlock = unix.O_NONBLOCK
)

func ownedBy(info fs.FileInfo, uid int) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == uid
}

// ownerOf names the owner for an error.
func ownerOf(info fs.FileInfo) string {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return strconv.FormatUint(uint64(st.Uid), 10)
	}
	return "?"
}

// privateMode tells whether only the owner has any right.
func privateMode(info fs.FileInfo) bool { return info.Mode().Perm()&0o077 == 0 }

// openToWriters tells whether somebody besides the owner can write.
func openToWriters(info fs.FileInfo) bool { return info.Mode().Perm()&0o022 != 0 }

// openToAll tells whether everybody can write.
func openToAll(info fs.FileInfo) bool { return info.Mode().Perm()&0o002 != 0 }

// hasOtherNames tells whether a file has further names: whoever gave it one need not own it.
func hasOtherNames(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Nlink > 1
}

// alive tells whether a process runs; one we may not signal does.
func alive(pid int) bool {
	err := unix.Kill(pid, 0)
	return err == nil || errors.Is(err, unix.EPERM)
}

// tryLock returns the lock file, locked until it is closed, or nil when another
// process holds it or just removed it.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, err
	}
	// Whoever had the lock before may have removed the file: then this one is a lock
	// that nobody else will ever find.
	mine, err := f.Stat()
	if err == nil {
		var there fs.FileInfo
		if there, err = os.Lstat(path); err == nil && os.SameFile(mine, there) {
			return f, nil
		}
	}
	_ = f.Close()
	return nil, ignoreMissing(err)
}

// lockHeld tells whether a process holds a lock file. A missing file is an error.
func lockHeld(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

func signalTask(p *os.Process) error { return p.Signal(syscall.SIGUSR1) }
