package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/wire"
)

// TestEndedIsBelieved: a client that missed the CLOSE hears of it when it tries to come
// back. What it does not want back stays away, in particular a device that was replaced
// does not throw the newer one out; the others ask for a new place.
func TestEndedIsBelieved(t *testing.T) {
	for _, q := range []struct {
		code wire.CloseCode
		want error // nil: it comes back
	}{
		{client.CloseNormal, client.ErrLeft}, {client.CloseReplaced, client.ErrReplaced}, {client.CloseKicked, client.ErrKicked},
		{client.CloseSlow, nil}, {client.CloseRate, nil}, {client.CloseIdle, nil}, {client.CloseShutdown, nil},
		{client.CloseInternal, nil}, {77, nil},
	} {
		t.Run(q.code.String(), func(t *testing.T) {
			t.Parallel()
			transports(t, func(t *testing.T, tcp bool) {
				t.Parallel()
				n := start(t, clienttest.Options{TCP: tcp})
				k := newCluster(t, n)
				o, w := watch(k.options())
				if o.Transport = client.UDP; tcp {
					o.Transport = client.TCP
				}
				c := connect(t, o)
				var place *clienttest.Place
				n.Do(func() { place = eachConn(n).Place })
				asked := k.asks.Load()
				n.End(place, q.code)
				if q.want == nil {
					if gap := take(t, "reconnect", w.reconnects); !gap {
						t.Error("no gap")
					}
					if _, err := c.Request(within(t), 2, 1, nil); err != nil || k.asks.Load() != asked+1 {
						t.Errorf("asked %d times for a place: %v", k.asks.Load()-asked, err)
					}
					return
				}
				take(t, "the end", c.Done())
				var last client.Disconnect
				for len(w.disconnects) > 0 {
					last = <-w.disconnects
				}
				if !last.Final || last.Code != q.code || !errors.Is(last.Err, q.want) || !errors.Is(c.Err(), q.want) {
					t.Errorf("disconnect %+v, the client ended by %v", last, c.Err())
				}
				if err := c.Send(2, 1, nil, client.Reliable); !errors.Is(err, client.ErrClosed) || !errors.Is(err, q.want) {
					t.Errorf("send afterwards: %v", err)
				}
				if k.asks.Load() != asked {
					t.Error("it asked for a place, to throw out who replaced it")
				}
			})
		})
	}
}

// TestEndedOfAPlace that is connected to for the first time.
func TestEndedOfAPlace(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		n := start(t, clienttest.Options{TCP: tcp})
		p, e := reserve(t, n)
		n.End(p, wire.CloseReplaced)
		began := time.Now()
		if _, err := client.Dial(within(t), e, client.Options{HandshakeTimeout: 10 * patience}); !errors.Is(err, client.ErrReplaced) {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// TestEndedElsewhere: the node that a MOVE named says it.
func TestEndedElsewhere(t *testing.T) {
	for code, final := range map[wire.CloseCode]bool{wire.CloseKicked: true, wire.CloseIdle: false} {
		t.Run(code.String(), func(t *testing.T) {
			first, second := start(t, clienttest.Options{}), start(t, clienttest.Options{})
			o, w := watch(newCluster(t, first).options())
			c := connect(t, o)
			var place *clienttest.Place
			first.Do(func() { place = eachConn(first).Place })
			second.End(place, code)
			first.Do(func() { eachConn(first).MoveTo(second, patience, false) })
			if !final {
				if gap := take(t, "reconnect", w.reconnects); !gap {
					t.Error("no gap")
				}
				return
			}
			take(t, "the end", c.Done())
			if !errors.Is(c.Err(), client.ErrKicked) {
				t.Errorf("ended by %v", c.Err())
			}
		})
	}
}

// TestForgedEndedIsNone: it has the Hello's numbers, which anybody on the way can read, but
// not its mac.
func TestForgedEndedIsNone(t *testing.T) {
	n := start(t, clienttest.Options{})
	_, e := reserve(t, n)
	forged := make(chan struct{}, 9)
	c, err := client.Dial(within(t), e, client.Options{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		return &forger{Conn: conn, forged: forged}, err
	}})
	if err != nil {
		t.Fatal(err)
	}
	take(t, "the forgery", forged)
	shut(c)
}

// forger answers each Hello before the node can.
type forger struct {
	net.Conn
	forged chan struct{}
	answer []byte
}

func (f *forger) Write(b []byte) (int, error) {
	if wire.TypeOf(b) == wire.PacketHello {
		e := wire.Ended{Code: wire.CloseKicked, CID0: wire.CID(b[4:12]), Nc: wire.Nonce(b[12:28])}
		f.answer = e.AppendTo(nil)
	}
	return f.Conn.Write(b)
}

func (f *forger) Read(b []byte) (int, error) {
	if f.answer != nil {
		n := copy(b, f.answer)
		f.answer = nil
		f.forged <- struct{}{}
		return n, nil
	}
	return f.Conn.Read(b)
}

// TestReplacedByItself: a resume beside the old connection replaces it, and the CLOSE
// that tells so there overtakes the Accept, or the Accept gets lost.
func TestReplacedByItself(t *testing.T) {
	for _, lost := range []int{0, 1, 4} {
		t.Run(fmt.Sprintf("%d accepts lost", lost), func(t *testing.T) {
			t.Parallel()
			n := start(t, clienttest.Options{Handle: counter})
			k := newCluster(t, n)
			o, w := watch(k.options())
			o.HandshakeTimeout = time.Second
			c := connect(t, o)
			take(t, "answers", ask(t, c, 0, 10))
			asked := k.asks.Load()
			n.LoseAccepts(lost)
			n.Do(func() { eachConn(n).Mute() })
			done := ask(t, c, 10, 30)
			if gap := take(t, "reconnect", w.reconnects); gap {
				t.Error("the state was lost")
			}
			take(t, "answers", done)
			for len(w.disconnects) > 0 {
				if d := <-w.disconnects; d.Final || d.Code != client.CloseIdle {
					t.Errorf("disconnect %+v", d)
				}
			}
			if s := c.Stats(); s.Resumes != 1 || s.Gaps != 0 || k.asks.Load() != asked {
				t.Errorf("stats %+v, asked %d times for a place", s, k.asks.Load()-asked)
			}
		})
	}
}
