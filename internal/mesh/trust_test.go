package mesh

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/quic-go/quic-go"
	"github.com/rs/zerolog"

	"github.com/Diarkis/diarkis/internal/id"
)

// hand is a member whose links are made by hand: it holds the cluster's secret and says
// what it likes.
type hand struct {
	transport *quic.Transport
	server    *tls.Config
	client    *tls.Config
	config    *quic.Config
	hello     hello // the truth
}

func newHand(t *testing.T) *hand {
	t.Helper()
	cfg := testConfig(t).withDefaults()
	who, err := openIdentity(cfg)
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	h := &hand{transport: &quic.Transport{Conn: socket}, config: &quic.Config{EnableDatagrams: true, MaxIncomingUniStreams: 8}}
	h.server, h.client = who.tlsConfigs()
	h.hello = hello{1, 0, cfg.Incarnation, cfg.Role, nodeOf(socket.LocalAddr())}
	t.Cleanup(func() { _, _ = h.transport.Close(), socket.Close() })
	return h
}

func (h *hand) dial(t *testing.T, m *Mesh) *quic.Conn {
	t.Helper()
	addr, _ := m.Self().Node.AddrPort()
	qc, err := h.transport.Dial(t.Context(), net.UDPAddrFromAddrPort(addr), h.client, h.config)
	if err != nil {
		t.Fatal(err)
	}
	return qc
}

// greet sends a hello to m and returns its answer, or why m ended the connection.
func (h *hand) greet(t *testing.T, m *Mesh, mine hello) (hello, error) {
	t.Helper()
	qc := h.dial(t, m)
	s, err := qc.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	if err := writeHello(s, mine); err != nil {
		t.Fatal(err)
	}
	theirs, err := readHello(t.Context(), s, bufio.NewReader(s))
	if err != nil {
		<-qc.Context().Done()
		err = context.Cause(qc.Context())
	}
	return theirs, err
}

// serve answers every hello with one that says what mine says.
func (h *hand) serve(t *testing.T, mine hello) {
	t.Helper()
	l, err := h.transport.Listen(h.server, h.config)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			qc, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			go func() {
				s, err := qc.AcceptStream(qc.Context())
				if err != nil {
					return
				}
				if theirs, err := readHello(qc.Context(), s, bufio.NewReader(s)); err == nil {
					answer := mine
					answer.tag = theirs.tag
					_ = writeHello(s, answer)
				}
			}()
		}
	}()
}

func isRefused(err error, code quic.ApplicationErrorCode) bool {
	e, ok := errors.AsType[*quic.ApplicationError](err)
	return ok && e.Remote && e.ErrorCode == code
}

// A member that claims another's address does not get what is sent to it.
func TestHelloCannotTakeAnothersAddress(t *testing.T) {
	var log syncBuffer
	cfg := testConfig(t)
	cfg.Log = zerolog.New(&log)
	b := start(t, cfg, nil)
	victim := start(t, testConfig(t), map[uint16]Handler{cmdEcho: func(context.Context, Peer, []byte) ([]byte, error) { return []byte("victim"), nil }})
	nobody := victim.Self().Node
	ask := func() {
		t.Helper()
		if got, err := b.Request(t.Context(), victim.Self().Node, cmdEcho, nil); err != nil || string(got) != "victim" {
			t.Errorf("request to the victim = %q, %v", got, err)
		}
	}
	ask()
	liar := newHand(t)
	lie := liar.hello
	lie.node = nobody
	if _, err := liar.greet(t, b, lie); !isRefused(err, closeAddress) {
		t.Errorf("a hello in the victim's name = %v", err)
	}
	ask()
	// Nor when it is dialed itself and answers in the victim's name.
	liar.serve(t, lie)
	if _, err := b.Request(t.Context(), liar.hello.node, cmdEcho, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("request to a node that says it is the victim = %v", err)
	}
	// Nor may it name the address of the node it talks to, nor one where nobody is.
	lie.node = b.Self().Node
	if _, err := liar.greet(t, b, lie); !isRefused(err, closeAddress) {
		t.Errorf("a hello in the listener's own name = %v", err)
	}
	lie.node = "127.0.0.1:1"
	if _, err := liar.greet(t, b, lie); !isRefused(err, closeAddress) {
		t.Errorf("a hello in nobody's name = %v", err)
	}
	if p, _ := b.Peer(victim.Self().Node); p != victim.Self() {
		t.Errorf("%v is connected at the victim's address", p)
	}
	if n := testutil.ToFloat64(b.metrics.addressesRefused); n != 3 {
		t.Errorf("%v addresses refused, want 3", n)
	}
	if n := strings.Count(log.String(), "it is not at the address it announces"); n != 2 {
		t.Errorf("%d lines, want one for each address:\n%s", n, log.String())
	}
	if theirs, err := liar.greet(t, b, liar.hello); err != nil || theirs.node != b.Self().Node {
		t.Errorf("the truth = %v, %v", theirs, err)
	}
}

