package client_test

import (
	"context"
	"errors"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/client"
	"github.com/Diarkis/diarkis/client/clienttest"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// method is one public method of a client, called in a way that should work.
type method struct {
	waits bool // for an answer of the node
	call  func(c *client.Client, ctx context.Context, e client.Endpoint) error
}

// methods has every public method of a client by its name.
var methods = map[string]method{
	"Connect": {false, func(c *client.Client, ctx context.Context, _ client.Endpoint) error { return c.Connect(ctx) }},
	"Dial":    {false, func(c *client.Client, ctx context.Context, e client.Endpoint) error { return c.Dial(ctx, e) }},
	"Close":   {false, func(c *client.Client, ctx context.Context, _ client.Endpoint) error { return c.Close(ctx) }},
	"Done":    plain(func(c *client.Client) { c.Done() }), "Err": plain(func(c *client.Client) { _ = c.Err() }),
	"Connected": plain(func(c *client.Client) { c.Connected() }), "Addr": plain(func(c *client.Client) { c.Addr() }),
	"Transport": plain(func(c *client.Client) { c.Transport() }), "Latency": plain(func(c *client.Client) { c.Latency() }),
	"ClockOffset": plain(func(c *client.Client) { c.ClockOffset() }), "Stats": plain(func(c *client.Client) { c.Stats() }),
	"Rebind":  plain(func(c *client.Client) { c.Rebind() }),
	"Reenter": {false, func(c *client.Client, _ context.Context, _ client.Endpoint) error { return c.Reenter() }},
	"Go": {false, func(c *client.Client, _ context.Context, _ client.Endpoint) error {
		return c.Go(2, 1, nil, nil)
	}},
	"Send": {false, func(c *client.Client, _ context.Context, _ client.Endpoint) error {
		return c.Send(2, 1, nil, client.Reliable)
	}},
	"Broadcast": {false, func(c *client.Client, _ context.Context, _ client.Endpoint) error {
		return c.Broadcast(room, nil, client.Reliable)
	}},
	"Message": {false, func(c *client.Client, _ context.Context, _ client.Endpoint) error {
		return c.Message(room, []string{"bob"}, nil, client.Reliable)
	}},
	"Request": asking(func(c *client.Client, ctx context.Context) error { _, err := c.Request(ctx, 2, 1, nil); return err }),
	"CreateRoom": asking(func(c *client.Client, ctx context.Context) error {
		_, err := c.CreateRoom(ctx, client.RoomOptions{})
		return err
	}),
	"CreateRandomRoom": asking(func(c *client.Client, ctx context.Context) error {
		_, err := c.CreateRandomRoom(ctx, client.RoomOptions{})
		return err
	}),
	"RandomJoinRoom": asking(func(c *client.Client, ctx context.Context) error {
		_, err := c.RandomJoinRoom(ctx, client.RoomOptions{}, nil)
		return err
	}),
	"JoinRoom":    asking(func(c *client.Client, ctx context.Context) error { _, err := c.JoinRoom(ctx, room, nil); return err }),
	"LeaveRoom":   asking(func(c *client.Client, ctx context.Context) error { return c.LeaveRoom(ctx, room, nil) }),
	"MemberIDs":   asking(func(c *client.Client, ctx context.Context) error { _, err := c.MemberIDs(ctx, room); return err }),
	"MemberCount": asking(func(c *client.Client, ctx context.Context) error { _, _, err := c.MemberCount(ctx, room); return err }),
	"OwnerID":     asking(func(c *client.Client, ctx context.Context) error { _, err := c.OwnerID(ctx, room); return err }),
	"ChangeOwner": asking(func(c *client.Client, ctx context.Context) error { return c.ChangeOwner(ctx, room, "bob") }),
	"SetProperty": asking(func(c *client.Client, ctx context.Context) error { return c.SetProperty(ctx, room, "a", nil) }),
	"Property":    asking(func(c *client.Client, ctx context.Context) error { _, err := c.Property(ctx, room, "a"); return err }),
	"IncrProperty": asking(func(c *client.Client, ctx context.Context) error {
		_, err := c.IncrProperty(ctx, room, "a", 1)
		return err
	}),
	"ReserveSeats": asking(func(c *client.Client, ctx context.Context) error { return c.ReserveSeats(ctx, room, []string{"bob"}) }),
	"CancelSeats":  asking(func(c *client.Client, ctx context.Context) error { return c.CancelSeats(ctx, room, []string{"bob"}) }),
}

func plain(f func(*client.Client)) method {
	return method{false, func(c *client.Client, _ context.Context, _ client.Endpoint) error { f(c); return nil }}
}

func asking(f func(*client.Client, context.Context) error) method {
	return method{true, func(c *client.Client, ctx context.Context, _ client.Endpoint) error { return f(c, ctx) }}
}

// theatre is where a method is called: a node, another, and an HTTP role.
type theatre struct {
	*cluster
	t             *testing.T
	node, another *clienttest.Node
}

// situation calls act with a client that is in it.
type situation struct {
	inside bool // a callback calls, so that nothing can be waited for
	lost   bool // there is no connection, so that waiting takes until the context ends
	play   func(th *theatre, act func(*client.Client))
}

// situations are those a method may be called in, by name.
var situations = map[string]situation{
	"before connect": {play: func(th *theatre, act func(*client.Client)) { act(th.fresh(nil)) }},
	"connected":      {play: func(th *theatre, act func(*client.Client)) { act(th.connected(nil)) }},
	"closed": {play: func(th *theatre, act func(*client.Client)) {
		c := th.connected(nil)
		shut(c)
		act(c)
	}},
	"closed before connect": {play: func(th *theatre, act func(*client.Client)) {
		c := th.fresh(nil)
		shut(c)
		act(c)
	}},
	"kicked": {play: func(th *theatre, act func(*client.Client)) {
		c := th.connected(nil)
		th.node.Do(func() { eachConn(th.node).Close(wire.CloseKicked, "") })
		take(th.t, "the end", c.Done())
		act(c)
	}},
	"while resuming": {lost: true, play: func(th *theatre, act func(*client.Client)) {
		lost := make(chan struct{}, 9)
		c := th.connected(func(o *client.Options) {
			o.OnDisconnect = func(client.Disconnect) { lost <- struct{}{} }
			o.HandshakeTimeout = time.Second
		})
		th.node.SetDeaf(true)
		defer th.node.SetDeaf(false)
		_ = c.Send(2, 1, nil, client.Reliable)
		take(th.t, "the loss", lost)
		act(c)
	}},
	"while searching": {lost: true, play: func(th *theatre, act func(*client.Client)) {
		lost := make(chan struct{}, 9)
		c := th.connected(func(o *client.Options) { o.OnDisconnect = func(client.Disconnect) { lost <- struct{}{} } })
		th.cluster.node.Store(nil)
		defer th.cluster.node.Store(th.node)
		th.node.Do(func() { eachConn(th.node).Close(wire.CloseShutdown, "") })
		take(th.t, "the loss", lost)
		act(c)
	}},
	"in OnPush": inside(func(o *client.Options, hit func()) { o.OnPush = func(client.Push) { hit() } },
		func(th *theatre, _ *client.Client) {
			th.node.Do(func() { _ = eachConn(th.node).Push(2, 1, nil, reliable.Reliable) })
		}),
	"in OnResponse": inside(func(o *client.Options, hit func()) { o.OnResponse = func(client.Response) { hit() } },
		func(_ *theatre, c *client.Client) { _ = c.Send(2, 1, nil, client.Reliable) }),
	"in OnOffline": inside(func(o *client.Options, hit func()) { o.OnOffline = func(uint8) { hit() } },
		func(th *theatre, _ *client.Client) { th.node.Do(func() { eachConn(th.node).Offline(1) }) }),
	"in OnMove": inside(func(o *client.Options, hit func()) { o.OnMove = func(string) { hit() } },
		func(th *theatre, _ *client.Client) {
			th.node.Do(func() { eachConn(th.node).MoveTo(th.another, patience, true) })
		}),
	"in OnDisconnect": inside(func(o *client.Options, hit func()) { o.OnDisconnect = func(client.Disconnect) { hit() } },
		func(th *theatre, _ *client.Client) {
			th.node.Do(func() { eachConn(th.node).Close(wire.CloseShutdown, "") })
		}),
	"in the last OnDisconnect": inside(func(o *client.Options, hit func()) { o.OnDisconnect = func(client.Disconnect) { hit() } },
		func(th *theatre, _ *client.Client) {
			th.node.Do(func() { eachConn(th.node).Close(wire.CloseKicked, "") })
		}),
	"in OnReconnect": inside(func(o *client.Options, hit func()) { o.OnReconnect = func(bool) { hit() } },
		func(th *theatre, _ *client.Client) {
			th.node.Do(func() { eachConn(th.node).Close(wire.CloseShutdown, "") })
		}),
	"in the callback of Go": {inside: true, play: func(th *theatre, act func(*client.Client)) {
		c, done := th.connected(nil), make(chan struct{})
		_ = c.Go(2, 1, nil, func(client.Response, error) { act(c); close(done) })
		take(th.t, "the call in the callback", done)
	}},
	"in Ticket of Connect": {inside: true, play: func(th *theatre, act func(*client.Client)) {
		var c *client.Client
		c = th.fresh(func(o *client.Options) {
			o.Ticket = func(context.Context, string) (string, error) { act(c); return "ticket", nil }
		})
		_ = c.Connect(within(th.t))
	}},
	"in Dial of Connect": {inside: true, play: func(th *theatre, act func(*client.Client)) {
		var c *client.Client
		c = th.fresh(func(o *client.Options) {
			o.Dial = dialing(func() { act(c) })
		})
		_ = c.Connect(within(th.t))
	}},
	"in Dial of a resume": {inside: true, play: func(th *theatre, act func(*client.Client)) {
		var c *client.Client
		var n atomic.Int64
		acted := make(chan struct{})
		c = th.connected(func(o *client.Options) {
			o.Dial = dialing(func() {
				if n.Add(1) == 2 {
					act(c)
					close(acted)
				}
			})
		})
		c.Rebind()
		take(th.t, "the call in the callback", acted)
	}},
}

// inside is the situation in which hit is called by the first of some callbacks, after
// trigger.
func inside(arm func(*client.Options, func()), trigger func(*theatre, *client.Client)) situation {
	return situation{inside: true, play: func(th *theatre, act func(*client.Client)) {
		ready, acted := make(chan *client.Client, 1), make(chan struct{})
		var once sync.Once
		c := th.connected(func(o *client.Options) {
			arm(o, func() {
				once.Do(func() {
					act(<-ready)
					close(acted)
				})
			})
		})
		ready <- c
		trigger(th, c)
		take(th.t, "the call in the callback", acted)
	}}
}

func (th *theatre) fresh(change func(*client.Options)) *client.Client {
	o := th.options()
	if change != nil {
		change(&o)
	}
	c, err := client.New(o)
	if err != nil {
		th.t.Fatal(err)
	}
	th.t.Cleanup(func() { shut(c) })
	return c
}

func (th *theatre) connected(change func(*client.Options)) *client.Client {
	c := th.fresh(change)
	if err := c.Connect(within(th.t)); err != nil {
		th.t.Fatal(err)
	}
	return c
}

// TestEveryMethodInEverySituation: whatever a program calls whenever, alone, with a
// context that has ended, without one, and from many goroutines at once, it gets an
// answer, and the client can be ended afterwards.
func TestEveryMethodInEverySituation(t *testing.T) {
	all := reflect.TypeFor[*client.Client]()
	for i := range all.NumMethod() {
		if _, ok := methods[all.Method(i).Name]; !ok {
			t.Errorf("%s is not in the table", all.Method(i).Name)
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	var none context.Context
	for where, s := range situations {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			for name, m := range methods {
				if s.lost && !m.waits && name != "Close" && name != "Connect" && name != "Reenter" && name != "Send" && name != "Rebind" {
					continue // each takes seconds to get there
				} else if s.lost && m.waits && name != "Request" {
					continue // these are built on it
				}
				o := clienttest.Options{}
				if s.lost {
					o.IdleTimeout = 300 * time.Millisecond
				}
				th := &theatre{t: t, node: start(t, o), another: start(t, clienttest.Options{})}
				th.cluster = newCluster(t, th.node)
				_, e := reserve(t, th.another)
				var c *client.Client
				guarded(t, where+": "+name, func() {
					s.play(th, func(in *client.Client) {
						c = in
						bounded := context.Background()
						if s.lost || name == "Close" {
							var cancel context.CancelFunc
							bounded, cancel = context.WithTimeout(bounded, 100*time.Millisecond)
							defer cancel()
						}
						err := m.call(c, ended, e)
						if m.waits && err == nil {
							t.Errorf("%s: %s with a context that has ended was not refused", where, name)
						}
						err = m.call(c, bounded, e)
						if m.waits && s.inside && name != "Close" && !errors.Is(err, client.ErrInCallback) {
							t.Errorf("%s: %s: %v", where, name, err)
						}
						if !s.lost {
							_ = m.call(c, none, e)
						}
						var many sync.WaitGroup
						for range 4 {
							if !s.inside { // there they would wait for the callback
								many.Go(func() { _ = m.call(c, bounded, e) })
							}
						}
						many.Wait()
					})
				})
				guarded(t, "shut after "+where+": "+name, func() {
					shut(c)
					<-c.Done()
					if c.Err() == nil {
						t.Errorf("%s: %s: the client ended without a reason", where, name)
					}
				})
				th.node.Kill()
				th.another.Kill()
			}
		})
	}
}

// guarded fails the test when f takes too long, and tells what it waits for.
func guarded(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-within(t).Done():
		b := make([]byte, 1<<20)
		t.Fatalf("%s hangs\n%s", what, b[:runtime.Stack(b, true)])
	}
}
