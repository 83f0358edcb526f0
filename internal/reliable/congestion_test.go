package reliable_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

const bulkMessage = 64 << 10

// goodput lets d pass and returns what f delivered, in Mbit/s.
func goodput(n *network, f interface{ delivered() int }, d time.Duration) float64 {
	before := f.delivered()
	n.run(d)
	return float64(f.delivered()-before) * 8 / 1e6 / d.Seconds()
}

func (f *bulk) delivered() int { return f.bytes }
func (f *tcp) delivered() int  { return f.got * 1448 }

// TestBulk sends as much as it can over links of one BDP of queue.
func TestBulk(t *testing.T) {
	for _, rate := range []float64{10, 100} {
		for _, rtt := range []time.Duration{20 * ms, 45 * ms, 150 * ms} {
			for _, loss := range []float64{0, 0.01, 0.05} {
				least := 0.7 * rate
				if rate == 100 && rtt == 150*ms && loss > 0 {
					least = 20 // more is under way than the window holds while something is missing
				}
				n := newNetwork(bottleneck{rate: mbit(rate), delay: rtt / 2, loss: loss})
				n.link.queue = max(n.link.bdp(), 32<<10)
				f := newBulk(t, n, reliable.Config{}, bulkMessage, 0)
				n.run(2 * time.Second)
				got := goodput(n, f, 3*time.Second)
				name := fmt.Sprintf("%.0f Mbit/s, %v, %.0f %% loss", rate, rtt, loss*100)
				t.Logf("%s: %.1f Mbit/s, %.2f %% dropped at the queue, %v in it", name, got, 100*n.link.drops(), n.link.delayMean())
				if got < least || n.link.drops() > 0.05 || n.link.delayMean() > rtt/2 {
					t.Errorf("%s: want at least %.0f Mbit/s, 5 %% dropped and half a round trip in the queue", name, least)
				}
			}
		}
	}
}

// TestShortQueue has a queue of a tenth of the BDP.
func TestShortQueue(t *testing.T) {
	n := newNetwork(bottleneck{rate: mbit(50), delay: 20 * ms})
	n.link.queue = n.link.bdp() / 10
	f := newBulk(t, n, reliable.Config{}, bulkMessage, 0)
	n.run(3 * time.Second)
	got := goodput(n, f, 3*time.Second)
	t.Logf("%.1f Mbit/s, %.2f %% dropped", got, 100*n.link.drops())
	if got < 30 || n.link.drops() > 0.1 {
		t.Errorf("%.1f of 50 Mbit/s, %.2f %% dropped", got, 100*n.link.drops())
	}
}

// TestFairness lets a flow share a queue of one BDP with one that came later.
func TestFairness(t *testing.T) {
	for _, link := range []bottleneck{
		{rate: mbit(10), delay: 10 * ms},
		{rate: mbit(20), delay: 50 * ms},
		{rate: mbit(40), delay: 22 * ms},
	} {
		for _, other := range []string{"Reno", "CUBIC", "another"} {
			n := newNetwork(link)
			n.link.queue = n.link.bdp()
			ours := newBulk(t, n, reliable.Config{}, bulkMessage, 0)
			n.run(5 * time.Second)
			var theirs interface{ delivered() int }
			if other == "another" {
				theirs = newBulk(t, n, reliable.Config{}, bulkMessage, 0)
			} else {
				theirs = newTCP(n, other == "CUBIC")
			}
			n.run(2 * time.Second)
			before := theirs.delivered()
			a := goodput(n, ours, time.Minute)
			b := float64(theirs.delivered()-before) * 8 / 60e6
			t.Logf("%.0f Mbit/s, %v, beside %s: %.1f and %.1f Mbit/s, ratio %.2f, %.2f %% dropped, %v in the queue",
				link.rate*8/1e6, 2*link.delay, other, a, b, a/b, 100*n.link.drops(), n.link.delayMean())
			if a > 3*b || b > 3*a || (a+b)*1e6/8 < 0.8*link.rate {
				t.Errorf("beside %s: %.1f and %.1f Mbit/s", other, a, b)
			}
		}
	}
}

// TestRateChanges takes most of a link away for some seconds.
func TestRateChanges(t *testing.T) {
	n := newNetwork(bottleneck{rate: mbit(100), delay: 20 * ms})
	n.link.queue = n.link.bdp()
	f := newBulk(t, n, reliable.Config{}, bulkMessage, 0)
	n.run(3 * time.Second)
	n.link.setRate(n.now, mbit(20))
	dropped, offered := n.link.dropped, n.link.offered
	n.run(time.Second)
	slow := goodput(n, f, 3*time.Second)
	lost := float64(n.link.dropped-dropped) / float64(n.link.offered-offered)
	n.link.setRate(n.now, mbit(100))
	n.run(4 * time.Second)
	fast := goodput(n, f, 2*time.Second)
	t.Logf("%.1f of 20 Mbit/s with %.1f %% dropped, then %.1f of 100", slow, 100*lost, fast)
	if slow < 14 || lost > 0.2 || fast < 70 {
		t.Errorf("%.1f of 20 Mbit/s with %.1f %% dropped, then %.1f of 100", slow, 100*lost, fast)
	}
}

