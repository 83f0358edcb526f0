package reliable_test

import (
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
)

// TestPathSize lets bulk search paths of several sizes, in datagrams.
func TestPathSize(t *testing.T) {
	for _, tc := range []struct {
		name     string
		mtu      int
		loss     float64
		least    int // that the search has to find
		oversize int // probes it may cost
	}{
		{"Ethernet", 0, 0, 1452, 0},
		{"PPPoE", 1444, 0, 1428, 15},
		{"WireGuard", 1392, 0, 1376, 15},
		{"the least IPv6 allows", 1232, 0, 1216, 15},
		{"no more than the base", 1200, 0, 1200, 15},
		{"with loss", 1392, 0.05, 1376, 15},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNetwork(bottleneck{rate: mbit(50), delay: 10 * ms, loss: tc.loss, mtu: tc.mtu})
			n.link.queue = n.link.bdp()
			f := newBulk(t, n, reliable.Config{}, 64<<10, 0)
			n.run(3 * time.Second)
			if f.biggest < tc.least || tc.mtu > 0 && f.biggest > tc.mtu {
				t.Errorf("the largest datagram has %d bytes, want %d to %d", f.biggest, tc.least, tc.mtu)
			}
			if f.oversize > tc.oversize {
				t.Errorf("%d packets were too large, want at most %d", f.oversize, tc.oversize)
			}
			if tc.loss == 0 && n.link.dropped == 0 && f.from.Stats().Lost > 0 {
				t.Errorf("probes count as losses: %+v", f.from.Stats())
			}
		})
	}
}

// TestPathShrinks takes the large packets away from a flow that uses them.
func TestPathShrinks(t *testing.T) {
	n := newNetwork(bottleneck{rate: mbit(50), delay: 20 * ms})
	n.link.queue = n.link.bdp()
	f := newBulk(t, n, reliable.Config{}, 64<<10, 0)
	n.run(2 * time.Second)
	n.link.mtu, f.biggest, f.oversize = 1300, 0, 0
	n.run(time.Second)
	if got := goodput(n, f, 2*time.Second); got < 25 {
		t.Errorf("%.1f of 50 Mbit/s after the path shrank", got)
	}
	if f.biggest < 1284 || f.biggest > 1300 {
		t.Errorf("datagrams of %d bytes after the second search, want nearly 1300", f.biggest)
	}
	lost := f.oversize
	n.run(10 * time.Second)
	if f.oversize > lost {
		t.Errorf("%d more packets were too large", f.oversize-lost)
	}
}

// TestPathShrinksForBulkOnly has small packets arrive all the time.
func TestPathShrinksForBulkOnly(t *testing.T) {
	n := newNetwork(bottleneck{rate: mbit(50), delay: 20 * ms})
	n.link.queue = n.link.bdp()
	f := newBulk(t, n, reliable.Config{}, 64<<10, 0)
	n.run(2 * time.Second)
	n.link.mtu = 1250
	var chat func()
	chat = func() {
		f.from.SendPing(n.now)
		n.at(n.now.Add(5*ms), chat)
	}
	chat()
	n.run(time.Second)
	if got := goodput(n, f, 2*time.Second); got < 25 {
		t.Errorf("%.1f of 50 Mbit/s after the path shrank", got)
	}
}

// TestGamesDontProbe has a game's messages, losses and all, in packets of their own size only.
func TestGamesDontProbe(t *testing.T) {
	n := newNetwork(bottleneck{rate: mbit(50), delay: 40 * ms, loss: 0.05, queue: 1 << 20})
	f := newBulk(t, n, reliable.Config{}, 500, 16*ms)
	n.run(20 * time.Second)
	if f.biggest > 1200 || f.messages < 1000 {
		t.Errorf("datagrams of %d bytes, %d messages", f.biggest, f.messages)
	}
}

func TestPathSizeStartsOver(t *testing.T) {
	n := newNetwork(bottleneck{rate: mbit(50), delay: 10 * ms, queue: 1 << 20})
	f := newBulk(t, n, reliable.Config{}, 64<<10, 0)
	n.run(time.Second)
	if f.biggest != 1452 {
		t.Fatalf("datagrams of %d bytes", f.biggest)
	}
	n.link.mtu = 1200
	f.from.PathChanged(n.now, 0)
	f.biggest, f.oversize = 0, 0
	n.run(time.Second)
	if f.biggest > 1200 || f.oversize > 15 {
		t.Errorf("datagrams of %d bytes, %d too large, on the new path", f.biggest, f.oversize)
	}
}
