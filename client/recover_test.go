package client_test

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// watched returns options whose callbacks end up in channels.
type watched struct {
	reconnects  chan bool
	disconnects chan client.Disconnect
	moves       chan string
	offline     chan uint8
}

func watch(o client.Options) (client.Options, *watched) {
	w := &watched{make(chan bool, 100), make(chan client.Disconnect, 100), make(chan string, 100), make(chan uint8, 100)}
	o.OnReconnect = func(gap bool) { w.reconnects <- gap }
	o.OnDisconnect = func(d client.Disconnect) { w.disconnects <- d }
	o.OnMove = func(addr string) { w.moves <- addr }
	o.OnOffline = func(reason uint8) { w.offline <- reason }
	return o, w
}

func connect(t *testing.T, o client.Options) *client.Client {
	t.Helper()
	c, err := client.Connect(within(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(c) })
	return c
}

// counter answers every request with how many it has had, per place.
func counter(c *clienttest.Conn, m wire.Message, _ reliable.Reliability) {
	n, _ := c.Place.User.(uint32)
	if v := binary.BigEndian.Uint32(m.Payload); v != n {
		c.Respond(m, 4, []byte("out of order"))
		return
	}
	c.Place.User = n + 1
	c.Respond(m, 1, m.Payload)
}

// ask sends numbers from..to-1 and reports each answer that is not the one due.
func ask(t *testing.T, c *client.Client, from, to uint32) <-chan struct{} {
	t.Helper()
	done := make(chan struct{})
	for i := from; i < to; i++ {
		err := c.Go(2, 1, binary.BigEndian.AppendUint32(nil, i), func(r client.Response, err error) {
			if err != nil || binary.BigEndian.Uint32(r.Payload) != i {
				t.Errorf("answer to %d: %q, %v", i, r.Payload, err)
			}
			if i == to-1 {
				close(done)
			}
		})
		if err != nil {
			t.Fatalf("ask %d: %v", i, err)
		}
	}
	return done
}

func TestResumeAfterDarkness(t *testing.T) {
	t.Parallel()
	a := newAir(1)
	n := start(t, clienttest.Options{IdleTimeout: 300 * time.Millisecond, Handle: counter})
	o := newCluster(t, n).options()
	o.Dial, o.HandshakeTimeout = a.dial, 250*time.Millisecond
	o, w := watch(o)
	c := connect(t, o)
	take(t, "first answers", ask(t, c, 0, 10))
	a.dark.Store(true)
	done := ask(t, c, 10, 30)
	if d := take(t, "disconnect", w.disconnects); d.Final || d.Code != client.CloseIdle {
		t.Errorf("disconnect %+v", d)
	}
	more := ask(t, c, 30, 40) // queued while there is no connection
	a.dark.Store(false)
	if gap := take(t, "reconnect", w.reconnects); gap {
		t.Error("the state was lost")
	}
	take(t, "answers from the dark", done)
	take(t, "answers from the dark", more)
	if s := c.Stats(); s.Resumes != 1 || s.Gaps != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestResumeAfterBrokenTCP(t *testing.T) {
	n := start(t, clienttest.Options{TCP: true, Handle: counter})
	o, w := watch(newCluster(t, n).options())
	c := connect(t, o)
	take(t, "first answers", ask(t, c, 0, 10))
	n.BreakAll()
	if d := take(t, "disconnect", w.disconnects); d.Final {
		t.Errorf("disconnect %+v", d)
	}
	if gap := take(t, "reconnect", w.reconnects); gap {
		t.Error("the state was lost")
	}
	take(t, "answers", ask(t, c, 10, 20))
}

func TestGapWhenTheStateIsGone(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		n := start(t, clienttest.Options{TCP: tcp})
		k := newCluster(t, n)
		o, w := watch(k.options())
		o.ResumeFor = -1
		o.Transport = client.UDP
		if tcp {
			o.Transport = client.TCP
		}
		c := connect(t, o)
		pending := make(chan error, 1)
		second := start(t, clienttest.Options{TCP: tcp})
		k.node.Store(second)
		n.Do(func() {}) // the first node is idle
		n.Kill()
		if err := c.Go(2, 1, nil, func(_ client.Response, err error) { pending <- err }); err == nil {
			if err := take(t, "the end of the call", pending); !errors.Is(err, client.ErrGap) {
				t.Errorf("call over the gap: %v", err)
			}
		}
		if gap := take(t, "reconnect", w.reconnects); !gap {
			t.Error("no gap although the node died")
		}
		if d := take(t, "disconnect", w.disconnects); d.Final {
			t.Errorf("disconnect %+v", d)
		}
		if _, err := c.Request(within(t), 2, 1, []byte("x")); err != nil || c.Addr() != second.Addr().String() {
			t.Errorf("request at %s: %v", c.Addr(), err)
		}
	})
}

