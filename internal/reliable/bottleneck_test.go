package reliable_test

import (
	"container/heap"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
)

// packetWire is what a datagram has besides frames: our header and tag, UDP, IPv4.
const packetWire = 21 + 8 + 20

// network is a clock, what is due on it, and the link that flows share.
type network struct {
	now    time.Time
	serial int
	due    dueHeap
	link   bottleneck
}

func newNetwork(l bottleneck) *network {
	l.rng = rand.New(rand.NewPCG(7, uint64(l.rate)))
	return &network{now: epoch, link: l}
}

type due struct {
	at     time.Time
	serial int
	do     func()
}

type dueHeap []due

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	if c := h[i].at.Compare(h[j].at); c != 0 {
		return c < 0
	}
	return h[i].serial < h[j].serial
}
func (h dueHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)   { *h = append(*h, x.(due)) }
func (h *dueHeap) Pop() any {
	old := *h
	d := old[len(old)-1]
	*h = old[:len(old)-1]
	return d
}

// at has do called at a time.
func (n *network) at(t time.Time, do func()) {
	n.serial++
	heap.Push(&n.due, due{t, n.serial, do})
}

// run lets d pass.
func (n *network) run(d time.Duration) {
	end := n.now.Add(d)
	for len(n.due) > 0 && !n.due[0].at.After(end) {
		e := heap.Pop(&n.due).(due)
		n.now = e.at
		e.do()
	}
	n.now = end
}

// bottleneck is a link with a queue in front that drops what does not fit.
type bottleneck struct {
	rate  float64 // bytes a second
	queue int     // bytes
	delay time.Duration
	loss  float64 // of what passed the queue, and of acknowledgements
	// jitter delays acknowledgements in steps, as radio links do.
	jitter time.Duration
	mtu    int // of datagrams, 0: any

	rng     *rand.Rand
	free    time.Time // when the last of the queue has left
	offered int       // packets
	dropped int       // because the queue was full
	waited  time.Duration
}

func mbit(n float64) float64 { return n * 1e6 / 8 }

// bdp is the bandwidth-delay product in bytes.
func (b *bottleneck) bdp() int { return int(b.rate * 2 * b.delay.Seconds()) }

// setRate changes the rate; what waits leaves at the new one.
func (b *bottleneck) setRate(now time.Time, rate float64) {
	if wait := b.free.Sub(now); wait > 0 {
		b.free = now.Add(time.Duration(float64(wait) * b.rate / rate))
	}
	b.rate = rate
}

// pass returns when a packet arrives at the other end; false when it never does.
func (b *bottleneck) pass(now time.Time, size int) (at time.Time, ok bool) {
	b.offered++
	if b.tooLarge(size) {
		return at, false
	}
	wait := max(b.free.Sub(now), 0)
	if int(wait.Seconds()*b.rate)+size > b.queue {
		b.dropped++
		return at, false
	}
	b.waited += wait
	b.free = now.Add(wait + time.Duration(float64(size)/b.rate*1e9))
	return b.free.Add(b.delay), b.rng.Float64() >= b.loss
}

func (b *bottleneck) tooLarge(size int) bool { return b.mtu > 0 && size > b.mtu+28 }

// back returns when an acknowledgement arrives: that way is wide.
func (b *bottleneck) back(now time.Time) (at time.Time, ok bool) {
	at = now.Add(b.delay)
	if b.jitter > 0 {
		at = at.Truncate(b.jitter).Add(b.jitter)
	}
	return at, b.rng.Float64() >= b.loss
}

// drops is the share of packets that found the queue full.
func (b *bottleneck) drops() float64 { return float64(b.dropped) / float64(max(b.offered, 1)) }

// delayMean is how long packets waited in the queue.
func (b *bottleneck) delayMean() time.Duration {
	return b.waited / time.Duration(max(b.offered-b.dropped, 1))
}

// wakeGrain is how precisely owners of machines wake up.
const wakeGrain = time.Millisecond

