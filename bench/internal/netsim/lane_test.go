package netsim

import (
	"encoding/binary"
	"math"
	"testing"
	"time"
)

// datagram makes an IPv4 packet that carries so many bytes by UDP.
func datagram(from, to uint16, payload int) []byte {
	b := make([]byte, 28+payload)
	b[0], b[9] = 0x45, UDP
	binary.BigEndian.PutUint16(b[20:], from)
	binary.BigEndian.PutUint16(b[22:], to)
	return b
}

// put sends b into a lane.
func put(l *lane, at time.Duration, b []byte) {
	p := l.take()
	p.size = copy(p.data[:], b)
	l.send(at, p)
}

// drain returns when the packets on their way arrive.
func drain(l *lane) []time.Duration {
	var due []time.Duration
	for {
		at, ok := l.next()
		if !ok {
			return due
		}
		if p := l.arrived(at - 1); p != nil {
			panic("arrived early")
		}
		l.giveBack(l.arrived(at))
		due = append(due, at)
	}
}

func TestDelayIsForEveryPacket(t *testing.T) {
	l := newLane(Path{Delay: 10 * time.Millisecond}, 1, 0)
	const n = 100 // more than the ring starts with
	for i := range n {
		put(l, time.Duration(i)*time.Microsecond, datagram(1, 2, 100))
	}
	got := drain(l)
	if len(got) != n {
		t.Fatalf("%d packets arrived, want %d", len(got), n)
	}
	for i, at := range got {
		if want := time.Duration(i)*time.Microsecond + 10*time.Millisecond; at != want {
			t.Errorf("packet %d arrives at %v, want %v", i, at, want)
		}
	}
}

func TestBottleneck(t *testing.T) {
	// 1,000-byte packets at 8 Mbit/s take 1 ms each; three of them may wait.
	l := newLane(Path{Delay: 5 * time.Millisecond, Rate: 8_000_000, Queue: 3000}, 1, 0)
	for range 5 {
		put(l, 0, datagram(1, 2, 972))
	}
	put(l, 1500*time.Microsecond, datagram(1, 2, 972)) // half of the second is sent by now
	put(l, time.Second, datagram(1, 2, 972))
	ms := time.Millisecond
	want := []time.Duration{6 * ms, 7 * ms, 8 * ms, 9 * ms, time.Second + 6*ms}
	got := drain(l)
	if len(got) != len(want) {
		t.Fatalf("arrivals %v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("arrivals %v, want %v", got, want)
			break
		}
	}
	c := l.counts()[Flow{UDP, 1, 2}]
	if want := (Count{Packets: 7, IP: 7000, Payload: 7 * 972, QueueDrops: 2}); c != want {
		t.Errorf("count %+v, want %+v", c, want)
	}
}

func TestPacketLongerThanTheQueuePassesAnEmptyOne(t *testing.T) {
	l := newLane(Path{Rate: 8_000_000, Queue: 100}, 1, 0)
	put(l, 0, datagram(1, 2, 972))
	put(l, 0, datagram(1, 2, 972))
	if got := drain(l); len(got) != 1 || got[0] != time.Millisecond {
		t.Errorf("arrivals %v, want one after 1ms", got)
	}
}

func TestLossHasItsRate(t *testing.T) {
	for _, loss := range []Loss{{}, {Rate: 0.01}, {Rate: 0.1}, {Rate: 0.05, Burst: 40 * time.Millisecond}, {Rate: 1}} {
		d := newDice(loss, 7, 0, 0)
		const n = 1_000_000
		lost, runs, was := 0, 0, false
		for i := range n {
			is := d.loses(time.Duration(i) * time.Millisecond)
			if is {
				lost++
			}
			if is && !was {
				runs++
			}
			was = is
		}
		if got := float64(lost) / n; math.Abs(got-loss.Rate) > 0.1*loss.Rate {
			t.Errorf("%+v loses %.4f of all packets", loss, got)
		}
		if loss.Burst == 0 {
			continue
		}
		if got, want := float64(lost)/float64(runs), loss.Burst.Seconds()*1000; math.Abs(got-want) > 0.1*want {
			t.Errorf("%+v is bad for %.1f ms on average", loss, got)
		}
	}
}

func TestBurstsFollowTimeNotPackets(t *testing.T) {
	loss := Loss{Rate: 0.2, Burst: 20 * time.Millisecond}
	often, seldom := newDice(loss, 3, 0, 0), newDice(loss, 3, 0, 0)
	lost := 0
	for i := range 10_000 {
		at := time.Duration(i) * time.Millisecond
		bad := often.loses(at)
		if i%7 != 0 {
			continue
		}
		if seldom.loses(at) != bad {
			t.Fatalf("at %v the channel depends on how many packets came", at)
		}
		if bad {
			lost++
		}
	}
	if lost == 0 {
		t.Error("nothing was lost")
	}
}

func TestSeedsDiffer(t *testing.T) {
	for _, loss := range []Loss{{Rate: 0.5}, {Rate: 0.5, Burst: time.Millisecond}} {
		draw := func(seed, lane uint64) (bits uint64) {
			d := newDice(loss, seed, lane, 0)
			for i := range 64 {
				if d.loses(time.Duration(i) * time.Millisecond) {
					bits |= 1 << i
				}
			}
			return bits
		}
		if first, again := draw(1, 0), draw(1, 0); first != again {
			t.Errorf("%+v: one seed loses differently", loss)
		}
		if draw(1, 0) == draw(2, 0) || draw(1, 0) == draw(1, 1) {
			t.Errorf("%+v: seeds or directions lose alike", loss)
		}
	}
}

func TestLateness(t *testing.T) {
	var l Lateness
	if l.Quantile(0.5) != 0 {
		t.Error("no packets are late")
	}
	for range 98 {
		l.add(60 * time.Microsecond)
	}
	l.add(0)
	l.add(3 * time.Millisecond)
	if got := l.Quantile(0.99); got != 64*time.Microsecond {
		t.Errorf("p99 %v, want 64µs", got)
	}
	if got := l.Quantile(1); got != 4096*time.Microsecond {
		t.Errorf("max %v, want 4.096ms", got)
	}
}
