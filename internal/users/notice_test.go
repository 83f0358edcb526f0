package users

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/wire"
)

func peer(n id.Node) mesh.Peer { return mesh.Peer{Node: n} }

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
				a.issued = time.Now().Add(time.Hour).UnixMicro()
				b.issued = time.Now().Add(time.Hour + skew).UnixMicro()
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

func TestNoticeQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		stop()
		n := nodes[0]
		for i := range noticesMax + 10 {
			n.notify(notice{uid: id.UID(fmt.Sprint("u", i))})
		}
		if all := n.notices.take(); len(all) != noticesMax {
			t.Errorf("%d notices wait", len(all))
		}
		if got := testutil.ToFloat64(n.metrics.noticesDropped); got != 10 {
			t.Errorf("%v were counted as dropped", got)
		}
	})
}

// Somebody who logs in again and again does not have the notices of others dropped.
func TestOneUserHasOneNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		stop()
		n := nodes[0]
		for i := range int64(2 * noticesMax) {
			n.notify(notice{uid: "greedy", order: order{issued: i}})
		}
		n.notify(notice{uid: "greedy", order: order{issued: 1}}) // an older one that opened later
		n.notify(notice{uid: "other"})
		want := []notice{{uid: "greedy", order: order{issued: 2*noticesMax - 1}}, {uid: "other"}}
		if all := n.notices.take(); !slices.Equal(all, want) {
			t.Errorf("notices %v, want %v", all, want)
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
		for i := range 20 {
			a.notify(notice{uid: id.UID(fmt.Sprint("answer", i)), to: "127.0.0.1:3"})
		}
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