// proxy passes datagrams on to a node and back, as address translation does: each sender
// comes from a port of its own.
func proxy(t *testing.T, to id.Node) id.Node {
	t.Helper()
	addr, _ := to.AddrPort()
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	backs := map[netip.AddrPort]*net.UDPConn{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, from, err := front.ReadFromUDPAddrPort(b)
			if err != nil {
				break
			}
			back := backs[from]
			if back == nil {
				if back, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr)); err != nil {
					break
				}
				backs[from] = back
				go func() {
					b := make([]byte, 2048)
					for {
						n, err := back.Read(b)
						if errors.Is(err, net.ErrClosed) {
							return
						}
						if err == nil {
							_, _ = front.WriteToUDPAddrPort(b[:n], from)
						}
					}
				}()
			}
			_, _ = back.Write(b[:n])
		}
		for _, back := range backs {
			_ = back.Close()
		}
	}()
	t.Cleanup(func() { _ = front.Close(); <-done })
	return nodeOf(front.LocalAddr())
}

// A node whose packets come from elsewhere is asked at its address, and let in.
func TestTranslatedAddressIsConfirmed(t *testing.T) {
	var from atomic.Pointer[Peer]
	handlers := map[uint16]Handler{cmdEcho: func(_ context.Context, p Peer, b []byte) ([]byte, error) { from.Store(&p); return b, nil }}
	a, b := start(t, testConfig(t), handlers), start(t, testConfig(t), handlers)
	there := proxy(t, b.Self().Node)
	for range 3 {
		if _, err := a.Request(t.Context(), there, cmdEcho, nil); err != nil {
			t.Fatal(err)
		}
	}
	if p := from.Load(); *p != a.Self() {
		t.Errorf("handler saw %v, want %v", p, a.Self())
	}
	if p, _ := a.Peer(there); p != b.Self() {
		t.Errorf("peer = %v, want %v", p, b.Self())
	}
	for _, m := range []*Mesh{a, b} { // a asked where b is, and b where a is, whatever the other asked
		if n := testutil.ToFloat64(m.metrics.dialBacks.WithLabelValues("answered")); n != 1 {
			t.Errorf("%v questions answered, want 1", n)
		}
	}
	eventually(t, "the end of the questions", func() bool { return len(a.connections()) == 1 && len(b.connections()) == 1 })
}

// A node that announces a wrong address gets nowhere, and its own log says why.
func TestWrongAdvertisedAddressIsSaidInItsOwnLog(t *testing.T) {
	var log syncBuffer
	cfg := testConfig(t)
	cfg.Advertise, cfg.Log = netip.MustParseAddr("127.9.9.9"), zerolog.New(&log)
	a := start(t, cfg, nil)
	b := start(t, testConfig(t), map[uint16]Handler{cmdEcho: echo})
	for range 3 {
		if _, err := a.Request(t.Context(), b.Self().Node, cmdEcho, nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("request of a node at a wrong address = %v", err)
		}
		p, _ := a.peer(b.Self().Node)
		p.mu.Lock()
		p.retryAt = p.retryAt.AddDate(-1, 0, 0) // do not wait for the back-off
		p.mu.Unlock()
	}
	_ = a.Close() // it has logged what it will
	text := log.String()
	if n := strings.Count(text, "announces a mesh address at which others do not reach it"); n != 1 ||
		!strings.Contains(text, "127.9.9.9") || !strings.Contains(text, "mesh.address") {
		t.Errorf("%d lines, want one that names the address and the setting:\n%s", n, text)
	}
	if strings.Contains(text, "different cluster secret") {
		t.Errorf("a wrong cause is named:\n%s", text)
	}
}

// Hellos don't make a node dial more than so many addresses at once, nor one of them
// again and again.
func TestDialBacksAreBounded(t *testing.T) {
	m := start(t, testConfig(t), nil)
	silent := func(i int) id.Node {
		return id.NodeOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 8, byte(i >> 8), byte(i)}), 9))
	}
	for range dialBacksMax { // so that the rest waits
		m.dialBacks.turns <- struct{}{}
	}
	first := make([]*dialBack, dialBacksMax+dialBacksWaitingMax)
	for i := range first {
		d, err := m.ask(silent(i))
		if err != nil {
			t.Fatal(err)
		}
		first[i] = d
	}
	if _, err := m.ask(silent(len(first))); !errors.Is(err, errBusy) {
		t.Errorf("one more = %v", err)
	}
	for i, d := range first {
		if again, err := m.ask(silent(i)); again != d || err != nil {
			t.Errorf("an address is asked twice at once: %v", err)
		}
	}
	for _, d := range first {
		<-d.done
		if !errors.Is(d.err, errBusy) {
			t.Errorf("one that never had its turn = %v", d.err)
		}
	}
	if n := testutil.ToFloat64(m.metrics.dialBacks.WithLabelValues("busy")); int(n) != len(first)+1 {
		t.Errorf("%v refused, want %d", n, len(first)+1)
	}
	<-m.dialBacks.turns
	d, err := m.ask(silent(0))
	if err != nil {
		t.Fatalf("after they ended = %v", err)
	}
	if <-d.done; d.err == nil || errors.Is(d.err, errBusy) {
		t.Errorf("where nobody answers = %v", d.err)
	}
}