func TestSearchGoesOnUntilThereIsANode(t *testing.T) {
	t.Parallel()
	n := start(t, clienttest.Options{})
	k := newCluster(t, n)
	o, w := watch(k.options())
	c := connect(t, o)
	k.node.Store(nil)
	n.Do(func() { eachConn(n).Close(wire.CloseShutdown, "bye") })
	if d := take(t, "disconnect", w.disconnects); d.Code != client.CloseShutdown || d.Reason != "bye" || d.Final {
		t.Errorf("disconnect %+v", d)
	}
	asked := k.asks.Load()
	for k.asks.Load() < asked+3 {
		if _, err := c.Request(within(t), 2, 1, nil); !errors.Is(err, client.ErrNotConnected) {
			t.Fatalf("request while searching: %v", err)
		}
	}
	k.node.Store(start(t, clienttest.Options{}))
	if gap := take(t, "reconnect", w.reconnects); !gap {
		t.Error("no gap")
	}
	if _, err := c.Request(within(t), 2, 1, nil); err != nil {
		t.Error(err)
	}
}

// eachConn returns the only connection of a node.
func eachConn(n *clienttest.Node) *clienttest.Conn {
	for _, c := range n.Conns() {
		return c
	}
	return nil
}

func TestCloseCodes(t *testing.T) {
	for _, q := range []struct {
		code  wire.CloseCode
		final bool
	}{
		{client.CloseNormal, true}, {client.CloseReplaced, true}, {client.CloseKicked, true},
		{client.CloseProtocol, false}, {client.CloseFlow, false}, {client.CloseSlow, false}, {client.CloseRate, false},
		{client.CloseShutdown, false}, {client.CloseInternal, false},
	} {
		t.Run(q.code.String(), func(t *testing.T) {
			n := start(t, clienttest.Options{})
			o, w := watch(newCluster(t, n).options())
			c := connect(t, o)
			n.Do(func() { eachConn(n).Close(q.code, "") })
			d := take(t, "disconnect", w.disconnects)
			if d.Code != q.code || d.Final != q.final {
				t.Errorf("disconnect %+v", d)
			}
			if q.final {
				take(t, "the end", c.Done())
				return
			}
			if gap := take(t, "reconnect", w.reconnects); !gap {
				t.Error("no gap")
			}
		})
	}
}

func TestReplacedBySecondConnection(t *testing.T) {
	n := start(t, clienttest.Options{})
	_, e := reserve(t, n)
	o, w := watch(client.Options{})
	first, err := client.Dial(within(t), e, o)
	if err != nil {
		t.Fatal(err)
	}
	// A Confirm as old as the one accepted last is dropped, and a millisecond is as fine
	// as that gets.
	var second *client.Client
	for second == nil {
		second, err = client.Dial(within(t), e, client.Options{HandshakeTimeout: 200 * time.Millisecond})
		if err != nil && !errors.Is(err, client.ErrHandshakeTimeout) {
			t.Fatal(err)
		}
	}
	defer shut(second)
	if d := take(t, "disconnect", w.disconnects); d.Code != client.CloseReplaced || !d.Final {
		t.Errorf("disconnect %+v", d)
	}
	take(t, "the end", first.Done())
	if _, err := second.Request(within(t), 2, 1, nil); err != nil {
		t.Error(err)
	}
}

