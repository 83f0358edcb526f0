package reliable_test

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/Diarkis/diarkis/internal/reliable"
	"github.com/Diarkis/diarkis/internal/wire"
)

// trip is one measured conversation: reliable messages on channel 0, sent one way at
// a steady rate over a link that loses packets in both directions.
type trip struct {
	seed     uint64
	messages int
	size     int           // of an encoded message
	interval time.Duration // between messages
	delay    time.Duration // one way
	jitter   time.Duration // up to this much more
	loss     float64       // of all packets
	burst    float64       // mean packets lost in a row; 0 or 1: losses are independent
	server   bool          // the server sends
	random   func() uint64 // for packet numbers the sender leaves out
}

// gameTrip is what a game sends: 60 messages/s of 100 bytes over 50 ms there and back.
func gameTrip(loss, burst float64, server bool) trip {
	return trip{
		messages: 20_000, size: 100, interval: time.Second / 60, delay: 25 * ms,
		loss: loss, burst: burst, server: server,
	}
}

// figures is what came of trips.
type figures struct {
	p50, p99, max time.Duration
	late          float64 // share of the messages more than an interval later than without loss
	perByte       float64 // bytes of UDP payload, both directions, for a byte of messages
	sender        reliable.Stats
}

// lossy decides which packets of one direction are lost: after Gilbert and Elliott,
// all of them in the bad state and none in the good one.
type lossy struct {
	rng            *rand.Rand
	toBad, staying float64
	bad            bool
}

func newLossy(seed, direction uint64, loss, burst float64) *lossy {
	l := &lossy{rng: rand.New(rand.NewPCG(seed, direction)), toBad: loss, staying: loss}
	if burst > 1 {
		l.staying = 1 - 1/burst
		l.toBad = loss / (1 - loss) / burst
	}
	return l
}

func (l *lossy) loses() bool {
	chance := l.toBad
	if l.bad {
		chance = l.staying
	}
	l.bad = l.rng.Float64() < chance
	return l.bad
}

// tripRun is a trip under way. Side 0 is the sender.
type tripRun struct {
	trip
	now    time.Time
	sides  [2]*reliable.Machine
	pn     [2]uint64
	loses  [2]*lossy
	jitter *rand.Rand
	events eventHeap
	serial int
	got    reliable.Received
	bytes  int
	sent   int
	took   []time.Duration
}

// run lets the messages of all seeds travel and puts them together.
func (tr trip) run(tb testing.TB, seeds ...uint64) figures {
	var f figures
	var took []time.Duration
	bytes, sent := 0, 0
	for _, tr.seed = range seeds {
		r := tr.start()
		r.finish(tb)
		took = append(took, r.took...)
		bytes, sent = bytes+r.bytes, sent+r.sent
		st := r.sides[0].Stats()
		f.sender.Repeated += st.Repeated
		f.sender.Retransmitted += st.Retransmitted
		f.sender.Lost += st.Lost
	}
	slices.Sort(took)
	late, _ := slices.BinarySearch(took, tr.delay+tr.jitter+tr.interval+ms)
	f.late = 1 - float64(late)/float64(len(took))
	f.p50, f.p99, f.max = took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
	f.perByte = float64(bytes) / float64(sent*tr.size)
	return f
}

func (tr trip) start() *tripRun {
	r := &tripRun{trip: tr, now: epoch, jitter: rand.New(rand.NewPCG(tr.seed, 2))}
	for i := range r.sides {
		cfg := reliable.Config{Server: tr.server == (i == 0), RTT: 2 * tr.delay}
		if i == 0 {
			cfg.Random = tr.random
		}
		r.sides[i] = reliable.New(epoch, cfg, nil)
		r.loses[i] = newLossy(tr.seed, uint64(i), tr.loss, tr.burst)
	}
	return r
}

// finish goes on until all messages that are measured arrived. Others follow them, so
// that no tail is in the figures.
func (r *tripRun) finish(tb testing.TB) {
	for len(r.took) < r.messages {
		if r.now.Sub(epoch) > time.Duration(r.messages)*r.interval+time.Minute {
			tb.Fatalf("%+v: %d messages arrived", r.trip, len(r.took))
		}
		if err := r.step(); err != nil {
			tb.Fatalf("%+v: %v", r.trip, err)
		}
	}
}

// dueAt is when message n is sent.
func (r *tripRun) dueAt(n int) time.Time { return epoch.Add(time.Duration(n) * r.interval) }