// Whoever is put off because too many addresses are being asked is told that, and never
// that its address is wrong; with a turn in time it is let in.
func TestBusyIsNotAWrongAddress(t *testing.T) {
	var log syncBuffer
	logged := func() Config {
		cfg := testConfig(t)
		cfg.Log = zerolog.New(&log)
		return cfg
	}
	b := start(t, logged(), map[uint16]Handler{cmdEcho: echo})
	there := proxy(t, b.Self().Node)
	for range dialBacksMax {
		b.dialBacks.turns <- struct{}{}
	}
	a := start(t, logged(), map[uint16]Handler{cmdEcho: echo})
	if _, err := a.Request(t.Context(), there, cmdEcho, nil); !errors.Is(err, ErrUnreachable) || !isRefused(err, closeBusy) {
		t.Errorf("while others are being asked = %v", err)
	}
	late := start(t, logged(), map[uint16]Handler{cmdEcho: echo})
	done := make(chan error)
	go func() {
		_, err := late.Request(t.Context(), there, cmdEcho, nil)
		done <- err
	}()
	eventually(t, "a question that waits", func() bool {
		b.dialBacks.mu.Lock()
		defer b.dialBacks.mu.Unlock()
		return b.dialBacks.pending == 1
	})
	<-b.dialBacks.turns
	if err := <-done; err != nil {
		t.Errorf("with a turn in time = %v", err)
	}
	eventually(t, "the end of the back-off", func() bool {
		_, err := a.Request(t.Context(), there, cmdEcho, nil)
		return err == nil
	})
	if n := testutil.ToFloat64(b.metrics.addressesRefused); n != 0 {
		t.Errorf("%v addresses refused, want 0", n)
	}
	for _, m := range []*Mesh{a, b, late} {
		_ = m.Close() // it has logged what it will
	}
	if text := log.String(); strings.Contains(text, "mesh address") || strings.Contains(text, "address it announces") {
		t.Errorf("somebody blames an address:\n%s", text)
	}
}

// Before Listen, and after a Listen that failed, calls fail and Close works.
func TestNothingListens(t *testing.T) {
	for name, listen := range map[string]func(*Mesh) error{
		"before Listen": func(*Mesh) error { return errors.New("not tried") },
		"the port is taken": func(m *Mesh) error {
			addr, _ := start(t, testConfig(t), nil).Self().Node.AddrPort()
			m.cfg.Port = int(addr.Port())
			_, err := m.Listen()
			return err
		},
		"QUIC refuses": func(m *Mesh) error {
			m.serverTLS = nil
			_, err := m.Listen()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := New(testConfig(t))
			if err != nil {
				t.Fatal(err)
			}
			if err := listen(m); err == nil {
				t.Fatal("Listen worked")
			}
			const to = "127.0.0.1:9"
			if err := m.Run(t.Context()); err == nil {
				t.Error("Run without Listen is fine")
			}
			if err := m.SendDatagram(to, cmdEcho, nil); !errors.Is(err, ErrUnreachable) {
				t.Errorf("datagram = %v", err)
			}
			if err := m.USendMany([]id.Node{to}, cmdEcho, nil, 1); !errors.Is(err, ErrUnreachable) {
				t.Errorf("datagrams = %v", err)
			}
			if err := m.Send(t.Context(), to, cmdEcho, nil); !errors.Is(err, ErrUnreachable) {
				t.Errorf("one-way = %v", err)
			}
			if _, err := m.Request(t.Context(), to, cmdEcho, nil); !errors.Is(err, ErrUnreachable) {
				t.Errorf("request = %v", err)
			}
			if err := m.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
		})
	}
}

// A stranger who knocks from many ports is one line a minute.
func TestStrangersDoNotFloodTheLog(t *testing.T) {
	var log syncBuffer
	cfg := testConfig(t)
	cfg.Log = zerolog.New(&log)
	m := start(t, cfg, nil)
	for range 5 {
		stranger := testConfig(t)
		stranger.Identity.Secret = nextSecret
		s := start(t, stranger, nil) // a port of its own
		if _, err := s.Request(t.Context(), m.Self().Node, cmdEcho, nil); !errors.Is(err, ErrUnreachable) {
			t.Errorf("a stranger was let in: %v", err)
		}
	}
	// A stranger knows that it is refused before m reads so, and a node that closes reads no more.
	eventually(t, "5 refusals counted and one said", func() bool {
		return testutil.ToFloat64(m.metrics.refusals.WithLabelValues("incoming")) == 5 && strings.Contains(log.String(), "mesh peer refused")
	})
	_ = m.Close()
	if n := strings.Count(log.String(), "mesh peer refused"); n != 1 {
		t.Errorf("%d lines, want one:\n%s", n, log.String())
	}
}
