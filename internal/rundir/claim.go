package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const (
	lockSuffix = ".lock"
	// claimPatience is how long a node waits for the lock with its own role and pid:
	// a health check or a sweeping node may look at it for a moment.
	claimPatience = time.Second
	claimRetry    = 10 * time.Millisecond
)

// Claim is a node's hold on its role and process id in a run directory. The lock
// behind it ends with the process, whatever kills it: unlike a process id it is
// never another's, not even another container's that shares the directory.
type Claim struct {
	dir  *Dir
	role string
	pid  int
	lock *os.File
}

// Claim takes the names of a node of this role and pid, and removes what an earlier
// process with the same pid left under them. Take it before anything else is
// written, and hold it as long as the node runs. The error is an [*Error] that
// asks for exit 73.
func (d *Dir) Claim(role string, pid int) (*Claim, error) {
	if err := checkRole(role); err != nil {
		return nil, err
	}
	path := d.nodeLock(role, pid)
	for deadline := time.Now().Add(claimPatience); ; time.Sleep(claimRetry) {
		lock, err := d.tryLock(path)
		if err != nil {
			return nil, cantCreate("claim %s: %w", filepath.Base(path), err)
		}
		if lock != nil {
			c := &Claim{dir: d, role: role, pid: pid, lock: lock}
			c.removeFiles(true)
			return c, nil
		}
		if time.Now().After(deadline) {
			return nil, cantCreate("run directory %s is in use by another %s process with pid %d, perhaps of another container: set DIARKIS_RUN_DIR to a directory of its own", d.path, role, pid)
		}
	}
}

// Keep makes the private directory again when it is gone, and takes the lock again when
// its file is. It has write write the node's record, and what else the node keeps in the
// private directory, the paths in also, anew when one of them is gone or so old that a
// cleaner of temporary directories might take it. Call it every second or so. The error is
// an [*Error]: somebody else's directory is never written to.
func (c *Claim) Keep(write func() error, also ...string) error {
	if err := c.dir.ensure(); err != nil {
		return err
	}
	if there, err := os.Lstat(c.lock.Name()); err != nil || !sameFile(c.lock, there) {
		lock, err := tryLock(c.lock.Name())
		if err != nil {
			return cantCreate("claim %s: %w", filepath.Base(c.lock.Name()), err)
		}
		if lock == nil {
			return cantCreate("claim %s: another process has it", filepath.Base(c.lock.Name()))
		}
		_ = c.lock.Close()
		c.lock = lock
	} else if time.Since(there.ModTime()) > fresh {
		now := time.Now()
		_ = os.Chtimes(c.lock.Name(), now, now)
	}
	record := filepath.Join(c.dir.private, perProcess(nodePrefix, c.role, c.pid)+".json")
	for _, path := range append(also, record) {
		if info, err := os.Lstat(path); err != nil || time.Since(info.ModTime()) >= fresh {
			return write()
		}
	}
	return nil
}

func sameFile(f *os.File, there fs.FileInfo) bool {
	info, err := f.Stat()
	return err == nil && os.SameFile(info, there)
}

// Release removes the node's files, but for outcomes that still are to be read, and
// gives up the names. Call it last.
func (c *Claim) Release() error {
	c.removeFiles(false)
	var err error
	if there, lookErr := os.Lstat(c.lock.Name()); lookErr == nil && sameFile(c.lock, there) {
		err = ignoreMissing(os.Remove(c.lock.Name())) // while it is held, so that it is not a newer node's
	}
	closeErr := c.lock.Close()
	if err != nil { // a system that removes no open files
		err = ignoreMissing(os.Remove(c.lock.Name()))
	}
	return errors.Join(err, closeErr)
}

// removeFiles removes what has this role and pid in its name, and the task files of
// this pid: at the start they are another's, and at the end nobody's.
func (c *Claim) removeFiles(outcomes bool) {
	for _, f := range c.dir.privateFiles() {
		if f.role == c.role && f.pid == c.pid && f.kind != lockKind && (outcomes || f.kind != outcomePrefix) {
			_ = os.Remove(filepath.Join(c.dir.private, f.name))
		}
	}
	for _, name := range []string{taskFile1, taskFile2} {
		c.dir.removeOwn(name + "." + strconv.Itoa(c.pid))
	}
}

