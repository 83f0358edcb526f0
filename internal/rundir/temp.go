package rundir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	// tempLock is locked in a directory of MakeTemp by the process that uses it.
	tempLock = "in-use" + lockSuffix
	// tempYoung is how old a directory of MakeTemp has to be to be swept: the process that
	// makes it may not have locked it yet.
	tempYoung = time.Minute
	// tempUnlocked is the same for one without a lock file, of a version that made none.
	tempUnlocked = time.Hour
)

// MakeTemp makes a directory for one process in the temporary directory, whose name begins
// with prefix, and removes those of this user whose process has ended. Call remove when
// the process ends. The error is an [*Error] that asks for exit 73.
func MakeTemp(prefix string) (dir string, remove func() error, err error) {
	sweepTemp(prefix)
	dir, err = os.MkdirTemp("", prefix)
	if err != nil {
		return "", nil, cantCreate("create a run directory: %w", err)
	}
	lock, err := tryLock(filepath.Join(dir, tempLock))
	if err == nil && lock == nil {
		err = errors.New("another process has locked it")
	}
	if err != nil {
		return "", nil, errors.Join(cantCreate("lock %s: %w", dir, err), os.RemoveAll(dir))
	}
	return dir, func() error { return errors.Join(lock.Close(), os.RemoveAll(dir)) }, nil
}

// sweepTemp removes directories of MakeTemp that nobody uses. What can't be removed
// stays: it is in nobody's way.
func sweepTemp(prefix string) {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*")) // the pattern is good
	for _, dir := range dirs {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || !ownedBy(info, os.Geteuid()) || !privateMode(info) || time.Since(info.ModTime()) < tempYoung {
			continue
		}
		_ = removeUnused(dir)
	}
}

// removeUnused removes a directory of MakeTemp if no process holds its lock, nor, where
// there is none, a node runs in a directory in it.
func removeUnused(dir string) error {
	path := filepath.Join(dir, tempLock)
	if exists(path) {
		lock, err := tryLock(path)
		if lock == nil || err != nil {
			return err
		}
		return errors.Join(os.RemoveAll(dir), lock.Close())
	}
	if info, err := os.Lstat(dir); err != nil || time.Since(info.ModTime()) < tempUnlocked {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		d, err := Look(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if nodes, err := d.Nodes(); err != nil || len(nodes) > 0 {
			return fmt.Errorf("%d nodes run in %s: %w", len(nodes), d.path, err)
		}
	}
	return os.RemoveAll(dir)
}