// bulk is a sender and a receiver with the bottleneck between them.
type bulk struct {
	t        testing.TB
	net      *network
	from, to *bulkEnd
	size     int           // of a message
	every    time.Duration // between messages; 0: as many as the queue takes
	rel      reliable.Reliability
	bytes    int // delivered
	biggest  int // datagram that arrived
	oversize int // packets too large for the link
	messages int
	late     []time.Duration // from Send to delivery, when every is set
	sentAt   []time.Time
}

type bulkEnd struct {
	*bulk
	*reliable.Machine
	pn    uint64
	armed time.Time
	in    reliable.Received
	peer  *bulkEnd
}

// newBulk starts a flow at the network's time.
func newBulk(t testing.TB, n *network, cfg reliable.Config, size int, every time.Duration) *bulk {
	f := &bulk{t: t, net: n, size: size, every: every, rel: reliable.Reliable}
	cfg.Server, cfg.RTT = true, 2*n.link.delay
	cfg.FramesBase, cfg.FramesMax = 1200-21, 1452-21
	f.from = &bulkEnd{bulk: f, Machine: reliable.New(n.now, cfg, nil)}
	f.to = &bulkEnd{bulk: f, Machine: reliable.New(n.now, reliable.Config{RTT: cfg.RTT, Window: 2 << 20}, nil)}
	f.from.peer, f.to.peer = f.to, f.from
	f.to.flush()
	n.at(n.now, f.say)
	return f
}

// say sends the next message, or as many as fit.
func (f *bulk) say() {
	if f.every > 0 {
		f.sentAt = append(f.sentAt, f.net.now)
		f.net.at(f.net.now.Add(f.every), f.say)
	}
	f.fill()
	f.from.flush()
}

func (f *bulk) fill() {
	for {
		if _, waiting := f.from.Queued(); f.every == 0 && waiting > 128<<10 {
			return
		}
		if err := f.from.Send(f.net.now, message(f.size), f.rel); err != nil {
			f.t.Fatalf("Send: %v", err)
		}
		if f.every > 0 {
			return
		}
	}
}

// flush sends what Append gives and arms the timer.
func (e *bulkEnd) flush() {
	n := e.net
	for {
		b := e.Append(n.now, e.pn+1, nil, 1452-21)
		if len(b) == 0 {
			break
		}
		e.pn++
		pn := e.pn
		var at time.Time
		var ok bool
		if e == e.from {
			at, ok = n.link.pass(n.now, len(b)+packetWire)
			if ok {
				e.biggest = max(e.biggest, len(b)+21)
			} else if n.link.tooLarge(len(b) + packetWire) {
				e.oversize++
			}
		} else {
			at, ok = n.link.back(n.now)
		}
		if ok {
			n.at(at, func() { e.peer.arrive(pn, b) })
		}
	}
	wake := e.WakeAt()
	if wake.IsZero() {
		return
	}
	if wake = wake.Truncate(wakeGrain).Add(wakeGrain); wake.Before(n.now) {
		wake = n.now.Truncate(wakeGrain).Add(wakeGrain)
	}
	if e.armed.IsZero() || wake.Before(e.armed) {
		e.armed = wake
		n.at(wake, func() { e.wake(wake) })
	}
}

func (e *bulkEnd) wake(at time.Time) {
	if !e.armed.Equal(at) {
		return // an earlier one was armed since
	}
	e.armed = time.Time{}
	if err := e.Tick(e.net.now); err != nil {
		e.t.Fatalf("Tick: %v", err)
	}
	e.flush()
}

func (e *bulkEnd) arrive(pn uint64, b []byte) {
	if err := e.Receive(e.net.now, pn, b, &e.in); err != nil {
		e.t.Fatalf("Receive: %v", err)
	}
	for _, d := range e.in.Messages {
		e.bytes += len(d.Bytes)
		if e.every > 0 && e.messages < len(e.sentAt) {
			e.late = append(e.late, e.net.now.Sub(e.sentAt[e.messages]))
		}
		e.messages++
	}
	if e == e.from && e.every == 0 {
		e.fill()
	}
	e.flush()
}
