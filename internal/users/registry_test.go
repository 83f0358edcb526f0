package users

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport"
	"github.com/Diarkis/diarkis/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func isRevoked(err error) bool { return errors.Is(err, transport.ErrRevoked) }

func TestReserve(t *testing.T) {
	given := &secure.Credentials{SID: id.SID{1}}
	for _, c := range []struct {
		name   string
		before func(n *node)
		q      ReserveRequest
		want   Refusal
	}{
		{"a place", nil, ReserveRequest{UID: "u"}, Accepted},
		{"the right type", nil, ReserveRequest{UID: "u", Type: "UDP"}, Accepted},
		{"another type", nil, ReserveRequest{UID: "u", Type: "RANKED"}, WrongType},
		{"draining", func(n *node) { n.SetState(mars.Offline) }, ReserveRequest{UID: "u"}, Draining},
		{"taken", func(n *node) { n.SetState(mars.Taken) }, ReserveRequest{UID: "u"}, Taken},
		{"online again", func(n *node) { n.SetState(mars.Offline); n.SetState(mars.Online) }, ReserveRequest{UID: "u"}, Accepted},
		{"too many users", func(n *node) { n.cfg.UsersMax = 0 }, ReserveRequest{UID: "u"}, Full},
		{"too many places", func(n *node) { n.places.err = transport.ErrPlacesFull }, ReserveRequest{UID: "u"}, Full},
		{"given keys", nil, ReserveRequest{UID: "u", Credentials: given}, Accepted},
		{"given keys twice", func(n *node) { _, _ = n.Reserve(ReserveRequest{UID: "u", Credentials: given}) },
			ReserveRequest{UID: "u", Credentials: given}, InUse},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
				defer stop()
				n := nodes[0]
				if c.before != nil {
					c.before(n)
				}
				count := n.Reserved()
				b, err := c.q.Marshal()
				if err != nil {
					t.Fatal(err)
				}
				if b, err = n.handleReserve(t.Context(), peer("x"), b); err != nil {
					t.Fatal(err)
				}
				reply, err := ParseReserveReply(b)
				if err != nil || reply.Refused != c.want {
					t.Fatalf("reply %v, %v, want %v", reply.Refused, err, c.want)
				}
				if c.want != Accepted {
					if n.Reserved() != count {
						t.Errorf("%d places after a refusal, want %d", n.Reserved(), count)
					}
					return
				}
				if reply.SID == (id.SID{}) || reply.Host != "192.0.2.7" || reply.Port != 7100 || reply.ExpiresIn != time.Minute || reply.Role != "udp" {
					t.Errorf("reply is incomplete: host %s port %d role %s expires %v", reply.Host, reply.Port, reply.Role, reply.ExpiresIn)
				}
			})
		})
	}
}

func TestPlaceExpiresUnopened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		if _, err := n.Reserve(ReserveRequest{UID: "u"}); err != nil {
			t.Fatal(err)
		}
		pass(61 * time.Second)
		if n.Reserved() != 0 || n.CCU() != 0 || len(n.endCodes()) != 0 {
			t.Errorf("reserved %d, ccu %d, ended %v", n.Reserved(), n.CCU(), n.endCodes())
		}
	})
}

func TestUserLifeCycle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		opened := 0
		n.OnOpened(func(*User) { opened++ })
		u, _ := n.login(t, "u")
		if n.CCU() != 1 || n.Reserved() != 0 || n.ByUID("u") != u || opened != 1 || !u.Connected() {
			t.Fatalf("ccu %d reserved %d opened %d", n.CCU(), n.Reserved(), opened)
		}
		n.UserLost(u)
		if n.CCU() != 1 || u.Connected() {
			t.Errorf("a lost user must count as long as they may resume")
		}
		waited := make(chan error, 1)
		go func() { waited <- n.WaitEmpty(t.Context()) }()
		synctest.Wait()
		u.Disconnect(wire.CloseKicked, "bye")
		if err := <-waited; err != nil {
			t.Error(err)
		}
		if n.CCU() != 0 || n.ByUID("u") != nil || n.BySID(u.SID) != nil || !u.Gone() {
			t.Error("an ended user is still known")
		}
		if codes := n.endCodes(); !slices.Equal(codes, []wire.CloseCode{wire.CloseKicked}) {
			t.Errorf("ended with %v", codes)
		}
		if err := u.Send(nil, []byte("x"), reliable.Reliable); !errors.Is(err, ErrGone) {
			t.Errorf("send to a user who is gone: %v", err)
		}
	})
}

func TestWaitEmptyEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		nodes[0].login(t, "u")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := nodes[0].WaitEmpty(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitEmpty = %v", err)
		}
	})
}

func TestMessagesWaitForTheUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		u, link := n.login(t, "u")
		send := func(s string, rel reliable.Reliability) {
			t.Helper()
			if err := u.Send(nil, []byte(s), rel); err != nil {
				t.Errorf("send %s: %v", s, err)
			}
		}
		send("1", reliable.Reliable)
		link.set(transport.ErrClosed) // the connection is over, Lost not told yet
		send("2", reliable.Reliable)
		send("never", reliable.Unreliable)
		n.UserLost(u)
		send("3", reliable.Reliable)
		second := n.places.connect(u.SID, true)
		send("4", reliable.Reliable)
		if got := strings.Join(append(link.got(), second.got()...), ""); got != "1234" {
			t.Errorf("client got %q, want 1234", got)
		}
		n.UserLost(u)
		send("5", reliable.Reliable)
		third := n.places.connect(u.SID, false)
		send("6", reliable.Reliable)
		if got := strings.Join(third.got(), ""); got != "6" {
			t.Errorf("a client that starts over got %q, want 6", got)
		}
	})
}

