//go:build unix

package e2e

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait. It is long because machines are shared; a test that
// passes never waits that long.
const patience = 60 * time.Second

// secret is the cluster secret of the clusters in these tests.
const secret = "e2ec105e25ec4e70a1b2c3d4e5f60718293a4b5c6d7e8f90a0b1c2d3e4f50617"

// binary is the path of diarkisd, built once by TestMain.
var binary string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "diarkis-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "diarkisd")
	build := exec.Command("go", "build", "-o", binary, "../cmd/diarkisd")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build diarkisd:", err)
		return 1
	}
	// The tests wait for other processes most of the time. (-parallel still counts.)
	if err := flag.Set("test.parallel", strconv.Itoa(max(8, 2*runtime.NumCPU()))); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	end, err := startReaper()
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the reaper:", err)
		return 1
	}
	defer end()
	return m.Run()
}

// reaper is the process group of the nodes. Its leader waits for the end of the tests,
// however they end, and then kills the group: a run that was killed itself leaves no
// node behind, not even one that is stopped.
var reaper int

func startReaper() (end func(), err error) {
	cmd := exec.Command("sh", "-c", "read nothing; kill -KILL 0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe() // ends with this process
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	reaper = cmd.Process.Pid
	return func() {
		_ = in.Close()
		_ = cmd.Wait()
	}, nil
}

// node is one running diarkisd.
type node struct {
	t      *testing.T
	name   string
	cmd    *exec.Cmd
	runDir string
	env    []string
	place  *place
	quiet  bool // the test keeps the log itself

	mu      sync.Mutex
	lines   []string
	changed chan struct{} // closed and replaced at every new line
	ended   chan struct{}

	Mesh, Public, Admin string // from its "node started" line
}

// nodeOptions says how to start a node.
type nodeOptions struct {
	args   []string
	env    []string // later entries win
	runDir string   // "" makes one
	place  *place   // nil is beside
	files  int      // descriptors it may have, 0: as many as we
	binary string   // another build of diarkisd, "" is the usual one
}

// place is where a process runs and how it is reached from there. Nil is beside.
type place struct {
	do   func(func() error) error // calls a function there
	http *http.Client             // asks from there
}

// beside is the network that the test is in.
var beside *place

// run calls f there, such as to start a process or to open a socket.
func (p *place) run(f func() error) error {
	if p == nil {
		return f()
	}
	return p.do(f)
}

func (p *place) client() *http.Client {
	if p == nil {
		return http.DefaultClient
	}
	return p.http
}

// dial opens a socket there.
func (p *place) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = p.run(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// start starts diarkisd and returns at once. The process is killed when the test ends.
func start(t *testing.T, name string, o nodeOptions) *node {
	t.Helper()
	if o.runDir == "" {
		o.runDir = t.TempDir()
	}
	n := &node{
		t: t, name: name, runDir: o.runDir, env: o.env, place: o.place,
		changed: make(chan struct{}), ended: make(chan struct{}),
	}
	n.cmd = exec.Command(cmp.Or(o.binary, binary), o.args...)
	if o.files > 0 {
		n.cmd = exec.Command("sh", append([]string{"-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, o.files), "sh", binary}, o.args...)...)
	}
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: reaper}
	n.cmd.Dir = o.runDir // no ./configs here: embedded defaults
	n.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + o.runDir, "DIARKIS_RUN_DIR=" + o.runDir, "DIARKIS_JSON_LOG=TRUE",
		"DIARKIS_CLUSTER_SECRET=" + secret, "DIARKIS_MESH_PORT=0", "DIARKIS_METRICS_PORT=0", "DIARKIS_SHUTDOWN_TIMEOUT=5",
		"DIARKIS_HTTP_EXPOSE_DEBUG_API=true", // hands out places on the node a test wants
	}, o.env...)
	out, err := n.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.place.run(n.cmd.Start); err != nil {
		t.Fatal(err)
	}
	go n.read(out)
	t.Cleanup(n.cleanup)
	return n
}

// read collects the log until the process ends.
func (n *node) read(out io.Reader) {
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		n.mu.Lock()
		n.lines = append(n.lines, sc.Text())
		close(n.changed)
		n.changed = make(chan struct{})
		n.mu.Unlock()
	}
	_ = n.cmd.Wait()
	close(n.ended)
}

func (n *node) cleanup() {
	if n.running() {
		_ = n.cmd.Process.Signal(syscall.SIGCONT)
		_ = n.cmd.Process.Kill()
		<-n.ended
	}
	if n.t.Failed() && !n.quiet {
		lines := strings.Split(n.log(), "\n")
		n.t.Logf("log of %s:\n%s", n.name, strings.Join(lines[max(0, len(lines)-60):], "\n"))
	}
}

func (n *node) running() bool {
	select {
	case <-n.ended:
		return false
	default:
		return true
	}
}

func (n *node) log() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.lines, "\n")
}