// TestPathChanges moves a flow to a slower and longer path, and back.
func TestPathChanges(t *testing.T) {
	n := newNetwork(bottleneck{rate: mbit(100), delay: 10 * ms, queue: 256 << 10})
	f := newBulk(t, n, reliable.Config{}, bulkMessage, 0)
	move := func(rate float64, delay time.Duration, told bool) float64 {
		n.link.setRate(n.now, rate)
		n.link.delay = delay
		if told {
			f.from.PathChanged(n.now, 0)
		}
		n.run(3 * time.Second)
		return goodput(n, f, 2*time.Second)
	}
	n.run(2 * time.Second)
	slow := move(mbit(10), 60*ms, true)
	fast := move(mbit(100), 10*ms, true)
	long := move(mbit(100), 60*ms, false)
	t.Logf("%.1f of 10 Mbit/s, then %.1f of 100, and %.1f when the way gets longer unnoticed", slow, fast, long)
	if slow < 7 || fast < 70 || long < 50 {
		t.Errorf("%.1f of 10 Mbit/s, then %.1f of 100, and %.1f when the way gets longer unnoticed", slow, fast, long)
	}
}

// TestOutage has nothing arrive for some seconds.
func TestOutage(t *testing.T) {
	n := newNetwork(bottleneck{rate: mbit(50), delay: 20 * ms, queue: 256 << 10})
	f := newBulk(t, n, reliable.Config{}, bulkMessage, 0)
	n.run(2 * time.Second)
	n.link.loss = 1
	n.run(3 * time.Second)
	n.link.loss = 0
	n.run(3 * time.Second)
	if got := goodput(n, f, 2*time.Second); got < 35 {
		t.Errorf("%.1f of 50 Mbit/s after an outage", got)
	}
}

// TestGameBesideBulk has a game's messages on a link that another connection fills.
func TestGameBesideBulk(t *testing.T) {
	n := newNetwork(bottleneck{rate: mbit(20), delay: 20 * ms})
	n.link.queue = n.link.bdp()
	newBulk(t, n, reliable.Config{}, bulkMessage, 0)
	n.run(3 * time.Second)
	game := newBulk(t, n, reliable.Config{}, 100, 16*ms)
	n.run(10 * time.Second)
	slow := 0
	for _, d := range game.late {
		if d > n.link.delay+15*ms {
			slow++
		}
	}
	t.Logf("%d of %d messages waited over 15 ms, packets %v on average", slow, len(game.late), n.link.delayMean())
	if len(game.late) < 500 || slow*20 > len(game.late) {
		t.Errorf("%d of %d messages waited over 15 ms", slow, len(game.late))
	}
}

// TestGamesAreNotHeld sends what a game does into silence: it leaves at once.
func TestGamesAreNotHeld(t *testing.T) {
	p := newPeer(t, reliable.Config{RTT: 50 * ms})
	for range 40 {
		p.send(500, reliable.Unreliable, 0)
		if len(p.packets()) == 0 {
			t.Fatal("a message waits")
		}
		p.mustTick(16 * ms)
	}
}

// TestPaceWakesLater holds bulk back without asking to be called at once.
func TestPaceWakesLater(t *testing.T) {
	p := newPeer(t, reliable.Config{RTT: 50 * ms})
	p.mustReceive(wire.AppendWindow(nil, 2<<20))
	p.send(1<<20, reliable.Reliable, 0)
	held := 0
	flow(p, 200*ms, func() {
		wake := p.WakeAt()
		if !wake.After(p.now) {
			t.Fatal("WakeAt is in the past, and Append has nothing")
		}
		if wait := wake.Sub(p.now); wait < ms {
			held++
			p.mustTick(wait)
			if len(p.packets()) == 0 {
				t.Fatal("nothing leaves when the pace ends")
			}
		}
	})
	if held < 10 {
		t.Errorf("the pace held %d times", held)
	}
}

// TestBulkMakesNoGarbage counts what long messages with losses allocate: one copy
// of each when it is sent.
func TestBulkMakesNoGarbage(t *testing.T) {
	for _, size := range []int{500, bulkMessage} {
		l := newLine(size, 100)
		for range 2000 {
			l.step(t)
		}
		packets, messages := l.packets, l.messages
		n := testing.AllocsPerRun(5, func() {
			for range 100 {
				l.step(t)
			}
		})
		each := float64(l.packets-packets) / 6
		if bound := each/100 + 2*float64(l.messages-messages)/6; size > 1100 && n > bound || size < 1100 && n > each/100 {
			t.Errorf("messages of %d bytes: %v allocations in %v packets", size, n, each)
		}
	}
}