func TestTooMuchWaitingEndsTheUser(t *testing.T) {
	for name, size := range map[string]int{"many small": 4, "some long": 60 << 10} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
				defer stop()
				n := nodes[0]
				u, _ := n.login(t, "u")
				n.UserLost(u)
				most := 1 << 20 / (size + 32) // whatever their number
				for i := range most {
					if err := u.Send(nil, make([]byte, size), reliable.Reliable); err != nil {
						t.Fatalf("message %d of %d bytes: %v", i, size, err)
					}
				}
				synctest.Wait()
				if codes := n.endCodes(); len(codes) > 0 {
					t.Fatalf("ended %v", codes)
				}
				err := u.Send(nil, make([]byte, size), reliable.Reliable)
				synctest.Wait()
				if !errors.Is(err, ErrGone) || !slices.Equal(n.endCodes(), []wire.CloseCode{wire.CloseSlow}) {
					t.Errorf("send = %v, ended %v", err, n.endCodes())
				}
			})
		})
	}
}

func TestExecutorRunsInOrderAndIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{MailboxMax: 4}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		u, _ := n.login(t, "u")
		gate := make(chan struct{})
		n.commands.run = func(_ *User, m wire.Message) {
			if m.Cmd == 9 {
				<-gate
			}
		}
		serve := func(cmd uint16, payload string) {
			b := []byte(payload)
			n.commands.Serve(nil, u, wire.Message{Ver: 2, Cmd: cmd, Payload: b}, reliable.Reliable)
			clear(b) // the payload was lent
		}
		serve(9, "a")
		synctest.Wait()
		serve(1, "i") // passes the application's
		serve(2, "b")
		serve(1, "c") // must not pass the ordered one
		serve(3, "d")
		serve(1, "e")
		serve(3, "refused")
		close(gate)
		synctest.Wait()
		if got := strings.Join(n.commands.got(), ""); got != "aibcde" {
			t.Errorf("ran %q, want aibcde", got)
		}
		if len(n.commands.errs) != 1 || !errors.Is(n.commands.errs[0], ErrBusy) {
			t.Errorf("errors %v, want one ErrBusy", n.commands.errs)
		}
		serve(1, "f")
		if got := n.commands.got(); got[len(got)-1] != "f" {
			t.Error("a built-in waits although nothing ordered does")
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.box.running || u.box.queue != nil || u.box.ordered != 0 {
			t.Errorf("idle mailbox: %+v", u.box)
		}
	})
}

// What waits for a handler that is stuck is bounded in bytes too; one large command
// always fits.
func TestMailboxIsBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		u, _ := n.login(t, "u")
		gate := make(chan struct{})
		n.commands.run = func(*User, wire.Message) { <-gate }
		post := func(size int) error {
			return u.Post(wire.Message{Ver: 2, Cmd: 9, Payload: make([]byte, size)}, reliable.Reliable)
		}
		if err := post(10); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it runs
		if err := post(mailboxBytesMax); err != nil {
			t.Errorf("the largest: %v", err)
		}
		if err := post(1); !errors.Is(err, ErrBusy) {
			t.Errorf("one more byte: %v", err)
		}
		close(gate)
		synctest.Wait()
		if err := post(1); err != nil {
			t.Errorf("after all ran: %v", err)
		}
		synctest.Wait()
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.box.bytes != 0 {
			t.Errorf("an empty mailbox has %d bytes", u.box.bytes)
		}
	})
}

func TestDoSurvivesPanic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		u, _ := nodes[0].login(t, "u")
		ran := false
		_ = u.Do(func() { panic("oops") })
		_ = u.Do(func() { ran = true })
		synctest.Wait()
		if !ran {
			t.Error("a panic stopped the executor")
		}
	})
}

func TestStopWaitsForHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		u, _ := nodes[0].login(t, "u")
		done := false
		_ = u.Do(func() { pass(time.Second); done = true })
		stop()
		if !done {
			t.Error("Run returned while a handler ran")
		}
		if err := u.Do(func() {}); !errors.Is(err, ErrGone) {
			t.Errorf("Do after the end = %v", err)
		}
	})
}

func TestProperties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		reply, err := n.Reserve(ReserveRequest{UID: "u", Props: encodedProps(map[string]any{"level": 3.0})})
		if err != nil {
			t.Fatal(err)
		}
		u := n.BySID(reply.SID)
		if v, ok := GetAs[float64](u, "level"); !ok || v != 3 {
			t.Errorf("level = %v, %v", v, ok)
		}
		if _, ok := GetAs[string](u, "level"); ok {
			t.Error("a number is a string")
		}
		u.Set("name", "x")
		u.Update("level", func(old any, ok bool) any { return old.(float64) + 1 })
		if !u.Delete("name") || u.Delete("name") {
			t.Error("Delete does not say whether there was one")
		}
		if p := u.Properties(); len(p) != 1 || p["level"] != 4.0 {
			t.Errorf("properties %v", p)
		}
		if s := fmt.Sprintf("%+v %#v %x", u, u, u); s != "u u u" {
			t.Errorf("a user prints as %q", s)
		}
	})
}
