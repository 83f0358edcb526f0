package users

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mesh"
)

// reserveFor is CmdReserve as node asker sends it.
func (n *node) reserveFor(t *testing.T, asker id.Node, uid id.UID, key nonce) ReserveReply {
	t.Helper()
	b, err := n.handleReserve(t.Context(), peer(asker), ReserveRequest{UID: uid, Nonce: key}.mustBytes(t))
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParseReserveReply(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// cancelFor is CmdCancelReserve as node asker sends it, and as the mesh finds its handler.
func (n *node) cancelFor(t *testing.T, net *network, asker id.Node, key nonce) bool {
	t.Helper()
	m := &fakeMesh{net, asker}
	b, err := m.Request(t.Context(), n.Self().Node, mesh.CmdCancelReserve, CancelRequest{Nonce: key}.Marshal())
	if err != nil {
		t.Fatalf("cancel: %v", err)
	}
	p, err := ParseCancelReply(b)
	if err != nil {
		t.Fatal(err)
	}
	return p.Cancelled
}

func TestCancelReserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		nodes, stop := start(t, net, Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		first := n.reserveFor(t, "http:1", "u", nonce{1})
		if n.cancelFor(t, net, "http:2", nonce{1}) || n.BySID(first.SID) == nil {
			t.Fatal("another node cancelled the place")
		}
		if !n.cancelFor(t, net, "http:1", nonce{1}) || n.BySID(first.SID) != nil || n.cancelled(cancelAsker) != 1 {
			t.Fatal("the place is still there")
		}
		if n.cancelFor(t, net, "http:1", nonce{1}) {
			t.Error("cancelled twice")
		}
		// The request itself comes late, or again.
		if got := n.reserveFor(t, "http:1", "u", nonce{1}).Refused; got != Cancelled {
			t.Errorf("a cancelled request gets a place: %v", got)
		}
		n.cancelFor(t, net, "http:1", nonce{2})
		if got := n.reserveFor(t, "http:1", "u", nonce{2}).Refused; got != Cancelled {
			t.Errorf("a request that its cancel overtook gets a place: %v", got)
		}
		// Who is here stays.
		opened := n.reserveFor(t, "http:1", "u", nonce{3})
		if got := n.reserveFor(t, "http:1", "u", nonce{3}).Refused; got != InUse {
			t.Errorf("two places under one nonce: %v", got)
		}
		n.places.connect(opened.SID, false)
		if n.cancelFor(t, net, "http:1", nonce{3}) || n.BySID(opened.SID) == nil {
			t.Error("a player was cancelled")
		}
		n.check(t)
		if got := len(n.unopened.byNonce); got != 0 {
			t.Errorf("%d nonces are kept", got)
		}
		pass(cancelsKept)
		if got := n.reserveFor(t, "http:1", "u", nonce{1}).Refused; got != Accepted {
			t.Errorf("a nonce is remembered for ever: %v", got)
		}
	})
}

// A node that cancels all the time fills its own memory, not that of others.
func TestCancelsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		nodes, stop := start(t, net, Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		n.cancelFor(t, net, "http:1", nonce{1})
		for i := range 3 * cancelsPerAsker {
			n.cancelFor(t, net, "http:2", nonce{2, byte(i), byte(i >> 8)})
		}
		if got := testutil.ToFloat64(n.metrics.cancelsForgotten); got != 2*cancelsPerAsker {
			t.Errorf("%v were counted as forgotten", got)
		}
		if got := n.reserveFor(t, "http:1", "u", nonce{1}).Refused; got != Cancelled {
			t.Errorf("another's cancel was forgotten: %v", got)
		}
		for i := range 3 * cancelAskersMax {
			n.cancelFor(t, net, id.Node([]byte{'n', byte(i), byte(i >> 8)}), nonce{3})
		}
		c := &n.unopened.cancels
		if len(c.askers) > cancelAskersMax {
			t.Errorf("%d askers are remembered", len(c.askers))
		}
		pass(cancelsKept + time.Second)
		n.cancelFor(t, net, "http:9", nonce{4})
		if len(c.askers) != 1 {
			t.Errorf("%d askers are remembered for nothing", len(c.askers))
		}
	})
}

// Nodes of a version without nonces talk with those of this one.
func TestReserveLayouts(t *testing.T) {
	plain := ReserveRequest{UID: "u", Type: "UDP"}
	b := plain.mustBytes(t)
	if b[0] != 1 {
		t.Error("a request without a nonce is unreadable to an older node")
	}
	with := plain
	with.Nonce = nonce{5}
	for _, want := range []ReserveRequest{plain, with} {
		got, err := ParseReserveRequest(want.mustBytes(t))
		if err != nil || got.Nonce != want.Nonce || got.UID != "u" {
			t.Errorf("got %+v, %v", got, err)
		}
	}
}

func FuzzParseCancelRequest(f *testing.F) {
	f.Add(CancelRequest{Nonce: nonce{1}}.Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := ParseCancelRequest(b)
		if err == nil && string(q.Marshal()) != string(b) {
			t.Errorf("%x is parsed as %x", b, q.Marshal())
		}
	})
}
