package harness

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync/atomic"
	"time"
)

// Role says which CPU a child runs on.
type Role int

// The roles.
const (
	Serves Role = iota // what is measured
	Loads              // what keeps it busy
	Both               // in one process, which runs anywhere
)

// Child is a process that a side started. Both talk in JSON values, one a line.
type Child struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
	name string
}

// profiles numbers the CPU profiles of a run.
var profiles atomic.Int64

// stopTimeout is how long a child may take to end by itself.
const stopTimeout = 5 * time.Second

// Start starts this program again as "serve NAME", where NAME is one of the
// programs that [Serve] was given, with args as JSON. A server whose name starts with
// "ours" writes a CPU profile when that is asked for.
func (e *Env) Start(ctx context.Context, role Role, name string, args any) (*Child, error) {
	a, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	cmd := exec.CommandContext(ctx, e.self, "serve", name, string(a))
	cmd.Env = os.Environ()
	if e.ProfileDir != "" && role == Serves && strings.HasPrefix(name, "ours") {
		file := fmt.Sprintf("%s.%d.pprof", name, profiles.Add(1))
		cmd.Env = append(cmd.Env, profileEnv+"="+filepath.Join(e.ProfileDir, file))
	}
	return e.start(cmd, role, name)
}

// StartCommand starts another program, which reads and writes JSON lines too and
// ends when its input does.
func (e *Env) StartCommand(ctx context.Context, role Role, path string, args ...string) (*Child, error) {
	return e.start(exec.CommandContext(ctx, path, args...), role, filepath.Base(path))
}

func (e *Env) start(cmd *exec.Cmd, role Role, name string) (*Child, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	cmd.Stderr = os.Stderr
	var set cpuSet
	switch role {
	case Serves:
		set = e.servers
	case Loads:
		set = e.loads
	case Both:
	}
	if err := startOn(set, cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return &Child{cmd: cmd, in: in, out: json.NewDecoder(bufio.NewReader(out)), name: name}, nil
}

// PID is the child's process id.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Send tells the child something.
func (c *Child) Send(v any) error {
	if err := json.NewEncoder(c.in).Encode(v); err != nil {
		return fmt.Errorf("tell %s: %w", c.name, err)
	}
	return nil
}

// Receive waits for the next thing the child says.
func (c *Child) Receive(v any) error {
	if err := c.out.Decode(v); err != nil {
		return fmt.Errorf("listen to %s: %w", c.name, err)
	}
	return nil
}

// Ask is Send and Receive.
func (c *Child) Ask(question, answer any) error {
	if err := c.Send(question); err != nil {
		return err
	}
	return c.Receive(answer)
}

// Stop ends the child by closing its input and waits for it; one that does not end
// is killed.
func (c *Child) Stop() {
	_ = c.in.Close()
	kill := time.AfterFunc(stopTimeout, func() { _ = c.cmd.Process.Kill() })
	defer kill.Stop()
	_ = c.cmd.Wait() // what it measured was told before
}

// Link is a child's side of the conversation.
type Link struct {
	args json.RawMessage
	in   *json.Decoder
	out  *json.Encoder
}

// Args reads what Start was given.
func (l *Link) Args(v any) error {
	if err := json.Unmarshal(l.args, v); err != nil {
		return fmt.Errorf("read arguments: %w", err)
	}
	return nil
}

// Say tells the parent something.
func (l *Link) Say(v any) error { return l.out.Encode(v) }

// Hear waits for what the parent says. It returns [io.EOF] when it is time to end.
func (l *Link) Hear(v any) error { return l.in.Decode(v) }

// Wait waits for the time to end.
func (l *Link) Wait() error {
	var v any
	if err := l.Hear(&v); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the parent said %v: %w", v, errors.Join(errUnexpected, err))
	}
	return nil
}

var errUnexpected = errors.New("unexpected")

// Program is what a child runs. It ends when Hear says so.
type Program func(l *Link) error

// profileEnv names the file for the CPU profile of a child.
const profileEnv = "DIARKIS_BENCH_PROFILE"

// Serve runs one of programs; args are what follows "serve" on the command line.
func Serve(programs map[string]Program, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("serve: want a name and its arguments, got %q", args)
	}
	p := programs[args[0]]
	if p == nil {
		return fmt.Errorf("serve: no program %q", args[0])
	}
	if file := os.Getenv(profileEnv); file != "" {
		f, err := os.Create(file)
		if err != nil {
			return fmt.Errorf("serve %s: %w", args[0], err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return fmt.Errorf("serve %s: %w", args[0], err)
		}
		defer pprof.StopCPUProfile()
	}
	l := &Link{args: json.RawMessage(args[1]), in: json.NewDecoder(os.Stdin), out: json.NewEncoder(os.Stdout)}
	if err := p(l); err != nil {
		return fmt.Errorf("serve %s: %w", args[0], err)
	}
	return nil
}
