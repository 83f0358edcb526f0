package client_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// transports runs a test over both.
func transports(t *testing.T, f func(t *testing.T, tcp bool)) {
	t.Run("udp", func(t *testing.T) { f(t, false) })
	t.Run("tcp", func(t *testing.T) { f(t, true) })
}

func TestConnectAndRequest(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		n := start(t, clienttest.Options{TCP: tcp})
		o := newCluster(t, n).options()
		c, err := client.Connect(within(t), o)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{0, 1, 1000, 5000, 200_000} {
			payload := bytes.Repeat([]byte{byte(size)}, size)
			r, err := c.Request(within(t), 2, 7, payload)
			if err != nil || r.Ver != 2 || r.Cmd != 7 || r.Status != client.StatusOK || !bytes.Equal(r.Payload, payload) {
				t.Fatalf("echo of %d bytes: %v", size, err)
			}
		}
		if c.Addr() != n.Addr().String() || !c.Connected() || c.Latency() <= 0 {
			t.Errorf("connected %v to %s, latency %v", c.Connected(), c.Addr(), c.Latency())
		}
		if d := c.ClockOffset(); d < -time.Second || d > time.Second {
			t.Errorf("the clock of this machine is %v ahead of itself", d)
		}
		if err := c.Close(within(t)); err != nil {
			t.Error(err)
		}
		if _, err := c.Request(within(t), 2, 7, nil); !errors.Is(err, client.ErrClosed) {
			t.Errorf("request after close: %v", err)
		}
		if err := c.Close(within(t)); err != nil {
			t.Errorf("second close: %v", err)
		}
	})
}

func TestStatusErrors(t *testing.T) {
	n := start(t, clienttest.Options{Handle: func(c *clienttest.Conn, m wire.Message, _ reliable.Reliability) {
		c.Respond(m, uint8(m.Cmd), m.Payload)
	}})
	c, _ := dial(t, n, client.Options{})
	for _, q := range []struct {
		name    string
		status  uint16
		payload string
		code    uint32
		text    string
	}{
		{"structured", 4, "\x00\x00\x07\xd2room is full", 2002, "room is full"},
		{"text", 5, "internal error", 0, "internal error"},
		{"short text", 4, "no", 0, "no"},
		{"empty", 4, "", 0, ""},
	} {
		t.Run(q.name, func(t *testing.T) {
			r, err := c.Request(within(t), 9, q.status, []byte(q.payload))
			e, ok := errors.AsType[*client.StatusError](err)
			if !ok || e.Status != uint8(q.status) || e.Code != q.code || e.Text != q.text || e.Ver != 9 || e.Cmd != q.status {
				t.Errorf("error %+v", err)
			}
			if string(r.Payload) != q.payload {
				t.Errorf("payload %q", r.Payload)
			}
		})
	}
}

// Each channel keeps its order, and what comes back on it says so.
func TestChannels(t *testing.T) {
	channels := []uint8{0, 1, 15, 255}
	n := start(t, clienttest.Options{Handle: func(c *clienttest.Conn, m wire.Message, rel reliable.Reliability) {
		_ = c.Push(m.Ver, m.Cmd, m.Payload, rel)
	}})
	const count = 100
	got := make(chan client.Push, count*len(channels))
	c, _ := dial(t, n, client.Options{OnPush: func(p client.Push) {
		p.Payload = bytes.Clone(p.Payload)
		got <- p
	}})
	for i := range uint32(count) {
		for _, ch := range channels {
			if err := c.Send(3, uint16(ch), binary.BigEndian.AppendUint32(nil, i), client.OnChannel(ch)); err != nil {
				t.Fatal(err)
			}
		}
	}
	next := map[uint16]uint32{}
	for range count * len(channels) {
		p := take(t, "push", got)
		if i := binary.BigEndian.Uint32(p.Payload); p.Rel != client.OnChannel(uint8(p.Cmd)) || p.Cmd < 255 && i != next[p.Cmd] {
			t.Fatalf("message %d of channel %d came as %d of channel %d", next[p.Cmd], p.Cmd, i, p.Rel.Channel())
		}
		next[p.Cmd]++
	}
	if err := c.Send(3, 1, nil, client.OnChannel(16)); err == nil {
		t.Error("sent on a channel that does not exist")
	}
}

func TestPushesArriveInOrder(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		const count = 500
		got := make(chan uint32, count)
		n := start(t, clienttest.Options{TCP: tcp, Handle: func(c *clienttest.Conn, m wire.Message, rel reliable.Reliability) {
			_ = c.Push(m.Ver, m.Cmd, m.Payload, rel)
		}})
		c, _ := dial(t, n, client.Options{OnPush: func(p client.Push) {
			if p.Rel != client.Reliable || p.Ver != 3 || p.Cmd != 300 {
				t.Errorf("push %+v", p)
			}
			got <- binary.BigEndian.Uint32(p.Payload)
		}})
		for i := range uint32(count) {
			if err := c.Send(3, 300, binary.BigEndian.AppendUint32(nil, i), client.Reliable); err != nil {
				t.Fatal(err)
			}
		}
		for i := range uint32(count) {
			if v := take(t, "push", got); v != i {
				t.Fatalf("push %d came when %d was due", v, i)
			}
		}
		if err := c.Close(within(t)); err != nil {
			t.Error(err)
		}
	})
}