// step moves the clock to the next thing that happens and lets it happen.
func (r *tripRun) step() error {
	next := r.dueAt(r.sent)
	if len(r.events) > 0 && r.events[0].at.Before(next) {
		next = r.events[0].at
	}
	for _, m := range r.sides {
		if at := m.WakeAt(); !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	if next.After(r.now) {
		r.now = next
	}
	for len(r.events) > 0 && !r.events[0].at.After(r.now) {
		if err := r.arrive(heap.Pop(&r.events).(event)); err != nil {
			return err
		}
	}
	if !r.dueAt(r.sent).After(r.now) {
		msg := message(r.size)
		binary.BigEndian.PutUint32(msg[4:], uint32(r.sent))
		r.sent++
		if err := r.sides[0].Send(r.now, msg, reliable.Reliable); err != nil {
			return err
		}
	}
	for i, m := range r.sides {
		if at := m.WakeAt(); !at.IsZero() && !at.After(r.now) {
			if err := m.Tick(r.now); err != nil {
				return err
			}
		}
		r.flush(i)
	}
	return nil
}

// flush sends what a side has to send.
func (r *tripRun) flush(from int) {
	for {
		if r.sides[from].Skip(r.pn[from] + 1) {
			r.pn[from]++
		}
		b := r.sides[from].Append(r.now, r.pn[from]+1, nil, reliable.PacketMin)
		if len(b) == 0 {
			return
		}
		r.pn[from]++
		r.bytes += len(b) + wire.TagBytes
		if r.server == (from == 0) {
			r.bytes += wire.ServerHeaderBytes
		} else {
			r.bytes += wire.ClientHeaderBytes
		}
		if r.loses[from].loses() {
			continue
		}
		at := r.now.Add(r.delay)
		if r.trip.jitter > 0 {
			at = at.Add(time.Duration(r.jitter.Int64N(int64(r.trip.jitter))))
		}
		r.serial++
		heap.Push(&r.events, event{at: at, serial: r.serial, to: 1 - from, pn: r.pn[from], data: b})
	}
}

func (r *tripRun) arrive(e event) error {
	if err := r.sides[e.to].Receive(r.now, e.pn, e.data, &r.got); err != nil {
		return err
	}
	for _, d := range r.got.Messages {
		n := int(binary.BigEndian.Uint32(d.Message.Payload))
		if n != len(r.took) {
			return fmt.Errorf("message %d, want %d", n, len(r.took))
		}
		r.took = append(r.took, r.now.Sub(r.dueAt(n)))
	}
	r.flush(e.to)
	return nil
}

// deliveryLinks are the links a game's messages are measured on, and what is expected
// there: p99, the slowest message, and bytes on the wire for a byte of messages.
var deliveryLinks = []struct {
	name        string
	loss, burst float64
	server      bool // the server sends
	p99, max    time.Duration
	perByte     float64
}{
	{"loss=0/from=client", 0, 0, false, 25 * ms, 25 * ms, 1.6},
	{"loss=0/from=server", 0, 0, true, 25 * ms, 25 * ms, 1.55},
	{"loss=1/from=client", 0.01, 0, false, 42 * ms, 200 * ms, 2.65},
	{"loss=5/from=client", 0.05, 0, false, 42 * ms, 300 * ms, 3.0},
	{"loss=5/from=server", 0.05, 0, true, 42 * ms, 300 * ms, 3.0},
	{"loss=10/from=client", 0.10, 0, false, 60 * ms, 500 * ms, 3.5},
	{"loss=10/from=server", 0.10, 0, true, 60 * ms, 500 * ms, 3.5},
	{"loss=5/burst=3/from=client", 0.05, 3, false, 150 * ms, time.Second, 3.1},
}

// TestDelivery holds reliable game messages to what players notice. The seeds make it
// the same every time.
func TestDelivery(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for _, link := range deliveryLinks {
		t.Run(link.name, func(t *testing.T) {
			t.Parallel()
			f := gameTrip(link.loss, link.burst, link.server).run(t, seeds...)
			t.Logf("%+v", f)
			if f.p99 > link.p99 || f.max > link.max || f.perByte > link.perByte {
				t.Errorf("p99 %v, max %v, %.2f bytes for one; want at most %v, %v, %.2f",
					f.p99, f.max, f.perByte, link.p99, link.max, link.perByte)
			}
		})
	}
}

// BenchmarkDelivery reports how long reliable game messages take and what they cost.
// An iteration is one trip with a seed of its own.
func BenchmarkDelivery(b *testing.B) {
	for _, link := range deliveryLinks {
		b.Run(link.name, func(b *testing.B) {
			var seeds []uint64
			for range b.N {
				seeds = append(seeds, 100+uint64(len(seeds)))
			}
			f := gameTrip(link.loss, link.burst, link.server).run(b, seeds...)
			inMS := func(d time.Duration) float64 { return d.Seconds() * 1000 }
			b.ReportMetric(inMS(f.p50), "p50-ms")
			b.ReportMetric(inMS(f.p99), "p99-ms")
			b.ReportMetric(inMS(f.max), "max-ms")
			b.ReportMetric(100*f.late, "late-%")
			b.ReportMetric(f.perByte, "wire/app")
			b.ReportMetric(0, "ns/op")
		})
	}
}
