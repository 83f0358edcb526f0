package netbench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/Diarkis/diarkis/bench/internal/harness"
	"github.com/Diarkis/diarkis/bench/internal/netsim"
)

const simProgram = "net/sim"

// simArgs tell a network what it is like and who uses it.
type simArgs struct {
	Network netsim.Options
	// Loss is lost both ways from the start of the conversation on, by the dice of Seed.
	Loss netsim.Loss
	Seed uint64
	// Peer is the command that holds both ends. It gets the namespaces of the hosts as
	// its first extra files and says JSON values of type told.
	Peer []string
}

// told is what a peer says: Connected, then after it heard a line Measuring, then
// what it measured.
type told struct {
	Connected, Measuring bool

	Took     []time.Duration // how long each message took that arrived, the quickest first
	Megabits []float64       // Mbit/s of each flow
}

// measured is what a network says in the end.
type measured struct {
	// Skip says why there is no network; then nothing else is set.
	Skip string
	told
	// Both is what was sent in both directions while the peer measured, Down what the
	// first server sent.
	Both, Down netsim.Count
	Overflowed uint64
	Late       time.Duration // of packets at p99, a bound
}

// simulate is the process that is the network. It says an empty measured when the
// peer is connected, starts it when the parent says so, and says what was measured.
func simulate(l *harness.Link) error {
	var err error
	if os.Geteuid() == 0 {
		err = simulateAsRoot(l)
	} else if err = repeatAsRoot(); err == nil {
		return nil
	}
	if errors.Is(err, netsim.ErrNotAllowed) {
		return l.Say(measured{Skip: err.Error()})
	}
	return err
}

// repeatAsRoot runs this command once more as root of a user namespace.
func repeatAsRoot() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = netsim.InUserNamespace()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: %w", netsim.ErrNotAllowed, err)
	}
	return cmd.Wait()
}

func simulateAsRoot(l *harness.Link) error {
	var a simArgs
	if err := l.Args(&a); err != nil {
		return err
	}
	n, err := netsim.New(a.Network)
	if err != nil {
		return err
	}
	defer n.Close()
	p, err := startPeer(a.Peer, n.Hosts)
	if err != nil {
		return err
	}
	defer p.stop()
	if _, err := p.expect("connect", func(t told) bool { return t.Connected }); err != nil {
		return err
	}
	if err := l.Say(measured{}); err != nil {
		return err
	}
	var start string
	if err := l.Hear(&start); err != nil {
		return err
	}
	n.SetLoss(a.Loss, a.Loss, a.Seed)
	m, err := watch(n, p)
	if err != nil {
		return err
	}
	if err := l.Say(m); err != nil {
		return err
	}
	return l.Wait()
}

// watch has the peer measure and counts meanwhile.
func watch(n *netsim.Network, p *peer) (m measured, err error) {
	if _, err := p.in.Write([]byte("\"go\"\n")); err != nil {
		return m, err
	}
	if _, err := p.expect("measure", func(t told) bool { return t.Measuring }); err != nil {
		return m, err
	}
	before, err := n.Stats()
	if err != nil {
		return m, err
	}
	if m.told, err = p.expect("finish", func(t told) bool { return t.Took != nil || t.Megabits != nil }); err != nil {
		return m, err
	}
	after, err := n.Stats()
	if err != nil {
		return m, err
	}
	s := after.Sub(before)
	m.Both = s.Sum(nil)
	m.Down = netsim.Sum(s.Down, func(f netsim.Flow) bool { return f.From == serverPort })
	m.Overflowed, m.Late = s.Overflowed, s.Late.Quantile(0.99)
	return m, nil
}

// peer is the process that holds both ends.
type peer struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func startPeer(command []string, h netsim.Hosts) (*peer, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.ExtraFiles = h.Files()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := netsim.StartUrgent(cmd); err != nil {
		return nil, err
	}
	return &peer{cmd: cmd, in: in, out: json.NewDecoder(bufio.NewReader(out))}, nil
}

// expect waits until the peer says a certain thing.
func (p *peer) expect(step string, is func(told) bool) (t told, err error) {
	if err := p.out.Decode(&t); err != nil {
		return t, fmt.Errorf("%s: %w", step, err)
	}
	if !is(t) {
		return t, fmt.Errorf("%s: the peer said %+v", step, t)
	}
	return t, nil
}

// stop ends the peer. What it measured is told by then, so how it ends does not matter.
func (p *peer) stop() {
	_ = p.in.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// hear waits for what a network says.
func hear(c *harness.Child) (m measured, err error) {
	if err := c.Receive(&m); err != nil {
		return m, err
	}
	if m.Skip != "" {
		return m, harness.Skip("%s", m.Skip)
	}
	return m, nil
}

// peerCommand is how this program starts one of its own programs as a peer.
func peerCommand(program string, args any) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	a, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	return []string{self, "serve", program, string(a)}, nil
}