// waitLog waits for a log line that holds every part, and returns it.
func (n *node) waitLog(parts ...string) string {
	n.t.Helper()
	deadline := time.After(patience)
	for from := 0; ; {
		n.mu.Lock()
		lines, changed := n.lines[from:], n.changed
		from += len(lines)
		n.mu.Unlock()
		for _, l := range lines {
			if containsAll(l, parts) {
				return l
			}
		}
		select {
		case <-changed:
		case <-n.ended:
			n.mu.Lock()
			rest := n.lines[from:]
			n.mu.Unlock()
			for _, l := range rest {
				if containsAll(l, parts) {
					return l
				}
			}
			n.t.Fatalf("%s ended (%v) before it logged %q", n.name, n.cmd.ProcessState, parts)
		case <-deadline:
			n.t.Fatalf("%s did not log %q", n.name, parts)
		}
	}
}

func containsAll(l string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(l, p) {
			return false
		}
	}
	return true
}

// waitStarted waits until the node listens and reads its addresses.
func (n *node) waitStarted() *node {
	n.t.Helper()
	var line struct{ Mesh, Public, Admin string }
	if err := json.Unmarshal([]byte(n.waitLog(`"node started"`)), &line); err != nil {
		n.t.Fatal(err)
	}
	n.Mesh, n.Public, n.Admin = line.Mesh, line.Public, line.Admin
	return n
}

// signal sends a signal to the process.
func (n *node) signal(s syscall.Signal) {
	n.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.t.Fatalf("signal %v to %s: %v", s, n.name, err)
	}
}

// waitExit waits for the process to end and returns its exit code, -1 for a signal.
func (n *node) waitExit() int {
	n.t.Helper()
	select {
	case <-n.ended:
		return n.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		n.t.Fatalf("%s did not exit", n.name)
		return 0
	}
}

// kill ends the process the hard way and waits for that.
func (n *node) kill() {
	n.t.Helper()
	n.signal(syscall.SIGKILL)
	<-n.ended
}

// ready tells whether the node's admin listener says it may get traffic.
func (n *node) ready() bool {
	code, _ := n.admin("/readyz")
	return code == http.StatusOK
}

// admin fetches a page of the node's admin listener.
func (n *node) admin(path string) (int, string) { return n.place.get(n.t, "http://"+n.Admin+path) }

// run runs diarkisd beside the node to its end, as an operator does.
func (n *node) run(args ...string) (code int, stdout, stderr string) {
	n.t.Helper()
	return n.place.exec(n.t, append(append([]string{}, n.env...), "DIARKIS_RUN_DIR="+n.runDir), args...)
}

// waitReady waits until the node has joined.
func (n *node) waitReady() *node {
	n.t.Helper()
	eventually(n.t, n.name+" ready", n.ready)
	return n
}

// eventually polls a condition of another process, which can't tell us itself. It
// returns how long that took.
func eventually(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	return within(t, patience, what, ok)
}

// within is eventually with patience of its own.
func within(t *testing.T, patience time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("never happened: %s", what)
		case <-tick.C:
		}
	}
	return time.Since(began)
}

