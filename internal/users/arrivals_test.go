package users

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/mars"
	"github.com/Diarkis/diarkis/internal/secure"
	"github.com/Diarkis/diarkis/internal/transport"
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
			b, err := n.handleOffer(t.Context(), peer("x"), o.marshal())
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
		pass(arrivalGrace) // the place of one expired, another goes
		for i := byte(10); i < 12; i++ {
			if got := offer(i, 20*time.Second); got != Accepted {
				t.Errorf("one more when all others could have come: %v", got)
			}
		}
		if n := n.moves.countIn(); n != 10 {
			t.Errorf("%d are arriving, want 10", n)
		}
		pass(offerTTLMax + time.Second)
		synctest.Wait()
		if n.Reserved() != 0 || n.moves.countIn() != 0 {
			t.Errorf("%d places and %d arrivals are left", n.Reserved(), n.moves.countIn())
		}
	})
}

// Users with much to bring take what is left for others like them, and nothing of what
// those with little have. Who could have come by now goes first.
func TestStatesOfArrivalsHaveABudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		came := 0
		in := func(bytes int) Refusal {
			came++
			sid := id.SID{byte(came), byte(came >> 8), 1}
			u := &User{ID: "u", SID: sid, registry: n.Registry, movedIn: true, phase: incoming}
			u.moveIn = &moveIn{id: moveID{byte(came), byte(came >> 8)}, user: u, from: "x", bytes: bytes}
			why, err := n.admitMoved(u, transport.Reservation{Credentials: secure.Credentials{SID: sid}, Owner: u, TTL: 12 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			return why
		}
		fill := func(most, least int) (taken int) { // as one who knows the rule
			for size := most; size >= least; {
				if in(size) == Accepted {
					taken++
				} else {
					size = size * 9 / 10
				}
			}
			return taken
		}
		if got := in(stateMax); got != Accepted {
			t.Errorf("the largest state there is: %v", got)
		}
		if taken := fill(16<<20, arrivalSmallMax+1); taken < 16 || taken > 100 {
			t.Errorf("%d long states were taken", taken)
		}
		for i := range 200 {
			if got := in(64 << 10); got != Accepted {
				t.Fatalf("state %d of those with little: %v", i, got)
			}
		}
		if got := in(1 << 20); got != Busy {
			t.Errorf("one more with much at once: %v", got)
		}
		fill(arrivalSmallMax, 100)
		if got := in(1 << 10); got != Busy {
			t.Errorf("one more with little when theirs is full: %v", got)
		}
		pass(arrivalGrace)
		for range 20 {
			for _, size := range []int{1 << 20, 1 << 10} {
				if got := in(size); got != Accepted {
					t.Fatalf("%d bytes after those before did not come in good time: %v", size, got)
				}
			}
		}
		taken := func() (large, small, users int) {
			v := &n.moves
			v.mu.Lock()
			defer v.mu.Unlock()
			return v.large.bytes, v.small.bytes, v.large.byAge.Len() + v.small.byAge.Len() + len(v.arriving)
		}
		if large, small, _ := taken(); large > arrivalBytesMax || small > arrivalSmallBytesMax {
			t.Errorf("%d and %d bytes are kept", large, small)
		}
		pass(20 * time.Second)
		if large, small, users := taken(); large+small+users != 0 {
			t.Errorf("%d and %d bytes of %d are left", large, small, users)
		}
	})
}

// Whose client is being let in does not go for others, and the other node keeps who does.
func TestCrowdedArrivals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		arrive := func(i byte) *moveIn {
			u := &User{ID: "u", SID: id.SID{i}, registry: n.Registry, movedIn: true, phase: incoming}
			u.moveIn = &moveIn{id: moveID{i}, user: u, from: "x", bytes: 12 << 20}
			if why, err := n.admitMoved(u, transport.Reservation{Credentials: secure.Credentials{SID: u.SID}, Owner: u, TTL: 12 * time.Second}); why != Accepted || err != nil {
				t.Fatalf("arrival %d: %v, %v", i, why, err)
			}
			return u.moveIn
		}
		first, second := arrive(1), arrive(2)
		n.places.mu.Lock()
		n.places.places[first.user.SID].releasing = true
		n.places.mu.Unlock()
		pass(arrivalGrace)
		third := arrive(3)
		if n.moves.in(first.id) == nil || n.moves.in(second.id) != nil || n.moves.in(third.id) == nil {
			t.Error("want the second gone for the third, and the first spared")
		}
		abort := func(m *moveIn) byte {
			b, err := n.handleAbort(t.Context(), peer("x"), m.id.marshal())
			if err != nil {
				t.Fatal(err)
			}
			return b[1]
		}
		if abort(first) != 0 || abort(second) != 1 {
			t.Error("the old node is told something else of who has a claim")
		}
		if got := testutil.ToFloat64(n.metrics.moves.WithLabelValues("in", "crowded")); got != 1 {
			t.Errorf("counted %v times", got)
		}
	})
}