func TestMove(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		first := start(t, clienttest.Options{TCP: tcp, Handle: counter})
		second := start(t, clienttest.Options{TCP: tcp, Handle: counter})
		o, w := watch(newCluster(t, first).options())
		o.Transport = client.UDP
		if tcp {
			o.Transport = client.TCP
		}
		c := connect(t, o)
		take(t, "answers", ask(t, c, 0, 20))
		first.Do(func() { eachConn(first).MoveTo(second, 5*time.Second, true) })
		done := ask(t, c, 20, 60)
		if addr := take(t, "move", w.moves); addr != second.Addr().String() || c.Addr() != addr {
			t.Errorf("moved to %s", addr)
		}
		take(t, "answers", done)
		take(t, "answers", ask(t, c, 60, 70))
		if s := c.Stats(); s.Moves != 1 || s.Gaps != 0 || s.Resumes != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestMoveUnderTraffic(t *testing.T) {
	t.Parallel()
	a := newAir(5)
	nodes := []*clienttest.Node{start(t, clienttest.Options{Handle: counter}), start(t, clienttest.Options{Handle: counter})}
	o, w := watch(newCluster(t, nodes[0]).options())
	o.Dial = a.dial
	c := connect(t, o)
	a.loss.Store(100)
	at := uint32(0)
	for i := range 6 {
		from, to := nodes[i%2], nodes[(i+1)%2]
		done := ask(t, c, at, at+50)
		at += 50
		from.Do(func() { eachConn(from).MoveTo(to, 10*time.Second, true) })
		take(t, "move", w.moves)
		take(t, "answers", done)
	}
	if s := c.Stats(); s.Moves != 6 || s.Gaps != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestFailedMoveGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	transports(t, func(t *testing.T, tcp bool) {
		first := start(t, clienttest.Options{TCP: tcp, Handle: counter})
		second := start(t, clienttest.Options{TCP: tcp})
		o, w := watch(newCluster(t, first).options())
		o.Transport = client.UDP
		if tcp {
			o.Transport = client.TCP
		}
		c := connect(t, o)
		take(t, "answers", ask(t, c, 0, 5))
		first.Do(func() { eachConn(first).MoveTo(second, 600*time.Millisecond, false) })
		take(t, "answers", ask(t, c, 5, 25))
		if c.Addr() != first.Addr().String() || len(w.moves) != 0 || len(w.reconnects) != 0 {
			t.Errorf("at %s after a failed move", c.Addr())
		}
	})
}

func TestServerGivesTheMoveUp(t *testing.T) {
	first := start(t, clienttest.Options{TCP: true, Handle: counter})
	second := start(t, clienttest.Options{TCP: true})
	o, w := watch(newCluster(t, first).options())
	o.Transport = client.TCP
	c := connect(t, o)
	take(t, "answers", ask(t, c, 0, 5))
	first.Do(func() { eachConn(first).MoveTo(second, 10*patience, false) })
	done := ask(t, c, 5, 25)
	// Whatever of these the server has by now it answers before our deadline ends the move.
	first.Do(func() { eachConn(first).Thaw() })
	first.Do(func() { _ = eachConn(first).Push(2, 2, nil, reliable.Reliable) })
	take(t, "answers", done)
	if len(w.reconnects) != 0 || len(w.disconnects) != 0 {
		t.Error("the connection did not survive")
	}
}

func TestNewestMoveWins(t *testing.T) {
	first := start(t, clienttest.Options{Handle: counter})
	nowhere := start(t, clienttest.Options{})
	second := start(t, clienttest.Options{Handle: counter})
	o, w := watch(newCluster(t, first).options())
	c := connect(t, o)
	take(t, "answers", ask(t, c, 0, 5))
	first.Do(func() { eachConn(first).MoveTo(nowhere, 10*time.Second, false) })
	first.Do(func() { eachConn(first).MoveTo(second, 10*time.Second, true) })
	if addr := take(t, "move", w.moves); addr != second.Addr().String() {
		t.Errorf("moved to %s", addr)
	}
	take(t, "answers", ask(t, c, 5, 25))
}

func TestMoveWithoutStateIsAGap(t *testing.T) {
	first, second := start(t, clienttest.Options{}), start(t, clienttest.Options{})
	o, w := watch(newCluster(t, first).options())
	connect(t, o)
	first.Do(func() {
		second.Adopt(eachConn(first).Place) // the place without what belongs to it
		eachConn(first).MoveTo(second, 10*time.Second, false)
	})
	if gap := take(t, "reconnect", w.reconnects); !gap {
		t.Error("a connection without the state went for a resumed one")
	}
}

func TestOffline(t *testing.T) {
	first := start(t, clienttest.Options{})
	k := newCluster(t, first)
	o, w := watch(k.options())
	stays := connect(t, o)
	first.Do(func() { eachConn(first).Offline(1) })
	if reason := take(t, "offline", w.offline); reason != 1 {
		t.Errorf("reason %d", reason)
	}
	if _, err := stays.Request(within(t), 2, 1, nil); err != nil {
		t.Errorf("the game can't go on: %v", err)
	}
	k.node.Store(start(t, clienttest.Options{}))
	stays.Reenter()
	if gap := take(t, "reconnect", w.reconnects); !gap || stays.Addr() != k.node.Load().Addr().String() {
		t.Errorf("at %s after reenter", stays.Addr())
	}
}

func TestLeaveOffline(t *testing.T) {
	first := start(t, clienttest.Options{})
	k := newCluster(t, first)
	o, w := watch(k.options())
	o.LeaveOffline = true
	c := connect(t, o)
	k.node.Store(start(t, clienttest.Options{}))
	first.Do(func() { eachConn(first).Offline(2) })
	if reason := take(t, "offline", w.offline); reason != 2 {
		t.Errorf("reason %d", reason)
	}
	take(t, "reconnect", w.reconnects)
	if c.Addr() != k.node.Load().Addr().String() {
		t.Errorf("at %s", c.Addr())
	}
}

func TestNoReconnect(t *testing.T) {
	n := start(t, clienttest.Options{})
	o, w := watch(newCluster(t, n).options())
	o.NoReconnect = true
	c := connect(t, o)
	n.Do(func() { eachConn(n).Close(wire.CloseShutdown, "") })
	if d := take(t, "disconnect", w.disconnects); !d.Final || d.Code != client.CloseShutdown {
		t.Errorf("disconnect %+v", d)
	}
	take(t, "the end", c.Done())
	if err := c.Send(2, 1, nil, client.Reliable); !errors.Is(err, client.ErrClosed) {
		t.Errorf("send after the end: %v", err)
	}
}

func TestCloseWhileSearching(t *testing.T) {
	n := start(t, clienttest.Options{})
	k := newCluster(t, n)
	o, w := watch(k.options())
	c := connect(t, o)
	k.node.Store(nil)
	n.Do(func() { eachConn(n).Close(wire.CloseInternal, "") })
	take(t, "disconnect", w.disconnects)
	if err := c.Close(within(t)); err != nil {
		t.Error(err)
	}
}

func TestPermanentRefusalEndsTheClient(t *testing.T) {
	n := start(t, clienttest.Options{})
	k := newCluster(t, n)
	o, w := watch(k.options())
	c := connect(t, o)
	k.refuse.Store(true)
	n.Do(func() { eachConn(n).Close(wire.CloseInternal, "") })
	for {
		d := take(t, "disconnect", w.disconnects)
		if !d.Final {
			continue
		}
		if e, ok := errors.AsType[*client.EndpointError](d.Err); !ok || e.HTTPStatus != 401 {
			t.Errorf("disconnect %+v", d)
		}
		break
	}
	take(t, "the end", c.Done())
}

// TestResumeThatIsHopelessEnds has a node that dropped the state as soon as the
// connection broke: the client finds out and starts over.
func TestResumeThatIsHopelessEnds(t *testing.T) {
	n := start(t, clienttest.Options{TCP: true, Forget: true})
	o, w := watch(newCluster(t, n).options())
	o.Transport = client.TCP
	connect(t, o)
	n.BreakAll()
	if gap := take(t, "reconnect", w.reconnects); !gap {
		t.Error("no gap")
	}
}
