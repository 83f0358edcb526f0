package client_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

// silentAfter is how soon a connection may be judged.
const silentAfter = 2 * time.Second

// TestSilenceIsJudged: a connection that brings nothing any more is resumed beside, in
// seconds and not after the idle timeout, and nothing reliable is lost.
func TestSilenceIsJudged(t *testing.T) {
	for name, talk := range map[string]bool{"of who talks": true, "of who says nothing": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const idle = 6 * time.Second // who says nothing sends a PING after a third
			n := start(t, clienttest.Options{Handle: counter, IdleTimeout: idle})
			o, w := watch(newCluster(t, n).options())
			c := connect(t, o)
			take(t, "answers", ask(t, c, 0, 10))
			n.Do(func() { eachConn(n).Mute() })
			began := time.Now()
			answered := make(chan struct{})
			if close(answered); talk {
				answered = make(chan struct{})
				done := ask(t, c, 10, 20)
				go func() { <-done; close(answered) }()
			}
			d := take(t, "disconnect", w.disconnects)
			took := time.Since(began)
			if gap := take(t, "reconnect", w.reconnects); gap || d.Final {
				t.Errorf("gap %v, disconnect %+v", gap, d)
			}
			take(t, "answers", answered)
			t.Logf("resumed after %v", took)
			if took < silentAfter || took >= idle {
				t.Errorf("resumed after %v", took)
			}
			if s := c.Stats(); s.Resumes != 1 || s.Gaps != 0 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

// TestSilenceOfTCPIsJudged, later: one lost segment stalls all there for seconds.
func TestSilenceOfTCPIsJudged(t *testing.T) {
	t.Parallel()
	n := start(t, clienttest.Options{TCP: true, Handle: counter})
	o, w := watch(newCluster(t, n).options())
	o.Transport = client.TCP
	c := connect(t, o)
	take(t, "answers", ask(t, c, 0, 10))
	n.Do(func() { eachConn(n).Mute() })
	began := time.Now()
	done := ask(t, c, 10, 20)
	if gap := take(t, "reconnect", w.reconnects); gap {
		t.Error("the state was lost")
	}
	if took := time.Since(began); took < 5*time.Second || took >= 10*time.Second {
		t.Errorf("resumed after %v", took)
	}
	take(t, "answers", done)
}

// hellos are sockets that count the Hellos of a client and may swallow them, or all.
type hellos struct {
	count   atomic.Int64
	swallow atomic.Bool
	dark    atomic.Bool
	sent    chan struct{}
}

func (h *hellos) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &helloConn{conn, h}, nil
}

type helloConn struct {
	net.Conn
	h *hellos
}

func (c *helloConn) Write(b []byte) (int, error) {
	if wire.TypeOf(b) == wire.PacketHello {
		c.h.count.Add(1)
		select {
		case c.h.sent <- struct{}{}:
		default:
		}
		if c.h.swallow.Load() {
			return len(b), nil
		}
	}
	if c.h.dark.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *helloConn) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if err != nil || !c.h.dark.Load() {
			return n, err
		}
	}
}

// TestOldConnectionComesBackToLife before a Confirm left: that ends the resume beside it,
// and the game notices nothing.
func TestOldConnectionComesBackToLife(t *testing.T) {
	t.Parallel()
	h := &hellos{sent: make(chan struct{}, 1)}
	r := startReal(t, false, transport.Config{})
	o, w := watch(client.Options{Dial: h.dial})
	c, _ := r.dial(t, o)
	<-h.sent
	take(t, "answers", ask(t, c, 0, 10))
	h.swallow.Store(true)
	h.dark.Store(true)
	done := ask(t, c, 10, 20)
	take(t, "a resume beside", h.sent)
	h.dark.Store(false)
	take(t, "answers", done)
	h.swallow.Store(false)
	take(t, "answers", ask(t, c, 20, 30))
	w.requireUnnoticed(t)
	if s := c.Stats(); s.Resumes != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestMoveBeatsAResume: MOVE on the old connection is followed.
func TestMoveBeatsAResume(t *testing.T) {
	t.Parallel()
	h := &hellos{sent: make(chan struct{}, 1)}
	first, second := start(t, clienttest.Options{Handle: counter}), start(t, clienttest.Options{Handle: counter})
	o, w := watch(newCluster(t, first).options())
	o.Dial = h.dial
	c := connect(t, o)
	<-h.sent
	take(t, "answers", ask(t, c, 0, 10))
	first.SetDeaf(true)
	done := ask(t, c, 10, 20)
	take(t, "a resume beside", h.sent)
	first.Do(func() { eachConn(first).MoveTo(second, patience, true) })
	take(t, "move", w.moves)
	take(t, "answers", done)
	w.requireUnnoticed(t)
}

// TestLossIsNoReason: packets that are lost one by one, or their answers, are no silence.
func TestLossIsNoReason(t *testing.T) {
	t.Parallel()
	h := &hellos{}
	a := newAir(11)
	n := start(t, clienttest.Options{Handle: counter})
	o, w := watch(newCluster(t, n).options())
	o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := h.dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &airConn{conn, a}, nil
	}
	c := connect(t, o)
	a.loss.Store(150)
	before := h.count.Load()
	for i := range uint32(40) { // one at a time: each is lost now and then, and so is its answer
		take(t, "answer", ask(t, c, i, i+1))
	}
	if w.requireUnnoticed(t); h.count.Load() != before {
		t.Errorf("%d hellos", h.count.Load()-before)
	}
}

