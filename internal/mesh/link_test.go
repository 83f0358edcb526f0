package mesh

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
)

// eventually waits until ok, looking again whenever the janitor had time to act.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.NewTimer(20 * time.Second)
	defer timeout.Stop()
	for !ok() {
		select {
		case <-ticker.C:
		case <-timeout.C:
			t.Fatalf("%s did not happen", what)
		}
	}
}

// kill ends a node as SIGKILL would: the socket goes, nobody is told.
func kill(m *Mesh) { _ = m.transport.Conn.Close() }

// restart starts a node where m was.
func restart(t *testing.T, m *Mesh, handlers map[uint16]Handler) *Mesh {
	addr, _ := m.Self().Node.AddrPort()
	cfg := testConfig(t)
	cfg.Port = int(addr.Port())
	return start(t, cfg, handlers)
}

func TestPeerRestarts(t *testing.T) {
	handlers := map[uint16]Handler{cmdEcho: echo}
	a := start(t, testConfig(t), handlers)
	b := start(t, testConfig(t), handlers)
	node := b.Self().Node
	if _, err := a.Request(t.Context(), node, cmdEcho, nil); err != nil {
		t.Fatal(err)
	}
	kill(b)
	again := restart(t, b, handlers)
	failed := 0
	eventually(t, "request to the restarted node", func() bool {
		_, err := a.Request(t.Context(), node, cmdEcho, nil)
		if err != nil {
			failed++
		}
		return err == nil
	})
	if p, _ := a.Peer(node); p != again.Self() {
		t.Errorf("peer = %v, want %v", p, again.Self())
	}
	if failed > 1 {
		t.Errorf("%d requests failed: a stateless reset ends the old connection on the first", failed)
	}
}

func TestAcceptedPeerRestarts(t *testing.T) {
	// The other direction: the one that dialed comes back and dials again.
	handlers := map[uint16]Handler{cmdEcho: echo}
	a := start(t, testConfig(t), handlers)
	b := start(t, testConfig(t), handlers)
	if _, err := b.Request(t.Context(), a.Self().Node, cmdEcho, nil); err != nil {
		t.Fatal(err)
	}
	kill(b)
	again := restart(t, b, handlers)
	if _, err := again.Request(t.Context(), a.Self().Node, cmdEcho, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "new incarnation", func() bool { p, _ := a.Peer(b.Self().Node); return p == again.Self() })
	if _, err := a.Request(t.Context(), b.Self().Node, cmdEcho, nil); err != nil {
		t.Error(err)
	}
}

