package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// Names of the address files.
const (
	MeshAddr   = "DIARKIS_MESH_ADDR"
	PublicAddr = "DIARKIS_PUBLIC_ADDR"
)

// Addresses is the address files of one node. Its methods are safe for
// concurrent use.
type Addresses struct {
	dir   *Dir
	role  string
	pid   int
	names []addressName // constant

	mu      sync.Mutex             // guards the fields below
	written map[string]fs.FileInfo // by path: what Remove may remove
	locks   map[string]*os.File    // by plain name: locks held
	removed bool
}

type addressName struct{ name, content string }

// WriteAddresses writes the node's mesh and public address, host:port, under the
// names with its role and pid, and under the plain names where no other process
// of this user holds them. An empty address has no file. What it wrote before an
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

// Refresh takes the plain names whose lock has become free, because the process
// that held it ended. Call it now and then; it does nothing when all are ours.
func (a *Addresses) Refresh() error {
	for _, n := range a.names {
		a.mu.Lock()
		done := a.removed || a.locks[n.name] != nil
		a.mu.Unlock()
		if done {
			continue
		}
		lock, err := tryLock(filepath.Join(a.dir.private, n.name+".lock"))
		if err != nil {
			return cantCreate("lock %s: %w", n.name, err)
		}
		if lock == nil {
			continue // another node of this user has the name
		}
		if err := a.write(n.name, n.content); err != nil {
			_ = lock.Close()
			if errors.Is(err, fs.ErrPermission) {
				continue // in a shared directory the name may be another user's; the other files say the same
			}
			return err
		}
		a.mu.Lock()
		a.locks[n.name] = lock
		a.mu.Unlock()
	}
	return nil
}

// Owns tells whether this node's address is under the plain name.
func (a *Addresses) Owns(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.locks[name] != nil
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
