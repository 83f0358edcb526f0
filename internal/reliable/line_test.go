package reliable_test

import (
	"errors"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
)

// line carries bulk from one machine to another in steps of a millisecond, with a
// constant delay, and makes no garbage of its own.
type line struct {
	now      time.Time
	ends     [2]*reliable.Machine
	pn       [2]uint64
	way      [2][]datagram // a ring of datagrams in order
	head     [2]int
	tail     [2]int
	got      [2]reliable.Received
	msg      []byte
	loseNth  uint64
	packets  int
	messages int
}

type datagram struct {
	at time.Time
	pn uint64
	b  []byte
}

const lineDelay = 20 * ms

func newLine(size int, loseNth uint64) *line {
	cfg := reliable.Config{RTT: 2 * lineDelay, Window: 2 << 20, FramesBase: 1179, FramesMax: 1431}
	l := &line{now: epoch, msg: message(size), loseNth: loseNth}
	for i := range l.ends {
		cfg.Server = i == 0
		l.ends[i] = reliable.New(epoch, cfg, nil)
		l.way[i] = make([]datagram, 1<<13)
		for k := range l.way[i] {
			l.way[i][k].b = make([]byte, 0, 1500)
		}
	}
	return l
}

// step lets a millisecond pass. At most 12 packets leave in it: about 100 Mbit/s.
func (l *line) step(t testing.TB) {
	l.now = l.now.Add(ms)
	for i := range l.ends {
		for ; l.head[i] < l.tail[i]; l.head[i]++ {
			d := &l.way[i][l.head[i]%len(l.way[i])]
			if d.at.After(l.now) {
				break
			}
			if err := l.ends[1-i].Receive(l.now, d.pn, d.b, &l.got[i]); err != nil {
				t.Fatal(err)
			}
			l.messages += len(l.got[i].Messages)
			l.append(1-i, 1)
		}
	}
	for {
		if _, waiting := l.ends[0].Queued(); waiting > 128<<10 {
			break
		}
		if err := l.ends[0].Send(l.now, l.msg, reliable.Reliable); errors.Is(err, reliable.ErrSlow) {
			break // long messages go one behind the other
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for i, m := range l.ends {
		if err := m.Tick(l.now); err != nil {
			t.Fatal(err)
		}
		l.append(i, 12)
	}
}

func (l *line) append(i, most int) {
	for range most {
		d := &l.way[i][l.tail[i]%len(l.way[i])]
		b := l.ends[i].Append(l.now, l.pn[i]+1, d.b[:0], 1431)
		if len(b) == 0 {
			return
		}
		l.pn[i]++
		l.packets++
		if l.loseNth > 0 && l.pn[i]%l.loseNth == 0 {
			continue
		}
		d.at, d.pn, d.b = l.now.Add(lineDelay), l.pn[i], b
		l.tail[i]++
	}
}

func BenchmarkBulk(b *testing.B) {
	for _, bc := range []struct {
		name    string
		size    int
		loseNth uint64
	}{{"size=64K/loss=0", 64 << 10, 0}, {"size=64K/loss=1%", 64 << 10, 100}, {"size=64K/loss=5%", 64 << 10, 20}, {"size=1M/loss=1%", 1 << 20, 100}, {"size=500/loss=1%", 500, 100}} {
		b.Run(bc.name, func(b *testing.B) {
			l := newLine(bc.size, bc.loseNth)
			for range 2000 {
				l.step(b)
			}
			b.ReportAllocs()
			before := l.packets
			for b.Loop() {
				l.step(b)
			}
			n := float64(l.packets - before)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/packet")
			b.ReportMetric(n/float64(b.N), "packets/ms")
		})
	}
}
