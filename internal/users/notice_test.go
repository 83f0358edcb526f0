package users

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/users/exchange"
	"github.com/Diarkis/diarkis/internal/wire"
)

func peer(n id.Node) mesh.Peer { return mesh.Peer{Node: n, Role: "udp"} }

func TestNewerSIDReplaces(t *testing.T) {
	replaced := []wire.CloseCode{wire.CloseReplaced}
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1", "127.0.0.1:2")
		defer stop()
		a, b := nodes[0], nodes[1]
		unopened, err := a.Reserve(ReserveRequest{UID: "u"})
		if err != nil {
			t.Fatal(err)
		}
		other, _ := a.login(t, "other")
		first, _ := a.login(t, "u")
		synctest.Wait()
		if a.BySID(unopened.SID) != nil {
			t.Error("an older place on the same node stays")
		}
		second, err := a.Reserve(ReserveRequest{UID: "u"})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if first.Gone() {
			t.Error("a reservation alone replaced a user")
		}
		a.places.connect(second.SID, false)
		synctest.Wait()
		if !first.Gone() || !slices.Equal(a.endCodes(), replaced) {
			t.Errorf("same node: gone %v, codes %v", first.Gone(), a.endCodes())
		}
		pass(30 * time.Second)
		third, _ := b.login(t, "u")
		synctest.Wait()
		if a.BySID(second.SID) != nil || third.Gone() || other.Gone() {
			t.Errorf("other node: old one still here %v, new one gone %v", a.BySID(second.SID) != nil, third.Gone())
		}
	})
}

// Whatever the clocks and the order of arrival, one of two that open at the same
// time stays.
func TestConcurrentSIDsLeaveOne(t *testing.T) {
	for _, gap := range []time.Duration{0, time.Second, 10 * time.Second} {
		for _, skew := range []time.Duration{-time.Hour, 0, time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1", "127.0.0.1:2")
				defer stop()
				a, b := nodes[0], nodes[1]
				b.raise(time.Now().Add(skew).UnixMicro()) // does nothing for one that is behind
				a.raise(time.Now().Add(-skew).UnixMicro())
				qa, _ := a.Reserve(ReserveRequest{UID: "u"})
				qb, _ := b.Reserve(ReserveRequest{UID: "u"})
				ua, ub := a.BySID(qa.SID), b.BySID(qb.SID)
				a.places.connect(qa.SID, false)
				pass(gap)
				synctest.Wait()
				b.places.connect(qb.SID, false)
				pass(time.Second)
				synctest.Wait()
				if ua.Gone() == ub.Gone() {
					t.Errorf("gap %v skew %v: gone %v and %v", gap, skew, ua.Gone(), ub.Gone())
				}
			})
		}
	}
}

func TestSameSIDOnTwoTransportsStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1", "127.0.0.1:2")
		defer stop()
		creds := &secure.Credentials{SID: id.SID{9}}
		for _, n := range nodes {
			if _, err := n.Reserve(ReserveRequest{UID: "u", Credentials: creds}); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range nodes {
			n.places.connect(creds.SID, false)
			pass(30 * time.Second)
		}
		for i, n := range nodes {
			if n.CCU() != 1 {
				t.Errorf("node %d has %d users", i, n.CCU())
			}
		}
	})
}

// A node that takes two seconds to show that it is away keeps no notice from the
// others, neither those for all nor those for itself.
func TestADeadNodeDelaysNoNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		nodes, stop := start(t, net, Config{UsersMax: 1 << 20}, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
		defer stop()
		a, b := nodes[0], nodes[1]
		net.setCut(func(_, to id.Node, _ uint16) loss {
			if to == "127.0.0.1:3" {
				return silent
			}
			return delivered
		})
		const seconds, perSecond = 8, 1000
		for s := range seconds {
			for i := range perSecond {
				uid := id.UID(fmt.Sprint("u", s, "-", i))
				if i%100 == 0 {
					b.login(t, uid)
				}
				pass(time.Second / perSecond)
				a.login(t, uid)
			}
		}
		pass(5 * time.Second)
		if got := testutil.ToFloat64(a.metrics.noticesDropped); got != 0 {
			t.Errorf("%v notices were dropped", got)
		}
		if b.CCU() != 0 {
			t.Errorf("%d users are still on the node they left", b.CCU())
		}
	})
}

