package mesh

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/Diarkis/diarkis/internal/id"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testSecret = "4d1f0c5be2a98736c1d2e3f4051627384950a1b2c3d4e5f60718293a4b5c6d7e"
	nextSecret = "9ab0c1d2e3f405162738495a6b7c8d9eafb0c1d2e3f40516273849506172839f" // of another cluster, or the next of this
	cmdEcho    = 10001
	cmdOther   = 10002
)

// testConfig returns what a node on loopback needs.
func testConfig(t testing.TB) Config {
	cfg := Config{Address: "127.0.0.1", Identity: Identity{Secret: testSecret}, Role: "udp", Log: zerolog.Nop()}
	_, _ = rand.Read(cfg.Incarnation[:])
	if os.Getenv("MESH_TEST_LOG") != "" {
		cfg.Log = zerolog.New(zerolog.NewTestWriter(t))
	}
	return cfg
}

// start runs a node until the test ends.
func start(t testing.TB, cfg Config, handlers map[uint16]Handler) *Mesh {
	t.Helper()
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Listen(); err != nil {
		t.Fatal(err)
	}
	for cmd, h := range handlers {
		m.Handle(cmd, h)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) { // closed: by kill
			t.Errorf("Run = %v", err)
		}
	})
	return m
}

func echo(_ context.Context, _ Peer, payload []byte) ([]byte, error) { return payload, nil }

func TestRequest(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "::1"} {
		t.Run(address, func(t *testing.T) {
			cfgA, cfgB := testConfig(t), testConfig(t)
			cfgA.Address, cfgB.Address, cfgB.Role = address, address, "mars"
			var from Peer
			a := start(t, cfgA, nil)
			b := start(t, cfgB, map[uint16]Handler{cmdEcho: func(_ context.Context, p Peer, b []byte) ([]byte, error) {
				from = p
				return b, nil
			}})
			// Plenty of time: 20 MB cross a machine that may be busy.
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for _, size := range []int{0, 1, 100, InlineMax, InlineMax + 1, 1 << 20, BodyMax} {
				payload := bytes.Repeat([]byte{7}, size)
				got, err := a.Request(ctx, b.Self().Node, cmdEcho, payload)
				if err != nil || !bytes.Equal(got, payload) {
					t.Fatalf("echo of %d bytes = %d bytes, %v", size, len(got), err)
				}
			}
			if from != a.Self() {
				t.Errorf("handler saw %v, want %v", from, a.Self())
			}
			if p, ok := a.Peer(b.Self().Node); !ok || p != b.Self() {
				t.Errorf("Peer = %v, %v", p, ok)
			}
		})
	}
}