func TestSilentPeerIsGivenUp(t *testing.T) {
	t.Parallel() // it waits
	blocked := make(chan struct{})
	a := start(t, testConfig(t), nil)
	b := start(t, testConfig(t), map[uint16]Handler{cmdEcho: func(ctx context.Context, _ Peer, _ []byte) ([]byte, error) {
		close(blocked)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := a.Request(ctx, b.Self().Node, cmdEcho, nil)
		done <- err
	}()
	<-blocked
	kill(b)
	if err := <-done; !errors.Is(err, ErrUnreachable) || errors.Is(err, ErrTimeout) {
		t.Errorf("request to a killed node = %v, want it long before the deadline", err)
	}
}

// A link that fails is reported, one that is closed in order or refused is not.
func TestLinkFailed(t *testing.T) {
	t.Parallel() // it waits
	failed := make(chan id.Node, 16)
	cfg := testConfig(t)
	cfg.LinkFailed = func(n id.Node) { failed <- n }
	a := start(t, cfg, nil)
	handlers := map[uint16]Handler{cmdEcho: echo}
	ask := func(m *Mesh) error { _, err := a.Request(t.Context(), m.Self().Node, cmdEcho, nil); return err }

	orderly := start(t, testConfig(t), handlers)
	strange := testConfig(t)
	strange.Identity.Secret = nextSecret
	foreign := start(t, strange, handlers)
	if err := ask(orderly); err != nil {
		t.Fatal(err)
	}
	if err := orderly.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ask(foreign); err == nil {
		t.Fatal("a node of another cluster answered")
	}
	victim := start(t, testConfig(t), handlers)
	if err := ask(victim); err != nil {
		t.Fatal(err)
	}
	kill(victim)
	for _, how := range []string{"silence", "dial"} {
		if err := ask(victim); err == nil {
			t.Fatalf("%s: a killed node answered", how)
		}
		if got := <-failed; got != victim.Self().Node { // the first report: none came before
			t.Errorf("%s: link to %v reported, want %v", how, got, victim.Self().Node)
		}
	}
}

func TestSlowHandlerIsNotSilence(t *testing.T) {
	t.Parallel() // it waits
	release := make(chan struct{})
	a := start(t, testConfig(t), nil)
	b := start(t, testConfig(t), map[uint16]Handler{cmdEcho: func(context.Context, Peer, []byte) ([]byte, error) {
		<-release
		return []byte("late"), nil
	}})
	go func() {
		// Longer than silence lasts.
		for first := a.tick.Load(); a.tick.Load() < first+silenceMax+4; {
			<-time.After(tickEvery)
		}
		close(release)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if got, err := a.Request(ctx, b.Self().Node, cmdEcho, nil); err != nil || string(got) != "late" {
		t.Errorf("slow request = %q, %v", got, err)
	}
}

func TestIdleAndKept(t *testing.T) {
	t.Parallel() // it waits
	handlers := map[uint16]Handler{cmdEcho: echo}
	cfg := testConfig(t)
	cfg.IdleTimeout = 2 * tickEvery
	a := start(t, cfg, handlers)
	long := testConfig(t)
	long.IdleTimeout = time.Hour
	b, c := start(t, long, handlers), start(t, long, handlers)
	a.Keep(c.Self().Node)
	for _, m := range []*Mesh{b, c} {
		if _, err := a.Request(t.Context(), m.Self().Node, cmdEcho, nil); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "idle close", func() bool { return len(a.connections()) == 1 && len(b.connections()) == 0 })
	if _, ok := a.Peer(c.Self().Node); !ok {
		t.Error("the kept connection was closed")
	}
	if _, err := a.Request(t.Context(), b.Self().Node, cmdEcho, nil); err != nil {
		t.Errorf("request after idle close: %v", err)
	}
	a.Keep()
	eventually(t, "idle close of the kept one", func() bool { return len(c.connections()) == 0 })
}

func TestSimultaneousDialsSettleOnOne(t *testing.T) {
	handlers := map[uint16]Handler{cmdEcho: echo}
	for range 5 {
		a, b := start(t, testConfig(t), handlers), start(t, testConfig(t), handlers)
		var wg sync.WaitGroup
		for range 8 {
			for from, to := range map[*Mesh]*Mesh{a: b, b: a} {
				wg.Go(func() {
					for range 20 {
						if _, err := from.Request(t.Context(), to.Self().Node, cmdEcho, nil); err != nil {
							t.Errorf("request during simultaneous dials: %v", err)
						}
					}
				})
			}
		}
		wg.Wait()
		eventually(t, "one connection", func() bool { return len(a.connections()) == 1 && len(b.connections()) == 1 })
		pa, _ := a.peer(b.Self().Node)
		pb, _ := b.peer(a.Self().Node)
		if ca, cb := pa.conn.Load(), pb.conn.Load(); ca == nil || cb == nil || ca.tag != cb.tag {
			t.Error("the two sides settled on different connections")
		}
	}
}

func TestOverload(t *testing.T) {
	running, release := make(chan struct{}, 4), make(chan struct{})
	cfg := testConfig(t)
	cfg.HandlersMax = 2
	a := start(t, testConfig(t), nil)
	b := start(t, cfg, map[uint16]Handler{cmdEcho: func(context.Context, Peer, []byte) ([]byte, error) {
		running <- struct{}{}
		<-release
		return nil, nil
	}})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := a.Request(t.Context(), b.Self().Node, cmdEcho, nil); err != nil {
				t.Errorf("request within the limit: %v", err)
			}
		})
	}
	<-running
	<-running
	if _, err := a.Request(t.Context(), b.Self().Node, cmdEcho, nil); !errors.Is(err, ErrOverloaded) {
		t.Errorf("request over the limit = %v", err)
	}
	close(release)
	wg.Wait()
}

