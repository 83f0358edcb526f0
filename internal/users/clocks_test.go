package users

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Diarkis/diarkis/internal/id"
	"github.com/Diarkis/diarkis/internal/users/exchange"
)

const (
	years  = 365 * 24 * time.Hour
	months = 30 * 24 * time.Hour
)

// The later login stays, whichever clocks are wrong, by however much, and whether they are
// set right meanwhile; and which stays is the same everywhere.
func TestClocksThatDiffer(t *testing.T) {
	for _, ahead := range []time.Duration{0, time.Minute, -time.Minute, 10 * time.Hour, 7 * months, 13 * months, -13 * months, 50 * years, -28 * years} {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork()
			net.setWall("127.0.0.1:2", ahead)
			nodes, stop := start(t, net, Config{}, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
			defer stop()
			pass(time.Second)
			for i := range 18 {
				if i == 10 {
					net.setWall("127.0.0.1:2", 0)
				}
				u, _ := nodes[i%3].login(t, "u")
				pass(2 * time.Second)
				if all := nodes[0].CCU() + nodes[1].CCU() + nodes[2].CCU(); all != 1 || u.Gone() {
					t.Errorf("%v ahead, login %d: %d are open, the latest is gone: %v", ahead, i, all, u.Gone())
				}
			}
		})
	}
}

// A user moves between nodes however far apart their clocks are.
func TestMoveBetweenClocksThatDiffer(t *testing.T) {
	for _, ahead := range []time.Duration{13 * months, -13 * months, 50 * years, -28 * years} {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork()
			net.setWall("127.0.0.1:2", ahead)
			a, b, u, _, result, stop := moving(t, net)
			defer stop()
			a.serve(u, cmdMove, "join")
			synctest.Wait()
			if b.BySID(u.SID) == nil {
				t.Fatalf("%v ahead: %v", ahead, <-result)
			}
			if b.places.connect(u.SID, true) == nil || <-result != nil {
				t.Errorf("%v ahead: the move failed", ahead)
			}
		})
	}
}

// What no clock says is refused, so that a bug can't lock a user id out for good; and what
// it made all clocks take over leaves room.
func TestNoticesOfNoClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes, stop := start(t, newNetwork(), Config{}, "127.0.0.1:1")
		defer stop()
		n := nodes[0]
		for _, at := range []int64{exchange.TrustMax + 1, math.MaxInt64} {
			u, _ := n.login(t, "u")
			lie := notices{facts: []exchange.Fact{{UID: "u", Order: order{Issued: at}}}}
			for _, b := range [][]byte{lie.marshal(told), lie.marshalOld()} {
				_, err := n.handleNotices(t.Context(), peer("liar"), b)
				if synctest.Wait(); err == nil || u.Gone() {
					t.Errorf("%d: %v, the user is gone: %v", at, err, u.Gone())
				}
			}
		}
		if u, _ := n.login(t, "u"); u.Gone() {
			t.Error("the user can't log in any more")
		}
	})
}

// Whose clock is wrong is said once by each node and names that one, and nobody says so of
// one whose clock is right.
func TestWrongClocksAreNamed(t *testing.T) {
	all := []id.Node{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"}
	for _, ahead := range []time.Duration{13 * months, -28 * years, 10 * time.Minute, 0} {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork()
			net.logs = make(map[id.Node]*bytes.Buffer)
			for _, n := range all {
				net.logs[n] = new(bytes.Buffer)
			}
			net.setWall(all[1], ahead)
			nodes, stop := start(t, net, Config{}, "127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3")
			pass(time.Minute)
			net.setWall(all[1], 0)
			pass(time.Second)
			for _, n := range nodes {
				n.login(t, id.UID(n.Self().Node))
			}
			pass(time.Minute)
			stop() // the logs are written no more
			for i, n := range all {
				log := net.logs[n].String()
				for j, m := range all {
					named := strings.Count(log, `"level":"warn","ahead":"9360h0m0s","peer":"`+string(m)) +
						strings.Count(log, `"level":"warn","behind":"245280h0m0s","peer":"`+string(m)) +
						strings.Count(log, `"level":"warn","ahead":"10m0s","peer":"`+string(m))
					if i == j {
						named = strings.Count(log, "wall clock of this node differed")
					}
					if want := j == 1 && ahead != 0; named > 1 || want != (named == 1) {
						t.Errorf("%v ahead: %s names %s %d times:\n%s", ahead, n, m, named, log)
					}
				}
				if want := min(1, int(ahead.Abs())); strings.Count(log, `"warn"`) != want || strings.Count(log, "agreed with most nodes again") != want {
					t.Errorf("%v ahead: %s says:\n%s", ahead, n, log)
				}
			}
		})
	}
}

// With two nodes nobody knows whose clock is right, and nobody is blamed.
func TestTwoClocksThatDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		log := new(bytes.Buffer)
		net.logs = map[id.Node]*bytes.Buffer{"127.0.0.1:1": log}
		net.setWall("127.0.0.1:2", time.Hour)
		_, stop := start(t, net, Config{}, "127.0.0.1:1", "127.0.0.1:2")
		pass(time.Minute)
		stop()
		if !strings.Contains(log.String(), "no majority agreed") || strings.Count(log.String(), `"warn"`) != 1 {
			t.Errorf("%s", log)
		}
	})
}