func TestUnreliableRoundTrip(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		got := make(chan client.Push, 10)
		n := start(t, clienttest.Options{TCP: tcp, Handle: func(c *clienttest.Conn, m wire.Message, rel reliable.Reliability) {
			_ = c.Push(m.Ver, m.Cmd, m.Payload, rel)
		}})
		c, _ := dial(t, n, client.Options{OnPush: func(p client.Push) {
			p.Payload = bytes.Clone(p.Payload)
			got <- p
		}})
		if err := c.Send(2, 1, []byte("hi"), client.Unreliable); err != nil {
			t.Fatal(err)
		}
		if p := take(t, "push", got); p.Rel != client.Unreliable || string(p.Payload) != "hi" {
			t.Errorf("push %+v", p)
		}
		if err := c.Send(2, 1, make([]byte, 1200), client.Unreliable); !tcp && !errors.Is(err, client.ErrTooLarge) {
			t.Errorf("an unreliable message over a datagram: %v", err)
		}
		if err := c.Send(2, 1, make([]byte, 1<<20), client.Reliable); !errors.Is(err, client.ErrTooLarge) {
			t.Errorf("a message over 1 MiB: %v", err)
		}
	})
}

func TestSendFromCallback(t *testing.T) {
	done := make(chan string, 1)
	responses := make(chan client.Response, 1)
	n := start(t, clienttest.Options{Handle: func(c *clienttest.Conn, m wire.Message, _ reliable.Reliability) {
		if m.Cmd == 1 {
			_ = c.Push(2, 1, nil, reliable.Reliable)
			return
		}
		c.Respond(m, 1, m.Payload)
	}})
	var c *client.Client
	ready := make(chan struct{})
	c, _ = dial(t, n, client.Options{
		OnPush: func(client.Push) {
			<-ready
			if err := c.Go(2, 2, []byte("later"), func(r client.Response, err error) { done <- fmt.Sprint(string(r.Payload), err) }); err != nil {
				t.Error(err)
			}
			if err := c.Send(2, 3, []byte("without id"), client.Reliable); err != nil {
				t.Error(err)
			}
		},
		OnResponse: func(r client.Response) {
			r.Payload = bytes.Clone(r.Payload)
			responses <- r
		},
	})
	close(ready)
	if err := c.Send(2, 1, nil, client.Reliable); err != nil {
		t.Fatal(err)
	}
	if got := take(t, "answer", done); got != "later<nil>" {
		t.Errorf("answer %q", got)
	}
	if r := take(t, "response without id", responses); r.Cmd != 3 || string(r.Payload) != "without id" {
		t.Errorf("response %+v", r)
	}
}