// nodeLock is the file that a node of this role and pid keeps locked while it runs.
func (d *Dir) nodeLock(role string, pid int) string {
	return filepath.Join(d.private, perProcess(nodePrefix, role, pid)+lockSuffix)
}

// running tells whether the node of this role and pid runs. Where there is no lock,
// as of an older version, or one that was cleaned away, its pid has to be of a process that began when
// the node did; start "" is any.
func (d *Dir) running(role string, pid int, start string) bool {
	held, err := lockHeld(d.nodeLock(role, pid))
	if err != nil {
		return pid > 0 && alive(pid) && (start == "" || start == processStart(pid))
	}
	return held
}

// Running tells whether the process that wrote n still runs.
func (d *Dir) Running(n Node) bool { return d.running(n.Role, n.PID, n.Start) }

// ErrNotThisProcess means that a pid is not, or no longer, that of the node.
var ErrNotThisProcess = errors.New("is not the process of this node, which may be another container's: ask there")

// ErrOlder means that a node was started by a version that takes no tasks from [Dir.Ask]:
// its record does not say when its process began, and it holds no lock. A signal would make
// it run whatever its plain task file says.
var ErrOlder = errors.New("was started by an older version of diarkisd, which this command can't ask")

// Signal sends the signal of tasks, SIGUSR1, to the process that wrote n, and never to
// another that has its pid. It returns an error that wraps [ErrNotThisProcess] when
// that process is gone or can't be told apart, and one that wraps [ErrOlder] for a node that
// the signal would have do something else.
func (d *Dir) Signal(n Node) error {
	if _, err := lockHeld(d.nodeLock(n.Role, n.PID)); n.Start == "" && canTellStart && errors.Is(err, fs.ErrNotExist) && d.Running(n) {
		by := filepath.Join(d.path, taskFile1+"."+strconv.Itoa(n.PID))
		return fmt.Errorf("process %d %w: restart the node, or make sure that this process is the node, write the task into %s and send it SIGUSR1", n.PID, ErrOlder, by)
	}
	// The handle is taken before the look: a pid that is given away in between is
	// refused by the handle.
	p, err := os.FindProcess(n.PID)
	if err != nil {
		return fmt.Errorf("process %d %w: %w", n.PID, ErrNotThisProcess, err)
	}
	defer func() { _ = p.Release() }()
	if !d.Running(n) || n.Start != processStart(n.PID) || n.Start == "" && canTellStart {
		return fmt.Errorf("process %d %w", n.PID, ErrNotThisProcess)
	}
	if err := signalTask(p); errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("process %d %w: %w", n.PID, ErrNotThisProcess, err)
	} else if err != nil {
		return fmt.Errorf("signal process %d: %w", n.PID, err)
	}
	return nil
}

// removeOwn removes a file of the run directory itself if it is a regular one of
// this user, and tells whether it did.
func (d *Dir) removeOwn(name string) bool {
	path := filepath.Join(d.path, name)
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || !ownedBy(info, os.Geteuid()) {
		return false
	}
	return os.Remove(path) == nil
}

// otherUsers returns the ids of users who have nodes' files in this run directory.
func (d *Dir) otherUsers() []string {
	var ids []string
	dirs, _ := filepath.Glob(filepath.Join(d.path, privatePrefix+"*")) // the pattern is good
	for _, path := range dirs {
		id := filepath.Base(path)[len(privatePrefix):]
		uid, err := strconv.Atoi(id)
		if err != nil || uid == os.Geteuid() {
			continue
		}
		if info, err := os.Lstat(path); err == nil && info.IsDir() && info.Mode()&fs.ModeSymlink == 0 && ownedBy(info, uid) {
			ids = append(ids, id)
		}
	}
	return ids
}

// OtherUsers says who else has nodes' files here, in words for an error; "" for nobody.
func (d *Dir) OtherUsers() string {
	ids := d.otherUsers()
	if len(ids) == 0 {
		return ""
	}
	const named = 5
	text := "there are files of the user with id " + ids[0]
	for _, id := range ids[1:min(len(ids), named)] {
		text += ", " + id
	}
	return text + ": ask as that user"
}
