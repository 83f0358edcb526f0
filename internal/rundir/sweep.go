package rundir

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// halfMax is how old a file is that was not renamed into place because its writer
// died on the way.
const halfMax = time.Hour

// lockKind is the kind of a node's lock file.
const lockKind = "lock"

// privateFile is a file of one node in the private directory.
type privateFile struct {
	name, kind, role string
	pid              int
	tail             string // what follows the pid: the id of a request
}

// nodeFile matches kind.role.pid, with an id or a suffix.
var nodeFile = regexp.MustCompile(`^(` + strings.Join([]string{nodePrefix, probePrefix, requestPrefix, runningPrefix, withdrawnPrefix, outcomePrefix}, "|") +
	`)\.([a-z0-9]+)\.([1-9][0-9]{0,18})(?:\.([A-Za-z0-9]+))?$`)

// parsePrivate reads the name of a file of one node.
func parsePrivate(name string) (privateFile, bool) {
	m := nodeFile.FindStringSubmatch(name)
	if m == nil {
		return privateFile{}, false
	}
	pid, err := strconv.Atoi(m[3])
	f := privateFile{name: name, kind: m[1], role: m[2], pid: pid, tail: m[4]}
	if f.kind == nodePrefix && f.tail == lockKind {
		f.kind = lockKind
	}
	return f, err == nil
}

// privateFiles lists the files of nodes in the private directory, none when it is not ours.
func (d *Dir) privateFiles() []privateFile {
	if d.check() != nil {
		return nil
	}
	entries, _ := os.ReadDir(d.private) // what can be read is what counts
	var files []privateFile
	for _, e := range entries {
		if f, ok := parsePrivate(e.Name()); ok {
			files = append(files, f)
		}
	}
	return files
}

var (
	addressFile = regexp.MustCompile(`^(?:` + MeshAddr + `|` + PublicAddr + `)\.([a-z0-9]+)\.([1-9][0-9]{0,18})$`)
	pidTaskFile = regexp.MustCompile(`^DIARKIS_SIGUSR[12]\.([1-9][0-9]{0,18})$`)
	halfFile    = regexp.MustCompile(`^\.(?:DIARKIS_|node\.|probe\.|task\.|outcome\.).*\.[A-Z2-7]{26}$`)
)

type process struct {
	role string
	pid  int
}

func (p process) String() string { return p.role + " " + strconv.Itoa(p.pid) }

// Sweep removes what processes of this user that have ended left behind: records,
// probe keys, address files, tasks and their outcomes, and plain names nobody holds.
// It touches no file of a process that runs, even one that is stopped, and none of
// another user. It returns whose files it removed, as "role pid".
func (d *Dir) Sweep() []string {
	found := d.processes()
	var swept []string
	for _, p := range found {
		if d.sweepProcess(p) {
			swept = append(swept, p.String())
		}
	}
	entries, _ := os.ReadDir(d.path)
	for _, e := range entries {
		if m := pidTaskFile.FindStringSubmatch(e.Name()); m != nil {
			// Nobody can be meant by it any more. One with the pid of a process that runs
			// may be for a node of another user, or of an older version.
			if pid, err := strconv.Atoi(m[1]); err == nil && !alive(pid) && !d.anyRuns(found, pid) && d.removeOwn(e.Name()) {
				swept = append(swept, e.Name())
			}
		}
	}
	d.sweepPlain()
	d.sweepHalves(d.path)
	if d.check() == nil {
		d.sweepHalves(d.private)
	}
	return swept
}

// processes lists whose files there are.
func (d *Dir) processes() []process {
	var found []process
	add := func(p process) {
		if !slices.Contains(found, p) {
			found = append(found, p)
		}
	}
	for _, f := range d.privateFiles() {
		add(process{f.role, f.pid})
	}
	entries, _ := os.ReadDir(d.path)
	for _, e := range entries {
		if m := addressFile.FindStringSubmatch(e.Name()); m != nil && d.isOwn(e.Name()) {
			if pid, err := strconv.Atoi(m[2]); err == nil {
				add(process{m[1], pid})
			}
		}
	}
	return found
}

func (d *Dir) isOwn(name string) bool {
	info, err := os.Lstat(filepath.Join(d.path, name))
	return err == nil && info.Mode().IsRegular() && ownedBy(info, os.Geteuid())
}

func (d *Dir) anyRuns(found []process, pid int) bool {
	return slices.ContainsFunc(found, func(p process) bool { return p.pid == pid && d.running(p.role, p.pid, "") })
}

// sweepProcess removes the files of one process, unless it runs. It holds the lock
// meanwhile: a new process may just have got that pid.
func (d *Dir) sweepProcess(p process) bool {
	start := ""
	if n, err := d.readNode(perProcess(nodePrefix, p.role, p.pid) + ".json"); err == nil {
		start = n.Start
	}
	if d.running(p.role, p.pid, start) {
		return false
	}
	lock, err := d.tryLock(d.nodeLock(p.role, p.pid))
	if lock == nil || err != nil {
		return false
	}
	defer func() { _ = lock.Close() }()
	for _, f := range d.privateFiles() {
		if f.role == p.role && f.pid == p.pid && f.kind != lockKind {
			_ = os.Remove(filepath.Join(d.private, f.name)) // the next node tries again
		}
	}
	for _, name := range []string{MeshAddr, PublicAddr} {
		d.removeOwn(perProcess(name, p.role, p.pid))
	}
	_ = os.Remove(lock.Name())
	return true
}

// sweepPlain removes plain address files that name nobody who runs.
func (d *Dir) sweepPlain() {
	for _, name := range []string{MeshAddr, PublicAddr} {
		if !d.isOwn(name) {
			continue
		}
		held := false
		for rank := range ranksOf(name) {
			h, err := lockHeld(d.plainLock(name, rank))
			held = held || h && err == nil
		}
		if !held {
			d.removeOwn(name)
		}
	}
}

// sweepHalves removes files whose writer died before it renamed them.
func (d *Dir) sweepHalves(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if !halfFile.MatchString(e.Name()) {
			continue
		}
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() && ownedBy(info, os.Geteuid()) && time.Since(info.ModTime()) > halfMax {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}
