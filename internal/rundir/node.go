package rundir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	nodePrefix    = "node"
	probePrefix   = "probe"
	nodeBytesMax  = 16 << 10
	probeBytesMax = 1 << 10
)

// Node is what a running node says about itself to health-check and to
// `diarkisd task`. Addresses are host:port and can be dialled from this machine.
type Node struct {
	Role string `json:"role"`
	PID  int    `json:"pid"`
	// Start tells the process from others that had or get its pid; "" where the system
	// does not say. [Dir.WriteNode] fills it in.
	Start  string `json:"start,omitempty"`
	Mesh   string `json:"mesh,omitempty"`
	Public string `json:"public,omitempty"` // as clients are told
	// Transport is how Bind is spoken to: udp, tcp or http; "" when there is none.
	Transport string `json:"transport,omitempty"`
	// Bind is where the client listener is reached locally: Public's port, and
	// a loopback or interface address.
	Bind string `json:"bind,omitempty"`
	// Bound is the client listener's address as bound, which may be 0.0.0.0 or [::].
	Bound string `json:"bound,omitempty"`
	// Admin is the admin listener: /livez, /status.
	Admin string `json:"admin,omitempty"`
	// ProbeKeyFile is where [Dir.WriteProbeKey] put the key, "" for a role without one.
	ProbeKeyFile string `json:"probe_key_file,omitempty"`
}

// WriteNode records or updates what a node says about itself.
func (d *Dir) WriteNode(n Node) error {
	if err := checkRole(n.Role); err != nil {
		return err
	}
	if n.Start == "" {
		n.Start = processStart(n.PID)
	}
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return d.writePrivate(perProcess(nodePrefix, n.Role, n.PID)+".json", b)
}

// RemoveNode removes what WriteNode wrote. A missing file is no error.
func (d *Dir) RemoveNode(role string, pid int) error {
	return ignoreMissing(os.Remove(filepath.Join(d.private, perProcess(nodePrefix, role, pid)+".json")))
}

// Nodes lists the nodes of this user whose process still runs, stopped ones too, by role and pid.
// A file that can't be read is skipped: its writer may just have ended.
func (d *Dir) Nodes() ([]Node, error) {
	if _, err := os.ReadDir(d.private); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var nodes []Node
	for _, f := range d.privateFiles() {
		if f.kind != nodePrefix || f.tail != "json" {
			continue
		}
		n, err := d.readNode(f.name)
		if err != nil || n.PID != f.pid || n.Role != f.role || !d.Running(n) {
			continue
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b Node) int {
		if a.Role != b.Role {
			return strings.Compare(a.Role, b.Role)
		}
		return a.PID - b.PID
	})
	return nodes, nil
}

func (d *Dir) readNode(name string) (n Node, err error) {
	b, err := readSmall(filepath.Join(d.private, name), nodeBytesMax, ours)
	if err != nil {
		return n, err
	}
	return n, json.Unmarshal(b, &n)
}

// WriteProbeKey stores the key of the node's probe where only this user can read
// it, and returns the path for [Node.ProbeKeyFile].
func (d *Dir) WriteProbeKey(role string, pid int, key []byte) (string, error) {
	if err := checkRole(role); err != nil {
		return "", err
	}
	name := perProcess(probePrefix, role, pid)
	return filepath.Join(d.private, name), d.writePrivate(name, key)
}

// RemoveProbeKey removes what WriteProbeKey wrote. A missing file is no error.
func (d *Dir) RemoveProbeKey(role string, pid int) error {
	return ignoreMissing(os.Remove(filepath.Join(d.private, perProcess(probePrefix, role, pid))))
}

// ReadProbeKey reads a key that WriteProbeKey stored.
func ReadProbeKey(path string) ([]byte, error) {
	key, err := readSmall(path, probeBytesMax, ours)
	if err == nil && len(key) == 0 {
		err = errors.New("probe key is empty")
	}
	return key, err
}

// ours accepts files of this user that nobody else can write.
func ours(info fs.FileInfo) error {
	if !ownedBy(info, os.Geteuid()) {
		return errors.New("belongs to another user")
	}
	if !privateMode(info) {
		return fmt.Errorf("is open to others, mode %v", info.Mode().Perm())
	}
	return nil
}
