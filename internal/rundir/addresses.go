package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Names of the address files.
const (
	MeshAddr   = "DIARKIS_MESH_ADDR"
	PublicAddr = "DIARKIS_PUBLIC_ADDR"
)

// fresh is how old a file of a node that runs may get before it is written anew:
// cleaners of temporary directories remove what nobody has touched for days.
const fresh = time.Hour

// anyRole is the one rank of a plain name that goes to whoever comes first.
const anyRole = ""

// ranksOf returns the roles a plain name may go to, the first first, each with a lock
// of its own. The documented probe knocks at the port of a udp node with what is
// under the plain PublicAddr, so that is what it names, else the port of a tcp node; an
// http node is not where players go.
func ranksOf(name string) []string {
	if name == PublicAddr {
		return []string{"udp", "tcp"}
	}
	return []string{anyRole}
}

// plainLock is the file that the holder of a rank of a plain name keeps locked.
func (d *Dir) plainLock(name string, rank int) string {
	if rank > 0 {
		name += "." + ranksOf(name)[rank]
	}
	return filepath.Join(d.private, name+lockSuffix)
}

// Addresses is the address files of one node. Its methods are safe for
// concurrent use.
type Addresses struct {
	dir   *Dir
	role  string
	pid   int
	names []addressName // constant

	mu      sync.Mutex             // guards the fields below
	written map[string]fs.FileInfo // by path: what Remove may remove
	locks   map[string]*os.File    // by plain name: locks held, of this node's rank
	removed bool
}

type addressName struct{ name, content string }

// WriteAddresses writes the node's mesh and public address, host:port, under the
// names with its role and pid, and under the plain names that are its to have: see
// [Addresses.Refresh]. An empty address has no file. What it wrote before an
// error is removed again.
func (d *Dir) WriteAddresses(role string, pid int, mesh, public string) (*Addresses, error) {
	if err := checkRole(role); err != nil {
		return nil, err
	}
	a := &Addresses{dir: d, role: role, pid: pid, written: map[string]fs.FileInfo{}, locks: map[string]*os.File{}}
	for _, n := range []addressName{{MeshAddr, mesh}, {PublicAddr, public}} {
		if n.content != "" {
			a.names = append(a.names, n)
		}
	}
	for _, n := range a.names {
		if err := a.write(perProcess(n.name, role, pid), n.content); err != nil {
			return nil, errors.Join(err, a.Remove())
		}
	}
	if err := a.Refresh(); err != nil {
		return nil, errors.Join(err, a.Remove())
	}
	return a, nil
}

func (a *Addresses) write(name, content string) error {
	info, err := writeFile(a.dir.path, name, []byte(content), 0o644)
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.written[filepath.Join(a.dir.path, name)] = info
	a.mu.Unlock()
	return nil
}

// Refresh takes the plain names that have become this node's, because the process
// that had them ended, and gives back the one that another has a better right to: the plain
// [PublicAddr] names a udp node as long as there is one. It writes files of its own anew
// that somebody removed or overwrote. Call it every second or so.
func (a *Addresses) Refresh() error {
	for _, n := range a.names {
		if own := perProcess(n.name, a.role, a.pid); !a.intact(own) && !a.isRemoved() {
			if err := a.write(own, n.content); err != nil {
				return err
			}
		}
		if err := a.refresh(n); err != nil {
			return err
		}
	}
	return nil
}

func (a *Addresses) refresh(n addressName) error {
	rank := slices.IndexFunc(ranksOf(n.name), func(role string) bool { return role == anyRole || role == a.role })
	if rank < 0 {
		return nil
	}
	lock, err := a.lock(n.name, rank)
	if lock == nil || err != nil {
		return err
	}
	for better := range rank {
		if held, err := lockHeld(a.dir.plainLock(n.name, better)); held && err == nil {
			return nil // the one that holds it writes the file
		}
	}
	if a.intact(n.name) {
		return nil
	}
	err = a.write(n.name, n.content)
	if errors.Is(err, fs.ErrPermission) {
		return nil // in a shared directory the name may be another user's; the other files say the same
	}
	return err
}

// intact tells whether a file is there as this node wrote it, and not too long ago.
func (a *Addresses) intact(name string) bool {
	path := filepath.Join(a.dir.path, name)
	now, err := os.Lstat(path)
	a.mu.Lock()
	defer a.mu.Unlock()
	mine := a.written[path]
	return err == nil && mine != nil && same(now, mine) && time.Since(mine.ModTime()) < fresh
}

func (a *Addresses) isRemoved() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.removed
}

// lock returns the lock of this node's rank, nil when another node has it.
func (a *Addresses) lock(name string, rank int) (*os.File, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.removed || a.locks[name] != nil {
		return a.locks[name], nil
	}
	lock, err := tryLock(a.dir.plainLock(name, rank))
	if err != nil {
		return nil, cantCreate("lock %s: %w", name, err)
	}
	if lock != nil {
		a.locks[name] = lock
	}
	return lock, nil
}

// Owns tells whether this node's address is under the plain name.
func (a *Addresses) Owns(name string) bool {
	path := filepath.Join(a.dir.path, name)
	now, err := os.Lstat(path)
	a.mu.Lock()
	defer a.mu.Unlock()
	return err == nil && a.written[path] != nil && same(now, a.written[path])
}

// Remove removes the files that still are ours and gives up the plain names.
// Call it once, when the node ends.
func (a *Addresses) Remove() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.removed = true
	var problems []error
	for path, info := range a.written {
		if err := removeOurs(path, info); err != nil {
			problems = append(problems, fmt.Errorf("remove address file: %w", err))
		}
	}
	for _, lock := range a.locks {
		problems = append(problems, lock.Close()) // after the files, so that the next owner's stay
	}
	clear(a.written)
	clear(a.locks)
	return errors.Join(problems...)
}
