package mesh

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/net/ipv4"
)

// failingBatches fails as often as it is told, then reads.
type failingBatches struct {
	batchReader
	errs chan error
}

func (f *failingBatches) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	select {
	case err := <-f.errs:
		return 0, err
	default:
		return f.batchReader.ReadBatch(ms, flags)
	}
}

// A mesh whose socket has no room for a moment keeps its connections.
func TestSocketOutlivesAShortage(t *testing.T) {
	errs := make(chan error, 100)
	cfg := testConfig(t)
	cfg.batches = func(udp *net.UDPConn) batchReader { return &failingBatches{ipv4.NewPacketConn(udp), errs} }
	a := start(t, cfg, nil)
	b := start(t, testConfig(t), map[uint16]Handler{cmdEcho: echo})
	ask := func() {
		t.Helper()
		if _, err := a.Request(t.Context(), b.Self().Node, cmdEcho, nil); err != nil {
			t.Fatalf("request: %v", err)
		}
	}
	ask()
	link := a.connections()
	for range 4 {
		errs <- &net.OpError{Op: "read", Net: "udp", Err: os.NewSyscallError("recvmmsg", syscall.ENOBUFS)}
	}
	for len(errs) > 0 {
		ask()
	}
	ask()
	if got := a.connections(); len(got) != 1 || got[0] != link[0] {
		t.Error("the connection did not outlive the shortage")
	}
	if got := testutil.ToFloat64(a.metrics.socketErrors.WithLabelValues("in")); got != 4 {
		t.Errorf("%v errors counted, want 4", got)
	}
}

func TestSocketEndsWhenClosed(t *testing.T) {
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	s := m.newSocket(udp)
	_ = udp.SetReadDeadline(time.Unix(1, 0))
	ms := []ipv4.Message{{Buffers: [][]byte{make([]byte, 10)}}}
	if _, err := s.ReadBatch(ms, 0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past its deadline: %v", err)
	}
	_ = udp.Close()
	if _, err := s.ReadBatch(ms, 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
