//go:build !unix

package rundir

import (
	"errors"
	"io/fs"
	"os"
)

// Without Unix owners and modes the operating system's own access control has to
// do; nodes are not run here in production.
const (
	noFollow = 0
	nonBlock = 0
)

func ownedBy(fs.FileInfo, int) bool  { return true }
func ownerOf(fs.FileInfo) string     { return "?" }
func privateMode(fs.FileInfo) bool   { return true }
func openToWriters(fs.FileInfo) bool { return false }
func openToAll(fs.FileInfo) bool     { return false }
func hasOtherNames(fs.FileInfo) bool { return false }

func alive(pid int) bool {
	p, err := os.FindProcess(pid)
	if err != nil {
		return false
	}
	return p.Release() == nil
}

// tryLock holds the name by keeping a file open that is removed by hand after a crash.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, nil
	}
	return f, err
}

// lockHeld does not know: whether the pid runs has to do.
func lockHeld(string) (bool, error) { return false, errors.ErrUnsupported }

func signalTask(*os.Process) error { return errors.New("this system has no user signals") }
