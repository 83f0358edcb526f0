package mesh

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
)

func TestRequestContext(t *testing.T) {
	type key struct{}
	tests := []struct {
		name  string
		after time.Duration // when it ends
		want  error
		act   func(r *request, conn context.CancelFunc)
	}{
		{"deadline", time.Second, context.DeadlineExceeded, func(*request, context.CancelFunc) {}},
		{"caller gives up", 0, context.Canceled, func(r *request, _ context.CancelFunc) { r.end(context.Canceled) }},
		{"connection ends", 0, context.Canceled, func(_ *request, conn context.CancelFunc) { conn() }},
	}
	for _, tt := range tests {
		for _, watched := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s watched=%v", tt.name, watched), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					parent, cancel := context.WithCancel(context.WithValue(context.Background(), key{}, "value"))
					defer cancel()
					r := &request{Context: parent, deadline: time.Now().Add(time.Second)}
					defer r.end(context.Canceled)
					if r.Err() != nil || r.Value(key{}) != "value" {
						t.Errorf("Err = %v, Value = %v", r.Err(), r.Value(key{}))
					}
					start := time.Now()
					if watched {
						child, stop := context.WithTimeout(r, time.Minute)
						defer stop()
						go tt.act(r, cancel)
						<-child.Done()
						if child.Err() != tt.want {
							t.Errorf("child.Err = %v, want %v", child.Err(), tt.want)
						}
					} else {
						tt.act(r, cancel)
						<-time.After(tt.after)
					}
					if r.Err() != tt.want || time.Since(start) != tt.after {
						t.Errorf("Err = %v after %v, want %v after %v", r.Err(), time.Since(start), tt.want, tt.after)
					}
					<-r.Done()
				})
			})
		}
	}
}

func TestRequestContextAllocatesNothingUnwatched(t *testing.T) {
	parent := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		r := &request{Context: parent, deadline: time.Now().Add(time.Minute)}
		if r.Err() != nil {
			t.Error("ended early")
		}
		r.end(context.Canceled)
	}); n > 1 { // the request itself
		t.Errorf("%v allocations", n)
	}
}

// fakeStream blocks Write while held and records what was written.
type fakeStream struct {
	mu     sync.Mutex
	writes [][]byte
	hold   chan struct{}
	err    error
}

func (f *fakeStream) TryWriteAll(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hold != nil {
		return quic.ErrWouldBlock
	}
	f.writes = append(f.writes, slices.Clone(b))
	return f.err
}

func (f *fakeStream) Write(b []byte) (int, error) {
	f.mu.Lock()
	hold := f.hold
	f.mu.Unlock()
	if hold != nil {
		<-hold
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes = append(f.writes, slices.Clone(b))
	return len(b), f.err
}

func TestWriterBatchesAndHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		s := &fakeStream{hold: make(chan struct{})}
		w := newWriter(s, cancel)
		go w.run(ctx)
		h := header{kind: kindOneWay}
		if err := w.write(ctx, time.Time{}, urgent, h, []byte("first")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // run is in Write now
		frames := 0
		var err error
		start := time.Now()
		for err == nil {
			frames++
			err = w.write(ctx, start.Add(time.Second), batched, h, make([]byte, 1000))
		}
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("write to a full outbox = %v after %v", err, time.Since(start))
		}
		if frames*1000 > outboxMax || (frames+1)*(1000+headerLen) < outboxMax {
			t.Errorf("%d frames fit %d bytes", frames, outboxMax)
		}
		waiter := make(chan error, 1)
		go func() { waiter <- w.write(ctx, time.Time{}, batched, h, make([]byte, BodyMax)) }()
		close(s.hold)
		if err := <-waiter; err != nil {
			t.Errorf("large frame after the outbox emptied: %v", err)
		}
		synctest.Wait()
		if len(s.writes) != 3 {
			t.Errorf("%d writes, want the first frame, all that came meanwhile, the large one", len(s.writes))
		}
		if cap(w.pending) > idleBufferMax || cap(w.spare) > idleBufferMax {
			t.Errorf("buffers of %d and %d bytes kept", cap(w.pending), cap(w.spare))
		}
		cancel(errRetired)
		synctest.Wait()
		if err := w.write(t.Context(), time.Time{}, batched, h, nil); !errors.Is(err, errRetired) {
			t.Errorf("write after the end = %v", err)
		}
	})
}

func TestWriterCutsOffWhoDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		s := &fakeStream{hold: make(chan struct{})}
		w := newWriter(s, cancel)
		go w.run(ctx)
		var err error
		for err == nil {
			err = w.tryWrite(header{kind: kindPong}, nil)
		}
		if ctx.Err() == nil {
			t.Error("the connection lives on")
		}
		close(s.hold)
	})
}

func TestDatagramQueueDropsOldest(t *testing.T) {
	var d datagrams
	dropped := 0
	for i := range 3*datagramQueueMax + 7 {
		if d.push([]byte{byte(i), byte(i >> 8)}) {
			dropped++
		}
	}
	if want := 2*datagramQueueMax + 7; dropped != want {
		t.Errorf("%d dropped, want %d", dropped, want)
	}
	for i := range datagramQueueMax {
		n := i + 2*datagramQueueMax + 7
		if b := d.pop(); len(b) != 2 || int(b[0])|int(b[1])<<8 != n {
			t.Fatalf("datagram %d is %v, want number %d", i, b, n)
		}
	}
	if b := d.pop(); b != nil || d.queue != nil {
		t.Errorf("an empty queue gave %v and holds %d", b, len(d.queue))
	}
}

func TestSplit(t *testing.T) {
	nodes := make([]id.Node, 10)
	for i := range nodes {
		nodes[i] = id.Node(fmt.Sprint(i))
	}
	for limit, want := range map[int][]int{1: {10}, 3: {3, 3, 4}, 10: {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 99: {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}} {
		var lengths []int
		var all []id.Node
		for _, s := range split(nodes, limit) {
			lengths, all = append(lengths, len(s)), append(all, s...)
		}
		if !slices.Equal(lengths, want) || !slices.Equal(all, nodes) {
			t.Errorf("split(10, %d) = %v %v", limit, lengths, all)
		}
	}
	if split(nil, 3) != nil {
		t.Error("shares of nobody")
	}
}

func TestRelayLogIsBounded(t *testing.T) {
	var l relayLog
	for i := range uint64(2 * relayLogMax) {
		k := relayKey{seq: i}
		if !l.first(k) || l.first(k) {
			t.Fatalf("delivery %d", i)
		}
	}
	if len(l.seen) != relayLogMax || !l.first(relayKey{seq: 0}) {
		t.Errorf("%d deliveries remembered", len(l.seen))
	}
}

func TestRelayedTwiceIsHandledOnce(t *testing.T) {
	var count atomic.Int64
	a := start(t, testConfig(t), map[uint16]Handler{cmdEcho: func(context.Context, Peer, []byte) ([]byte, error) { count.Add(1); return nil, nil }})
	b := start(t, testConfig(t), nil)
	r := b.newRelay(cmdEcho, nil, 2)
	for range 2 {
		if _, err := b.Request(t.Context(), a.Self().Node, CmdRelay, r.appendTo(nil)); err != nil {
			t.Fatal(err)
		}
	}
	if n := count.Load(); n != 1 {
		t.Errorf("handled %d times", n)
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	now := time.Unix(0, 0)
	if !l.allow("a", now) || l.allow("a", now.Add(limiterEvery-1)) || !l.allow("a", now.Add(limiterEvery)) || !l.allow("b", now) {
		t.Error("one event a minute and key")
	}
	for i := range 2 * limiterMax {
		l.allow(fmt.Sprint(i), now.Add(limiterEvery))
	}
	if len(l.last) > limiterMax {
		t.Errorf("%d keys kept", len(l.last))
	}
}

func TestRetryUnderHandshakeLoad(t *testing.T) {
	a, b := start(t, testConfig(t), nil), start(t, testConfig(t), map[uint16]Handler{cmdEcho: echo})
	b.handshakes.Add(handshakesFree + 1)
	if _, err := a.Request(t.Context(), b.Self().Node, cmdEcho, nil); err != nil {
		t.Errorf("request that needs a Retry: %v", err)
	}
	if n := b.handshakes.Load(); n != handshakesFree+1 {
		t.Errorf("%d handshakes counted as under way after one ended", n-handshakesFree-1)
	}
}

// rawDial connects to m as a member would, below the mesh.
func rawDial(t *testing.T, m *Mesh, change func(*tls.Config)) (*quic.Conn, error) {
	t.Helper()
	addr, _ := m.Self().Node.AddrPort()
	conf := m.clientTLS.Clone()
	change(conf)
	qc, err := quic.DialAddr(t.Context(), addr.String(), conf, m.quicConfig)
	if err == nil {
		t.Cleanup(func() { _ = qc.CloseWithError(0, "") })
	}
	return qc, err
}

func TestOtherProtocolVersionIsNamed(t *testing.T) {
	var log syncBuffer
	cfg := testConfig(t)
	cfg.Log = zerolog.New(&log)
	m := start(t, cfg, nil)
	if _, err := rawDial(t, m, func(c *tls.Config) { c.NextProtos = []string{"diarkis-mesh/9"} }); err == nil {
		t.Error("connected")
	}
	eventually(t, "the log line", func() bool { return strings.Contains(log.String(), "different versions of the mesh protocol") })
}

func TestNoCertificateNoEntry(t *testing.T) {
	m := start(t, testConfig(t), nil)
	qc, err := rawDial(t, m, func(c *tls.Config) {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	})
	if err == nil { // the client learns of it after its own handshake
		<-qc.Context().Done()
	}
	if n := len(m.connections()); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// TestProtocolViolations plays a member that breaks the protocol: it loses its
// connection, nobody else's.
func TestProtocolViolations(t *testing.T) {
	m := start(t, testConfig(t), map[uint16]Handler{cmdEcho: echo})
	good := start(t, testConfig(t), nil)
	by := newHand(t)
	me := by.hello
	hi := me.appendTo(nil)
	greeting := append(header{size: uint32(len(hi)), kind: kindHello}.appendTo(nil), hi...)
	lie := me
	lie.role = "mars"
	lied := lie.appendTo(nil)
	lie = me
	lie.incarnation[0]++
	run := lie.appendTo(nil)
	tests := []struct {
		name string
		main []byte
		uni  []byte
	}{
		{"no hello", header{kind: kindPing}.appendTo(nil), nil},
		{"hello lies about the role", append(header{size: uint32(len(lied)), kind: kindHello}.appendTo(nil), lied...), nil},
		{"hello lies about the run", append(header{size: uint32(len(run)), kind: kindHello}.appendTo(nil), run...), nil},
		{"huge frame", append(bytes.Clone(greeting), header{size: 1 << 30, kind: kindRequest}.appendTo(nil)...), nil},
		{"one-way on the main stream", append(bytes.Clone(greeting), header{kind: kindOneWay}.appendTo(nil)...), nil},
		{"ack of nothing sent", append(bytes.Clone(greeting), header{kind: kindAck, id: 7}.appendTo(nil)...), nil},
		{"ack of no class", append(bytes.Clone(greeting), header{kind: kindAck, arg: 7}.appendTo(nil)...), nil},
		{"unknown stream", greeting, []byte{99}},
		{"huge body", greeting, append([]byte{streamBody}, header{size: 1 << 30, kind: kindRequest}.appendTo(nil)...)},
		{"application command among ours", greeting, append([]byte{streamOneWay}, header{kind: kindOneWay, cmd: cmdEcho}.appendTo(nil)...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			qc := by.dial(t, m)
			s, err := qc.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Write(tt.main); err != nil {
				t.Fatal(err)
			}
			if tt.uni != nil {
				if _, err := s.Read(make([]byte, 1)); err != nil { // the answering hello: streams may come now
					t.Fatal(err)
				}
				u, err := qc.OpenUniStream()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := u.Write(tt.uni); err != nil {
					t.Fatal(err)
				}
			}
			<-qc.Context().Done()
			e, ok := errors.AsType[*quic.ApplicationError](context.Cause(qc.Context()))
			if !ok || !e.Remote || e.ErrorCode == closeNormal {
				t.Errorf("the connection ended with %v", context.Cause(qc.Context()))
			}
			if _, err := good.Request(t.Context(), m.Self().Node, cmdEcho, nil); err != nil {
				t.Errorf("another node's request: %v", err)
			}
		})
	}
}

// TestGarbageIsIgnored sends datagrams that are no QUIC to the socket.
func TestGarbageIsIgnored(t *testing.T) {
	a, b := start(t, testConfig(t), nil), start(t, testConfig(t), map[uint16]Handler{cmdEcho: echo})
	socket, err := net.Dial("udp", string(b.Self().Node))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for i := range 200 {
		if _, err := socket.Write(bytes.Repeat([]byte{byte(i * 7)}, i*7)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Request(t.Context(), b.Self().Node, cmdEcho, nil); err != nil {
		t.Error(err)
	}
}
