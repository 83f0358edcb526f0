package netbench

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

// stampBytes is what stamp writes: the number of the message and when it was sent.
const stampBytes = 16

func stamp(b []byte, number int, at time.Duration) {
	binary.BigEndian.PutUint64(b, uint64(number))
	binary.BigEndian.PutUint64(b[8:], uint64(at))
}

func readStamp(b []byte) (number int, at time.Duration) {
	return int(binary.BigEndian.Uint64(b)), time.Duration(binary.BigEndian.Uint64(b[8:]))
}

// recorder notes how long each of the messages from..to-1 took. It is safe for
// concurrent use.
type recorder struct {
	start    time.Time
	from, to int

	mu   sync.Mutex
	took []time.Duration // 0: not arrived
	open int             // how many are missing
	done chan struct{}   // closed when none is
}

func newRecorder(start time.Time, from, to int) *recorder {
	return &recorder{start: start, from: from, to: to, took: make([]time.Duration, to-from), open: to - from, done: make(chan struct{})}
}

// arrived takes a stamped message. A second copy is nothing.
func (r *recorder) arrived(b []byte) {
	now := time.Since(r.start)
	if len(b) < stampBytes {
		return
	}
	number, sent := readStamp(b)
	if number < r.from || number >= r.to {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.took[number-r.from] != 0 {
		return
	}
	r.took[number-r.from] = max(1, now-sent)
	if r.open--; r.open == 0 {
		close(r.done)
	}
}

// sorted returns how long the messages took that arrived, the quickest first.
func (r *recorder) sorted() []time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	took := slices.DeleteFunc(slices.Clone(r.took), func(d time.Duration) bool { return d == 0 })
	slices.Sort(took)
	return took
}

// quantile returns the value that a share q of sorted does not exceed, in milliseconds.
func quantile(sorted []time.Duration, q float64) float64 {
	i := int(q*float64(len(sorted))+0.999999) - 1
	return float64(sorted[min(max(i, 0), len(sorted)-1)]) / float64(time.Millisecond)
}

// meter measures a rate between the first and the last arrival of a span, so that
// it does not matter in how large pieces things arrive.
type meter struct {
	mu          sync.Mutex
	from        time.Time // zero: not yet
	first, last time.Time
	bytes       int64 // after first
}

// begin starts the span.
func (m *meter) begin(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.from = now
}

func (m *meter) arrived(b []byte) { m.add(time.Now(), len(b)) }

func (m *meter) add(now time.Time, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.from.IsZero() || now.Before(m.from):
	case m.first.IsZero():
		m.first, m.last = now, now
	default:
		m.last = now
		m.bytes += int64(n)
	}
}

// megabits is the rate in Mbit/s; zero when fewer than two things arrived.
func (m *meter) megabits() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	span := m.last.Sub(m.first).Seconds()
	if span <= 0 {
		return 0
	}
	return float64(m.bytes) * 8 / 1e6 / span
}