// until waits for a condition, in fake time.
func until(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); pass(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// A node that stood still, or was cut off, while its user logged in elsewhere hears of it
// afterwards: the notice is repeated until it was handled.
func TestNoticesAreRepeated(t *testing.T) {
	for _, away := range []time.Duration{100 * time.Millisecond, 2700 * time.Millisecond, 5 * time.Second, 20 * time.Second} {
		for _, how := range []loss{requestLost, silent, replyLost} {
			synctest.Test(t, func(t *testing.T) {
				net := newNetwork()
				nodes, stop := start(t, net, Config{}, "127.0.0.1:1", "127.0.0.1:2")
				defer stop()
				a, b := nodes[0], nodes[1]
				old, _ := b.login(t, "u")
				pass(time.Second)
				net.setCut(func(id.Node, id.Node, uint16) loss { return how })
				fresh, _ := a.login(t, "u")
				pass(away)
				net.setCut(nil)
				until(t, 7*time.Second, "the old connection ends", old.Gone)
				synctest.Wait() // and its hooks
				if fresh.Gone() || a.CCU() != 1 || b.CCU() != 0 {
					t.Errorf("the new one is gone: %v; %d and %d are open", fresh.Gone(), a.CCU(), b.CCU())
				}
				pass(10 * time.Second)
				if a.machineWaits() != 0 || b.machineWaits() != 0 {
					t.Error("notices are kept that everybody has")
				}
			})
		}
	}
}

func (n *node) machineWaits() int { return int(testutil.ToFloat64(n.metrics.noticesWaiting)) }

func member(n *node, life byte) mars.Member {
	m := mars.Member{Instance: n.Self(), State: mars.Online}
	m.Incarnation[0] = life
	return m
}

// A node that left the directory and is back, as the same process or under another
// incarnation, is told all that opened meanwhile, and tells.
func TestNoticesAreExchangedAnew(t *testing.T) {
	for _, life := range []byte{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork()
			nodes, stop := start(t, net, Config{}, "127.0.0.1:1", "127.0.0.1:2")
			defer stop()
			a, b := nodes[0], nodes[1]
			for i := range 600 {
				b.login(t, id.UID(fmt.Sprint("stays", i)))
			}
			first, _ := a.login(t, "u")
			second, _ := b.login(t, "v")
			pass(time.Second)
			net.see(a.Self().Node, member(a, 0))
			net.see(b.Self().Node, member(b, 0))
			pass(time.Second)
			newer, _ := b.login(t, "u")
			other, _ := a.login(t, "v")
			pass(time.Minute)
			if first.Gone() || second.Gone() {
				t.Fatal("heard of each other although neither knows the other")
			}
			net.see(a.Self().Node, member(a, 0), member(b, life)) // only one of both notices
			pass(5 * time.Second)
			if !first.Gone() || !second.Gone() || newer.Gone() || other.Gone() || b.CCU() != 601 {
				t.Errorf("old ones gone: %v, %v; new ones gone: %v, %v; %d users", first.Gone(), second.Gone(), newer.Gone(), other.Gone(), b.CCU())
			}
			if got := testutil.ToFloat64(a.metrics.exchanges); got < 1 {
				t.Errorf("%v exchanges were counted", got)
			}
		})
	}
}