// TestOwnStandstillIsNoSilence: a callback that takes long, as a program that is
// suspended, keeps the client from reading what the node said.
func TestOwnStandstillIsNoSilence(t *testing.T) {
	t.Parallel()
	h := &hellos{}
	n := start(t, clienttest.Options{Handle: counter})
	o, w := watch(newCluster(t, n).options())
	o.Dial = h.dial
	release, began := make(chan struct{}), make(chan struct{})
	o.OnPush = func(client.Push) { close(began); <-release }
	c := connect(t, o)
	take(t, "answers", ask(t, c, 0, 10))
	before := h.count.Load()
	n.Do(func() { _ = eachConn(n).Push(2, 1, nil, reliable.Reliable) })
	take(t, "the callback", began)
	done := ask(t, c, 10, 20)
	<-time.After(silentAfter + time.Second) // what the client must not take for the node's
	close(release)
	take(t, "answers", done)
	if w.requireUnnoticed(t); h.count.Load() != before {
		t.Errorf("%d hellos", h.count.Load()-before)
	}
}

// directory is an HTTP role that also knows which runs of nodes are gone.
type directory struct {
	*cluster
	gone  atomic.Pointer[string]
	asked atomic.Int64
}

func newDirectory(t *testing.T, n *clienttest.Node) *directory {
	t.Helper()
	d := &directory{cluster: &cluster{}}
	d.cluster.node.Store(n)
	endpoints := clienttest.Endpoints(func(string) *clienttest.Node { return d.cluster.node.Load() })
	mux := http.NewServeMux()
	mux.Handle("/endpoint/", endpoints)
	mux.HandleFunc("GET /node/{token}", func(w http.ResponseWriter, r *http.Request) {
		d.asked.Add(1)
		if r.Header.Get("ClientKey")+r.Header.Get("Authorization") != "" {
			t.Error("the question carries a secret")
		}
		state := "online"
		if gone := d.gone.Load(); gone != nil && r.PathValue("token") == *gone {
			state = "gone"
		}
		_, _ = fmt.Fprintf(w, `{"state":%q}`, state)
	})
	s := httptest.NewServer(mux)
	d.url, d.http = s.URL, s.Client()
	t.Cleanup(func() { d.http.CloseIdleConnections(); s.Close() })
	return d
}

// TestGoneNodeIsLeft: a process that was killed and started anew on the same port has
// nothing to say to a connection of before. Who talks, and who only listens, notices, and
// the HTTP role's word spares them the time that a resume is tried.
func TestGoneNodeIsLeft(t *testing.T) {
	for name, talks := range map[string]bool{"by who talks": true, "by who listens": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := start(t, clienttest.Options{Token: "first", IdleTimeout: time.Minute})
			d := newDirectory(t, n)
			o, w := watch(d.options())
			o.ClientKey = ""
			o.ResumeFor = 10 * patience
			c := connect(t, o)
			stop := make(chan struct{})
			pushing := make(chan struct{})
			go func() {
				defer close(pushing)
				for tick := time.NewTicker(100 * time.Millisecond); ; {
					select {
					case <-stop:
						tick.Stop()
						return
					case <-tick.C:
					}
					n.Do(func() {
						if conn := eachConn(n); conn != nil && !talks {
							_ = conn.Push(2, 1, nil, reliable.Unreliable)
						}
					})
					if talks {
						_ = c.Send(2, 1, nil, client.Unreliable)
					}
				}
			}()
			defer func() { close(stop); <-pushing }()
			for c.Stats().PacketsReceived < 5 {
				<-time.After(10 * time.Millisecond)
			}
			gone := "first"
			began := time.Now()
			n.Restart("second")
			d.gone.Store(&gone)
			if gap := take(t, "reconnect", w.reconnects); !gap {
				t.Error("no gap although the process is another")
			}
			t.Logf("back after %v, %d questions", time.Since(began), d.asked.Load())
			if _, err := c.Request(within(t), 2, 1, nil); err != nil || d.asked.Load() == 0 {
				t.Errorf("request: %v, the role was asked %d times", err, d.asked.Load())
			}
		})
	}
}

// TestTokenOfTheNodeThatOneMovedTo: the one of the endpoint names the node before.
func TestTokenOfTheNodeThatOneMovedTo(t *testing.T) {
	t.Parallel()
	first, second := start(t, clienttest.Options{Token: "first"}), start(t, clienttest.Options{Token: "second"})
	d := newDirectory(t, first)
	o, w := watch(d.options())
	o.ResumeFor = 10 * patience
	connect(t, o)
	first.Do(func() { eachConn(first).MoveTo(second, patience, true) })
	take(t, "move", w.moves)
	gone := "second"
	d.gone.Store(&gone)
	second.Restart("third")
	if gap := take(t, "reconnect", w.reconnects); !gap {
		t.Error("no gap")
	}
}