func TestSlowOneWayHandlerHoldsOnlyItsClass(t *testing.T) {
	release := make(chan struct{})
	builtin := make(chan struct{})
	a := start(t, testConfig(t), nil)
	b := start(t, testConfig(t), map[uint16]Handler{
		cmdEcho:        echo,
		cmdOther:       func(context.Context, Peer, []byte) ([]byte, error) { <-release; return nil, nil },
		CmdMARSMessage: func(context.Context, Peer, []byte) ([]byte, error) { close(builtin); return nil, nil },
	})
	to := b.Self().Node
	// More than flow control and the outbox hold, so that the last sends wait.
	ctx, cancel := context.WithTimeout(t.Context(), 2*tickEvery)
	defer cancel()
	var err error
	for err == nil {
		err = a.Send(ctx, to, cmdOther, make([]byte, InlineMax))
	}
	if !errors.Is(err, ErrTimeout) {
		t.Errorf("send to a peer that does not keep up = %v", err)
	}
	if _, err := a.Request(t.Context(), to, cmdEcho, make([]byte, InlineMax)); err != nil {
		t.Errorf("request beside a full one-way stream: %v", err)
	}
	if err := a.Send(t.Context(), to, CmdMARSMessage, nil); err != nil {
		t.Errorf("built-in one-way beside a full one: %v", err)
	}
	<-builtin
	close(release)
}

func TestDrainAndStop(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	a := start(t, testConfig(t), map[uint16]Handler{cmdEcho: echo})
	b := start(t, testConfig(t), map[uint16]Handler{
		cmdEcho: echo,
		cmdOther: func(context.Context, Peer, []byte) ([]byte, error) {
			close(started)
			<-release
			return []byte("done"), nil
		},
	})
	got := make(chan string, 1)
	go func() {
		answer, err := a.Request(t.Context(), b.Self().Node, cmdOther, nil)
		if err != nil {
			t.Errorf("request that ran when the drain began: %v", err)
		}
		got <- string(answer)
	}()
	<-started
	b.Drain()
	if _, err := a.Request(t.Context(), b.Self().Node, cmdEcho, nil); !errors.Is(err, ErrDraining) {
		t.Errorf("request to a draining node = %v", err)
	}
	if _, err := b.Request(t.Context(), a.Self().Node, cmdEcho, nil); err != nil {
		t.Errorf("request from a draining node = %v", err)
	}
	close(release)
	if s := <-got; s != "done" {
		t.Errorf("answer = %q", s)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := b.Request(t.Context(), a.Self().Node, cmdEcho, nil); !errors.Is(err, ErrDraining) {
		t.Errorf("request from a stopped node = %v", err)
	}
	if err := b.SendDatagram(a.Self().Node, cmdEcho, nil); !errors.Is(err, ErrDraining) {
		t.Errorf("datagram from a stopped node = %v", err)
	}
}

// TestStopLosesNoOneWay: what Send accepted is handled even if the sender stops at once.
func TestStopLosesNoOneWay(t *testing.T) {
	const n = 2000
	var mu sync.Mutex
	count := 0
	a := start(t, testConfig(t), map[uint16]Handler{cmdEcho: func(context.Context, Peer, []byte) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		count++
		return nil, nil
	}})
	b := start(t, testConfig(t), nil)
	for range n {
		if err := b.Send(t.Context(), a.Self().Node, cmdEcho, make([]byte, 50)); err != nil {
			t.Fatal(err)
		}
	}
	_ = b.Close()
	mu.Lock()
	defer mu.Unlock()
	if count != n {
		t.Errorf("%d of %d one-way messages handled", count, n)
	}
}

func TestOwnAddressByAnotherName(t *testing.T) {
	cfg := testConfig(t)
	a := start(t, cfg, map[uint16]Handler{cmdEcho: echo})
	addr, _ := a.Self().Node.AddrPort()
	cfg = testConfig(t)
	cfg.Incarnation = a.cfg.Incarnation // as when a node dials itself through another address
	b := start(t, cfg, nil)
	if _, err := b.Request(t.Context(), id.NodeOf(addr), cmdEcho, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("request to itself under another address = %v", err)
	}
}

func TestUSendMany(t *testing.T) {
	var wg sync.WaitGroup
	var nodes []id.Node
	var first *Mesh
	for i := range 8 {
		m := start(t, testConfig(t), map[uint16]Handler{cmdEcho: func(_ context.Context, p Peer, b []byte) ([]byte, error) {
			if p.Via = ""; p != first.Self() || string(b) != "hello" {
				t.Errorf("got %q from %v", b, p)
			}
			wg.Done()
			return nil, nil
		}})
		if i == 0 {
			first = m
		}
		nodes = append(nodes, m.Self().Node)
	}
	wg.Add(len(nodes))
	if err := first.USendMany(nodes, cmdEcho, []byte("hello"), 2); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if err := first.USendMany(nodes, cmdEcho, make([]byte, DatagramMax), 2); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large = %v", err)
	}
}