// get fetches a URL; code 0 means that nothing answered.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	return beside.get(t, url)
}

func (p *place) get(t *testing.T, url string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := p.client().Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

// freePort returns a UDP port that was free a moment ago and that the system gives to
// nobody who does not name it, so that a node can come back to it.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 20_000 + rand.IntN(10_000)})
		if err != nil {
			continue
		}
		defer func() { _ = c.Close() }()
		return c.LocalAddr().(*net.UDPAddr).Port
	}
	t.Fatal("no UDP port is free")
	return 0
}

// cluster is a set of nodes that know one MARS.
type cluster struct {
	t        *testing.T
	marsPort int
	env      []string
	place    *place // of the players
	mars     *node
	http     *node
	files    map[string]int // descriptors that a node of a role may have

	mu    sync.Mutex
	nodes []*node // all that were started, the oldest first
}

// newCluster starts a mars and an http node, and waits until they are ready.
func newCluster(t *testing.T, env ...string) *cluster {
	t.Helper()
	return (&cluster{t: t, marsPort: freePort(t), env: env}).begin()
}

// begin starts mars and http.
func (c *cluster) begin() *cluster {
	c.t.Helper()
	c.mars = c.startMARS()
	c.http = c.start("http")
	c.mars.waitReady()
	c.http.waitReady()
	return c
}

func (c *cluster) startMARS() *node {
	c.t.Helper()
	return c.add(start(c.t, "mars", nodeOptions{
		args: []string{"--role=mars", "--port", strconv.Itoa(c.marsPort)}, env: c.env,
	}).waitStarted())
}

// add counts a node in that listens.
func (c *cluster) add(n *node) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = append(c.nodes, n)
	return n
}

// alive returns the nodes that run.
func (c *cluster) alive() []*node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(c.nodes), func(n *node) bool { return !n.running() })
}

// start starts a node of a role with ports of its own and waits until it listens.
func (c *cluster) start(role string, env ...string) *node {
	c.t.Helper()
	return c.add(c.startUnready(role, env...).waitStarted())
}

func (c *cluster) startUnready(role string, env ...string) *node {
	c.t.Helper()
	return start(c.t, role, nodeOptions{
		args: []string{"--role=" + role, "--port=0", "--mars-port", strconv.Itoa(c.marsPort)},
		env:  append(append([]string{}, c.env...), env...), files: c.files[role],
	})
}

// url is where the http node serves.
func (c *cluster) url() string { return "http://" + c.http.Public }

// handsOut tells whether the http node hands out places on nodes of a type.
func (c *cluster) handsOut(typ string) bool {
	code, _ := c.place.get(c.t, c.url()+"/endpoint/type/"+typ+"/user/probe-"+strconv.FormatInt(time.Now().UnixNano(), 36))
	return code == http.StatusOK
}

// waitHandsOut waits until players can get a place on a node of a type.
func (c *cluster) waitHandsOut(typ string) {
	c.t.Helper()
	eventually(c.t, "places of type "+typ+" handed out", func() bool { return c.handsOut(typ) })
}

// members returns how many members the http node knows.
func (c *cluster) members() int {
	_, body := c.http.admin("/metrics")
	total := 0.0
	for l := range strings.SplitSeq(body, "\n") {
		if strings.HasPrefix(l, "diarkis_mars_members{") {
			v, err := strconv.ParseFloat(l[strings.LastIndexByte(l, ' ')+1:], 64)
			if err == nil {
				total += v
			}
		}
	}
	return int(total)
}

// run runs diarkisd to its end and returns its exit code and what it printed.
func run(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return beside.exec(t, env, args...)
}

func (p *place) exec(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return p.execFor(t, patience, env, args...)
}

// execFor kills what runs for longer than limit.
func (p *place) execFor(t *testing.T, limit time.Duration, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	dir := t.TempDir()
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "DIARKIS_RUN_DIR=" + dir,
		"DIARKIS_CLUSTER_SECRET=" + secret}, env...)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := p.run(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatalf("run %v: %v", args, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}
