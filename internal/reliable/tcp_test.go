package reliable_test

import (
	"math"
	"time"
)

const (
	tcpSegment = 1500 // bytes on the wire
	tcpInitial = 10   // packets
)

// tcp is a model of a bulk TCP flow with SACK: what matters to those who share its
// bottleneck. The receiver acknowledges every packet.
type tcp struct {
	net   *network
	cubic bool

	window    float64 // packets
	threshold float64
	next      int           // sequence number of the next packet
	out       []tcpPacket   // under way, oldest first
	again     int           // packets to send again; which ones matters to nobody
	recovery  int           // losses below tell nothing new
	srtt      time.Duration //
	heard     time.Time     // the last acknowledgement
	got       int           // packets
	wMax      float64       // CUBIC
	epoch     time.Time     // when its curve began
	reno      float64       // what Reno would have since then
}

type tcpPacket struct {
	seq  int
	sent time.Time
	done bool
}

func newTCP(n *network, cubic bool) *tcp {
	f := &tcp{net: n, cubic: cubic, window: tcpInitial, threshold: math.Inf(1), srtt: 2 * n.link.delay, heard: n.now}
	n.at(n.now, f.send)
	n.at(n.now, f.watch)
	return f
}

// watch is the retransmission timeout.
func (f *tcp) watch() {
	if limit := max(3*f.srtt, 200*time.Millisecond); len(f.out) > 0 && f.net.now.Sub(f.heard) > limit {
		f.threshold = max(f.window/2, 2)
		f.window = 1
		f.again += len(f.out)
		f.out, f.recovery, f.heard = nil, f.next, f.net.now
		f.send()
	}
	f.net.at(f.net.now.Add(50*time.Millisecond), f.watch)
}

func (f *tcp) underWay() int {
	n := 0
	for _, p := range f.out {
		if !p.done {
			n++
		}
	}
	return n
}

func (f *tcp) send() {
	for n := f.underWay(); n < int(f.window); n++ {
		p := tcpPacket{seq: f.next, sent: f.net.now}
		f.next++
		f.out = append(f.out, p)
		if f.again > 0 {
			f.again--
		}
		at, ok := f.net.link.pass(f.net.now, tcpSegment)
		if !ok {
			continue
		}
		f.net.at(at, func() {
			f.got++
			if at, ok := f.net.link.back(f.net.now); ok {
				f.net.at(at, func() { f.acked(p) })
			}
		})
	}
}

func (f *tcp) acked(p tcpPacket) {
	now := f.net.now
	f.heard = now
	f.srtt = (7*f.srtt + now.Sub(p.sent)) / 8
	lost := false
	for i := range f.out {
		q := &f.out[i]
		switch {
		case q.seq == p.seq:
			q.done = true
		case !q.done && q.seq <= p.seq-3:
			q.done = true
			f.again++
			lost = lost || q.seq >= f.recovery
		}
	}
	for len(f.out) > 0 && f.out[0].done {
		f.out = f.out[1:]
	}
	switch {
	case lost:
		f.reduce()
	case f.window < f.threshold:
		f.window++
	case f.cubic:
		f.grow()
	default:
		f.window += 1 / f.window
	}
	f.send()
}

func (f *tcp) reduce() {
	f.recovery = f.next
	f.wMax, f.epoch, f.reno = f.window, time.Time{}, 0
	share := 0.5
	if f.cubic {
		share = 0.7
	}
	f.window = max(f.window*share, 2)
	f.threshold = f.window
}

// grow follows RFC 9438.
func (f *tcp) grow() {
	const c = 0.4
	if f.epoch.IsZero() {
		f.epoch, f.reno = f.net.now, f.window
		f.wMax = max(f.wMax, f.window)
	}
	k := math.Cbrt((f.wMax - f.wMax*0.7) / c)
	t := f.net.now.Sub(f.epoch).Seconds() + f.srtt.Seconds()
	target := c*math.Pow(t-k, 3) + f.wMax
	f.reno += 3 * 0.3 / 1.7 / f.window
	if f.reno > target {
		f.window = max(f.window, f.reno)
	} else if target > f.window {
		f.window += min(target-f.window, f.window/2) / f.window
	}
}
