package users

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/mesh"
	"github.com/Diarkis/diarkis/internal/secure"
)

func TestNobodyNewWhileMemoryIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		short := false
		nodes, stop := start(t, newNetwork(), Config{MemoryShort: func() bool { return short }}, "127.0.0.1:1", "127.0.0.1:2")
		defer stop()
		a, b := nodes[0], nodes[1]
		result := make(chan error, 1)
		a.commands.run = moveTo(t, a, b, result)
		u, _ := a.login(t, "u")
		short = true
		if reply, err := b.Reserve(ReserveRequest{UID: "v"}); err != nil || reply.Refused != Memory {
			t.Errorf("reserve = %v, %v", reply.Refused, err)
		}
		if got := testutil.ToFloat64(b.metrics.reservations.WithLabelValues("memory")); got != 1 {
			t.Errorf("counted %v times", got)
		}
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		if err := <-result; err == nil || u.Gone() || !strings.Contains(err.Error(), "memory") {
			t.Errorf("a move here while a player can stay: %v", err)
		}
		// Now the user's node is about to end.
		b.cfg.Directory = func() *mars.Directory {
			return mars.NewDirectory(2, mars.Member{Instance: a.cfg.Self, State: mars.Offline}, mars.Member{Instance: b.cfg.Self, State: mars.Online})
		}
		a.serve(u, cmdMove, "join")
		synctest.Wait()
		b.places.connect(u.SID, true)
		synctest.Wait()
		if err := <-result; err != nil {
			t.Errorf("a move off a node that ends: %v", err)
		}
	})
}

func TestOffersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{ArrivalsMax: 10}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		offer := func(i byte, ttl time.Duration) Refusal {
			o := moveOffer{id: moveID{i}, uid: "u", creds: secure.Credentials{SID: id.SID{i}}, ttl: ttl}
			b, err := n.handleOffer(t.Context(), mesh.Peer{Node: "x"}, o.marshal())
			if err != nil {
				t.Fatal(err)
			}
			reply, err := parseMoveReply(b)
			if err != nil {
				t.Fatal(err)
			}
			return reply.refused
		}
		for i := range byte(10) {
			if got := offer(i, time.Hour*time.Duration(i)); got != Accepted {
				t.Errorf("offer %d: %v", i, got)
			}
		}
		if got := offer(3, time.Second); got != InUse {
			t.Errorf("an offer that came twice: %v", got)
		}
		if n.moves.in(moveID{3}) == nil {
			t.Error("the second forgot the first")
		}
		if got := offer(10, time.Second); got != Busy {
			t.Errorf("one more than may arrive: %v", got)
		}
		for i := range byte(10) {
			if ttl := n.places.ttl(id.SID{i}); ttl <= 0 || ttl > offerTTLMax {
				t.Errorf("place %d waits %v", i, ttl)
			}
		}
		pass(offerTTLMax + time.Second)
		synctest.Wait()
		if n.Reserved() != 0 || n.moves.countIn() != 0 {
			t.Errorf("%d places and %d arrivals are left", n.Reserved(), n.moves.countIn())
		}
	})
}

// Users with much to bring take what is left for those with little.
func TestStatesOfArrivalsHaveABudget(t *testing.T) {
	var v moves
	v.init()
	in := func(i, bytes int) Refusal {
		return v.addIn(&moveIn{id: moveID{byte(i), byte(i >> 8)}, bytes: bytes}, 10_000)
	}
	if got := in(0, stateMax); got != Accepted {
		t.Errorf("the largest state there is: %v", got)
	}
	taken := 0
	for i := 1; in(i, 1<<20) == Accepted; i++ {
		if taken++; taken > 64 {
			break
		}
	}
	if taken < 32 || taken > 60 {
		t.Errorf("%d states of 1 MiB were taken", taken)
	}
	for i := range 200 {
		if got := in(1000+i, 4<<10); got != Accepted {
			t.Fatalf("small state %d: %v", i, got)
		}
	}
	for _, m := range v.arriving {
		v.dropIn(m)
		v.dropIn(m)
	}
	if v.bytesIn != 0 {
		t.Errorf("%d bytes are left", v.bytesIn)
	}
}
