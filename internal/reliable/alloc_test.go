package reliable_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
)

// loop is two machines that talk without a test's own allocations.
type loop struct {
	a, b       *reliable.Machine
	now        time.Time
	pnA, pnB   uint64
	buf        []byte
	got        reliable.Received
	msg        []byte
	dropEvery  int
	iterations int
}

func newLoop(size int, stream bool) *loop {
	return &loop{
		a:   reliable.New(epoch, reliable.Config{Stream: stream, RTT: 10 * time.Millisecond}, nil),
		b:   reliable.New(epoch, reliable.Config{Stream: stream, Server: true, RTT: 10 * time.Millisecond}, nil),
		now: epoch, buf: make([]byte, 0, 2048), msg: message(size),
	}
}

// round sends one message each way and whatever that leads to.
func (l *loop) round(rel reliable.Reliability) error {
	l.now = l.now.Add(5 * time.Millisecond)
	l.iterations++
	for _, m := range [...]*reliable.Machine{l.a, l.b} {
		if err := m.Tick(l.now); err != nil {
			return err
		}
		if err := m.Send(l.now, l.msg, rel); err != nil {
			return err
		}
	}
	for {
		n, err := l.carry(l.a, l.b, &l.pnA)
		if err != nil {
			return err
		}
		k, err := l.carry(l.b, l.a, &l.pnB)
		if err != nil || n+k == 0 {
			return err
		}
	}
}

func (l *loop) carry(from, to *reliable.Machine, pn *uint64) (packets int, err error) {
	for {
		b := from.Append(l.now, *pn+1, l.buf[:0], reliable.PacketMin)
		if len(b) == 0 {
			return packets, nil
		}
		*pn++
		packets++
		if l.dropEvery > 0 && *pn%uint64(l.dropEvery) == 0 {
			continue
		}
		if err := to.Receive(l.now, *pn, b, &l.got); err != nil {
			return packets, err
		}
	}
}

func TestAllocs(t *testing.T) {
	for _, stream := range []bool{false, true} {
		for _, rel := range []reliable.Reliability{reliable.Unreliable, reliable.Reliable} {
			l := newLoop(200, stream)
			run := func() {
				for range 10 {
					if err := l.round(rel); err != nil {
						t.Fatal(err)
					}
				}
			}
			for range 100 {
				run()
			}
			if n := testing.AllocsPerRun(100, run); n > 0 {
				t.Errorf("stream %v, reliability %v: %v allocations in 20 messages, want 0", stream, rel, n)
			}
		}
	}
}

// TestAllocsOfRepeats has fragments ride along while packets without any get lost, so
// that the receiver holds nothing.
func TestAllocsOfRepeats(t *testing.T) {
	l := newLoop(100, false)
	var link [4][]byte // packets on their way to b, oldest first; one leaves every step
	for i := range link {
		link[i] = make([]byte, 0, 2048)
	}
	step := func() {
		l.now = l.now.Add(15 * time.Millisecond)
		l.iterations++
		rel, lost := reliable.Reliable, l.iterations%10 == 0
		if lost {
			rel = reliable.Unreliable
		}
		if err := l.a.Send(l.now, l.msg, rel); err != nil {
			t.Fatal(err)
		}
		l.pnA++
		newest := l.a.Append(l.now, l.pnA, link[0][:0], reliable.PacketMin)
		copy(link[:], link[1:])
		if link[3] = newest; lost {
			link[3] = newest[:0]
		}
		if oldest := link[0]; len(oldest) > 0 && l.pnA > 3 {
			if err := l.b.Receive(l.now, l.pnA-3, oldest, &l.got); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.carry(l.b, l.a, &l.pnB); err != nil {
			t.Fatal(err)
		}
		if err := l.b.Tick(l.now); err != nil {
			t.Fatal(err)
		}
	}
	run := func() {
		for range 10 {
			step()
		}
	}
	for range 100 {
		run()
	}
	before := l.a.Stats().Repeated
	if n := testing.AllocsPerRun(100, run); n > 0 {
		t.Errorf("%v allocations in 10 packets, want 0", n)
	}
	if l.a.Stats().Repeated-before < 500 {
		t.Errorf("%d fragments repeated of 900", l.a.Stats().Repeated-before)
	}
}

// TestIdleMemory holds a machine that talked and fell silent to its share of a
// connection's 4 KiB.
func TestIdleMemory(t *testing.T) {
	const n = 500
	loops := make([]*loop, n)
	before := heapBytes()
	for i := range loops {
		l := newLoop(100, false)
		for range 20 {
			if err := l.round(reliable.Reliable); err != nil {
				t.Fatal(err)
			}
		}
		l.now = l.now.Add(5 * time.Second)
		l.a.SendPing(l.now)
		for range 2 {
			if _, err := l.carry(l.a, l.b, &l.pnA); err != nil {
				t.Fatal(err)
			}
			if _, err := l.carry(l.b, l.a, &l.pnB); err != nil {
				t.Fatal(err)
			}
			l.now = l.now.Add(5 * time.Second)
			if err := l.a.Tick(l.now); err != nil {
				t.Fatal(err)
			}
		}
		l.buf, l.msg, l.got = nil, nil, reliable.Received{}
		loops[i] = l
	}
	each := (heapBytes() - before) / (2 * n)
	t.Logf("%d bytes a machine", each)
	if each > 1280 {
		t.Errorf("an idle machine takes %d bytes, want at most 1280", each)
	}
	runtime.KeepAlive(loops)
}

func BenchmarkRound(b *testing.B) {
	for _, size := range []int{100, 1000} {
		for _, rel := range []reliable.Reliability{reliable.Unreliable, reliable.Reliable} {
			for _, lossEvery := range []int{0, 20} {
				b.Run(fmt.Sprintf("size=%d/reliable=%d/lossEvery=%d", size, rel, lossEvery), func(b *testing.B) {
					l := newLoop(size, false)
					l.dropEvery = lossEvery
					b.ReportAllocs()
					for b.Loop() {
						if err := l.round(rel); err != nil {
							b.Fatal(err)
						}
					}
				})
			}
		}
	}
}

func BenchmarkExport(b *testing.B) {
	l := newLoop(5000, false)
	for range 20 {
		if err := l.a.Send(l.now, l.msg, reliable.Reliable); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := reliable.ParseState(l.a.Export().AppendTo(nil)); err != nil {
			b.Fatal(err)
		}
	}
}