func TestRequestGivesUpWithItsContext(t *testing.T) {
	asked := make(chan struct{}, 1)
	n := start(t, clienttest.Options{Handle: func(*clienttest.Conn, wire.Message, reliable.Reliability) { asked <- struct{}{} }})
	c, _ := dial(t, n, client.Options{})
	ctx, cancel := context.WithCancel(within(t))
	go func() {
		<-asked
		cancel()
	}()
	if _, err := c.Request(ctx, 2, 1, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	answered := make(chan error, 1)
	if err := c.Go(2, 1, nil, func(_ client.Response, err error) { answered <- err }); err != nil {
		t.Fatal(err)
	}
	<-asked
	if err := c.Close(within(t)); err != nil {
		t.Error(err)
	}
	if err := take(t, "the end of the call", answered); !errors.Is(err, client.ErrClosed) {
		t.Errorf("call at close: %v", err)
	}
}

func TestHandshakeThroughLoss(t *testing.T) {
	t.Parallel()
	a := newAir(7)
	a.loss.Store(300)
	n := start(t, clienttest.Options{})
	for range 5 {
		_, e := reserve(t, n)
		var c *client.Client
		for c == nil {
			got, err := client.Dial(within(t), e, client.Options{Dial: a.dial, HandshakeTimeout: 2500 * time.Millisecond})
			if err == nil {
				c = got
			} else if !errors.Is(err, client.ErrHandshakeTimeout) {
				t.Fatal(err)
			}
		}
		if _, err := c.Request(within(t), 2, 1, []byte("x")); err != nil {
			t.Error(err)
		}
		shut(c)
	}
}

func TestReliableThroughLoss(t *testing.T) {
	t.Parallel()
	const count = 300
	a := newAir(3)
	n := start(t, clienttest.Options{})
	c, _ := dial(t, n, client.Options{Dial: a.dial})
	a.loss.Store(200)
	got := make(chan uint32, count)
	for i := range uint32(count) {
		err := c.Go(2, 1, binary.BigEndian.AppendUint32(nil, i), func(r client.Response, err error) {
			if err != nil {
				t.Error(err)
				return
			}
			got <- binary.BigEndian.Uint32(r.Payload)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint32(count) {
		if v := take(t, "answer", got); v != i {
			t.Fatalf("answer %d came when %d was due", v, i)
		}
	}
}

func TestHandshakeFailures(t *testing.T) {
	t.Parallel()
	short := client.Options{HandshakeTimeout: 300 * time.Millisecond}
	transports(t, func(t *testing.T, tcp bool) {
		n := start(t, clienttest.Options{TCP: tcp, ClientKey: "right"})
		_, e := reserve(t, n)
		wrong := short
		wrong.ClientKey = "wrong"
		if _, err := client.Dial(within(t), e, wrong); !errors.Is(err, map[bool]error{false: client.ErrHandshakeTimeout, true: client.ErrHandshakeEnded}[tcp]) {
			t.Errorf("wrong client key: %v", err)
		}
		right := short
		right.ClientKey = "right"
		c, err := client.Dial(within(t), e, right)
		if err != nil {
			t.Fatal(err)
		}
		shut(c)
		n.Kill()
		_, err = client.Dial(within(t), e, client.Options{})
		if !errors.Is(err, client.ErrHandshakeRefused) {
			t.Errorf("nobody there: %v", err)
		}
		ctx, cancel := context.WithCancel(within(t))
		cancel()
		if _, err = client.Dial(ctx, e, client.Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
		for _, secret := range []string{e.SID, e.EncryptionKey, e.EncryptionIV, e.EncryptionMacKey} {
			if strings.Contains(fmt.Sprintf("%v %+v %#v %s", e, e, e, err), secret) {
				t.Error("a key got into a text")
			}
		}
	})
}

// TestHandshakeSchedule has nobody answer, in a bubble whose clock is exact.
func TestHandshakeSchedule(t *testing.T) {
	_, e := reserve(t, start(t, clienttest.Options{}))
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		begin := time.Now()
		var at []time.Duration
		var hellos [][]byte
		read := make(chan struct{})
		go func() {
			defer close(read)
			buf := make([]byte, 2048)
			for {
				n, err := far.Read(buf)
				if err != nil {
					return
				}
				at, hellos = append(at, time.Since(begin)), append(hellos, bytes.Clone(buf[:n]))
			}
		}()
		_, err := client.Dial(context.Background(), e, client.Options{
			Dial: func(context.Context, string, string) (net.Conn, error) { return near, nil },
		})
		if !errors.Is(err, client.ErrHandshakeTimeout) || time.Since(begin) != 4*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		<-read
		if want := []time.Duration{0, 250e6, 500e6, 1000e6, 2000e6, 3000e6}; !slices.Equal(at, want) {
			t.Errorf("hellos at %v, want %v", at, want)
		}
		for _, h := range hellos {
			if len(h) != wire.HelloBytes || !bytes.Equal(h, hellos[0]) {
				t.Error("hellos differ")
			}
		}
	})
}

func TestPacing(t *testing.T) {
	t.Parallel()
	const count = 60
	seen := make(chan struct{}, count)
	n := start(t, clienttest.Options{PacketsPerSecond: 100, Handle: func(*clienttest.Conn, wire.Message, reliable.Reliability) {
		seen <- struct{}{}
	}})
	c, _ := dial(t, n, client.Options{})
	before := c.Stats().PacketsSent
	for range count {
		if err := c.Send(2, 1, make([]byte, 900), client.Reliable); err != nil {
			t.Fatal(err)
		}
	}
	if sent := c.Stats().PacketsSent - before; sent > 30 {
		t.Errorf("%d packets went at once at 100 packets/s", sent)
	}
	for range count {
		take(t, "message", seen)
	}
}

func TestCloseFlushes(t *testing.T) {
	transports(t, func(t *testing.T, tcp bool) {
		const count = 200
		var got int
		ended := make(chan wire.CloseCode, 1)
		n := start(t, clienttest.Options{
			TCP:    tcp,
			Handle: func(*clienttest.Conn, wire.Message, reliable.Reliability) { got++ },
			Ended:  func(_ *clienttest.Place, code wire.CloseCode) { ended <- code },
		})
		a := newAir(9)
		o := client.Options{}
		if !tcp {
			o.Dial = a.dial
		}
		c, _ := dial(t, n, o)
		a.loss.Store(100)
		for range count {
			if err := c.Send(2, 1, make([]byte, 700), client.Reliable); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(within(t)); err != nil {
			t.Fatal(err)
		}
		n.Do(func() {
			if got != count {
				t.Errorf("%d of %d messages arrived before close returned", got, count)
			}
		})
		if tcp {
			if code := take(t, "close", ended); code != client.CloseNormal {
				t.Errorf("closed with %v", code)
			}
		}
	})
}
