package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/Diarkis/diarkis/internal/config"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/rundir"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newDev builds the four nodes of `diarkisd dev` with a quiet log and free ports.
func newDev(t *testing.T, bots int) *dev {
	t.Helper()
	t.Setenv("DIARKIS_LOG_LEVEL", "error")
	t.Setenv("DIARKIS_SHUTDOWN_TIMEOUT", "3")
	d := &dev{opts: DevOptions{Bots: bots, Out: &bytes.Buffer{}}, dir: t.TempDir()}
	if err := d.build(); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestNodesStopWithoutATrace runs a whole cluster with players on it; TestMain then
// finds what was left running.
func TestNodesStopWithoutATrace(t *testing.T) {
	d := newDev(t, 8)
	d.opts.Duration = time.Second
	if err := runAll(context.Background(), context.Background(), d.nodes, d.play); err != nil {
		t.Fatal(err)
	}
	if out := d.opts.Out.(*bytes.Buffer).String(); !strings.Contains(out, "lost 0") {
		t.Errorf("no clean summary in:\n%s", out)
	}
	for _, n := range d.nodes {
		if nodes, err := n.dir.Nodes(); err != nil || len(nodes) != 0 {
			t.Errorf("%s: record left behind: %v, %v", n.cfg.Role, nodes, err)
		}
	}
}

func TestStateTasks(t *testing.T) {
	d := newDev(t, 0)
	err := runAll(context.Background(), context.Background(), d.nodes, func(ctx context.Context) error {
		if err := d.awaitPlayable(ctx); err != nil {
			return err
		}
		udp := d.nodes[2]
		for _, tc := range []struct {
			task string
			want mars.State
		}{{"Offline", mars.Offline}, {"Taken", mars.Taken}, {"Online", mars.Online}} {
			for _, want := range []string{"state is " + tc.want.String() + ", was", "already"} {
				if o := udp.outcome(ctx, rundir.Task{Name: strings.ToLower(tc.task)}, nil); o.Code != ExitOK || !strings.Contains(o.Text, want) {
					t.Errorf("%s: %+v, want %q", tc.task, o, want)
				}
			}
			if got := udp.marsNode.Self().State; got != tc.want {
				t.Errorf("after %s the state is %v", tc.task, got)
			}
			if serving := udp.serving() == nil; serving != (tc.want == mars.Online) {
				t.Errorf("after %s serving is %v", tc.task, serving)
			}
		}
		for _, tc := range []struct {
			node *Node
			task string
			code int
			text string
		}{
			{udp, "DumpDirectory", ExitOK, "4 members logged"},
			{udp, "DumpRooms", ExitOK, "0 rooms logged"},
			{udp, "Goroutines", ExitOK, "goroutines logged"},
			{udp, "ChangeLogLevel warn", ExitOK, "log level is warn, was error"},
			{udp, "ChangeLogLevel loud", ExitUsage, `log level "loud"`},
			{udp, "ChangeLogLevel", ExitUsage, "give one level, such as debug: there are 0 parameters"},
			{udp, "Offline now", ExitUsage, "takes no parameter"},
			{udp, "Bogus", ExitUsage, `no task is called "Bogus"; there are ChangeLogLevel`},
			{d.nodes[0], "DumpRooms", ExitFailed, "a mars node has no rooms"},
		} {
			words := strings.Fields(tc.task)
			if tc.task == "DumpDirectory" {
				awaitMembers(t, ctx, udp, 4)
			}
			if o := tc.node.outcome(ctx, rundir.Task{Name: words[0], Params: words[1:]}, nil); o.Code != tc.code || !strings.Contains(o.Text, tc.text) {
				t.Errorf("%s: %+v, want %d with %q", tc.task, o, tc.code, tc.text)
			}
		}
		udp.draining.Store(true)
		for _, name := range []string{"Online", "Offline", "MarsRecover"} {
			if o := udp.outcome(ctx, rundir.Task{Name: name}, nil); o.Code != ExitFailed || !strings.Contains(o.Text, "terminating") {
				t.Errorf("%s on a terminating node: %+v", name, o)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestMARSStatusAndTasks(t *testing.T) {
	d := newDev(t, 0)
	if _, err := d.nodes[0].marsStatus(context.Background()); err == nil {
		t.Error("a node that has not started has a status")
	}
	err := runAll(context.Background(), context.Background(), d.nodes, func(ctx context.Context) error {
		if err := d.awaitPlayable(ctx); err != nil {
			return err
		}
		home, udp := d.nodes[0], d.nodes[2]
		awaitMembers(t, ctx, home, 4)
		awaitMembers(t, ctx, udp, 4)
		st, err := home.marsStatus(ctx)
		if err != nil || !st.Reigns || st.Authority != string(home.MeshAddr()) || st.AuthorityRole != "mars" || st.LeaseMS <= 0 || len(st.Voters) != 1 || len(st.Members) != 4 {
			t.Errorf("status of mars = %+v, %v", st, err)
		}
		for _, m := range st.Members {
			if m.AgeMS == nil {
				t.Errorf("the authority does not know when it heard of %s", m.Node)
			}
		}
		st, err = udp.marsStatus(ctx)
		if err != nil || st.Reigns || st.Authority != string(home.MeshAddr()) || st.LeaseMS != 0 || len(st.Members) != 4 || st.Members[0].AgeMS != nil {
			t.Errorf("status of udp = %+v, %v", st, err)
		}
		for _, tc := range []struct {
			task, param string
			code        int
			want        string
		}{
			{"MarsRecover", "", ExitFailed, "nothing to recover"},
			{"MarsRecover", "now", ExitUsage, "takes no parameter"},
			{"MarsTransfer", "", ExitUsage, "one node"},
			{"MarsTransfer", "mars", ExitUsage, "node address"},
			{"MarsTransfer", "10.9.9.9:1", ExitFailed, "is no member; members are 127.0.0.1:"},
			{"MarsTransfer", string(home.MeshAddr()), ExitFailed, "is the authority already"},
			{"MarsTransfer", string(udp.MeshAddr()), ExitOK, string(udp.MeshAddr()) + " is the authority after"},
		} {
			o := udp.outcome(ctx, rundir.Task{Name: tc.task, Params: strings.Fields(tc.param)}, nil)
			if o.Code != tc.code || !strings.Contains(o.Text, tc.want) {
				t.Errorf("%s %s = %+v, want %d with %q", tc.task, tc.param, o, tc.code, tc.want)
			}
		}
		if !udp.marsNode.Reigns() {
			t.Error("a transfer is said to be done that is not")
		}
		short, cancel := context.WithCancel(ctx)
		cancel()
		if did, err := udp.marsTransfer(short, []string{string(home.MeshAddr())}); err == nil || !strings.Contains(err.Error(), "not known yet") {
			t.Errorf("a transfer that nobody waits for = %q, %v", did, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// awaitMembers waits until a node knows n members: they register one by one.
func awaitMembers(t *testing.T, ctx context.Context, n *Node, members int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; <-time.After(5 * time.Millisecond) {
		st, err := n.marsStatus(ctx)
		if err == nil && len(st.Members) == members {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("status = %+v, %v, want %d members", st, err, members)
		}
	}
}

func TestStackStopsInReverse(t *testing.T) {
	var ended []string
	s := newStack(zerolog.Nop())
	for _, name := range []string{"first", "second", "third"} {
		s.start(name, func(ctx context.Context) error {
			<-ctx.Done()
			ended = append(ended, name) // each part has ended before the next is told to
			return nil
		})
	}
	s.stop(context.Background())
	if got := strings.Join(ended, " "); got != "third second first" {
		t.Errorf("stopped in the order %s", got)
	}
}

func TestStackReportsTheFirstFailure(t *testing.T) {
	s := newStack(zerolog.Nop())
	cause := errors.New("no more")
	s.start("part", func(context.Context) error { return cause })
	if err := <-s.failed; !errors.Is(err, cause) || !strings.Contains(err.Error(), "part") {
		t.Errorf("failed with %v, want the part's name and cause", err)
	}
	s.stop(context.Background())
}

func TestStackNamesAPartThatHangs(t *testing.T) {
	log := &bytes.Buffer{}
	s := newStack(zerolog.New(log))
	release := make(chan struct{})
	s.start("stubborn", func(context.Context) error { <-release; return nil })
	p := s.parts[0]
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	s.stop(gone)
	if !strings.Contains(log.String(), "stubborn") {
		t.Errorf("log %q does not name the part", log)
	}
	close(release)
	<-p.done
}

func TestCodeOf(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{nil, ExitOK},
		{errors.New("bug"), ExitInternal},
		{fmt.Errorf("start: %w", &Error{ExitUnavailable, errors.New("port")}), ExitUnavailable},
		{&config.Errors{}, ExitConfig},
		{&config.UsageError{}, ExitUsage},
		{fmt.Errorf("%w: development secret: %w", mesh.ErrConfig, &fs.PathError{Op: "write", Err: syscall.ENOSPC}), ExitCreate},
		{fmt.Errorf("%w: development secret: %w", mesh.ErrConfig, &fs.PathError{Op: "open", Err: syscall.EACCES}), ExitConfig},
	} {
		if got := CodeOf(tc.err); got != tc.want {
			t.Errorf("CodeOf(%v) = %d, want %d", tc.err, got, tc.want)
		}
	}
}

func TestCloseTime(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{
		5 * time.Second: time.Second, 100 * time.Second: 10 * time.Second, time.Hour: 30 * time.Second,
	} {
		n := &Node{cfg: &config.Config{}}
		n.cfg.Env.ShutdownTimeout = timeout
		if got := n.closeTime(); got != want {
			t.Errorf("close time of %v = %v, want %v", timeout, got, want)
		}
	}
}

func TestMARSResolver(t *testing.T) {
	t.Setenv("DIARKIS_MESH_SEEDS", "::1, 127.0.0.2:7000, no.such.host.invalid, 127.0.0.1")
	udp, err := config.Load(config.Options{Role: config.RoleUDP})
	if err != nil {
		t.Fatal(err)
	}
	r := newMARSResolver(udp, "127.0.0.1:8000")
	for range 2 { // the second time from what was resolved before
		got, err := r.addresses(context.Background())
		if err != nil || fmt.Sprint(got) != "[127.0.0.1:6779 [::1]:6779 127.0.0.2:7000]" {
			t.Errorf("addresses = %v, %v", got, err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if got, err = r.addresses(ctx); err != nil || len(got) != 3 {
			t.Errorf("addresses while names can't be resolved = %v, %v", got, err)
		}
	}
	home, err := config.Load(config.Options{Role: config.RoleMARS})
	if err != nil {
		t.Fatal(err)
	}
	if got := newMARSResolver(home, "10.0.0.7:6779").name(); got != "10.0.0.7:6779" {
		t.Errorf("a mars node looks for mars at %s, want its own address", got)
	}
	t.Setenv("DIARKIS_MESH_MARS_ADDRESS", "mars.example")
	if home, err = config.Load(config.Options{Role: config.RoleMARS}); err != nil {
		t.Fatal(err)
	}
	if got := newMARSResolver(home, "10.0.0.7:6779").name(); got != "mars.example:6779" {
		t.Errorf("a mars node that is told where looks for mars at %s", got)
	}
}