// Who is moved while a newer sid of theirs opens somewhere goes, although the new node heard
// of it before they came, and the old one after they left.
func TestMoveBehindANewerLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		nodes, stop := start(t, net, Config{}, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
		defer stop()
		a, b, c := nodes[0], nodes[1], nodes[2]
		result := make(chan error, 1)
		a.commands.run = moveTo(t, a, b, result)
		u, _ := a.login(t, "u")
		pass(time.Second)
		net.setCut(func(from, to id.Node, _ uint16) loss {
			if from == c.Self().Node && to == a.Self().Node {
				return requestLost
			}
			return delivered
		})
		newer, _ := c.login(t, "u")
		pass(50 * time.Millisecond)
		a.serve(u, cmdMove, "join")
		pass(50 * time.Millisecond)
		b.places.connect(u.SID, true)
		pass(50 * time.Millisecond)
		if err := <-result; err != nil {
			t.Fatal(err)
		}
		net.setCut(nil)
		until(t, 7*time.Second, "the moved one ends", func() bool { return b.CCU() == 0 })
		if newer.Gone() {
			t.Error("the newer one went too")
		}
	})
}

// A node of the version before says everything once, reads layout 1 and answers nothing.
func TestNoticesToAnOlderNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		nodes, stop := start(t, net, Config{}, "127.0.0.1:1", "127.0.0.1:2")
		defer stop()
		a, b := nodes[0], nodes[1]
		var heard []id.UID
		(&fakeMesh{net, b.Self().Node}).Handle(mesh.CmdUserOpened, func(_ context.Context, _ mesh.Peer, payload []byte) ([]byte, error) {
			if payload[0] != 1 {
				return nil, &mesh.RemoteError{Code: mesh.CodeHandler, Text: "layout"}
			}
			n, _, err := parseNotices(payload, told)
			for _, f := range n.facts {
				heard = append(heard, f.UID)
			}
			return nil, err
		})
		u, _ := a.login(t, "u")
		pass(time.Second)
		if !slices.Contains(heard, "u") || a.machineWaits() != 0 {
			t.Errorf("it heard of %v, %d notices wait", heard, a.machineWaits())
		}
		// And what it says.
		said := notices{facts: []exchange.Fact{{UID: "u", Order: order{Issued: time.Now().Add(time.Second).UnixMicro()}}}}
		if b, err := a.handleNotices(t.Context(), peer(b.Self().Node), said.marshalOld()); b != nil || err != nil {
			t.Errorf("answer %x, %v", b, err)
		}
		if synctest.Wait(); !u.Gone() {
			t.Error("its notice does nothing")
		}
	})
}

// A sid that was issued first, on a node of the version before, and opens behind a newer one
// goes: that node reads no answer, so the newer one is told again, until it has heard.
func TestAnOlderNodeOpensBehindANewerSID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		nodes, stop := start(t, net, Config{}, "127.0.0.1:1", "127.0.0.1:2")
		defer stop()
		a, b := nodes[0], nodes[1]
		var heard []exchange.Fact
		(&fakeMesh{net, b.Self().Node}).Handle(mesh.CmdUserOpened, func(_ context.Context, _ mesh.Peer, payload []byte) ([]byte, error) {
			n, old, err := parseNotices(payload, told)
			if err == nil && !old {
				err = &mesh.RemoteError{Code: mesh.CodeHandler, Text: "layout"}
			}
			heard = append(heard, n.facts...)
			return nil, err
		})
		first := notices{facts: []exchange.Fact{{UID: "u", Order: order{Issued: a.now()}}}}
		pass(time.Second)
		u, _ := a.login(t, "u")
		pass(time.Second)
		heard = nil // which opened there a moment later
		net.setCut(func(_, _ id.Node, _ uint16) loss { return requestLost })
		if answer, err := a.handleNotices(t.Context(), peer(b.Self().Node), first.marshalOld()); answer != nil || err != nil {
			t.Errorf("answer %x, %v", answer, err)
		}
		pass(3 * time.Second)
		net.setCut(nil)
		pass(5 * time.Second)
		if want := (exchange.Fact{UID: "u", Order: u.order}); !slices.Contains(heard, want) || u.Gone() {
			t.Errorf("it heard of %v, the newer one is gone: %v", heard, u.Gone())
		}
		if a.machineWaits() != 0 {
			t.Error("a notice is kept that everybody has")
		}
	})
}