func TestRequestErrors(t *testing.T) {
	block := make(chan struct{})
	a := start(t, testConfig(t), nil)
	canceled := make(chan error, 2)
	b := start(t, testConfig(t), map[uint16]Handler{
		cmdEcho: func(context.Context, Peer, []byte) ([]byte, error) { return nil, errors.New("no such room") },
		cmdOther: func(ctx context.Context, _ Peer, _ []byte) ([]byte, error) {
			select {
			case <-ctx.Done():
				canceled <- ctx.Err()
			case <-block:
			}
			return nil, ctx.Err()
		},
		10003: func(context.Context, Peer, []byte) ([]byte, error) {
			return nil, fmt.Errorf("wrapped: %w", &RemoteError{Code: 2000, Text: "mine"})
		},
		10004: func(context.Context, Peer, []byte) ([]byte, error) { panic("oops") },
		10005: func(context.Context, Peer, []byte) ([]byte, error) { return make([]byte, BodyMax+1), nil },
		10006: func(context.Context, Peer, []byte) ([]byte, error) { return nil, ErrUnreachable },
	})
	defer close(block)
	to := b.Self().Node
	_, err := a.Request(t.Context(), to, cmdEcho, nil)
	if e, ok := errors.AsType[*RemoteError](err); !ok || e.Code != CodeHandler || e.Text != "no such room" {
		t.Errorf("handler error = %v", err)
	}
	_, err = a.Request(t.Context(), to, 10003, nil)
	if e, ok := errors.AsType[*RemoteError](err); !ok || e.Code != 2000 || e.Text != "mine" {
		t.Errorf("handler code = %v", err)
	}
	if _, err = a.Request(t.Context(), to, 10004, nil); err == nil || strings.Contains(err.Error(), "oops") {
		t.Errorf("panic = %v", err)
	}
	if _, err = a.Request(t.Context(), to, 10005, nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large answer = %v", err)
	}
	if _, err = a.Request(t.Context(), to, 10006, nil); err == nil || errors.Is(err, ErrUnreachable) {
		t.Errorf("a handler's own trouble looks like the node's: %v", err)
	}
	if _, err = a.Request(t.Context(), to, 12345, nil); !errors.Is(err, ErrUnknownCommand) {
		t.Errorf("unknown command = %v", err)
	}
	if _, err = a.Request(t.Context(), to, cmdEcho, make([]byte, BodyMax+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large request = %v", err)
	}
	if _, err = a.Request(t.Context(), "nowhere", cmdEcho, nil); !errors.Is(err, ErrAddress) {
		t.Errorf("bad address = %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err = a.Request(ctx, to, cmdOther, nil); !errors.Is(err, ErrTimeout) {
		t.Errorf("late answer = %v", err)
	}
	if err := <-canceled; err == nil {
		t.Error("deadline did not reach the handler")
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err = a.Request(ctx, to, cmdOther, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled = %v", err)
	}
	if err := <-canceled; !errors.Is(err, context.Canceled) {
		t.Errorf("cancel reached the handler as %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel() // it waits
	a := start(t, testConfig(t), nil)
	silent, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}) // keeps the port from being taken
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	node := id.Node(silent.LocalAddr().String())
	if _, err := a.Request(t.Context(), node, cmdEcho, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("request to nobody = %v", err)
	}
	if _, err := a.Request(t.Context(), node, cmdEcho, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("request during back-off = %v", err)
	}
}

func TestSendKeepsOrder(t *testing.T) {
	const n = 5000
	var got []int
	done := make(chan struct{})
	handler := func(_ context.Context, _ Peer, b []byte) ([]byte, error) {
		got = append(got, len(b))
		if len(got) == n {
			close(done)
		}
		return nil, nil
	}
	a := start(t, testConfig(t), nil)
	b := start(t, testConfig(t), map[uint16]Handler{cmdEcho: handler})
	payload := make([]byte, n)
	for i := range n {
		if i == n/2 {
			// As if both had dialed at once: the old connection finishes first.
			p, _ := a.peer(b.Self().Node)
			p.conn.Load().retire()
		}
		if err := a.Send(t.Context(), b.Self().Node, cmdEcho, payload[:i]); err != nil {
			t.Fatal(err)
		}
	}
	<-done
	for i, v := range got {
		if i != v {
			t.Fatalf("message %d handled as number %d", v, i)
		}
	}
}

func TestSelf(t *testing.T) {
	var wg sync.WaitGroup
	wg.Add(2)
	a := start(t, testConfig(t), map[uint16]Handler{
		cmdEcho:  echo,
		cmdOther: func(context.Context, Peer, []byte) ([]byte, error) { wg.Done(); return nil, nil },
	})
	self := a.Self().Node
	if got, err := a.Request(t.Context(), self, cmdEcho, []byte("x")); err != nil || string(got) != "x" {
		t.Errorf("request = %q, %v", got, err)
	}
	if err := a.Send(t.Context(), self, cmdOther, nil); err != nil {
		t.Error(err)
	}
	if err := a.SendDatagram(self, cmdOther, nil); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if _, err := a.Request(t.Context(), self, 12345, nil); !errors.Is(err, ErrUnknownCommand) {
		t.Errorf("unknown = %v", err)
	}
	if n := len(a.connections()); n != 0 {
		t.Errorf("%d connections to itself", n)
	}
}

func TestDatagram(t *testing.T) {
	got := make(chan string, 1)
	a := start(t, testConfig(t), nil)
	b := start(t, testConfig(t), map[uint16]Handler{cmdEcho: func(_ context.Context, p Peer, b []byte) ([]byte, error) {
		got <- string(p.Node) + " " + string(b[:2])
		return nil, nil
	}})
	if err := a.SendDatagram(b.Self().Node, cmdEcho, bytes.Repeat([]byte("hi"), DatagramMax/2)); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != string(a.Self().Node)+" hi" {
		t.Errorf("got %q", s)
	}
	if err := a.SendDatagram(b.Self().Node, cmdEcho, make([]byte, DatagramMax+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large datagram = %v", err)
	}
}

var _ io.Writer = (*syncBuffer)(nil)

// syncBuffer is a log several goroutines write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestSendMany(t *testing.T) {
	t.Parallel() // it waits for a dead relay
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var mu sync.Mutex
	got := map[id.Node]int{}
	var nodes []id.Node
	var all []*Mesh
	for range 12 {
		var m *Mesh
		m = start(t, testConfig(t), map[uint16]Handler{cmdEcho: func(_ context.Context, p Peer, _ []byte) ([]byte, error) {
			mu.Lock()
			defer mu.Unlock()
			got[m.Self().Node]++
			if p.Via = ""; p != all[0].Self() {
				t.Errorf("relayed message comes from %v", p)
			}
			return nil, nil
		}})
		nodes, all = append(nodes, m.Self().Node), append(all, m)
	}
	if failed := all[0].SendMany(ctx, append(nodes, nodes[3]), cmdEcho, []byte("x"), 2); failed != nil {
		t.Errorf("SendMany = %v", failed)
	}
	dead := nodes[6] // heads a share
	_ = all[6].Close()
	mu.Lock()
	clear(got)
	mu.Unlock()
	failed := all[0].SendMany(ctx, append(nodes[1:], "nowhere"), cmdEcho, []byte("x"), 2)
	if len(failed) != 2 || !errors.Is(failed[dead], ErrUnreachable) || !errors.Is(failed["nowhere"], ErrAddress) {
		t.Errorf("SendMany around a dead relay = %v", failed)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, n := range nodes[1:] {
		if want := 1; n != dead && got[n] != want {
			t.Errorf("node %v handled it %d times", n, got[n])
		}
	}
}
