package listener

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

// fakeListener accepts what a test puts into it.
type fakeListener struct {
	accepts chan any // net.Conn or error
	closed  chan struct{}
}

func newFake() *fakeListener { return &fakeListener{make(chan any, 1000), make(chan struct{})} }

func (f *fakeListener) Accept() (net.Conn, error) {
	select {
	case <-f.closed:
		return nil, net.ErrClosed
	case v := <-f.accepts:
		if err, ok := v.(error); ok {
			return nil, err
		}
		return v.(net.Conn), nil
	}
}

func (f *fakeListener) Close() error   { close(f.closed); return nil }
func (f *fakeListener) Addr() net.Addr { return &net.TCPAddr{} }

// connect puts a connection into f and returns the client's end.
func (f *fakeListener) connect() net.Conn {
	ours, theirs := net.Pipe()
	f.accepts <- ours
	return theirs
}

// isEnded says that the other end of c was closed.
func isEnded(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	return !errors.As(err, &timeout)
}

func noDescriptor() error {
	return &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
}

func TestAcceptOutlivesAShortage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		var log bytes.Buffer
		reg := prometheus.NewRegistry()
		l := Wrap(f, Options{Name: "tcp", Log: zerolog.New(&log), Reg: reg, Descriptors: NewDescriptors(0)})
		const failures = 600
		for range failures {
			f.accepts <- noDescriptor()
		}
		f.connect()
		start := time.Now()
		c, err := l.Accept()
		if err != nil {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		_ = c.Close()
		if took := time.Since(start); took > failures*time.Second || took < 500*time.Second {
			t.Errorf("%d failures took %v: not at about one a second", failures, took)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := log.String(); strings.Count(s, "\n") != 2 || !strings.Contains(s, `"failures":600`) {
			t.Errorf("log of one episode:\n%s", s)
		}
		want := "# HELP diarkis_listener_not_accepted_total Connections that were closed for want of room, and failures to accept one.\n" +
			"# TYPE diarkis_listener_not_accepted_total counter\n" +
			"diarkis_listener_not_accepted_total{listener=\"tcp\",reason=\"accept\"} 600\n" +
			"diarkis_listener_not_accepted_total{listener=\"tcp\",reason=\"connections\"} 0\n" +
			"diarkis_listener_not_accepted_total{listener=\"tcp\",reason=\"descriptors\"} 0\n"
		if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "diarkis_listener_not_accepted_total"); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseEndsAWaitingAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		l := Wrap(f, Options{Name: "tcp", Log: zerolog.Nop(), Reg: prometheus.NewRegistry(), Descriptors: NewDescriptors(0)})
		for range 20 {
			f.accepts <- noDescriptor()
		}
		ended := make(chan error)
		go func() {
			_, err := l.Accept()
			ended <- err
		}()
		time.Sleep(5*time.Second + time.Millisecond) // it waits for its next try
		if err := errors.Join(l.Close(), l.Close()); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept = %v, want net.ErrClosed", err)
		}
	})
}

func TestDescriptorsAreHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		d := NewDescriptors(40) // 20 of them for connections
		var open []net.Conn
		yields := true
		l := Wrap(f, Options{Name: "tcp", Log: zerolog.Nop(), Reg: prometheus.NewRegistry(), Descriptors: d, MakeRoom: func() bool {
			if yields {
				_ = open[0].Close()
				_ = open[0].Close() // which gives nothing back twice
				open = open[1:]
			}
			return yields
		}})
		admin := Wrap(newFake(), Options{Name: "admin", Log: zerolog.Nop(), Reg: prometheus.NewRegistry(), Descriptors: d, Reserved: true, Max: 2})
		var clients []net.Conn
		accept := func() {
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, c)
		}
		for range 25 {
			clients = append(clients, f.connect())
			accept()
		}
		for i, c := range clients {
			if ended := isEnded(c); ended != (i < 5) {
				t.Errorf("connection %d ended: %v; the oldest five made room", i, ended)
			}
		}
		yields = false
		refused := f.connect()
		go func() { _, _ = l.Accept() }()
		synctest.Wait()
		if !isEnded(refused) {
			t.Error("a connection was accepted with the descriptors used up, and nobody made room")
		}
		_ = open[3].Close()
		welcome := f.connect()
		synctest.Wait()
		if isEnded(welcome) {
			t.Error("a connection was refused when another had given its descriptor back")
		}
		inner := admin.Listener.(*fakeListener)
		var last net.Conn
		for range 3 {
			last = inner.connect()
		}
		for range 2 {
			if _, err := admin.Accept(); err != nil {
				t.Fatalf("a reserved connection while the others are used up: %v", err)
			}
		}
		go func() { _, _ = admin.Accept() }()
		synctest.Wait()
		if !isEnded(last) {
			t.Error("a reserved listener went past its Max")
		}
		_ = admin.Close()
		_ = l.Close()
	})
}

func TestLimitForIsEnough(t *testing.T) {
	for _, n := range []int{1, 20, 31, 32, 100, 224, 1000, 4096, 9096, 104_096, 10_000_000} {
		limit := LimitFor(n)
		if got := NewDescriptors(limit).Connections(); got < n {
			t.Errorf("LimitFor(%d) = %d, which gives %d", n, limit, got)
		}
		if got := NewDescriptors(limit * 9 / 10).Connections(); n > 1000 && got >= n {
			t.Errorf("LimitFor(%d) = %d is more than is needed", n, limit)
		}
	}
	if NewDescriptors(0).Connections() != 0 {
		t.Error("without a known limit there is no other")
	}
}
