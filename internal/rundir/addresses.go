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
	taken   map[string]bool        // names of this node's own that another user's files have
	removed bool
}

type addressName struct{ name, content string }

// WriteAddresses writes the node's mesh and public address, host:port, under the
// names with its role and pid, and under the plain names that are its to have: see
// [Addresses.Refresh]. An empty address has no file. In a shared directory another user may
// have made a file under one of the names: it is left alone, see [Addresses.Taken]. What
// WriteAddresses wrote before an error is removed again.
func (d *Dir) WriteAddresses(role string, pid int, mesh, public string) (*Addresses, error) {
	if err := checkRole(role); err != nil {
		return nil, err
	}
	a := &Addresses{dir: d, role: role, pid: pid, written: map[string]fs.FileInfo{}, locks: map[string]*os.File{}, taken: map[string]bool{}}
	for _, n := range []addressName{{MeshAddr, mesh}, {PublicAddr, public}} {
		if n.content != "" {
			a.names = append(a.names, n)
		}
	}
	if err := a.Refresh(); err != nil {
		return nil, errors.Join(err, a.Remove())
	}
	return a, nil
}

func (a *Addresses) write(name, content string) error {
	info, err := writeFile(a.dir.path, name, []byte(content), 0o644)
	foreign := err != nil && a.dir.isForeign(name)
	if err != nil && !foreign {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if foreign {
		a.taken[name] = true
		return nil
	}
	delete(a.taken, name)
	a.written[filepath.Join(a.dir.path, name)] = info
	return nil
}

// Taken returns which of the names with the node's role and pid are another user's, who
// made files there that this one can't replace. A plain name may well be another user's.
func (a *Addresses) Taken() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var names []string
	for _, n := range a.names {
		if own := perProcess(n.name, a.role, a.pid); a.taken[own] {
			names = append(names, own)
		}
	}
	return names
}

// isForeign tells whether what is under a name in the run directory is another user's.
func (d *Dir) isForeign(name string) bool {
	info, err := os.Lstat(filepath.Join(d.path, name))
	return err == nil && !ownedBy(info, os.Geteuid())
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
	return a.write(n.name, n.content)
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
	path := a.dir.plainLock(name, rank)
	if held := a.locks[name]; held != nil {
		if there, err := os.Lstat(path); err == nil && sameFile(held, there) {
			return held, nil
		}
		_ = held.Close() // a cleaner took the file: another node may have locked the next one
		delete(a.locks, name)
	}
	if a.removed {
		return nil, nil
	}
	lock, err := a.dir.tryLock(path)
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
